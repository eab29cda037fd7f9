//! The weaker levels, for a site's own jobs where the machine gives no namespaces: the job runs among the host's files.
//!
//! S1 restricts paths (Landlock), system calls and resources; S0 only limits and relocates. The artist's paths are
//! the preload library's work here. Two jobs of one user are not kept apart: a lender never gives this to others.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, PipeReader, PipeWriter, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    Access, Level, Mechanism, Relocation, SandboxError, Step,
    command_line::{CommandLine, exec_form},
    control::{Note, note, note_refusal},
    gpu,
    landlock::{self, Rights, Rule},
    layout::{DEVICES, SYSTEM},
    limits, pinned,
    report::During,
    root::{base_of, fresh_folder},
    seccomp::Filters,
    spec::{OWN_AT, Spec, WORK_AT},
    sys::{self, Forked},
    table,
    way::{Identity, Way},
};

/// How often the first process looks whether its launcher still lives.
const RHYTHM_MS: i32 = 50;
/// How long what is left of a job may take to die.
const LAST: Duration = Duration::from_secs(5);
/// The name of the notes of the preload library in the session's folder.
const RECORDS: &str = ".meshfarm-paths";

/// What lies on the host for a job without a root of its own. Dropping it removes the folder.
#[derive(Debug)]
pub(crate) struct Bare {
    pub(crate) folder: PathBuf,
    rules: Vec<Rule>,
    env: BTreeMap<String, String>,
    pub(crate) ambiguous: Vec<[PathBuf; 2]>,
}

impl Bare {
    /// Make the folder and the paths' table.
    ///
    /// # Errors
    /// [`Step::Level`] when the policy needs what only namespaces give, [`Step::Skeleton`] or [`Step::Table`].
    pub(crate) fn make(spec: &Spec, owner: Option<u32>) -> Result<Self, SandboxError> {
        if !spec.services.is_empty() {
            let text = "services need a network of the job's own, which this machine does not give";
            return Err(SandboxError::new(Step::Level, "", io::Error::other(text)));
        }
        if spec.preload.is_none() && !spec.mounts.is_empty() {
            let text = "without namespaces only libmeshfarm_preload.so finds the artist's paths: install it beside meshfarm";
            return Err(SandboxError::new(Step::Level, "", io::Error::other(text)));
        }
        let base = base_of(spec);
        let folder = fresh_folder(&base).during(Step::Skeleton, base.display())?;
        let (rules, env, ambiguous) = (Vec::new(), spec.environment(), Vec::new());
        let mut bare = Self { folder, rules, env, ambiguous };
        for name in ["tmp", "home"] {
            let made = bare.folder.join(name);
            let given = fs::create_dir(&made).and_then(|()| {
                owner.map_or(Ok(()), |uid| std::os::unix::fs::chown(&made, Some(uid), Some(uid)))
            });
            given.during(Step::Skeleton, name)?;
        }
        bare.allow(spec);
        bare.relocate(spec)?;
        Ok(bare)
    }

    fn allow(&mut self, spec: &Spec) {
        let mut add = |path: &Path, rights| {
            // What a machine does not have needs no rule, and a link is where it points to.
            if path.exists() {
                self.rules.push(Rule { path: path.into(), rights });
            }
        };
        let below_root = |name: &&str| Path::new("/").join(name);
        SYSTEM.iter().map(below_root).for_each(|path| add(&path, Rights::RUN));
        ["etc", "proc", "var/cache/fontconfig"]
            .iter()
            .map(below_root)
            .for_each(|path| add(&path, Rights::READ));
        for device in DEVICES {
            add(&Path::new("/dev").join(device), Rights::WRITE);
        }
        add(Path::new("/dev/shm"), Rights::SCRATCH);
        for device in gpu::with_drivers(&spec.devices, Path::new("/")) {
            add(&device, Rights::DEVICE);
        }
        if !spec.devices.is_empty() {
            for folder in gpu::Seen::of(&spec.devices, Path::new("/")).folders {
                add(&Path::new("/").join(folder), Rights::READ);
            }
        }
        for program in spec.software.iter().chain([&spec.program]).chain(&spec.preload) {
            add(program, Rights::RUN);
        }
        add(&self.folder, Rights::READ);
        for name in ["tmp", "home"] {
            add(&self.folder.join(name), Rights::SCRATCH);
        }
        add(&spec.work, Rights { exec: spec.job_exec, ..Rights::SCRATCH });
        for mount in &spec.mounts {
            let rights = match mount.access {
                Access::Read => Rights::READ,
                Access::Write => Rights::WRITE,
            };
            add(&mount.host, Rights { exec: mount.exec, ..rights });
        }
    }

    fn relocate(&mut self, spec: &Spec) -> Result<(), SandboxError> {
        let Some(library) = &spec.preload else {
            return Ok(());
        };
        let own = |at: &str, host: PathBuf| (PathBuf::from(at), host);
        let mut pairs = vec![
            own(WORK_AT, spec.work.clone()),
            own(OWN_AT, self.folder.clone()),
            own("/tmp", self.folder.join("tmp")),
            own("/home/render", self.folder.join("home")),
        ];
        pairs.extend(spec.mounts.iter().map(|m| (m.at.clone(), m.host.clone())));
        // A folder whose host path lies beneath a relocated one would be relocated twice.
        pairs.retain(|(at, host)| at != host);
        let relocation = Relocation {
            pairs,
            reverse: true,
            watched: spec.mounts.iter().map(|m| m.at.clone()).collect(),
            records: Some(spec.work.join(RECORDS)),
        };
        let built = table::build_bare(spec, &relocation).during(Step::Table, "")?;
        self.ambiguous = built.ambiguous;
        let table = self.folder.join("map.bin");
        fs::write(&table, built.bytes).during(Step::Table, table.display())?;
        self.env.insert("MESHFARM_PATHS".to_owned(), table.display().to_string());
        self.env.insert("LD_PRELOAD".to_owned(), library.display().to_string());
        Ok(())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // The node sweeps its folder at the next start, so what stays behind is only untidy.
        drop(fs::remove_dir_all(&self.folder));
    }
}

/// What the two processes need from the launcher.
pub(crate) struct Task<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) bare: &'a Bare,
    pub(crate) filters: &'a Filters,
    pub(crate) way: Way,
    pub(crate) stdin: &'a OwnedFd,
}

/// The first process: starts the program, and ends all that descends from it when it or the launcher ends.
pub(crate) fn first_process(
    task: &Task<'_>,
    go: PipeReader,
    notes: PipeWriter,
    mut result: PipeWriter,
) -> ! {
    let prepared = sys::new_session()
        .and_then(|()| sys::adopt_orphans())
        .and_then(|()| sys::be_readable(false))
        .during(Step::Identity, "");
    sys::reset_signals();
    let forked = prepared.and_then(|()| sys::fork_into(0).during(Step::Exec, "fork"));
    match forked {
        Ok(Forked::Child) => {
            drop((go, result));
            let error = become_program(task, &notes);
            note_refusal(&notes, error);
            sys::exit_now(127)
        }
        Ok(Forked::Parent { pid, .. }) => {
            drop(notes);
            if let Some(status) = await_end(pid, &go) {
                drop(result.write_all(&status.to_le_bytes()));
            }
            end_family();
            sys::exit_now(0)
        }
        Err(error) => {
            note_refusal(&notes, error);
            sys::exit_now(1)
        }
    }
}

/// Wait for the program, as long as the launcher lives; its raw status.
fn await_end(pid: i32, go: &PipeReader) -> Option<i32> {
    loop {
        while let Ok(Some((ended, status))) = sys::wait_now() {
            if ended == pid {
                return Some(status);
            }
        }
        // The launcher writes one byte at the start; its end closes the pipe, and so does an order to end.
        match sys::wait_hung_up(go.as_fd(), RHYTHM_MS) {
            Ok(false) => {}
            Ok(true) | Err(_) => return None,
        }
    }
}

/// Kill every descendant. Without a process namespace this is a race, which a job that forks for ever may draw out.
pub(crate) fn end_family() {
    let deadline = Instant::now() + LAST;
    while Instant::now() < deadline {
        let children = fs::read_to_string("/proc/self/task/self/children").or_else(|_| {
            fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id()))
        });
        for pid in children.unwrap_or_default().split_whitespace().filter_map(|n| n.parse().ok()) {
            sys::kill(pid);
        }
        match sys::wait_now() {
            Ok(Some(_)) => {}
            Ok(None) => sys::pause_ms(1),
            // No child is left.
            Err(_) => return,
        }
    }
}

fn become_program(task: &Task<'_>, notes: &PipeWriter) -> SandboxError {
    match seal(task, notes) {
        Ok((program, args, env)) => SandboxError::new(
            Step::Exec,
            task.spec.program.display(),
            sys::exec(&program, &args, &env),
        ),
        Err(error) => error,
    }
}

fn seal(task: &Task<'_>, notes: &PipeWriter) -> Result<CommandLine, SandboxError> {
    let (spec, bare) = (task.spec, task.bare);
    let command =
        exec_form(&spec.program, &spec.args, &bare.env).during(Step::Exec, "arguments")?;
    pinned::check(&spec.pinned)?;
    sys::umask(0o022);
    limits::apply(&spec.limits)?;
    sys::put_at(task.stdin.as_fd(), 0).during(Step::Exec, "standard input")?;
    std::env::set_current_dir(&spec.work).during(Step::Exec, spec.work.display())?;
    if let Identity::Plain(uid) = task.way.identity {
        sys::lock_capabilities().during(Step::Capabilities, "")?;
        sys::become_user(uid, uid).during(Step::Identity, "")?;
    }
    sys::empty_capabilities().during(Step::Capabilities, "")?;
    sys::close_on_exec_from(3).during(Step::Exec, "descriptors")?;
    sys::no_new_privs().during(Step::NoNewPrivs, "")?;
    let held = |name: &str, evidence: &str| {
        note(notes, &Note::Mechanism(Mechanism::held(name, evidence)));
    };
    held("no capabilities", "empty, and no new privileges to gain any");
    held("no new privileges", "set");
    if task.way.level >= Level::S1 {
        let evidence = landlock::restrict(&bare.rules, &[]).during(Step::Landlock, "")?;
        held("landlock", &evidence);
        task.filters.install().during(Step::Seccomp, "")?;
        held("seccomp", &task.filters.evidence());
    }
    note(notes, &Note::Sealed);
    Ok(command)
}

/// What is not in force at these levels, in the words of the report.
pub(crate) fn missing(level: Level) -> Vec<Mechanism> {
    let better = "allow user namespaces (meshfarm doctor says how), or start the node as root";
    let mut all = vec![
        Mechanism::missing(
            "mnt namespace",
            "none: what other tenants of this user have can be looked at, and its times and modes changed",
            better,
        ),
        Mechanism::missing(
            "pid namespace",
            "none: a process that hides from the launcher may outlive the job",
            better,
        ),
        Mechanism::missing(
            "net namespace",
            "none: seccomp alone keeps the job from the network",
            better,
        ),
        Mechanism::missing(
            "ipc namespace",
            "none: shared memory of this user can be reached by name",
            better,
        ),
        Mechanism::missing("process list", "the host's own", better),
    ];
    if level < Level::S1 {
        let text = "none: the job may do whatever the user may who runs the node";
        all.push(Mechanism::missing("landlock", text, "use Linux 6.2 or later with Landlock"));
        all.push(Mechanism::missing("seccomp", text, "use a kernel with seccomp filters"));
    }
    all
}
