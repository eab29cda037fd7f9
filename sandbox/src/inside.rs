//! The two processes inside: the first one, which builds the jail and reaps, and the job's, up to its start.

use std::{
    fs,
    io::{self, PipeReader, PipeWriter, Read, Seek, Write},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use crate::{
    Mechanism, SandboxError, Step,
    command_line::{CommandLine, command_line},
    control::{Note, note, note_refusal},
    gpu, landlock,
    layout::Layout,
    limits, namespaces,
    namespaces::Held,
    pinned,
    report::During,
    root::Root,
    seccomp::Filters,
    services,
    spec::{ProcessList, Spec, WORK_AT},
    sys::{self, Forked},
    way::{Identity, Way, Without},
};

/// Everything that the processes inside need from the launcher.
pub(crate) struct Task<'a> {
    pub(crate) spec: &'a Spec,
    pub(crate) layout: &'a Layout,
    pub(crate) root: &'a Root,
    pub(crate) filters: &'a Filters,
    pub(crate) way: Way,
    pub(crate) host: &'a [(String, String)],
    pub(crate) stdin: &'a OwnedFd,
    /// Where the listeners for the policy's services go.
    pub(crate) launcher: &'a UnixStream,
}

/// The first process of the jail. Ends with the job's program, and with it everything in the jail.
pub(crate) fn first_process(
    task: &Task<'_>,
    held: Option<Vec<Held>>,
    go: PipeReader,
    notes: PipeWriter,
    mut result: PipeWriter,
) -> ! {
    let built = build(task, held, &go, &notes);
    let forked = built.and_then(|()| sys::fork_into(0).during(Step::Exec, "fork"));
    match forked {
        Ok(Forked::Child) => {
            drop((go, result));
            let error = become_program(task, &notes);
            note_refusal(&notes, error);
            sys::exit_now(127)
        }
        Ok(Forked::Parent { pid, .. }) => {
            // Whatever fails here leaves a process without use, and its end ends the jail.
            if retire().is_err() {
                sys::exit_now(1);
            }
            drop(notes);
            while let Ok(Some((ended, status, _))) = sys::wait(-1) {
                if ended == pid {
                    drop(result.write_all(&status.to_le_bytes()));
                    break;
                }
            }
            sys::exit_now(0)
        }
        Err(error) => {
            note_refusal(&notes, error);
            sys::exit_now(1)
        }
    }
}

fn build(
    task: &Task<'_>,
    held: Option<Vec<Held>>,
    mut go: &PipeReader,
    notes: &PipeWriter,
) -> Result<(), SandboxError> {
    // The launcher writes one byte when the user map stands, and nothing if it gave up.
    go.read_exact(&mut [0]).during(Step::Launcher, "the launcher is gone")?;
    sys::reset_signals();
    sys::new_session().during(Step::Identity, "session")?;
    let uid = task.way.identity.uid();
    let plain = matches!(task.way.identity, Identity::Plain(_));
    if !plain {
        sys::become_user(uid, uid).during(Step::Identity, "")?;
    }
    let readable = task.way.without.unreadable_first_process;
    sys::be_readable(readable).during(Step::Identity, "")?;
    sys::die_with_parent().during(Step::Identity, "")?;
    // If the launcher died before the line above, its end of this pipe is closed.
    let alive = sys::wait_readable([go.as_fd(), go.as_fd()], 0).during(Step::Launcher, "")?;
    if alive[0] {
        return Err(SandboxError::new(Step::Launcher, "", io::ErrorKind::BrokenPipe.into()));
    }
    sys::make_mounts_private().during(Step::Mount, "/")?;
    let held = match held {
        Some(held) => held,
        None => namespaces::hold_all(task.layout, task.root, task.way.without)?,
    };
    namespaces::enter(task.spec, task.layout, held, task.way)?;
    for mechanism in namespaces::compare(task.host, !plain) {
        note(notes, &Note::Mechanism(mechanism));
    }
    note(notes, &Note::Mechanism(proc_state(task.way.with_proc, task.spec.process_list)));
    if plain {
        note(
            notes,
            &Note::Mechanism(Mechanism::missing(
                "user namespace",
                "refused by this machine",
                "allow user namespaces: sysctl user.max_user_namespaces",
            )),
        );
    }
    if !task.way.without.net_namespace {
        sys::bring_up_loopback().during(Step::Network, "loopback")?;
    }
    let services = &task.spec.services;
    services::listen(services, task.launcher).during(Step::Network, "services")?;
    sys::set_host_name("render").during(Step::Network, "host name")?;
    std::env::set_current_dir(WORK_AT).during(Step::Mount, WORK_AT)
}

fn proc_state(with_proc: bool, list: ProcessList) -> Mechanism {
    if with_proc {
        let kind = match list {
            ProcessList::Subset => "own, subset=pid, hidepid=invisible",
            ProcessList::Compat => "own, hidepid=invisible, the kernel's telling files covered",
        };
        Mechanism::held("process list", kind)
    } else {
        Mechanism::missing(
            "process list",
            "the kernel gives none in this container; the jail has no /proc",
            "run the node outside of the container, or give the container an unmasked /proc",
        )
    }
}

/// Keep nothing but the duty to reap: no stream, no capability.
fn retire() -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    for stream in 0..3 {
        sys::put_at(null.as_fd(), stream)?;
    }
    sys::lock_capabilities()?;
    sys::empty_capabilities()?;
    sys::no_new_privs()
}

/// Turn this process into the job's program. Returns only what went wrong.
fn become_program(task: &Task<'_>, notes: &PipeWriter) -> SandboxError {
    match seal(task, notes) {
        Ok(exec) => {
            let (program, args, env) = exec;
            SandboxError::new(
                Step::Exec,
                task.spec.program.display(),
                sys::exec(&program, &args, &env),
            )
        }
        Err(error) => error,
    }
}

fn seal(task: &Task<'_>, notes: &PipeWriter) -> Result<CommandLine, SandboxError> {
    let command = command_line(task.spec).during(Step::Exec, "arguments")?;
    pinned::check(&task.spec.pinned)?;
    sys::umask(0o022);
    let without = task.way.without;
    if !without.limits {
        limits::apply(&task.spec.limits)?;
    }
    sys::put_at(task.stdin.as_fd(), 0).during(Step::Exec, "standard input")?;
    let status = fs::File::open("/proc/self/status").ok();
    if !without.capabilities {
        sys::lock_capabilities().during(Step::Capabilities, "")?;
    }
    // Real root lets go of the bounding set first: that needs a capability, and so does the change of user.
    if let Identity::Plain(uid) = task.way.identity {
        sys::become_user(uid, uid).during(Step::Identity, "")?;
    }
    if !without.capabilities {
        sys::empty_capabilities().during(Step::Capabilities, "")?;
    }
    if !without.closed_descriptors {
        sys::close_on_exec_from(3).during(Step::Exec, "descriptors")?;
    }
    sys::no_new_privs().during(Step::NoNewPrivs, "")?;
    if !sys::has_no_new_privs() {
        return Err(SandboxError::new(
            Step::NoNewPrivs,
            "",
            io::ErrorKind::PermissionDenied.into(),
        ));
    }
    let mut rules = task.layout.rules.clone();
    if task.way.with_proc {
        // CUDA names its threads there; the process list is the job's own.
        let named = task.spec.devices.iter().any(|d| gpu::is_nvidia(d));
        let rights = if named { landlock::Rights::WRITE } else { landlock::Rights::READ };
        rules.push(landlock::Rule { path: Path::new("/proc").into(), rights });
    }
    if !without.landlock {
        let ports: Vec<u16> = task.spec.services.iter().map(|s| s.port).collect();
        let evidence = landlock::restrict(&rules, &ports).during(Step::Landlock, "")?;
        note(notes, &Note::Mechanism(Mechanism::held("landlock", evidence)));
    }
    if !without.seccomp {
        task.filters.install().during(Step::Seccomp, "")?;
        let evidence = task.filters.evidence();
        note(notes, &Note::Mechanism(Mechanism::held("seccomp", evidence)));
    }
    if without == Without::default() {
        verify(status, notes)?;
    }
    note(notes, &Note::Sealed);
    Ok(command)
}

/// Ask the kernel itself whether what was asked for is in force.
fn verify(status: Option<fs::File>, notes: &PipeWriter) -> Result<(), SandboxError> {
    let Some(mut status) = status else {
        note(
            notes,
            &Note::Mechanism(Mechanism::held(
                "no capabilities",
                "dropped; no process list to read it from",
            )),
        );
        note(notes, &Note::Mechanism(Mechanism::held("no new privileges", "set")));
        return Ok(());
    };
    let mut text = String::new();
    status
        .rewind()
        .and_then(|()| status.read_to_string(&mut text))
        .during(Step::Capabilities, "status")?;
    let field = |name: &str| {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_default().trim().to_owned()
    };
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    for (step, held) in [
        (Step::Capabilities, sets.iter().all(|s| field(s) == "0000000000000000")),
        (Step::NoNewPrivs, field("NoNewPrivs") == "1"),
        (Step::Seccomp, field("Seccomp") == "2"),
    ] {
        if !held {
            return Err(SandboxError::new(
                step,
                "",
                io::Error::other("the kernel reports otherwise"),
            ));
        }
    }
    let empty = "CapInh CapPrm CapEff CapBnd CapAmb all 0 in /proc/self/status";
    note(notes, &Note::Mechanism(Mechanism::held("no capabilities", empty)));
    note(notes, &Note::Mechanism(Mechanism::held("no new privileges", "NoNewPrivs: 1")));
    Ok(())
}
