//! The launcher program: applies the barriers in order, starts the job's one program, and ends everything.
//!
//! Three processes: the launcher outside (this program, trusted), the first process of the jail (a copy
//! of it, which reaps), and the job's program. If any of them, or the node, dies, all of the jail dies:
//! the node's end shows as a closed socket, the launcher's as a death signal, the first process's end
//! makes the kernel kill its whole process namespace.

use std::{
    fs,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write},
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
    sync::Arc,
};

use crate::{
    Level, Mechanism, Report, SandboxError, Step, Stopped,
    bare::{self, Bare},
    cgroup::Cgroup,
    control::{self, Note, Said},
    exit::{Exit, Usage},
    gpu, inside, landlock,
    layout::{Layout, writable},
    namespaces,
    report::During,
    resources::{self, Resources},
    root::Root,
    seccomp::{Filters, Wants},
    services,
    spec::{Spec, TENANT_UID_BASE},
    sys::{self, Forked},
    volume::Volume,
    watchdog::{self, Watchdog},
    way::{INSIDE_UID, Identity, Way},
};

pub use crate::way::Without;

/// A jail that stands. Its disk and root go when it is gone, in this order.
struct Standing {
    /// Its first process, by number and descriptor, and where that one tells how the program ended.
    jail: (i32, OwnedFd, PipeReader),
    report: Report,
    watchdog: Watchdog,
    services: Arc<services::Meter>,
    cgroup: Rc<Result<Cgroup, String>>,
    volume: Option<Volume>,
    /// Open, it tells the first process that we live.
    alive: Option<PipeWriter>,
    place: Place,
}

/// What the job has on the host while it runs, removed in the end.
enum Place {
    Jail(
        Layout,
        #[expect(dead_code, reason = "removed, or no longer in use, when it is dropped")] Root,
    ),
    Bare(Bare),
}

impl Place {
    fn ambiguous(&self) -> &[[PathBuf; 2]] {
        match self {
            Self::Jail(layout, _) => &layout.ambiguous,
            Self::Bare(bare) => &bare.ambiguous,
        }
    }
}

impl Standing {
    /// Bring about the end of everything; that something is dead already is as good.
    fn end(&mut self) {
        match self.place {
            // The kernel kills all of its namespace.
            Place::Jail(..) => drop(sys::signal(self.jail.1.as_fd(), sys::SIGKILL)),
            // It kills what descends from it.
            Place::Bare(_) => drop(self.alive.take()),
        }
    }

    fn group(&self) -> Option<&Cgroup> {
        self.cgroup.as_ref().as_ref().ok()
    }
}

/// Run the launcher: policy in on standard input, one jail, its end reported on the same socket.
#[must_use]
pub fn run() -> ExitCode {
    run_without(Without::default())
}

/// As [`run`], with layers left out: for the controls of the attack tests, and for nothing else.
#[must_use]
pub fn run_without(without: Without) -> ExitCode {
    let Ok(socket) = io::stdin().as_fd().try_clone_to_owned().map(UnixStream::from) else {
        return ExitCode::FAILURE;
    };
    sys::umask(0o022);
    let received = control::receive_with::<Spec>(&socket).during(Step::Policy, "");
    let stood = received.and_then(|(spec, stdin)| {
        let missing = || SandboxError::new(Step::Policy, "", io::ErrorKind::UnexpectedEof.into());
        spec.check()?;
        let group = resources::group(&spec, without);
        let folders = group.as_ref().map(Cgroup::folders).unwrap_or_default();
        // A node that is gone is noticed below, by the hung-up socket.
        drop(control::send_with(&socket, &Said::Group(folders), None));
        let group = group.and_then(|group| group.hold_to(&spec.limits).map(|()| group));
        stand(&spec, without, stdin.ok_or_else(missing)?, Rc::new(group))
    });
    let mut volume = None;
    let said = match stood {
        Ok(standing) => {
            let started = Said::Started(standing.report.clone());
            drop(control::send_with(&socket, &started, None));
            watch(&socket, standing, &mut volume)
                .map_or_else(|e| Said::Refused(e.into()), Said::Ended)
        }
        Err(e) => Said::Refused(e.into()),
    };
    match control::send_with(&socket, &said, volume.as_ref().map(AsFd::as_fd)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Try the strongest way first, and the next one only when the machine refuses exactly what differs.
fn stand(
    spec: &Spec,
    without: Without,
    stdin: OwnedFd,
    cgroup: Rc<Result<Cgroup, String>>,
) -> Result<Standing, SandboxError> {
    let compiled = Filters::compile(Wants {
        profile: spec.profile,
        services: !spec.services.is_empty(),
        job_exec: spec.job_exec,
    });
    let filters = compiled.during(Step::Seccomp, "")?;
    let identity = identity_of(spec);
    let mut way = Way { identity, with_proc: true, level: Level::S2, without };
    if without.namespaces {
        let level = if without.landlock { Level::S0 } else { Level::S1 };
        way = Way { level, identity: bare_identity(spec)?, ..way };
    }
    loop {
        let tried = if way.level >= Level::S2 {
            attempt(spec, &filters, way, &stdin, Rc::clone(&cgroup))
        } else {
            attempt_bare(spec, &filters, way, &stdin, Rc::clone(&cgroup))
        };
        let error = match tried {
            Ok(standing) => return Ok(standing),
            Err(error) => error,
        };
        way = weaker(spec, way, &error).ok_or(error)??;
    }
}

/// The next weaker way that the policy accepts, when the machine refuses exactly what differs; none when there is none.
fn weaker(spec: &Spec, way: Way, error: &SandboxError) -> Option<Result<Way, SandboxError>> {
    let walls = matches!(
        error.step,
        Step::Namespaces
            | Step::UserMap
            | Step::Identity
            | Step::Mount
            | Step::Proc
            | Step::PivotRoot
    );
    match (way.level, way.identity) {
        (Level::S2, Identity::Tenant(uid))
            if matches!(error.step, Step::Namespaces | Step::UserMap | Step::Proc) =>
        {
            Some(Ok(Way { identity: Identity::Plain(uid), ..way }))
        }
        // Where a container hides parts of its process list, the kernel gives no fresh one.
        (Level::S2, Identity::Myself) if way.with_proc && error.step == Step::Proc => {
            Some(Ok(Way { with_proc: false, ..way }))
        }
        (Level::S2, _) if walls && spec.floor <= Level::S1 => {
            let identity = bare_identity(spec);
            Some(identity.map(|identity| Way { identity, level: Level::S1, ..way }))
        }
        // Only a kernel without it: a rule that cannot be made is no reason to have none.
        (Level::S1, _) if sys::landlock_version() < landlock::OLDEST && spec.floor == Level::S0 => {
            Some(Ok(Way { level: Level::S0, ..way }))
        }
        _ => None,
    }
}

/// Who the job will be without namespaces: never root.
fn bare_identity(spec: &Spec) -> Result<Identity, SandboxError> {
    let uid = spec.tenant_uid.unwrap_or(TENANT_UID_BASE);
    if sys::effective_uid() != 0 {
        Ok(Identity::Myself)
    } else if is_mapped(uid) {
        Ok(Identity::Plain(uid))
    } else {
        let text = "there are no namespaces here, and no other user than root to run the job as";
        Err(SandboxError::new(Step::Identity, "", io::Error::other(text)))
    }
}

/// Who the job will be: a user of its own if we may give it one.
fn identity_of(spec: &Spec) -> Identity {
    let uid = spec.tenant_uid.unwrap_or(TENANT_UID_BASE);
    let may_mount = || sys::clone_mount(Path::new("/usr"), false, true).is_ok();
    if sys::effective_uid() == 0 && is_mapped(uid) && may_mount() {
        Identity::Tenant(uid)
    } else {
        Identity::Myself
    }
}

/// Whether a user id exists in this process's own user namespace.
fn is_mapped(uid: u32) -> bool {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else {
        return false;
    };
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|n| n.parse::<u64>().ok());
        let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next())
        else {
            return false;
        };
        (first..first + count).contains(&u64::from(uid))
    })
}

/// A first process that was started, and the launcher's ends of its pipes.
struct First {
    pid: i32,
    process: OwnedFd,
    go: PipeWriter,
    notes: PipeReader,
    result: PipeReader,
}

impl First {
    /// Start it in namespaces of these kinds. What it does gets the other ends, and does not return.
    fn start(
        kinds: i32,
        inside: impl FnOnce(PipeReader, PipeWriter, PipeWriter),
    ) -> Result<Self, SandboxError> {
        let (go_rx, go) = io::pipe().during(Step::Launcher, "pipe")?;
        let (notes, note_tx) = io::pipe().during(Step::Launcher, "pipe")?;
        let (result, result_tx) = io::pipe().during(Step::Launcher, "pipe")?;
        match sys::fork_into(kinds).during(Step::Namespaces, "")? {
            Forked::Parent { pid, pidfd } => Ok(Self { pid, process: pidfd, go, notes, result }),
            Forked::Child => {
                drop((go, notes, result));
                inside(go_rx, note_tx, result_tx);
                sys::exit_now(1)
            }
        }
    }

    /// Let it go on: its user stands. If it is gone already, its last note says why.
    fn go_on(&mut self) {
        drop(self.go.write_all(&[1]));
    }

    /// The program runs, or does not: then nothing of it is left.
    fn stand(
        self,
        (spec, way): (&Spec, Way),
        resources: Resources,
        place: Place,
        served: Result<(Vec<Mechanism>, Arc<services::Meter>), SandboxError>,
    ) -> Result<Standing, SandboxError> {
        let Self { pid, process, go, notes: _, result } = self;
        let (mechanisms, services) = match served {
            Ok(served) => served,
            Err(error) => {
                drop(go);
                drop(sys::signal(process.as_fd(), sys::SIGKILL));
                sys::wait(pid).during(Step::Launcher, "wait")?;
                return Err(error);
            }
        };
        forget_streams().during(Step::Launcher, "streams")?;
        let report = resources.report(spec, mechanisms, way, place.ambiguous());
        let watchdog = resources.watchdog(spec, way, pid);
        let Resources { cgroup, volume } = resources;
        let (jail, alive) = ((pid, process, result), Some(go));
        Ok(Standing { jail, report, watchdog, services, cgroup, volume, alive, place })
    }
}

fn attempt(
    spec: &Spec,
    filters: &Filters,
    way: Way,
    stdin: &OwnedFd,
    cgroup: Rc<Result<Cgroup, String>>,
) -> Result<Standing, SandboxError> {
    let mut layout = Layout::make(spec, way.identity.uid())?;
    let root = Root::stand(spec, &layout.names)?;
    let resources = Resources::make(spec, way, &mut layout, cgroup)?;
    let mut held = None;
    if !matches!(way.identity, Identity::Myself) {
        give_away(&layout, way.identity)?;
        held = Some(namespaces::hold_all(&layout, &root, way.without)?);
        sys::leave_groups(&gpu::groups(&spec.devices)).during(Step::Identity, "groups")?;
    }
    let (services_rx, services_tx) = UnixStream::pair().during(Step::Launcher, "socket")?;
    let mut kinds = namespaces::kinds(way.without);
    if way.identity.has_user_namespace() {
        kinds |= sys::CLONE_NEWUSER;
    }
    let host = namespaces::numbers();
    let mut first = First::start(kinds, |go, notes, result| {
        let (layout, root, launcher) = (&layout, &root, &services_tx);
        let task = inside::Task { spec, layout, root, filters, way, host: &host, stdin, launcher };
        inside::first_process(&task, held, go, notes, result)
    })?;
    drop(services_tx);
    let mapped = write_maps(first.pid, way.identity).during(Step::UserMap, "");
    let mapped = mapped.and_then(|()| resources.take_in(first.pid));
    let served = mapped.and_then(|()| {
        first.go_on();
        let notes = read_notes(&first.notes)?;
        let served = services::serve(&spec.services, &services_rx);
        Ok((notes, served.during(Step::Network, "services")?))
    });
    first.stand((spec, way), resources, Place::Jail(layout, root), served)
}

/// A job without namespaces.
fn attempt_bare(
    spec: &Spec,
    filters: &Filters,
    way: Way,
    stdin: &OwnedFd,
    cgroup: Rc<Result<Cgroup, String>>,
) -> Result<Standing, SandboxError> {
    let owner = match way.identity {
        Identity::Tenant(uid) | Identity::Plain(uid) => Some(uid),
        Identity::Myself => None,
    };
    let bare = Bare::make(spec, owner)?;
    if let Some(uid) = owner {
        give_folders(writable(spec).iter().map(|place| place.host.as_path()), uid)?;
        sys::leave_groups(&gpu::groups(&spec.devices)).during(Step::Identity, "groups")?;
    }
    sys::adopt_orphans().during(Step::Launcher, "")?;
    let first = First::start(0, |go, notes, result| {
        let task = bare::Task { spec, bare: &bare, filters, way, stdin };
        bare::first_process(&task, go, notes, result)
    })?;
    let resources = Resources { cgroup, volume: None };
    let served = read_notes(&first.notes).map(|notes| (notes, Arc::default()));
    first.stand((spec, way), resources, Place::Bare(bare), served)
}

/// Give the job's own folders to its host user; what is in them is the caller's to give.
fn give_away(layout: &Layout, identity: Identity) -> Result<(), SandboxError> {
    let (Identity::Tenant(uid) | Identity::Plain(uid)) = identity else {
        return Ok(());
    };
    give_folders(layout.sources.iter().filter(|s| s.given).map(|s| s.host.as_path()), uid)
}

fn give_folders<'a>(folders: impl Iterator<Item = &'a Path>, uid: u32) -> Result<(), SandboxError> {
    for folder in folders {
        sys::open_name(folder, sys::LOOK)
            .and_then(|file| sys::give_to(file.as_fd(), uid, uid))
            .during(Step::Source, folder.display())?;
    }
    Ok(())
}

fn write_maps(pid: i32, identity: Identity) -> io::Result<()> {
    let (uid, gid) = match identity {
        Identity::Tenant(uid) => (uid, uid),
        Identity::Myself => (sys::effective_uid(), sys::effective_gid()),
        Identity::Plain(_) => return Ok(()),
    };
    fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
    fs::write(format!("/proc/{pid}/uid_map"), format!("{INSIDE_UID} {uid} 1"))?;
    fs::write(format!("/proc/{pid}/gid_map"), format!("{INSIDE_UID} {gid} 1"))
}

/// Read what the processes inside say, until the program's start has closed the last writing end.
fn read_notes(notes: &PipeReader) -> Result<Vec<Mechanism>, SandboxError> {
    let mut mechanisms = Vec::new();
    let mut sealed = false;
    for line in BufReader::new(notes).lines() {
        let line = line.during(Step::Launcher, "notes")?;
        match serde_json::from_str(&line)
            .map_err(io::Error::other)
            .during(Step::Launcher, "notes")?
        {
            Note::Refused(refusal) => return Err(refusal.into()),
            Note::Mechanism(mechanism) => mechanisms.push(mechanism),
            Note::Sealed => sealed = true,
        }
    }
    if sealed {
        Ok(mechanisms)
    } else {
        // The set-up was killed before it could say why, for instance for want of memory.
        Err(SandboxError::new(Step::Launcher, "", io::Error::other("the set-up ended early")))
    }
}

/// Let go of the program's streams, so that the node sees their end when the job closes them.
fn forget_streams() -> io::Result<()> {
    let null = fs::OpenOptions::new().write(true).open("/dev/null")?;
    sys::put_at(null.as_fd(), 1)?;
    sys::put_at(null.as_fd(), 2)
}

/// Wait for the end of the jail, or bring it about when the node hangs up or a limit is exceeded.
fn watch(
    socket: &UnixStream,
    mut standing: Standing,
    volume: &mut Option<OwnedFd>,
) -> Result<Exit, SandboxError> {
    let mut stopped = None;
    let mut seen = (0, 0);
    loop {
        let pause = standing.watchdog.pause_ms();
        let fds = [standing.jail.1.as_fd(), socket.as_fd()];
        let [ended, hung_up] = sys::wait_readable(fds, pause).during(Step::Launcher, "watch")?;
        if ended {
            break;
        }
        let out_of_memory = standing.group().is_some_and(Cgroup::ran_out_of_memory);
        if out_of_memory {
            stopped = Some(Stopped::Memory);
        } else if !hung_up {
            stopped = standing.watchdog.look();
        }
        if hung_up || stopped.is_some() {
            // What dies unwaited is in no later count but a group's.
            seen = watchdog::processor_time(standing.jail.0);
            standing.end();
            break;
        }
    }
    // The kernel ends this wait only when every process of the jail is gone.
    let waited = sys::wait(standing.jail.0).during(Step::Launcher, "wait")?;
    if let Place::Bare(_) = standing.place {
        // Whoever killed the first process left its descendants to us.
        bare::end_family();
    }
    let used = waited.map(|(_, _, used)| used).unwrap_or_default();
    let mut status = [0_u8; 4];
    let told = standing.jail.2.read_exact(&mut status).is_ok();
    let (code, signal) = if told && stopped.is_none() {
        sys::split_status(i32::from_le_bytes(status))
    } else {
        (None, Some(sys::SIGKILL))
    };
    let group = standing.group();
    if group.is_some_and(Cgroup::ran_out_of_memory) {
        stopped = stopped.or(Some(Stopped::Memory));
    }
    let counted = group.and_then(Cgroup::processor_time);
    let (user_ms, system_ms) =
        counted.unwrap_or_else(|| (used.user_ms.max(seen.0), used.system_ms.max(seen.1)));
    let peak_memory_bytes = used.peak_bytes;
    let service_bytes = standing.services.bytes();
    let usage = Usage { user_ms, system_ms, peak_memory_bytes, service_bytes };
    let opened = standing.volume.as_ref().map(Volume::root).transpose();
    *volume = opened.during(Step::Volume, "outputs")?;
    Ok(Exit { code, signal, stopped, usage })
}
