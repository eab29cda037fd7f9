//! A jail of ours to measure, and the other sandboxes that it is compared with, around the same command.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use meshfarm_sandbox::{Access, KeptRoots, Level, Mount, Spec, launch};

/// Where the job's files are seen, by all sandboxes alike.
pub(crate) const SHOW: &str = "/home/artist/show";

/// POV-Ray's own rules for files, as our jail has them: its barrier is what is measured, and the same is fair for others.
const POVRAY_RULES: &str = "[File I/O Security]\nnone\n\n[Shellout Security]\nforbidden\n";

/// Where POV-Ray reads them.
const POVRAY_RULES_AT: &str = "/etc/povray/3.7/povray.conf";

/// One job's folders on the host.
#[derive(Debug)]
pub(crate) struct Room {
    folder: tempfile::TempDir,
    programs: PathBuf,
}

impl Room {
    pub(crate) fn new() -> Result<Self> {
        let programs = std::env::var_os("MESHFARM_PROGRAMS").context("MESHFARM_PROGRAMS")?;
        let folder = tempfile::tempdir()?;
        for name in ["work", "show", "show/out", "base", "roots"] {
            fs::create_dir(folder.path().join(name))?;
        }
        fs::write(folder.path().join("povray.conf"), POVRAY_RULES)?;
        Ok(Self { folder, programs: programs.into() })
    }

    /// The host folder that is seen at [`SHOW`].
    pub(crate) fn show(&self) -> PathBuf {
        self.folder.path().join("show")
    }

    /// The folder for outputs is ours again, which the last jail's user may own, and nothing of a rendering is left in it:
    /// others without capabilities could not write there.
    pub(crate) fn take_back(&self) -> Result<()> {
        let (us, out) = (fs::metadata(self.folder.path())?, self.show().join("out"));
        chown(&out, Some(us.uid()), Some(us.gid()))?;
        for entry in fs::read_dir(out)? {
            fs::remove_file(entry?.path())?;
        }
        Ok(())
    }

    /// Folders that jails leave here when they are gone.
    pub(crate) fn left(&self) -> Result<usize> {
        Ok(fs::read_dir(self.folder.path().join("base"))?.count())
    }

    pub(crate) fn launcher(&self) -> PathBuf {
        self.programs.join("meshfarm-sandbox")
    }

    /// A policy for a program, as a session of the node has it: what it reads cannot be written to, what it makes has a
    /// folder.
    pub(crate) fn spec(&self, program: &str, args: &[&str], level: Level) -> Spec {
        let mut spec = Spec::new(program, self.folder.path().join("work"));
        spec.args = args.iter().map(|arg| (*arg).to_owned()).collect();
        spec.base = Some(self.folder.path().join("base"));
        let (folder, owner) = (self.folder.path().join("roots"), "bench".to_owned());
        spec.roots = Some(KeptRoots { folder, owner });
        spec.floor = level;
        let mount = |host, at: &str, access| Mount { host, at: at.into(), access, exec: false };
        let (out, out_at) = (self.show().join("out"), format!("{SHOW}/out"));
        let (show, out) =
            (mount(self.show(), SHOW, Access::Read), mount(out, &out_at, Access::Write));
        spec.mounts = vec![show, out];
        let preload = self.programs.join("libmeshfarm_preload.so");
        spec.preload = preload.exists().then_some(preload);
        spec
    }

    /// Run a program in a jail until nothing of it is left: what it took and what it printed.
    pub(crate) fn jailed(&self, spec: &Spec) -> Result<(Took, String)> {
        let began = Took::begin()?;
        let mut jail = launch(&self.launcher(), spec)?;
        let mut said = String::new();
        if let Some(mut stdout) = jail.stdout.take() {
            io::Read::read_to_string(&mut stdout, &mut said)?;
        }
        let exit = jail.wait()?;
        let took = began.end()?;
        ensure!(exit.success(), "{exit:?}: {said}");
        Ok((took, said))
    }

    /// The same in bubblewrap, with as many namespaces and the same folders; none when it is not installed.
    pub(crate) fn bubblewrap(&self) -> Option<Command> {
        let mut command = Command::new(installed("bwrap")?);
        command.args(["--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]);
        command.args(["--ro-bind", "/usr", "/usr", "--ro-bind", "/etc", "/etc"]);
        for link in ["bin", "sbin", "lib", "lib64"] {
            command.args(["--symlink", &format!("usr/{link}"), &format!("/{link}")]);
        }
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp"]);
        command.arg("--bind").arg(self.show()).arg(SHOW).args(["--chdir", SHOW]);
        if Path::new(POVRAY_RULES_AT).exists() {
            command.arg("--ro-bind").arg(self.folder.path().join("povray.conf"));
            command.arg(POVRAY_RULES_AT);
        }
        Some(command)
    }

    /// The same in proot; none when it is not installed.
    pub(crate) fn proot(&self) -> Option<Command> {
        let mut command = Command::new(installed("proot")?);
        command.arg("-b").arg(format!("{}:{SHOW}", self.show().display())).args(["-w", SHOW]);
        let rules = self.folder.path().join("povray.conf");
        command.arg("-b").arg(format!("{}:{POVRAY_RULES_AT}", rules.display()));
        Some(command)
    }
}

fn installed(name: &str) -> Option<PathBuf> {
    ["/usr/bin", "/usr/local/bin"].iter().map(|f| Path::new(f).join(name)).find(|p| p.exists())
}

/// What something took, in seconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Took {
    /// By the clock.
    pub(crate) wall: f64,
    /// Of processors, by all its processes, the launcher's among them: it hardly depends on what else the machine does.
    pub(crate) cpu: f64,
}

impl Took {
    /// The beginning of something that runs in child processes of this one.
    pub(crate) fn begin() -> Result<Began> {
        Ok(Began { at: Instant::now(), cpu: processors()? })
    }
}

/// When something began.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Began {
    at: Instant,
    cpu: f64,
}

impl Began {
    /// What it took, when its processes are waited for.
    pub(crate) fn end(self) -> Result<Took> {
        let wall = self.at.elapsed().as_secs_f64();
        Ok(Took { wall, cpu: processors()? - self.cpu })
    }
}

/// Processor seconds of all children that were waited for, and of theirs. The kernel counts their sum to the microsecond.
fn processors() -> Result<f64> {
    let mut used = std::mem::MaybeUninit::<libc::rusage>::uninit();
    #[expect(unsafe_code, reason = "the standard library has no such call")]
    // SAFETY: the kernel fills the whole struct that the pointer names, or says that it did not.
    let said = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, used.as_mut_ptr()) };
    ensure!(said == 0, "getrusage: {}", io::Error::last_os_error());
    #[expect(unsafe_code, reason = "as above")]
    // SAFETY: the call above succeeded.
    let used = unsafe { used.assume_init() };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(seconds(used.ru_utime) + seconds(used.ru_stime))
}

/// Run a command to its end: what it took and what it printed.
pub(crate) fn timed(command: &mut Command) -> Result<(Took, String)> {
    let began = Took::begin()?;
    let done = command.stdin(Stdio::null()).output()?;
    let took = began.end()?;
    let said = String::from_utf8_lossy(&done.stdout).into_owned();
    ensure!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok((took, said))
}
