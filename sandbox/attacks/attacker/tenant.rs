//! The other tenant: a process that owns one of everything, tells where it is, and says on demand how it fares.

use std::{
    collections::BTreeMap,
    env, fs, io,
    io::{BufRead, Write},
    net::{TcpListener, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixDatagram, UnixListener},
    },
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use libc::c_int;

use crate::{
    Target,
    call::{c, fd, halves, open, words},
};

/// How often this process was signalled.
static SIGNALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_signal(_: c_int) {
    SIGNALS.fetch_add(1, Ordering::SeqCst);
}

/// What the tenant owns beside files.
struct Belongings {
    told: BTreeMap<&'static str, String>,
    memory: &'static [u8],
    shared: usize,
    sem: usize,
    msg: usize,
    mq: usize,
    key: usize,
    datagrams: Vec<Box<dyn Fn() -> usize>>,
    visits: Arc<AtomicU32>,
    terminal: c_int,
    pipe: c_int,
}

/// Own everything, in the current folder, until standard input ends.
pub(crate) fn stand() -> io::Result<()> {
    let secret = env::var("SECRET").unwrap_or_default();
    let mut belongings = Belongings::new(&secret)?;
    belongings.told.insert("pid", std::process::id().to_string());
    let told: Vec<String> = belongings.told.iter().map(|(k, v)| format!("{k}={v}")).collect();
    println!("{}", told.join(" "));
    io::stdout().flush()?;
    for line in io::stdin().lock().lines() {
        if line? == "look" {
            println!("{}", belongings.look()?);
            io::stdout().flush()?;
        }
    }
    remove(belongings.sem, belongings.msg, &belongings.told["mq"], belongings.key);
    Ok(())
}

/// Remove what a tenant that was killed has left in the kernel.
pub(crate) fn tidy_up(target: &Target) -> io::Result<()> {
    let (sem, msg) = (target.number("sem"), target.number("msg"));
    remove(sem, msg, target.get("mq"), target.number("key"));
    drop(fs::remove_file(format!("/dev/shm/{}", target.get("shared"))));
    Ok(())
}

fn remove(sem: usize, msg: usize, mq: &str, key: usize) {
    // Each may be gone already: some attacks remove them.
    drop(call!(libc::SYS_semctl, sem, 0, 0, 0));
    drop(call!(libc::SYS_msgctl, msg, 0, 0));
    drop(call!(libc::SYS_mq_unlink, &c(mq)));
    drop(call!(libc::SYS_keyctl, 9, key, -4));
}

impl Belongings {
    fn new(secret: &str) -> io::Result<Self> {
        for signal in [libc::SIGUSR1, libc::SIGUSR2, libc::SIGIO, libc::SIGHUP, libc::SIGTERM] {
            let handler = on_signal as extern "C" fn(c_int);
            // SAFETY: the handler only adds to an atomic number.
            unsafe { libc::signal(signal, handler as usize) };
        }
        let mut told = BTreeMap::new();
        let memory: &'static [u8] = format!("{secret}-memory").leak().as_bytes();
        told.insert("address", memory.as_ptr().expose_provenance().to_string());
        told.insert("fd", open("secret.txt", libc::O_RDWR)?.to_string());
        told.insert("handle", handle_of("secret.txt").unwrap_or_default());
        let label = format!("{secret}-label");
        // Not every filesystem keeps labels; then there is none to steal.
        let text = label.as_bytes();
        drop(call!(libc::SYS_setxattr, c"secret.txt", c"user.label", text, text.len(), 0));
        let shared = shared_memory(secret, &mut told)?;
        let (sem, msg, mq) = queues(secret, &mut told)?;
        let key = key(secret, &mut told)?;
        let visits = Arc::new(AtomicU32::new(0));
        listen(secret, &visits, &mut told)?;
        let datagrams = datagrams(&mut told)?;
        let (terminal, pipe) = streams(&mut told)?;
        Ok(Self { told, memory, shared, sem, msg, mq, key, datagrams, visits, terminal, pipe })
    }

    /// One line that stays the same for as long as nobody touches anything.
    fn look(&self) -> io::Result<String> {
        let memory = self.memory.first_chunk::<8>().copied().unwrap_or_default();
        // SAFETY: the segment is attached for as long as this process lives, and a page long.
        let shared =
            unsafe { std::ptr::with_exposed_provenance::<[u8; 8]>(self.shared).read_volatile() };
        let sem = call!(libc::SYS_semctl, self.sem, 0, 12, 0).unwrap_or(usize::MAX);
        let mut state = vec![0; 256];
        let n_messages = call!(libc::SYS_msgctl, self.msg, 2, &mut state)
            .map(|_| u64::from_ne_bytes(state[80..88].try_into().unwrap_or_default()));
        let mut attributes = vec![0; 64];
        let n_named = call!(libc::SYS_mq_getsetattr, self.mq, 0, &mut attributes)
            .map(|_| u64::from_ne_bytes(attributes[24..32].try_into().unwrap_or_default()));
        let queue = fs::metadata(format!("/proc/self/fd/{}", self.mq))?;
        let mut bytes = vec![0; 64];
        let key = call!(libc::SYS_keyctl, 11, self.key, &mut bytes, 64_usize).unwrap_or(0);
        let key = String::from_utf8_lossy(&bytes[..key.min(6)]).into_owned();
        let datagrams: usize = self.datagrams.iter().map(|receive| receive()).sum();
        let pending = |file| call!(libc::SYS_read, file, &mut vec![0; 64], 64_usize).unwrap_or(0);
        let lock = open("secret.txt", libc::O_RDONLY)?;
        let free = call!(libc::SYS_flock, lock, libc::LOCK_EX | libc::LOCK_NB).is_ok();
        drop(call!(libc::SYS_close, lock));
        Ok(format!(
            "memory={memory:?} shared={shared:?} sem={sem} messages={n_messages:?} \
             named={n_named:?}/{} key={key} visits={} datagrams={datagrams} signals={} \
             terminal={} pipe={} lock={free}",
            std::os::unix::fs::MetadataExt::nlink(&queue),
            self.visits.load(Ordering::SeqCst),
            SIGNALS.load(Ordering::SeqCst),
            pending(self.terminal),
            pending(self.pipe),
        ))
    }
}

fn handle_of(path: &str) -> io::Result<String> {
    let mut handle = vec![0; 136];
    handle[0] = 128;
    let mut mount = vec![0; 4];
    call!(libc::SYS_name_to_handle_at, libc::AT_FDCWD, &c(path), &mut handle, &mut mount, 0)?;
    let kind = i32::from_ne_bytes(handle[4..8].try_into().map_err(io::Error::other)?);
    let hex: String =
        handle[8..8 + usize::from(handle[0])].iter().map(|b| format!("{b:02x}")).collect();
    Ok(format!("{kind}:{hex}"))
}

fn shared_memory(secret: &str, told: &mut BTreeMap<&'static str, String>) -> io::Result<usize> {
    let id = call!(libc::SYS_shmget, 0, 4096, 0o1666)?;
    let at = call!(libc::SYS_shmat, id, 0, 0)?;
    let text = format!("{secret}-shared-memory");
    let to = std::ptr::with_exposed_provenance_mut::<u8>(at);
    // SAFETY: the segment is a page long, which is longer than the text.
    unsafe { to.copy_from(text.as_ptr(), text.len()) };
    // It lasts as long as somebody is attached, so nothing stays when this process is killed.
    call!(libc::SYS_shmctl, id, 0, 0)?;
    told.insert("shm", id.to_string());
    let name = format!("meshfarm-{}", std::process::id());
    fs::write(format!("/dev/shm/{name}"), format!("{secret}-shared-file"))?;
    told.insert("shared", name);
    Ok(at)
}

fn queues(
    secret: &str,
    told: &mut BTreeMap<&'static str, String>,
) -> io::Result<(usize, usize, usize)> {
    let sem = call!(libc::SYS_semget, 0, 1, 0o1666)?;
    call!(libc::SYS_semctl, sem, 0, 16, 5)?;
    let msg = call!(libc::SYS_msgget, 0, 0o1666)?;
    let text = format!("{secret}-message");
    let message = [&words(&[1]), text.as_bytes()].concat();
    call!(libc::SYS_msgsnd, msg, &message, text.len(), 0x800)?;
    let name = format!("meshfarm-{}", std::process::id());
    let attributes = words(&[0, 4, 256, 0, 0, 0, 0, 0]);
    let flags = libc::O_RDWR | libc::O_CREAT | libc::O_NONBLOCK;
    let mq = call!(libc::SYS_mq_open, &c(&name), flags, 0o666, &attributes)?;
    let text = format!("{secret}-named-message");
    call!(libc::SYS_mq_timedsend, mq, text.as_bytes(), text.len(), 0, 0)?;
    told.extend([("sem", sem.to_string()), ("msg", msg.to_string()), ("mq", name)]);
    Ok((sem, msg, mq))
}

fn key(secret: &str, told: &mut BTreeMap<&'static str, String>) -> io::Result<usize> {
    let name = c(&format!("meshfarm-{}", std::process::id()));
    let text = format!("{secret}-key");
    let key = call!(libc::SYS_add_key, c"user", &name, text.as_bytes(), text.len(), -4)?;
    // Everything for everybody of this user, as the user's own programs have it.
    call!(libc::SYS_keyctl, 5, key, 0x3f3f_0000_u32)?;
    told.insert("key", key.to_string());
    Ok(key)
}

fn listen(
    secret: &str,
    visits: &Arc<AtomicU32>,
    told: &mut BTreeMap<&'static str, String>,
) -> io::Result<()> {
    for (key, address) in [("tcp", "127.0.0.1:0"), ("tcp6", "[::1]:0")] {
        // A machine without IPv6 has one listener less.
        let Ok(listener) = TcpListener::bind(address) else { continue };
        told.insert(key, listener.local_addr()?.to_string());
        let (visits, text) = (visits.clone(), format!("{secret}-{key}"));
        thread::spawn(move || {
            for mut stream in listener.incoming().filter_map(Result::ok) {
                visits.fetch_add(1, Ordering::SeqCst);
                drop(stream.write_all(text.as_bytes()));
            }
        });
    }
    let name = format!("meshfarm-{}", std::process::id());
    let by_path = UnixListener::bind("socket")?;
    let by_name = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    told.insert("abstract", name);
    for (listener, text) in [(by_path, "named-socket"), (by_name, "abstract-socket")] {
        let (visits, text) = (visits.clone(), format!("{secret}-{text}"));
        thread::spawn(move || {
            for mut stream in listener.incoming().filter_map(Result::ok) {
                visits.fetch_add(1, Ordering::SeqCst);
                drop(stream.write_all(text.as_bytes()));
            }
        });
    }
    let free = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    told.insert("free", free.to_string());
    told.insert("vacant", format!("meshfarm-vacant-{}", std::process::id()));
    Ok(())
}

/// Sockets that are only looked into; what came counts.
fn datagrams(told: &mut BTreeMap<&'static str, String>) -> io::Result<Vec<Box<dyn Fn() -> usize>>> {
    let mut all: Vec<Box<dyn Fn() -> usize>> = Vec::new();
    for (key, address) in [("udp", "127.0.0.1:0"), ("udp6", "[::1]:0")] {
        let Ok(socket) = UdpSocket::bind(address) else { continue };
        socket.set_nonblocking(true)?;
        told.insert(key, socket.local_addr()?.to_string());
        all.push(Box::new(move || socket.recv(&mut [0; 64]).unwrap_or(0)));
    }
    let name = format!("meshfarm-datagrams-{}", std::process::id());
    let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    told.insert("datagrams", name);
    for socket in [by_name, UnixDatagram::bind("datagrams")?] {
        socket.set_nonblocking(true)?;
        all.push(Box::new(move || socket.recv(&mut [0; 64]).unwrap_or(0)));
    }
    Ok(all)
}

/// A terminal and a pipe with a name, of which this process holds the reading side.
fn streams(told: &mut BTreeMap<&'static str, String>) -> io::Result<(c_int, c_int)> {
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_NONBLOCK;
    let terminal = open("/dev/ptmx", flags)?;
    call!(libc::SYS_ioctl, terminal, 0x4004_5431_usize, &halves(&[0]))?;
    let mut number = vec![0; 4];
    call!(libc::SYS_ioctl, terminal, 0x8004_5430_usize, &mut number)?;
    let number = u32::from_ne_bytes(number.try_into().unwrap_or_default());
    told.insert("terminal", format!("/dev/pts/{number}"));
    call!(libc::SYS_mknodat, libc::AT_FDCWD, c"pipe", 0o010_666, 0)?;
    let pipe = fd(call!(libc::SYS_openat, libc::AT_FDCWD, c"pipe", flags, 0)?);
    Ok((terminal, pipe))
}
