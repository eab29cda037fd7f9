//! Acts that take more than the job's share, or stay longer than the job.

use std::{
    fs, io,
    io::Write,
    sync::mpsc,
    time::{Duration, Instant},
};

use crate::{
    Act, Target,
    call::{c, fd, fork, fork_idle, in_a_child, open, words},
    files::done,
    got,
};

const MIB: usize = 1 << 20;
/// How long a process that stays stays at most, where nothing ends it.
const STAY: Duration = Duration::from_secs(15);

#[rustfmt::skip]
pub(crate) const ACTS: &[(&str, Act)] = &[
    ("make-many-processes", |_| Ok(count(200, || fork_idle().is_ok()))),
    ("make-many-threads", |_| {
        let (hold, held) = mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let said = count(200, || {
            let held = held.clone();
            let wait = move || drop(held.lock().map(|held| held.recv()));
            std::thread::Builder::new().stack_size(65_536).spawn(wait).is_ok()
        });
        std::mem::forget(hold);
        Ok(said) }),
    ("take-private-memory", |_| take_memory(libc::MAP_PRIVATE, 256)),
    ("take-private-memory-by-the-heap", |_| {
        let mut pieces = Vec::new();
        let mut take = || {
            let mut piece: Vec<u8> = Vec::new();
            let taken = piece.try_reserve_exact(MIB).is_ok();
            piece.resize(if taken { MIB } else { 0 }, 1);
            pieces.push(piece);
            taken
        };
        let said = count(256, &mut take);
        std::mem::forget(pieces);
        Ok(said) }),
    ("take-shared-memory", |_| take_memory(libc::MAP_SHARED, 256)),
    ("take-memory-as-a-file", |_| {
        let file = fd(call!(libc::SYS_memfd_create, c"m", 0)?);
        let piece = vec![7; MIB];
        Ok(count(256, || call!(libc::SYS_write, file, &piece, MIB).is_ok_and(|n| n == MIB))) }),
    ("take-memory-in-many-processes", |_| Ok(count(8, || in_a_child(|| take_memory(libc::MAP_PRIVATE, 24)).is_ok()))),
    ("fill-the-private-folder", |t| fill(&t.at("tmp", "big"))),
    ("fill-the-shared-memory-folder", |t| fill(&t.at("memory", "big"))),
    ("fill-the-home-folder", |t| fill(&t.at("home", "big"))),
    ("write-a-long-file", |t| write_long(&t.at("out", "long"))),
    ("stretch-a-file", |t| {
        ignore(libc::SIGXFSZ);
        let file = open(&t.at("out", "long"), libc::O_WRONLY | libc::O_CREAT)?;
        call!(libc::SYS_ftruncate, file, 1_usize << 40).map(done) }),
    ("reserve-a-long-file", |t| {
        ignore(libc::SIGXFSZ);
        let file = open(&t.at("out", "long"), libc::O_WRONLY | libc::O_CREAT)?;
        call!(libc::SYS_fallocate, file, 0, 0, 64 * MIB).map(done) }),
    ("leave-a-memory-image", |t| {
        call!(libc::SYS_chdir, &c(t.get("out")))?;
        let mut most = vec![0; 16];
        call!(libc::SYS_prlimit64, 0, 4, 0, &mut most)?;
        let most = u64::from_ne_bytes(most[8..].try_into().map_err(io::Error::other)?);
        Ok(if most > 0 { got(format!("{most} bytes of it")) } else { "none".to_owned() }) }),
    ("open-many-files", |_| Ok(count(1000, || open("/dev/null", libc::O_RDONLY).is_ok()))),
    ("raise-its-own-limit", |_| {
        call!(libc::SYS_prlimit64, 0, 7, &words(&[1000, 1000]), 0).ok();
        Ok(count(1000, || open("/dev/null", libc::O_RDONLY).is_ok())) }),
    ("lock-much-memory", |_| {
        let at = call!(libc::SYS_mmap, 0, 4 * MIB, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)?;
        call!(libc::SYS_mlock, at, 4 * MIB).map(done) }),
    ("queue-many-signals", |_| {
        let mut info = vec![0; 128];
        info[8..12].copy_from_slice(&(-1_i32).to_ne_bytes());
        call!(libc::SYS_rt_sigprocmask, 0, &words(&[1 << 33]), 0, 8_usize)?;
        Ok(count(3000, || call!(libc::SYS_rt_sigqueueinfo, std::process::id(), 34, &info).is_ok())) }),
    ("watch-from-many-places", |_| Ok(count(100, || call!(libc::SYS_inotify_init1, 0).is_ok()))),
    ("spin-for-ever", |_| {
        let begun = processor_time()?;
        while processor_time()? - begun < Duration::from_millis(2300) { std::hint::spin_loop(); }
        Ok(got("more than its time")) }),
    ("stay-as-a-daemon", |t| stay(t, || {})),
    ("stay-deaf-to-signals", |t| stay(t, || (1..64).for_each(ignore))),
    ("stay-stopped", |t| stay(t, || drop(call!(libc::SYS_kill, std::process::id(), libc::SIGSTOP)))),
    ("stay-by-running-away", run_away),
    ("stay-with-the-outputs-open", |t| {
        let path = t.at("out", "late");
        stay(t, move || {
            let begun = Instant::now();
            while begun.elapsed() < STAY {
                drop(fs::write(&path, format!("{:?}", begun.elapsed())));
                std::thread::sleep(Duration::from_millis(2));
            }
        }) }),
    ("stay-as-the-parent-of-the-orphans", |t| {
        call!(libc::SYS_prctl, libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)?;
        stay(t, || {}) }),
    ("stay-when-the-program-is-killed", |t| {
        let said = stay(t, || {})?;
        println!("{said}\ndone");
        io::stdout().flush()?;
        io::Read::read_to_end(&mut io::stdin(), &mut Vec::new())?;
        call!(libc::SYS_kill, std::process::id(), 9).map(done) }),
];

/// Do something until it is refused; how often it worked is for the reader, the judge counts for itself.
fn count(most: usize, mut act: impl FnMut() -> bool) -> String {
    let n = (0..most).take_while(|_| act()).count();
    format!("{n} of {most}")
}

fn take_memory(kind: i32, most_mib: usize) -> io::Result<String> {
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    Ok(count(most_mib, || {
        let Ok(at) = call!(libc::SYS_mmap, 0, MIB, rights, kind | libc::MAP_ANONYMOUS, -1, 0)
        else {
            return false;
        };
        for page in (0..MIB).step_by(4096) {
            // SAFETY: the mapping above is writable and of this size.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at + page).write(1) };
        }
        true
    }))
}

fn fill(path: &str) -> io::Result<String> {
    ignore(libc::SIGXFSZ);
    let mut n = 0;
    for part in 0..24 {
        let Ok(file) = open(&format!("{path}-{part}"), libc::O_WRONLY | libc::O_CREAT) else {
            break;
        };
        n += call!(libc::SYS_write, file, &vec![7; MIB], MIB).unwrap_or(0);
    }
    // The private folders of an attack hold eight.
    Ok(if n > 9 * MIB { got(format!("{n} bytes kept")) } else { format!("{n} bytes kept") })
}

fn write_long(path: &str) -> io::Result<String> {
    ignore(libc::SIGXFSZ);
    let file = open(path, libc::O_WRONLY | libc::O_CREAT)?;
    let piece = vec![7; MIB];
    Ok(count(24, || call!(libc::SYS_write, file, &piece, MIB).is_ok_and(|n| n == MIB)))
}

fn ignore(signal: i32) {
    // SAFETY: SIG_IGN is no pointer to code; numbers that cannot be set are refused.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

fn processor_time() -> io::Result<Duration> {
    let mut time = vec![0; 16];
    call!(libc::SYS_clock_gettime, libc::CLOCK_PROCESS_CPUTIME_ID, &mut time)?;
    let word = |at: usize| u64::from_ne_bytes(time[at..at + 8].try_into().unwrap_or_default());
    Ok(Duration::from_secs(word(0)) + Duration::from_nanos(word(8)))
}

/// Leave a process behind that has its own session and parent; it ends by itself only after a long time.
fn stay(target: &Target, then: impl FnOnce()) -> io::Result<String> {
    let mark = target.at("work", "stays");
    if fork()?.is_none() {
        drop(call!(libc::SYS_setsid));
        if fork().is_ok_and(|forked| forked.is_none()) {
            drop(fs::write(&mark, "yes"));
            then();
            std::thread::sleep(STAY);
        }
        std::process::exit(0);
    }
    wait_for(&mark)
}

/// Be another process every few moments, so that whoever looks for this one finds it gone.
fn run_away(target: &Target) -> io::Result<String> {
    let mark = target.at("work", "stays");
    if fork()?.is_none() {
        drop(call!(libc::SYS_setsid));
        drop(fs::write(&mark, "yes"));
        let begun = Instant::now();
        while begun.elapsed() < STAY {
            if fork().is_ok_and(|forked| forked.is_some()) {
                std::process::exit(0);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        std::process::exit(0);
    }
    wait_for(&mark)
}

fn wait_for(mark: &str) -> io::Result<String> {
    let begun = Instant::now();
    while fs::metadata(mark).is_err() && begun.elapsed() < STAY {
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(done(0))
}
