//! Acts that speak to others: the host's network, sockets with names, shared memory, queues, keys, terminals.

use std::{
    fs, io,
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener, UnixStream},
    },
    time::Duration,
};

use crate::{
    Act, Target,
    call::{c, content, fd, open, words, write},
    files::done,
    got,
};

#[rustfmt::skip]
pub(crate) const ACTS: &[(&str, Act)] = &[
    ("visit-a-service-of-the-host", |t| visit(t.get("tcp"))),
    ("visit-a-service-of-the-host-by-ipv6", |t| visit(t.get("tcp6"))),
    ("send-a-datagram-to-the-host", |t| UdpSocket::bind("127.0.0.1:0")?.send_to(b"leak", t.get("udp")).map(done)),
    ("send-a-datagram-to-the-host-by-ipv6", |t| UdpSocket::bind("[::1]:0")?.send_to(b"leak", t.get("udp6")).map(done)),
    ("visit-a-named-socket", |t| {
        let mut text = String::new();
        UnixStream::connect(t.at("tenant", "socket"))?.read_to_string(&mut text)?;
        Ok(text) }),
    ("visit-an-abstract-socket", |t| {
        let mut text = String::new();
        UnixStream::connect_addr(&UnixAddr::from_abstract_name(t.get("abstract"))?)?.read_to_string(&mut text)?;
        Ok(text) }),
    ("send-a-datagram-to-an-abstract-socket", |t| {
        let to = UnixAddr::from_abstract_name(t.get("datagrams"))?;
        UnixDatagram::unbound()?.send_to_addr(b"leak", &to).map(done) }),
    ("hand-a-descriptor-to-an-abstract-socket", hand_out),
    ("send-a-datagram-to-a-named-socket", |t| UnixDatagram::unbound()?.send_to(b"leak", t.at("tenant", "datagrams")).map(done)),
    ("serve-the-host", |t| {
        let listener = TcpListener::bind(t.get("free"))?;
        std::mem::forget(listener);
        Ok(done(0)) }),
    ("take-an-abstract-name", |t| {
        let listener = UnixListener::bind_addr(&UnixAddr::from_abstract_name(t.get("vacant"))?)?;
        std::mem::forget(listener);
        Ok(done(0)) }),
    ("make-a-raw-socket", |_| socket(libc::AF_INET, libc::SOCK_RAW, 1)),
    ("make-a-packet-socket", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 768)),
    ("make-a-socket-to-the-hypervisor", |_| socket(40, libc::SOCK_STREAM, 0)),
    ("make-a-kernel-event-socket", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, 15)),
    ("list-the-hosts-interfaces", interfaces),
    ("list-the-hosts-connections", |t| {
        let port = t.get("tcp").rsplit(':').next().and_then(|p| p.parse::<u16>().ok()).unwrap_or(0);
        let table = fs::read_to_string("/proc/self/net/tcp")?;
        let there = table.contains(&format!(":{port:04X}"));
        Ok(if there { got("the port of a service") } else { table }) }),
    ("list-the-hosts-named-sockets", |t| {
        let table = fs::read_to_string("/proc/self/net/unix")?;
        let there = table.contains(t.get("abstract"));
        Ok(if there { got("the name of a socket") } else { "not there".to_owned() }) }),
    ("read-shared-memory", |t| {
        let at = call!(libc::SYS_shmat, t.number("shm"), 0, libc::SHM_RDONLY)?;
        // SAFETY: the segment that was attached is a page long and stays attached.
        let bytes = unsafe { std::slice::from_raw_parts(std::ptr::with_exposed_provenance::<u8>(at), 64) };
        Ok(String::from_utf8_lossy(bytes).into_owned()) }),
    ("write-shared-memory", |t| {
        let at = call!(libc::SYS_shmat, t.number("shm"), 0, 0)?;
        // SAFETY: the segment that was attached is a page long and writable.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(at).write(b'!') };
        Ok(done(0)) }),
    ("remove-shared-memory", |t| call!(libc::SYS_shmctl, t.number("shm"), 0, 0).map(|_| got("the segment"))),
    ("make-shared-memory", |_| call!(libc::SYS_shmget, 0, 4096, 0o1600)
        .and_then(|id| call!(libc::SYS_shmctl, id, 0, 0)).map(|_| got("a segment"))),
    ("change-a-semaphore", |t| call!(libc::SYS_semctl, t.number("sem"), 0, 16, 9).map(done)),
    ("take-a-message", |t| {
        let mut message = vec![0; 136];
        call!(libc::SYS_msgrcv, t.number("msg"), &mut message, 128_usize, 0, 0x800)?;
        Ok(String::from_utf8_lossy(&message).into_owned()) }),
    ("send-a-message", |t| {
        let message = [&words(&[1]), b"leak".as_slice()].concat();
        call!(libc::SYS_msgsnd, t.number("msg"), &message, 4_usize, 0x800).map(done) }),
    ("take-a-message-of-a-named-queue", |t| {
        let queue = call!(libc::SYS_mq_open, &c(t.get("mq")), libc::O_RDWR | libc::O_NONBLOCK, 0, 0)?;
        let mut message = vec![0; 256];
        call!(libc::SYS_mq_timedreceive, queue, &mut message, 256_usize, 0, 0)?;
        Ok(String::from_utf8_lossy(&message).into_owned()) }),
    ("remove-a-named-queue", |t| call!(libc::SYS_mq_unlink, &c(t.get("mq"))).map(|_| got("the queue"))),
    ("read-a-key", |t| {
        let mut bytes = vec![0; 64];
        call!(libc::SYS_keyctl, 11, t.number("key"), &mut bytes, 64_usize)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned()) }),
    ("change-a-key", |t| call!(libc::SYS_keyctl, 2, t.number("key"), b"spoiled".as_slice(), 7_usize).map(done)),
    ("leave-a-key-with-the-user", |_| call!(libc::SYS_add_key, c"user", c"meshfarm-attack", b"x".as_slice(), 1_usize, -4)
        .map(|key| { drop(call!(libc::SYS_keyctl, 9, key, -4)); got("a key in the user's ring") })),
    ("make-a-key-session", |_| call!(libc::SYS_keyctl, 1, 0).map(|_| got("a session of keys"))),
    ("ask-the-host-for-a-key", |_| call!(libc::SYS_keyctl, 0, -4, 1).map(|_| got("the user's ring"))),
    ("read-the-shared-memory-folder", |t| content(open(&format!("/dev/shm/{}", t.get("shared")), libc::O_RDONLY)?)),
    ("write-the-shared-memory-folder", |t| {
        write(open(&format!("/dev/shm/{}", t.get("shared")), libc::O_WRONLY)?, "spoiled").map(done) }),
    ("write-into-a-pipe-with-a-name", |t| {
        write(open(&t.at("tenant", "pipe"), libc::O_WRONLY | libc::O_NONBLOCK)?, "leak").map(done) }),
    ("write-to-the-terminal-of-another", |t| write(open(t.get("terminal"), libc::O_WRONLY | libc::O_NOCTTY)?, "leak").map(done)),
    ("type-into-a-terminal", |_| type_into(0x5412)),
    ("type-into-a-terminal-in-disguise", |_| type_into(0x1_0000_5412)),
];

fn visit(address: &str) -> io::Result<String> {
    let address: SocketAddr = address.parse().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut text = String::new();
    stream.write_all(b"leak")?;
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// The descriptor of a file of the job's, given to whoever listens outside.
fn hand_out(target: &Target) -> io::Result<String> {
    let mut stream =
        UnixStream::connect_addr(&UnixAddr::from_abstract_name(target.get("abstract"))?)?;
    let file = open(target.get("work"), libc::O_RDONLY)?;
    let socket = std::os::fd::AsRawFd::as_raw_fd(&stream);
    let text = *b"leak";
    let part = words(&[text.as_ptr() as u64, 4]);
    let mut control = words(&[20, 0, 0]);
    control[8..12].copy_from_slice(&libc::SOL_SOCKET.to_ne_bytes());
    control[12..16].copy_from_slice(&libc::SCM_RIGHTS.to_ne_bytes());
    control[16..20].copy_from_slice(&file.to_ne_bytes());
    let message = words(&[0, 0, part.as_ptr() as u64, 1, control.as_ptr() as u64, 24, 0]);
    call!(libc::SYS_sendmsg, socket, &message, libc::MSG_NOSIGNAL)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(got(format!("rid of a descriptor, and {answer}")))
}

fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<String> {
    call!(libc::SYS_socket, family, kind, protocol).map(|_| got("the socket"))
}

/// Interfaces other than the jail's own loopback, asked of the kernel by netlink.
fn interfaces(_: &Target) -> io::Result<String> {
    let socket = fd(call!(libc::SYS_socket, libc::AF_NETLINK, libc::SOCK_RAW, 0)?);
    let mut ask = vec![0; 32];
    ask[0] = 32;
    (ask[4], ask[6], ask[7]) = (18, 1, 3);
    call!(libc::SYS_sendto, socket, &ask, 32_usize, 0, 0, 0)?;
    let mut answer = vec![0; 32_768];
    let n = call!(libc::SYS_recvfrom, socket, &mut answer, 32_768_usize, 0, 0, 0)?;
    let (mut at, mut count) = (0, 0);
    while at + 16 <= n {
        let length =
            u32::from_ne_bytes([answer[at], answer[at + 1], answer[at + 2], answer[at + 3]]);
        count += usize::from(answer[at + 4] == 16);
        at += usize::try_from(length).unwrap_or(n).max(16).next_multiple_of(4);
    }
    Ok(if count > 1 { got(format!("{count} interfaces")) } else { format!("{count} interface") })
}

/// Put a letter into the input of a terminal as if a person had typed it.
fn type_into(request: usize) -> io::Result<String> {
    call!(libc::SYS_setsid).ok();
    let terminal = open("/dev/ptmx", libc::O_RDWR | libc::O_NOCTTY)?;
    let mut unlock = vec![0; 4];
    call!(libc::SYS_ioctl, terminal, 0x4004_5431_usize, &mut unlock)?;
    let mut number = vec![0; 4];
    call!(libc::SYS_ioctl, terminal, 0x8004_5430_usize, &mut number)?;
    let slave = open(&format!("/dev/pts/{}", number[0]), libc::O_RDWR)?;
    call!(libc::SYS_ioctl, slave, request, b"x\n".as_slice())?;
    call!(libc::SYS_ioctl, slave, request, b"\n".as_slice())?;
    content(slave).map(|typed| got(format!("{typed:?} was typed")))
}
