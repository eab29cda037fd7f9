//! The node's side: start the launcher, hold the jail, end it, learn what it used.

use std::{
    env, fs,
    fs::File,
    io,
    io::{PipeReader, PipeWriter},
    net::Shutdown,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStderr, ChildStdout, Command, Stdio},
};

use crate::{
    Exit, Report, SandboxError, Step, cgroup,
    control::{self, Said},
    layout::{self, Writable},
    report::During,
    spec::Spec,
    sys, turns,
};

/// A running jail. Dropping it kills everything in it.
///
/// The three streams are the program's own; take the ones that you use. A stream that nobody reads
/// fills up and stops the job.
#[derive(Debug)]
pub struct Jail {
    /// What the program reads. Drop it to let the program see the end of its input.
    pub stdin: Option<PipeWriter>,
    /// What the program writes.
    pub stdout: Option<ChildStdout>,
    /// Where the program complains.
    pub stderr: Option<ChildStderr>,
    /// What is in force around the program, with evidence.
    pub report: Report,
    exit: Option<Exit>,
    volume: Option<OwnedFd>,
    writable: Vec<Writable>,
    ready: Ready,
}

/// Start a program in a jail of its own. Blocks for some milliseconds, until the program runs.
///
/// # Errors
/// The step that was refused; then nothing of the job has run and nothing is left behind.
pub fn launch(launcher: &Path, spec: &Spec) -> Result<Jail, SandboxError> {
    spec.check()?;
    // Whoever is through has its jail; the rest of the start is not waited for by others.
    let _turn = turns::take();
    Ready::start(launcher)?.launch(spec)
}

/// A launcher process that has no policy yet. Dropped, it ends.
#[derive(Debug)]
struct Ready {
    process: Child,
    control: UnixStream,
    group: Group,
}

/// The folders of a jail's control group, removed when this is dropped, which is when the jail is gone.
#[derive(Debug, Default)]
struct Group(Vec<PathBuf>);

impl Drop for Group {
    fn drop(&mut self) {
        cgroup::remove(&self.0);
    }
}

impl Ready {
    fn start(launcher: &Path) -> Result<Self, SandboxError> {
        let (control, theirs) = UnixStream::pair().during(Step::Launcher, "socket")?;
        let mut command = Command::new(launcher);
        command
            .env_clear()
            .current_dir("/")
            // Ctrl-C is for us to hear: a launcher that dies of it leaves its folders, and nobody learns how the job
            // ended.
            .process_group(0)
            .stdin(OwnedFd::from(theirs))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(folder) = env::var_os("TMPDIR") {
            command.env("TMPDIR", folder);
        }
        let process = command.spawn().during(Step::Launcher, launcher.display())?;
        Ok(Self { process, control, group: Group::default() })
    }

    fn launch(mut self, spec: &Spec) -> Result<Jail, SandboxError> {
        let (stdin_rx, stdin_tx) = io::pipe().during(Step::Launcher, "pipe")?;
        let report = self.begin(spec, stdin_rx)?;
        let (stdout, stderr) = (self.process.stdout.take(), self.process.stderr.take());
        let writable = layout::writable(spec);
        let (exit, volume) = (None, None);
        let ready = self;
        Ok(Jail { stdin: Some(stdin_tx), stdout, stderr, report, exit, volume, writable, ready })
    }

    fn begin(&mut self, spec: &Spec, stdin: PipeReader) -> Result<Report, SandboxError> {
        let sent = control::send_with(&self.control, spec, Some(stdin.as_fd()));
        sent.during(Step::Launcher, "policy")?;
        drop(stdin);
        let hear = || {
            control::receive_with(&self.control).during(Step::Launcher, "answer").map(|said| said.0)
        };
        let mut said = hear()?;
        if let Said::Group(folders) = said {
            self.group = Group(folders);
            said = hear()?;
        }
        match said {
            Said::Started(report) if report.level >= spec.floor => Ok(report),
            Said::Started(report) => {
                let text = format!("{} is reached and {} is asked for", report.level, spec.floor);
                Err(SandboxError::new(Step::Level, "", io::Error::other(text)))
            }
            Said::Refused(refusal) => Err(refusal.into()),
            Said::Group(_) | Said::Ended(_) => Err(silent()),
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // Hung up, the launcher ends by itself, and with it all that it started; waiting only collects it.
        drop(self.control.shutdown(Shutdown::Both));
        drop(self.process.wait());
    }
}

impl Jail {
    /// Wait until the program has ended and nothing of its jail is left.
    ///
    /// # Errors
    /// [`Step::Launcher`] when the launcher itself was killed. The kernel has then killed the jail too,
    /// but nobody can say when its last process went or what it used.
    pub fn wait(&mut self) -> Result<Exit, SandboxError> {
        if let Some(exit) = self.exit {
            return Ok(exit);
        }
        let said = control::receive_with(&self.ready.control);
        // The launcher's last word is said; it only ends.
        drop(self.ready.process.wait());
        drop(std::mem::take(&mut self.ready.group));
        let (said, volume) = said.during(Step::Launcher, "the launcher is gone")?;
        match said {
            Said::Ended(exit) => {
                self.exit = Some(exit);
                self.volume = volume;
                Ok(exit)
            }
            Said::Refused(refusal) => Err(refusal.into()),
            Said::Group(_) | Said::Started(_) => Err(silent()),
        }
    }

    /// Kill everything in the jail; returns when nothing of it is left. After the end it changes nothing.
    ///
    /// # Errors
    /// As [`Jail::wait`].
    pub fn kill(&mut self) -> Result<Exit, SandboxError> {
        self.hang_up();
        self.wait()
    }

    /// The folder behind a writable place of the jail, opened, for collecting when the jail is dead: a mount's path
    /// or [`crate::WORK_AT`]. It stays readable as long as the descriptor is open.
    ///
    /// # Errors
    /// [`Step::Source`]: no writable place of that path, or it cannot be opened.
    pub fn written(&self, at: &Path) -> Result<OwnedFd, SandboxError> {
        let place = self.writable.iter().find(|place| place.at == at);
        let opened = place.ok_or_else(|| io::ErrorKind::NotFound.into()).and_then(|place| {
            match &self.volume {
                Some(volume) => {
                    let name = sys::c_path(Path::new(&place.name))?;
                    sys::open_below(volume.as_fd(), &name, sys::FOLDER, sys::RESOLVE_CONFINED)
                }
                None => File::open(&place.host).map(OwnedFd::from),
            }
        });
        opened.during(Step::Source, at.display())
    }

    /// The process number of the launcher, which stands for the jail in lists of processes.
    #[must_use]
    pub fn launcher_id(&self) -> u32 {
        self.ready.process.id()
    }

    /// Something to hand to another thread that must be able to end this jail while one waits for it.
    ///
    /// # Errors
    /// [`Step::Launcher`] when the process has no descriptor left.
    pub fn killer(&self) -> Result<Killer, SandboxError> {
        self.ready.control.try_clone().map(Killer).during(Step::Launcher, "socket")
    }

    fn hang_up(&self) {
        // Refused only when the launcher is gone already, and then so is the jail.
        drop(self.ready.control.shutdown(Shutdown::Write));
    }
}

/// Ends a jail from another thread than the one that waits for it.
#[derive(Debug)]
pub struct Killer(UnixStream);

impl Killer {
    /// Ask for the end of everything in the jail; [`Jail::wait`] returns when nothing of it is left.
    pub fn kill(&self) {
        // Refused only when the launcher is gone already, and then so is the jail.
        drop(self.0.shutdown(Shutdown::Write));
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        if self.exit.is_none() {
            drop(self.kill());
        }
    }
}

fn silent() -> SandboxError {
    SandboxError::new(Step::Launcher, "", io::Error::other("the launcher spoke out of turn"))
}

/// Where the programs of this installation are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The launcher, `meshfarm-sandbox`. Overridden by `MESHFARM_SANDBOX`.
    pub launcher: PathBuf,
    /// The session runner, `meshfarm-session`. Overridden by `MESHFARM_SESSION`.
    pub session: PathBuf,
    /// The preload library, if it is installed. Overridden by `MESHFARM_PRELOAD`.
    pub preload: Option<PathBuf>,
}

/// Look for the launcher, the session runner and the preload library: in the environment, beside the
/// running program, and in `../lib/meshfarm`.
///
/// # Errors
/// [`Step::Launcher`] with the name of the program that is nowhere.
pub fn find_programs() -> Result<Programs, SandboxError> {
    Ok(Programs {
        launcher: find_launcher()?,
        session: need("MESHFARM_SESSION", "meshfarm-session")?,
        preload: find_preload(),
    })
}

/// Look for the launcher alone.
///
/// # Errors
/// As [`find_programs`].
pub fn find_launcher() -> Result<PathBuf, SandboxError> {
    need("MESHFARM_SANDBOX", "meshfarm-sandbox")
}

/// Look for the preload library alone.
pub(crate) fn find_preload() -> Option<PathBuf> {
    find("MESHFARM_PRELOAD", "libmeshfarm_preload.so")
}

fn need(variable: &str, name: &str) -> Result<PathBuf, SandboxError> {
    find(variable, name).ok_or_else(|| {
        let text = format!("not beside this program, and {variable} is not set");
        SandboxError::new(Step::Launcher, name, io::Error::new(io::ErrorKind::NotFound, text))
    })
}

fn find(variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Some(PathBuf::from(path));
    }
    let beside = env::current_exe().ok()?;
    let beside = beside.parent()?;
    // The last one is where cargo puts the library of this repository.
    let folders = [beside.to_path_buf(), beside.join("../lib/meshfarm"), beside.join("../preload")];
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())?;
    fs::canonicalize(found).ok()
}
