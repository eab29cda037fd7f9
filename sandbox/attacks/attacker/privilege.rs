//! Acts that are after namespaces, mounts, capabilities and the kernel's own settings.

use std::{fs, io};

use crate::{
    Act,
    call::{c, halves, in_a_child, open, others, read, words},
    files::done,
    got,
};

#[rustfmt::skip]
pub(crate) const ACTS: &[(&str, Act)] = &[
    ("make-a-user-namespace", |_| unshare(libc::CLONE_NEWUSER)),
    ("make-a-mount-namespace", |_| unshare(libc::CLONE_NEWNS)),
    ("make-a-process-namespace", |_| unshare(libc::CLONE_NEWPID)),
    ("make-a-network-namespace", |_| unshare(libc::CLONE_NEWNET)),
    ("make-an-ipc-namespace", |_| unshare(libc::CLONE_NEWIPC)),
    ("make-a-name-namespace", |_| unshare(libc::CLONE_NEWUTS)),
    ("make-a-cgroup-namespace", |_| unshare(libc::CLONE_NEWCGROUP)),
    ("make-a-time-namespace", |_| unshare(0x80)),
    ("fork-into-a-user-namespace", |_| {
        let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
        if call!(libc::SYS_clone, flags, 0, 0, 0, 0)? == 0 { idle() }
        Ok(done(0)) }),
    ("fork-into-a-user-namespace-by-the-newest-call", |_| {
        let mut args = [0_u64; 11];
        (args[0], args[4]) = (0x1000_0000, 17);
        if call!(libc::SYS_clone3, &words(&args), 88_usize)? == 0 { idle() }
        Ok(done(0)) }),
    ("join-the-namespaces-of-the-host", |t| in_a_child(|| {
        let process = call!(libc::SYS_pidfd_open, t.number("pid"), 0)?;
        call!(libc::SYS_setns, process, libc::CLONE_NEWNS | libc::CLONE_NEWUTS | libc::CLONE_NEWNET).map(done) })),
    ("join-the-namespaces-of-every-process", |_| in_a_child(|| {
        let join = |pid, kind| {
            let file = open(&format!("/proc/{pid}/ns/{kind}"), libc::O_RDONLY)?;
            call!(libc::SYS_setns, file, 0)
        };
        // The mount namespace last: the process list changes with it.
        let all = |pid: &u32| ["net", "uts", "ipc", "mnt"].iter().all(|kind| join(*pid, *kind).is_ok());
        Ok(others().iter().find(|pid| all(pid)).map_or_else(|| "none".to_owned(), |_| done(0))) })),
    ("mount-a-filesystem", |t| nested(|| {
        call!(libc::SYS_mount, c"none", &c(t.get("work")), c"tmpfs", 0, 0).map(done) })),
    ("mount-the-hosts-root", |t| nested(|| {
        call!(libc::SYS_mount, c"/", &c(t.get("work")), c"none", libc::MS_BIND | libc::MS_REC, 0)?;
        read(&t.at("work", t.get("secret"))) })),
    ("mount-an-overlay", |t| nested(|| {
        let (upper, scratch) = (t.at("tmp", "upper"), t.at("tmp", "scratch"));
        fs::create_dir(&upper)?;
        fs::create_dir(&scratch)?;
        let data = c(&format!("lowerdir={},upperdir={upper},workdir={scratch}", t.get("in")));
        call!(libc::SYS_mount, c"overlay", &c(t.get("in")), c"overlay", 0, &data).map(done) })),
    ("mount-by-the-new-calls", |_| nested(|| {
        let made = call!(libc::SYS_fsopen, c"tmpfs", 0)?;
        call!(libc::SYS_fsconfig, made, 6, 0, 0, 0).map(done) })),
    ("copy-a-mount", |_| nested(|| call!(libc::SYS_open_tree, libc::AT_FDCWD, c"/", 1).map(|_| got("a copy of the root")))),
    ("take-a-mount-away", |t| nested(|| call!(libc::SYS_umount2, &c(t.get("in")), libc::MNT_DETACH)
        .or_else(|_| call!(libc::SYS_umount2, c"/proc", libc::MNT_DETACH)).map(done))),
    ("mount-a-full-process-list", |t| nested(|| {
        call!(libc::SYS_mount, c"proc", &c(t.get("work")), c"proc", 0, 0)?;
        read(&t.at("work", "sys/kernel/ostype")).map(got) })),
    ("change-the-root", |t| nested(|| call!(libc::SYS_chroot, &c(t.get("work"))).map(done))),
    ("change-the-root-twice", |t| nested(|| {
        fs::create_dir(t.at("work", "deeper"))?;
        call!(libc::SYS_chroot, &c(&t.at("work", "deeper")))?;
        for _ in 0..32 { call!(libc::SYS_chdir, c"..")?; }
        call!(libc::SYS_chroot, c".")?;
        read(t.get("secret")) })),
    ("swap-the-root", |t| nested(|| {
        let here = c(t.get("work"));
        call!(libc::SYS_mount, c"none", c"/", c"none", libc::MS_REC | libc::MS_PRIVATE, 0)?;
        call!(libc::SYS_mount, &here, &here, c"none", libc::MS_BIND, 0)?;
        call!(libc::SYS_chdir, &here)?;
        call!(libc::SYS_pivot_root, c".", c".").map(done) })),
    ("become-another-user", |_| in_a_child(|| call!(libc::SYS_setresuid, 12_345, 12_345, 12_345).map(done))),
    ("become-another-group", |_| in_a_child(|| call!(libc::SYS_setresgid, 12_345, 12_345, 12_345).map(done))),
    ("join-another-group", |_| in_a_child(|| call!(libc::SYS_setgroups, 1_usize, &halves(&[12_345])).map(done))),
    ("become-root", |_| in_a_child(|| {
        call!(libc::SYS_setresuid, 0, 0, 0)?;
        read("/etc/shadow").map(|text| got(format!("root reads {} bytes", text.len()))) })),
    ("raise-capabilities", |_| {
        let (header, mut sets) = (halves(&[0x2008_0522, 0]), vec![0; 24]);
        call!(libc::SYS_capget, &header, &mut sets)?;
        // Everything permitted becomes effective.
        sets.copy_within(4..8, 0);
        sets.copy_within(16..20, 12);
        call!(libc::SYS_capset, &header, &sets)?;
        capabilities() }),
    ("gain-capabilities-by-a-start", |_| {
        let done = std::process::Command::new("/bin/cat").arg("/proc/self/status").output()?;
        let text = String::from_utf8_lossy(&done.stdout).into_owned();
        Ok(effective(&text).map_or_else(|| "none".to_owned(), got)) }),
    ("unlock-the-rules-for-capabilities", |_| {
        call!(libc::SYS_prctl, libc::PR_SET_SECUREBITS, 0, 0, 0, 0)?;
        Ok(got("rules of its own")) }),
    ("start-with-another-personality", |_| {
        call!(libc::SYS_personality, 0x4_0000)?;
        Ok(done(0)) }),
    ("write-a-setting-of-the-kernel", |_| {
        fs::write("/proc/sys/kernel/hostname", "broken")?;
        read("/proc/sys/kernel/hostname").map(got) }),
    ("open-what-runs-when-a-program-crashes", |_| open("/proc/sys/kernel/core_pattern", libc::O_WRONLY).map(|_| got("the file that names it"))),
    ("open-the-emergency-keys", |_| open("/proc/sysrq-trigger", libc::O_WRONLY)
        .or_else(|_| open("/proc/sys/vm/drop_caches", libc::O_WRONLY)).map(|_| got("a file that presses one"))),
    ("change-the-name-of-the-host", |_| {
        call!(libc::SYS_sethostname, b"broken".as_slice(), 6_usize)?;
        names() }),
    ("change-the-domain-of-the-host", |_| {
        call!(libc::SYS_setdomainname, b"broken".as_slice(), 6_usize)?;
        names() }),
    ("adjust-the-clock", |_| {
        let mut state = vec![0; 208];
        call!(libc::SYS_adjtimex, &mut state)?;
        // The tick as it is: it proves the right and changes nothing.
        state[..4].copy_from_slice(&0x4000_u32.to_ne_bytes());
        call!(libc::SYS_adjtimex, &mut state)?;
        Ok(got("the clock's rate")) }),
    ("press-the-power-switch", |_| {
        // Lets the three keys restart the machine, which is the default.
        call!(libc::SYS_reboot, 0xfee1_dead_u32, 672_274_793, 0x89ab_cdef_u32, 0)?;
        Ok(got("the switch")) }),
    ("read-the-kernels-log", |_| {
        let mut log = vec![0; 4096];
        call!(libc::SYS_syslog, 3, &mut log, 4096_usize).map(|n| got(format!("{n} bytes"))) }),
    ("open-the-processors-ports", |_| ports()),
    ("change-the-processors-tables", |_| tables()),
    ("make-a-ring", |_| call!(libc::SYS_io_uring_setup, 8, &mut vec![0; 120]).map(done)),
    ("load-a-program-into-the-kernel", |_| {
        let map = [halves(&[1, 4, 4, 1]), vec![0; 112]].concat();
        call!(libc::SYS_bpf, 0, &map, 128_usize).map(done) }),
    ("measure-the-processor", |_| {
        let mut wish = vec![0; 112];
        wish[..8].copy_from_slice(&halves(&[1, 112]));
        wish[8] = 1;
        wish[40] = 0x60;
        call!(libc::SYS_perf_event_open, &wish, 0, -1, -1, 0).map(done) }),
    ("handle-page-faults", |_| call!(libc::SYS_userfaultfd, 1).map(done)),
    ("watch-every-file", |_| call!(libc::SYS_fanotify_init, 0x200, 0).map(done)),
    ("hide-memory", |_| call!(libc::SYS_memfd_secret, 0).map(|_| got("memory that nobody sees"))),
    ("answer-for-the-kernel", |_| {
        let allow = halves(&[0x0000_0006, 0x7fff_0000]);
        let program = words(&[1, allow.as_ptr() as u64]);
        call!(libc::SYS_seccomp, 1, 8, &program).map(done) }),
    ("see-which-pages-of-a-file-are-in-memory", |_| {
        let file = open("/bin/cat", libc::O_RDONLY)?;
        let at = call!(libc::SYS_mmap, 0, 4096, libc::PROT_READ, libc::MAP_SHARED, file, 0)?;
        call!(libc::SYS_mincore, at, 4096, &mut vec![0; 1]).map(|_| got("who read what")) }),
    ("count-which-pages-of-a-file-are-in-memory", |t| {
        let file = open(&t.at("in", "scene.txt"), libc::O_RDONLY)?;
        call!(451, file, &words(&[0, 4096]), &mut vec![0; 40], 0).map(|_| got("who read what")) }),
    ("run-before-everybody-else", |_| {
        call!(libc::SYS_sched_setscheduler, 0, 1, &halves(&[1])).map(done) }),
    ("run-before-others", |_| call!(libc::SYS_setpriority, 0, 0, -5).map(done)),
    ("call-the-kernel-as-a-32-bit-program", |_| old_interface()),
];

/// A fork that stays until the judge has looked.
fn idle() -> ! {
    drop(call!(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, 9));
    std::thread::sleep(std::time::Duration::from_secs(20));
    std::process::exit(0)
}

/// A namespace of this kind, if need be inside a user namespace, which grants the right to it.
fn unshare(kind: i32) -> io::Result<String> {
    in_a_child(|| {
        call!(libc::SYS_unshare, kind)
            .or_else(|_| call!(libc::SYS_unshare, kind | libc::CLONE_NEWUSER))
            .map(done)
    })
}

/// An act with every right over mounts that a namespace of its own can give.
fn nested(act: impl FnOnce() -> io::Result<String>) -> io::Result<String> {
    in_a_child(|| {
        drop(call!(libc::SYS_unshare, libc::CLONE_NEWUSER | libc::CLONE_NEWNS));
        act()
    })
}

fn effective(status: &str) -> Option<String> {
    let line = status.lines().find(|l| l.starts_with("CapEff:"))?;
    (!line.ends_with("0000000000000000")).then(|| line.to_owned())
}

fn capabilities() -> io::Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    Ok(effective(&status).map_or_else(|| "none".to_owned(), got))
}

/// The names of the host as this process sees them; a changed one is what was wanted.
fn names() -> io::Result<String> {
    let mut all = vec![0; 6 * 65];
    call!(libc::SYS_uname, &mut all)?;
    let text = String::from_utf8_lossy(&all).replace('\0', "");
    Ok(if text.contains("broken") { got("another name") } else { text })
}

#[cfg(target_arch = "x86_64")]
fn ports() -> io::Result<String> {
    call!(libc::SYS_iopl, 3)
        .or_else(|_| call!(libc::SYS_ioperm, 0x80, 1, 1))
        .or_else(|_| open("/dev/mem", libc::O_RDONLY).map(|_| 0))
        .or_else(|_| open("/dev/port", libc::O_RDONLY).map(|_| 0))
        .map(|_| got("the machine itself"))
}

#[cfg(target_arch = "x86_64")]
fn tables() -> io::Result<String> {
    call!(libc::SYS_modify_ldt, 1, &halves(&[0, 0, 0xfffff, 0x51]), 16_usize)
        .map(|_| got("an entry"))
}

/// `getpid` through the interface of 32-bit programs, whose numbers no 64-bit filter knows.
#[cfg(target_arch = "x86_64")]
fn old_interface() -> io::Result<String> {
    let answer: u64;
    // SAFETY: takes no argument and changes the answer's register only.
    unsafe { std::arch::asm!("int 0x80", inlateout("rax") 20_u64 => answer) };
    Ok(got(format!("process number {answer}")))
}

#[cfg(not(target_arch = "x86_64"))]
fn ports() -> io::Result<String> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(not(target_arch = "x86_64"))]
use ports as tables;
#[cfg(not(target_arch = "x86_64"))]
use ports as old_interface;
