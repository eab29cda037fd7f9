//! What a node is given by the machine that it runs on: time, entropy, and threads that may wait.
//!
//! The simulator hands in its own, so that the same node runs in virtual time.

use std::fmt;
use std::sync::Arc;

use tokio::sync::oneshot;
use zeroize::Zeroizing;

use crate::net::{Clock, SystemClock};

/// Where randomness comes from.
pub trait Entropy: Send + Sync + 'static {
    /// Fill `bytes` with unpredictable ones.
    fn fill(&self, bytes: &mut [u8]);
}

/// Runs work that blocks on disk or takes long to compute.
pub trait Blocking: Send + Sync + 'static {
    /// Run `work` now or soon, on whatever thread.
    fn run(&self, work: Box<dyn FnOnce() + Send>);
}

/// The three together. Cheap to clone.
#[derive(Clone)]
pub struct Machine {
    /// Time.
    pub clock: Arc<dyn Clock>,
    /// Entropy.
    pub entropy: Arc<dyn Entropy>,
    /// Threads that may wait.
    pub blocking: Arc<dyn Blocking>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Machine(..)")
    }
}

impl Machine {
    /// The real one.
    #[must_use]
    pub fn real() -> Self {
        Self {
            clock: Arc::new(SystemClock),
            entropy: Arc::new(SystemEntropy),
            blocking: Arc::new(TokioThreads),
        }
    }

    /// So many random bytes.
    #[must_use]
    pub fn random<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }

    /// Random bytes for a key: wiped when dropped.
    #[must_use]
    pub fn seed(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.random())
    }

    /// Run work that blocks. None when its thread panicked. Dropping the call lets the work go on.
    pub async fn block<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let (tx, rx) = oneshot::channel();
        self.blocking.run(Box::new(move || drop(tx.send(work()))));
        rx.await.ok()
    }
}

/// The operating system's generator.
#[derive(Clone, Copy, Debug)]
struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        // A kernel that has no randomness to give has no use for keys either: there is nothing to go on with.
        getrandom::fill(bytes).expect("the operating system gives random bytes");
    }
}

/// Tokio's pool for blocking work.
#[derive(Clone, Copy, Debug)]
struct TokioThreads;

impl Blocking for TokioThreads {
    fn run(&self, work: Box<dyn FnOnce() + Send>) {
        drop(tokio::task::spawn_blocking(work));
    }
}
