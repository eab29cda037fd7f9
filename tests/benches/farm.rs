//! The farm: what it costs one site to find lenders for tasks, and to hold very many of them.

mod beside;
mod cold;
mod dispatch;
mod fill;
mod first;
mod one_site;
mod places;
mod queues;
mod sessions;

use std::time::Duration;

use crate::Part;

pub(crate) use sessions::{SESSIONS, node};

/// The parts of this room. Memory is measured before anything else has taken some of it.
pub(crate) const PARTS: [Part; 7] = [
    ("queues", queues::measure),
    ("match", places::measure),
    ("fill", fill::measure),
    ("dispatch", dispatch::measure),
    ("first", first::measure),
    ("cold", cold::measure),
    ("beside", beside::measure),
];

/// Processor time of this thread so far: what others do on the machine does not count.
pub(crate) fn cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec to where the pointer leads, which is ours.
    #[expect(unsafe_code, reason = "the standard library knows no processor time")]
    let read = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(read, 0, "this kernel has no clock of a thread");
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
