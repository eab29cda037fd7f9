//! The launcher program: applies the barriers in order, starts the job's one program, and ends everything.
//!
//! Three processes: the launcher outside (this program, trusted), the first process of the jail (a copy
//! of it, which reaps), and the job's program. If any of them, or the node, dies, all of the jail dies:
//! the node's end shows as a closed socket, the launcher's as a death signal, the first process's end
//! makes the kernel kill its whole process namespace.

use std::{
    ffi::CString,
    fs,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write},
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    process::ExitCode,
};

use crate::{
    Level, Mechanism, Report, SandboxError, Step,
    control::{self, Note, Refusal, Said},
    inside,
    jail::{Exit, Usage},
    layout::{Layout, program_at},
    namespaces,
    report::During,
    seccomp::Filters,
    spec::{Spec, TENANT_UID_BASE},
    sys::{self, Forked},
};

/// The job's user and group as the job sees them in a user namespace.
const INSIDE_UID: u32 = 1000;

/// How the job's user comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// Started as root: a host user of its own, mapped into a user namespace.
    Tenant(u32),
    /// Started as root where user namespaces do not serve: a host user of its own, no user namespace.
    Plain(u32),
    /// Started as an ordinary user: that user, mapped into a user namespace.
    Myself,
}

impl Identity {
    /// The job's user as the job sees it.
    pub(crate) fn uid(self) -> u32 {
        match self {
            Self::Tenant(_) | Self::Myself => INSIDE_UID,
            Self::Plain(uid) => uid,
        }
    }

    /// Whether the job has a user namespace of its own.
    pub(crate) fn has_user_namespace(self) -> bool {
        !matches!(self, Self::Plain(_))
    }
}

/// What one try at a jail uses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Way {
    pub(crate) identity: Identity,
    /// Whether the jail has a process list.
    pub(crate) with_proc: bool,
    /// What is left out, which is nothing in the launcher that is installed.
    pub(crate) without: Without,
}

/// Layers that are left out, to show what an attack does where nothing stops it.
///
/// The installed launcher has no way to ask for this: only a program of the attack tests does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Without {
    /// Paths are not restricted by Landlock.
    pub landlock: bool,
    /// Every system call may be made.
    pub seccomp: bool,
    /// Mounts keep no restriction but their place: neither read-only, nor without devices, set-id or exec.
    pub mount_restrictions: bool,
    /// The network namespace is the host's.
    pub net_namespace: bool,
    /// The IPC namespace is the host's.
    pub ipc_namespace: bool,
    /// The process list of the jail shows every process of the jail and the settings of the kernel.
    pub hidden_processes: bool,
    /// No limit on memory, processes, files or time.
    pub limits: bool,
    /// Descriptors of the launcher stay open.
    pub closed_descriptors: bool,
    /// Capabilities inside the user namespace are kept.
    pub capabilities: bool,
    /// The first process of the jail can be read by others of its user.
    pub unreadable_first_process: bool,
}

/// A jail that stands.
struct Standing {
    pid: i32,
    process: OwnedFd,
    result: PipeReader,
    report: Report,
    // The root goes when the jail is gone.
    _layout: Layout,
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
    let received = control::receive_policy::<Spec>(&socket).during(Step::Policy, "");
    let stood = received.and_then(|(spec, stdin)| {
        spec.check()?;
        stand(&spec, without, stdin)
    });
    let said = match stood {
        Ok(standing) => {
            let started = Said::Started(standing.report.clone());
            // A node that is gone is noticed below, by the hung-up socket.
            drop(control::send(&socket, &started));
            watch(&socket, standing).map_or_else(|e| Said::Refused(e.into()), Said::Ended)
        }
        Err(e) => Said::Refused(e.into()),
    };
    match control::send(&socket, &said) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Try the strongest way first, and the next one only when the machine refuses exactly what differs.
fn stand(spec: &Spec, without: Without, stdin: OwnedFd) -> Result<Standing, SandboxError> {
    if spec.floor > Level::S2 {
        let text = format!("{} is asked for and this launcher reaches S2", spec.floor);
        return Err(SandboxError::new(Step::Level, "", io::Error::other(text)));
    }
    let filters = Filters::compile().during(Step::Seccomp, "")?;
    let mut way = Way { identity: identity_of(spec), with_proc: true, without };
    loop {
        let error = match attempt(spec, &filters, way, &stdin) {
            Ok(standing) => return Ok(standing),
            Err(error) => error,
        };
        way = match (way.identity, error.step) {
            (Identity::Tenant(uid), Step::Namespaces | Step::UserMap | Step::Proc) => {
                Way { identity: Identity::Plain(uid), ..way }
            }
            // Where a container hides parts of its process list, the kernel gives no fresh one.
            (Identity::Myself, Step::Proc) if way.with_proc => Way { with_proc: false, ..way },
            _ => return Err(error),
        };
    }
}

/// Who the job will be: a user of its own if we may give it one.
fn identity_of(spec: &Spec) -> Identity {
    let uid = spec.tenant_uid.unwrap_or(TENANT_UID_BASE);
    let may_mount = || sys::clone_mount(std::path::Path::new("/usr"), false, true).is_ok();
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

fn attempt(
    spec: &Spec,
    filters: &Filters,
    way: Way,
    stdin: &OwnedFd,
) -> Result<Standing, SandboxError> {
    let layout = Layout::make(spec, way.identity.uid())?;
    let outside = !matches!(way.identity, Identity::Myself);
    let held = if outside {
        give_away(&layout, way.identity)?;
        Some(namespaces::hold_all(&layout, way.without)?)
    } else {
        None
    };
    let (go_rx, mut go_tx) = io::pipe().during(Step::Launcher, "pipe")?;
    let (note_rx, note_tx) = io::pipe().during(Step::Launcher, "pipe")?;
    let (result_rx, result_tx) = io::pipe().during(Step::Launcher, "pipe")?;
    let mut kinds = namespaces::kinds(way.without);
    if way.identity.has_user_namespace() {
        kinds |= sys::CLONE_NEWUSER;
    }
    if outside {
        sys::leave_groups().during(Step::Identity, "groups")?;
    }
    let host = namespaces::numbers();
    let (pid, process) = match sys::fork_into(kinds).during(Step::Namespaces, "")? {
        Forked::Parent { pid, pidfd } => (pid, pidfd),
        Forked::Child => {
            drop((go_tx, note_rx, result_rx));
            let task = inside::Task { spec, layout: &layout, filters, way, host: &host, stdin };
            inside::first_process(&task, held, go_rx, note_tx, result_tx)
        }
    };
    drop((go_rx, note_tx, result_tx, held));
    let mapped = write_maps(pid, way.identity).during(Step::UserMap, "");
    if mapped.is_ok() {
        // If the first process is gone already, its last note says why.
        drop(go_tx.write_all(&[1]));
    }
    let notes = mapped.and_then(|()| read_notes(note_rx));
    match notes {
        Ok(mechanisms) => {
            forget_streams().during(Step::Launcher, "streams")?;
            // From here on the pipe only tells the first process that we live.
            std::mem::forget(go_tx);
            let report = report_of(spec, mechanisms, way);
            Ok(Standing { pid, process, result: result_rx, report, _layout: layout })
        }
        Err(error) => {
            drop(sys::signal(process.as_fd(), sys::SIGKILL));
            sys::wait(pid).during(Step::Launcher, "wait")?;
            Err(error)
        }
    }
}

/// Give the job's own folders to its host user; what is in them is the caller's to give.
fn give_away(layout: &Layout, identity: Identity) -> Result<(), SandboxError> {
    let (Identity::Tenant(uid) | Identity::Plain(uid)) = identity else {
        return Ok(());
    };
    for source in layout.sources.iter().filter(|s| s.given) {
        sys::open_name(&source.host, sys::LOOK)
            .and_then(|file| sys::give_to(file.as_fd(), uid, uid))
            .during(Step::Source, source.host.display())?;
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
fn read_notes(notes: PipeReader) -> Result<Vec<Mechanism>, SandboxError> {
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

fn report_of(spec: &Spec, mut mechanisms: Vec<Mechanism>, way: Way) -> Report {
    mechanisms.insert(
        0,
        match way.identity {
            Identity::Tenant(uid) => {
                Mechanism::held("tenant user", format!("host user {uid}, mapped to {INSIDE_UID}"))
            }
            Identity::Plain(uid) => {
                Mechanism::held("tenant user", format!("host user {uid}, without a user namespace"))
            }
            Identity::Myself => Mechanism::missing(
                "tenant user",
                format!("host user {}, the node's own", sys::effective_uid()),
                "start the node as root to give each tenant a host user of its own",
            ),
        },
    );
    mechanisms.push(Mechanism {
        asked: false,
        ..Mechanism::missing("cgroup", "not used: limits are per process", "")
    });
    mechanisms.push(Mechanism {
        asked: false,
        ..Mechanism::missing(
            "quota",
            "not used: the size of a file is limited, not that of a folder",
            "",
        )
    });
    if !spec.windows.is_empty() {
        mechanisms.push(windows_paths(spec));
    }
    for mechanism in &mut mechanisms {
        mechanism.better = mechanism.better.take().filter(|b| !b.is_empty());
    }
    Report { level: Level::S2, mechanisms }
}

/// A convenience and no isolation, but a job with Windows paths wants to know.
fn windows_paths(spec: &Spec) -> Mechanism {
    let n_rules = spec.windows.len();
    match &spec.preload {
        Some(_) => Mechanism::held(
            "windows paths",
            format!(
                "{n_rules} rules in /etc/ld.so.preload's library, for dynamically linked programs"
            ),
        ),
        None => Mechanism::missing(
            "windows paths",
            format!("{n_rules} rules, of which only the drives' alias folders hold"),
            "install libmeshfarm_preload.so beside meshfarm",
        ),
    }
}

/// Wait for the end of the jail, or bring it about when the node hangs up.
fn watch(socket: &UnixStream, mut standing: Standing) -> Result<Exit, SandboxError> {
    let fds = [standing.process.as_fd(), socket.as_fd()];
    let [ended, _hung_up] = sys::wait_readable(fds, -1).during(Step::Launcher, "watch")?;
    if !ended {
        // Already dead is as good as killed; the wait below tells.
        drop(sys::signal(standing.process.as_fd(), sys::SIGKILL));
    }
    // The kernel ends this wait only when every process of the jail is gone.
    let waited = sys::wait(standing.pid).during(Step::Launcher, "wait")?;
    let used = waited.map(|(_, _, used)| used).unwrap_or_default();
    let mut status = [0_u8; 4];
    let told = standing.result.read_exact(&mut status).is_ok();
    let (code, signal) = if told {
        sys::split_status(i32::from_le_bytes(status))
    } else {
        (None, Some(sys::SIGKILL))
    };
    let usage = Usage {
        user_ms: used.user_ms,
        system_ms: used.system_ms,
        peak_memory_bytes: used.peak_bytes,
    };
    Ok(Exit { code, signal, usage })
}

/// The program, its arguments and its environment in the form of execve(2).
pub(crate) fn command_line(spec: &Spec) -> io::Result<(CString, Vec<CString>, Vec<CString>)> {
    let text = |s: String| CString::new(s).map_err(|_nul| sys::errno(sys::EINVAL));
    let program = sys::c_path(&program_at(spec))?;
    let args = std::iter::once(Ok(program.clone()))
        .chain(spec.args.iter().cloned().map(text))
        .collect::<io::Result<_>>()?;
    let env = spec
        .environment()
        .into_iter()
        .map(|(name, value)| text(format!("{name}={value}")))
        .collect::<io::Result<_>>()?;
    Ok((program, args, env))
}

/// Write one note; the reader is gone only when nobody waits for it any more.
pub(crate) fn note(mut notes: &PipeWriter, note: &Note) {
    if let Ok(mut line) = serde_json::to_vec(note) {
        line.push(b'\n');
        drop(notes.write_all(&line));
    }
}

/// Note a refused step.
pub(crate) fn note_refusal(notes: &PipeWriter, error: SandboxError) {
    note(notes, &Note::Refused(Refusal::from(error)));
}
