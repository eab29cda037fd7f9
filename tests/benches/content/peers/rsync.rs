//! rsync: as a daemon, and over ssh with a server of our own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{Peer, Place, path_of};
use crate::content::networks::is_root;
use crate::content::processes::{self, Running};
use crate::sites::wait_until;

/// Where the daemon and the server of ssh listen, on the loopback of their network.
const RSYNC_PORT: u16 = 23_873;
const SSH_PORT: u16 = 23_822;

/// The cheapest of OpenSSH's ciphers where the processor has instructions for AES.
const CIPHER: &str = "aes128-gcm@openssh.com";

/// What is known of the other end's files.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Known {
    /// Nothing: whole files are sent, which the manual advises where the network is faster than the disk.
    Nothing,
    /// An earlier state: differences are sent, and files that have another name are looked for.
    Earlier,
}

impl Known {
    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Nothing => &["-a", "--whole-file"],
            Self::Earlier => &["-a", "--no-whole-file", "--fuzzy", "--delete-delay"],
        }
    }
}

/// A folder with a slash behind it: its contents are meant.
fn contents(folder: &Path) -> String {
    format!("{}/", folder.display())
}

/// rsync to a daemon, without encryption.
#[derive(Debug)]
pub(crate) struct Daemon<'a> {
    place: Place<'a>,
    known: Known,
    daemon: Running,
}

impl<'a> Daemon<'a> {
    pub(crate) fn start(place: Place<'a>, known: Known) -> Result<Self> {
        let program = path_of("rsync", "rsync")?;
        let config = place.folder.join("rsyncd.conf");
        let folder = place.folder.display();
        let owner = if is_root() { "uid = 0\ngid = 0\n" } else { "" };
        fs::write(
            &config,
            format!(
                "use chroot = no\n{owner}pid file = {folder}/rsyncd.pid\nmax verbosity = 0\n\
                 [files]\npath = {folder}\nread only = no\n"
            ),
        )?;
        // A daemon that was killed leaves its number, and the next one would not start.
        drop(fs::remove_file(place.folder.join("rsyncd.pid")));
        let mut command = place.command(program);
        command.args(["--daemon", "--no-detach", "--address=127.0.0.1"]);
        command.arg(format!("--port={RSYNC_PORT}")).arg(format!("--config={}", config.display()));
        command.arg(format!("--log-file={folder}/rsyncd.log"));
        let daemon = Running::start(command, &place.folder.join("rsyncd"))?;
        wait_until("the daemon of rsync answers", || {
            let mut ask = place.command("rsync");
            ask.arg(format!("rsync://127.0.0.1:{RSYNC_PORT}/"));
            Ok(ask.output()?.status.success())
        })?;
        Ok(Self { place, known, daemon })
    }
}

impl Peer for Daemon<'_> {
    fn name(&self) -> &'static str {
        "rsync"
    }

    fn servers(&self) -> Vec<u32> {
        vec![self.daemon.id()]
    }

    fn bring(&mut self, from: &Path, to: &Path, patience: Duration) -> Result<Duration> {
        let target =
            to.strip_prefix(self.place.folder).context("targets lie beside the configuration")?;
        let mut command = self.place.command("rsync");
        command.args(self.known.flags()).arg(contents(from));
        command.arg(format!("rsync://127.0.0.1:{RSYNC_PORT}/files/{}/", target.display()));
        let took = processes::run(command, &self.place.folder.join("rsync"), patience)?;
        processes::settle(self.daemon.id())?;
        Ok(took)
    }
}

/// rsync over ssh.
#[derive(Debug)]
pub(crate) struct Shell<'a> {
    place: Place<'a>,
    client: PathBuf,
    server: Running,
}

impl<'a> Shell<'a> {
    pub(crate) fn start(place: Place<'a>) -> Result<Self> {
        path_of("rsync", "rsync")?;
        let sshd = path_of("sshd", "openssh-server")?;
        let folder = place.folder.join("ssh");
        fs::create_dir_all(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        for key in ["host", "user"] {
            let mut command = Command::new("ssh-keygen");
            command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(folder.join(key));
            if !folder.join(key).exists() {
                processes::run(command, &folder.join("keygen"), super::PATIENCE)?;
            }
        }
        if is_root() {
            // As its service does it; without the folder it does not start.
            fs::create_dir_all("/run/sshd")?;
        }
        let at = folder.display();
        let server = folder.join("sshd_config");
        fs::write(
            &server,
            format!(
                "ListenAddress 127.0.0.1\nPort {SSH_PORT}\nHostKey {at}/host\nPidFile {at}/sshd.pid\n\
                 AuthorizedKeysFile {at}/user.pub\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n\
                 KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
            ),
        )?;
        let client = folder.join("ssh_config");
        let known = fs::read_to_string(folder.join("host.pub"))?;
        fs::write(folder.join("known_hosts"), format!("[127.0.0.1]:{SSH_PORT} {known}"))?;
        fs::write(
            &client,
            format!(
                "Host other\nHostName 127.0.0.1\nPort {SSH_PORT}\nIdentityFile {at}/user\nIdentitiesOnly yes\n\
                 UserKnownHostsFile {at}/known_hosts\nGlobalKnownHostsFile /dev/null\nBatchMode yes\n\
                 Ciphers {CIPHER}\nCompression no\n"
            ),
        )?;
        let mut command = place.command(sshd);
        command.args(["-D", "-e", "-f"]).arg(&server);
        let running = Running::start(command, &folder.join("sshd"))?;
        let shell = Self { place, client, server: running };
        let answers = wait_until("the server of ssh answers", || {
            let mut ask = shell.place.command("ssh");
            Ok(ask.arg("-F").arg(&shell.client).args(["other", "true"]).output()?.status.success())
        });
        answers.with_context(|| fs::read_to_string(folder.join("sshd.err")).unwrap_or_default())?;
        Ok(shell)
    }
}

impl Peer for Shell<'_> {
    fn name(&self) -> &'static str {
        "rsync-ssh"
    }

    fn servers(&self) -> Vec<u32> {
        vec![self.server.id()]
    }

    fn bring(&mut self, from: &Path, to: &Path, patience: Duration) -> Result<Duration> {
        let shell = format!("ssh -F {}", self.client.display());
        ensure!(!shell.contains(['\'', '"']), "our folders have plain names");
        let mut command = self.place.command("rsync");
        command.args(Known::Nothing.flags()).args(["-e", &shell]).arg(contents(from));
        command.arg(format!("other:{}/", to.display()));
        let took = processes::run(command, &self.place.folder.join("rsync-ssh"), patience)?;
        processes::settle(self.server.id())?;
        Ok(took)
    }
}
