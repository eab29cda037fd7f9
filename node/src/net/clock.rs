//! What the network room is given from outside: its transport, its clock and its entropy.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use libp2p::PeerId;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::Boxed;
use libp2p::multiaddr::Multiaddr;
use meshfarm_protocol::id::Millis;

/// A transport that authenticates the other end and carries many streams over one connection.
pub type BoxedTransport = Boxed<(PeerId, StreamMuxerBox)>;

/// Tells the time and waits for it.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch, or since zero in a simulation.
    fn now(&self) -> Millis;

    /// Ends when `now` has reached `at`. Dropping it is safe.
    fn wait_until(&self, at: Millis) -> BoxFuture<'static, ()>;
}

/// The machine's own clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Millis {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn wait_until(&self, at: Millis) -> BoxFuture<'static, ()> {
        let span = Duration::from_millis(at.since(self.now()).0);
        Box::pin(tokio::time::sleep(span))
    }
}

/// Everything that a simulation replaces.
pub struct Outside {
    /// Carries the bytes. See [`super::transport::transport`] for the real one.
    pub transport: BoxedTransport,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Grows every random choice of this room.
    pub seed: [u8; 32],
    /// Says whether an address is free to listen at; see [`super::transport::is_free`].
    pub is_free: fn(&Multiaddr) -> io::Result<()>,
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Outside(..)")
    }
}
