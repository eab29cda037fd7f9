//! Where threads wait for chunks that a fetch brings meanwhile.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use meshfarm_protocol::id::ChunkId;

use crate::chunks::Chunks;
use crate::content::ContentError;

/// Tells who waits for chunks that some have come, or that no more will come.
#[derive(Debug, Default)]
pub struct Arrivals {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// How often something has come.
    n: u64,
    /// The fetch has ended, well or not.
    over: bool,
}

impl Arrivals {
    /// The sealed bytes of a chunk into `bytes`, as soon as it is here, not checked once more. Blocks.
    ///
    /// # Errors
    /// [`ContentError::Missing`] when the fetch has ended without it; when the disk refuses.
    pub fn wait_for(
        &self,
        chunks: &Chunks,
        cid: &ChunkId,
        bytes: &mut Vec<u8>,
    ) -> Result<(), ContentError> {
        loop {
            let (seen, over) = {
                let state = self.lock();
                (state.n, state.over)
            };
            if chunks.read(cid, bytes)? {
                return Ok(());
            }
            if over {
                return Err(ContentError::Missing(*cid));
            }
            let mut state = self.lock();
            while state.n == seen && !state.over {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Some chunks are in the store now.
    pub(crate) fn some(&self) {
        self.lock().n += 1;
        self.changed.notify_all();
    }

    /// No more will come.
    pub(crate) fn end(&self) {
        self.lock().over = true;
        self.changed.notify_all();
    }

    /// A panic elsewhere leaves a count and a flag, which are true all the same.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
