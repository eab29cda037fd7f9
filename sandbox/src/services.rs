//! The only way out of a jail: connections to the services of its policy, carried by the launcher to pinned addresses.
//!
//! The jail's first process listens inside the jail's own network and hands the listeners out. The job connects to
//! `127.0.0.x`, or to the service's address as a copy of its own, never to the host's network: it cannot choose where
//! its bytes go.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use crate::{spec::Service, sys};

/// Connections of one jail at the same time.
const MOST_CONNECTIONS: usize = 64;
/// Bytes of one connection and direction: a licence needs kilobytes.
const MOST_BYTES: u64 = 64 << 20;
/// How long the service may take to accept.
const CONNECT: Duration = Duration::from_secs(10);
/// A connection that is silent for so long is closed.
const SILENCE: Duration = Duration::from_secs(3600);

/// What went through, for the usage of the jail.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    bytes: AtomicU64,
    open: AtomicUsize,
}

impl Meter {
    /// Bytes in both directions so far.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// The jail's own address of a service: one for each host name, so that two may use the same port; an address that is
/// its own name is the same in the jail.
pub(crate) fn inside_address(services: &[Service], service: &Service) -> Ipv4Addr {
    if let Some(address) = literal(service) {
        return address;
    }
    let mut names: Vec<&str> = services.iter().map(|s| s.host.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let place = names.iter().position(|name| *name == service.host).unwrap_or_default();
    // 127.0.0.1 stays the jail's own; there are at most 64 services.
    Ipv4Addr::new(127, 0, 0, u8::try_from(place + 2).unwrap_or(u8::MAX))
}

/// The address of a service that is named by it.
fn literal(service: &Service) -> Option<Ipv4Addr> {
    service.host.parse().ok()
}

/// Lines for the jail's `/etc/hosts`.
pub(crate) fn hosts(services: &[Service]) -> String {
    let mut lines: Vec<String> = services
        .iter()
        .filter(|service| literal(service).is_none())
        .map(|service| format!("{} {}\n", inside_address(services, service), service.host))
        .collect();
    lines.sort();
    lines.dedup();
    lines.concat()
}

/// Inside the jail's network: listen for the job and hand each listener to the launcher, in the order of the policy.
pub(crate) fn listen(services: &[Service], launcher: &UnixStream) -> io::Result<()> {
    let foreign = services.iter().filter_map(literal).filter(|address| !address.is_loopback());
    for (n, address) in foreign.collect::<BTreeSet<_>>().into_iter().enumerate() {
        sys::add_to_loopback(n, address)?;
    }
    for service in services {
        let at = SocketAddr::new(IpAddr::V4(inside_address(services, service)), service.port);
        let listener = TcpListener::bind(at)?;
        sys::send_with_fd(launcher.as_fd(), &[1], listener.as_fd())?;
    }
    Ok(())
}

/// Outside: take the listeners and serve each in a thread of its own, until the launcher ends.
pub(crate) fn serve(services: &[Service], jail: &UnixStream) -> io::Result<Arc<Meter>> {
    let meter = Arc::new(Meter::default());
    for service in services {
        let (_, listener) = sys::receive_with_fd(jail.as_fd(), &mut [0])?;
        let listener: OwnedFd = listener.ok_or(io::ErrorKind::UnexpectedEof)?;
        let (listener, meter) = (TcpListener::from(listener), Arc::clone(&meter));
        let to = SocketAddr::new(service.address, service.port);
        thread::Builder::new().spawn(move || accept(&listener, to, &meter))?;
    }
    Ok(meter)
}

fn accept(listener: &TcpListener, to: SocketAddr, meter: &Arc<Meter>) {
    for job in listener.incoming() {
        let Ok(job) = job else {
            // Out of descriptors, for instance: the job's connections end, and then it goes on.
            thread::sleep(Duration::from_millis(100));
            continue;
        };
        if meter.open.fetch_add(1, Ordering::SeqCst) >= MOST_CONNECTIONS {
            meter.open.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let shared = Arc::clone(meter);
        let carried = thread::Builder::new().spawn(move || {
            // A service that does not answer shows to the job as a closed connection.
            drop(carry(job, to, &shared));
            shared.open.fetch_sub(1, Ordering::SeqCst);
        });
        if carried.is_err() {
            meter.open.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn carry(job: TcpStream, to: SocketAddr, meter: &Arc<Meter>) -> io::Result<()> {
    let service = TcpStream::connect_timeout(&to, CONNECT)?;
    for stream in [&job, &service] {
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(CONNECT))?;
        stream.set_nodelay(true)?;
    }
    let (from, into, counted) = (job.try_clone()?, service.try_clone()?, Arc::clone(meter));
    let up = thread::Builder::new().spawn(move || pass(&from, &into, &counted))?;
    pass(&service, &job, meter);
    // A panic there would be ours, and the connection is closed all the same.
    drop(up.join());
    Ok(())
}

fn pass(mut from: &TcpStream, mut to: &TcpStream, meter: &Meter) {
    let mut buffer = [0; 16 << 10];
    let mut passed = 0;
    while let Ok(n) = from.read(&mut buffer) {
        passed += n as u64;
        if n == 0 || passed > MOST_BYTES || to.write_all(&buffer[..n]).is_err() {
            break;
        }
        meter.bytes.fetch_add(n as u64, Ordering::Relaxed);
    }
    // Refused when the other side is gone already.
    drop(to.shutdown(Shutdown::Write));
    drop(from.shutdown(Shutdown::Read));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_host_has_an_address_of_its_own_in_the_jail() {
        let service = |host: &str, port| Service {
            host: host.to_owned(),
            port,
            address: Ipv4Addr::new(192, 0, 2, 1).into(),
        };
        let all = [service("rlm", 5053), service("flex", 27000), service("flex", 27001)];
        assert_eq!(hosts(&all), "127.0.0.2 flex\n127.0.0.3 rlm\n");
        assert_eq!(inside_address(&all, &all[2]), inside_address(&all, &all[1]));
        let by_number = service("10.0.0.7", 5053);
        assert_eq!(inside_address(&all, &by_number), Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(hosts(&[by_number]), "");
    }
}
