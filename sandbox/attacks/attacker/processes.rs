//! Acts on other processes: the other tenant's, which runs as the same host user, and the jail's first one.

use std::{fs, io};

use crate::{
    Act, Target,
    call::{content, fd, fork_idle, open, others, words, write},
    files::done,
    got,
};

#[rustfmt::skip]
pub(crate) const ACTS: &[(&str, Act)] = &[
    ("kill-a-process", |t| call!(libc::SYS_kill, t.number("pid"), 9).map(done)),
    ("stop-a-process", |t| call!(libc::SYS_kill, t.number("pid"), libc::SIGSTOP).map(done)),
    ("kill-every-process", |_| call!(libc::SYS_kill, -1, 9).map(done)),
    ("signal-a-process-by-its-thread", |t| call!(libc::SYS_tgkill, t.number("pid"), t.number("pid"), libc::SIGUSR1).map(done)),
    ("signal-a-process-with-a-value", |t| {
        let mut info = vec![0; 128];
        info[8..12].copy_from_slice(&(-1_i32).to_ne_bytes());
        call!(libc::SYS_rt_sigqueueinfo, t.number("pid"), libc::SIGUSR1, &info).map(done) }),
    ("signal-a-process-by-its-descriptor", |t| {
        let process = call!(libc::SYS_pidfd_open, t.number("pid"), 0)?;
        call!(libc::SYS_pidfd_send_signal, process, libc::SIGUSR1, 0, 0).map(done) }),
    ("signal-a-process-as-the-owner-of-a-pipe", signal_through_a_pipe),
    ("trace-a-process", |t| call!(libc::SYS_ptrace, libc::PTRACE_ATTACH, t.number("pid"), 0, 0).map(done)),
    ("seize-a-process", |t| call!(libc::SYS_ptrace, 0x4206, t.number("pid"), 0, 0).map(|_| got("the process"))),
    ("trace-its-own-child", |_| {
        let child = fork_idle()?;
        call!(libc::SYS_ptrace, 0x4206, child, 0, 0).map(done) }),
    ("read-the-memory-of-a-process", |t| {
        let mut bytes = vec![0; 64];
        let (ours, theirs) = (words(&[bytes.as_mut_ptr() as u64, 64]), words(&[t.number("address") as u64, 64]));
        call!(libc::SYS_process_vm_readv, t.number("pid"), &ours, 1, &theirs, 1, 0)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned()) }),
    ("write-the-memory-of-a-process", |t| {
        let bytes = b"spoiled".to_vec();
        let (ours, theirs) = (words(&[bytes.as_ptr() as u64, 7]), words(&[t.number("address") as u64, 7]));
        call!(libc::SYS_process_vm_writev, t.number("pid"), &ours, 1, &theirs, 1, 0).map(done) }),
    ("read-the-memory-file-of-a-process", |t| {
        let memory = open(&format!("/proc/{}/mem", t.get("pid")), libc::O_RDONLY)?;
        let mut bytes = vec![0; 64];
        call!(libc::SYS_pread64, memory, &mut bytes, 64_usize, t.number("address"))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned()) }),
    ("write-the-memory-file-of-a-process", |t| {
        let memory = open(&format!("/proc/{}/mem", t.get("pid")), libc::O_WRONLY)?;
        call!(libc::SYS_pwrite64, memory, b"spoiled".as_slice(), 7_usize, t.number("address")).map(done) }),
    ("take-a-descriptor-of-a-process", |t| {
        let process = call!(libc::SYS_pidfd_open, t.number("pid"), 0)?;
        let file = fd(call!(libc::SYS_pidfd_getfd, process, t.number("fd"), 0)?);
        call!(libc::SYS_lseek, file, 0, 0)?;
        content(file) }),
    ("compare-the-descriptors-of-a-process", |t| {
        call!(libc::SYS_kcmp, t.number("pid"), t.number("pid"), 0, 0, 0).map(|_| got("an order of the kernel's addresses")) }),
    ("see-where-the-memory-of-a-process-lies", |t| {
        let maps = fs::read_to_string(format!("/proc/{}/maps", t.get("pid")))?;
        Ok(got(format!("{} lines", maps.lines().count()))) }),
    ("slow-a-process-down", |t| call!(libc::SYS_setpriority, 0, t.number("pid"), 15).map(done)),
    ("slow-a-users-processes-down", |_| call!(libc::SYS_setpriority, 2, 0, 15).map(done)),
    ("move-a-process-to-one-processor", |t| call!(libc::SYS_sched_setaffinity, t.number("pid"), 8_usize, &words(&[1])).map(done)),
    ("limit-a-process", |t| call!(libc::SYS_prlimit64, t.number("pid"), 7, &words(&[9, 9]), 0).map(done)),
    ("offer-a-process-to-the-out-of-memory-killer", |t| {
        let path = format!("/proc/{}/oom_score_adj", t.get("pid"));
        write(open(&path, libc::O_WRONLY)?, "777").map(done) }),
    ("list-processes", |t| {
        let seen = others();
        let there = seen.iter().any(|pid| t.number("pid") == *pid as usize);
        Ok(if there { got("the process") } else { format!("{} processes", seen.len()) }) }),
    ("read-the-arguments-of-processes", |_| Ok(collected("cmdline"))),
    ("read-the-environment-of-processes", |_| Ok(collected("environ"))),
    ("read-its-own-environment", |_| Ok(std::env::vars().map(|(k, v)| format!("{k}={v};")).collect())),
    ("look-into-the-first-process", |_| ["mem", "environ", "exe", "fd", "root", "cwd", "maps"]
        .into_iter().find(|name| {
            let path = format!("/proc/1/{name}");
            fs::read_dir(&path).is_ok() || fs::read_link(&path).is_ok() || open(&path, libc::O_RDONLY).is_ok() && *name == "mem"
        })
        .map_or_else(|| Ok("nothing".to_owned()), |name| Ok(got(name)))),
    ("trace-the-first-process", |_| call!(libc::SYS_ptrace, 0x4206, 1, 0, 0).map(|_| got("the first process"))),
];

fn collected(name: &str) -> String {
    let read = |pid| fs::read(format!("/proc/{pid}/{name}")).ok();
    let all: Vec<u8> = others().into_iter().filter_map(read).flatten().collect();
    String::from_utf8_lossy(&all).replace('\0', " ")
}

/// The kernel tells a pipe's owner that there is something to read, whoever was made the owner.
fn signal_through_a_pipe(target: &Target) -> io::Result<String> {
    let mut ends = vec![0; 8];
    call!(libc::SYS_pipe2, &mut ends, 0)?;
    let end = |at: usize| i32::from_ne_bytes(ends[at..at + 4].try_into().unwrap_or_default());
    call!(libc::SYS_fcntl, end(0), libc::F_SETOWN, target.number("pid"))?;
    call!(libc::SYS_fcntl, end(0), libc::F_SETFL, libc::O_ASYNC | libc::O_NONBLOCK)?;
    write(end(4), "x").map(done)
}
