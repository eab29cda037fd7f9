//! How everything else of a node reaches its core: questions to the loop that owns it, and its live events.

use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{broadcast, mpsc, oneshot};

use meshfarm_core::{Ask, Event, Reply, Site};
use meshfarm_protocol::id::Millis;

/// So many events are kept for a listener that is slow; one that is slower learns that it missed some.
const EVENTS: usize = 4096;

/// So many questions may wait for the loop.
const QUESTIONS: usize = 256;

/// The node is going down; nothing was changed.
#[derive(Debug, thiserror::Error, Clone, Copy, PartialEq, Eq)]
#[error("the node is stopping")]
pub struct Stopping;

/// Something that reads the core.
pub(crate) type Look = Box<dyn FnOnce(&Site, Millis) + Send + Sync>;

/// A question to the loop.
pub(crate) enum Question {
    /// To be decided by the core; answered when the decision is on disk.
    Ask(Ask, oneshot::Sender<Reply>),
    /// To be read off the core.
    Look(Look),
}

impl std::fmt::Debug for Question {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ask(ask, _) => f.debug_tuple("Ask").field(ask).finish(),
            Self::Look(_) => f.write_str("Look"),
        }
    }
}

/// Something that has happened, with its place in the order of all events of this run of the node.
#[derive(Clone, Debug, Serialize)]
pub struct Happened {
    /// Counts from one since the node started.
    pub number: u64,
    /// When, in milliseconds since 1970.
    pub at: Millis,
    /// What.
    #[serde(flatten)]
    pub event: Event,
}

/// The door to the loop that owns the core. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Gate {
    question_tx: mpsc::Sender<Question>,
    event_tx: broadcast::Sender<Arc<Happened>>,
}

impl Gate {
    /// A door, and the end at which the loop takes questions.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Question>) {
        let (question_tx, question_rx) = mpsc::channel(QUESTIONS);
        let (event_tx, _) = broadcast::channel(EVENTS);
        (Self { question_tx, event_tx }, question_rx)
    }

    /// Ask for a decision. The answer comes when it is on disk. Dropping the call does not take the
    /// question back.
    ///
    /// # Errors
    /// When the node is going down.
    pub async fn ask(&self, ask: Ask) -> Result<Reply, Stopping> {
        let (tx, rx) = oneshot::channel();
        self.question_tx.send(Question::Ask(ask, tx)).await.map_err(|_gone| Stopping)?;
        rx.await.map_err(|_gone| Stopping)
    }

    /// Read something off the core. Dropping the call is safe.
    ///
    /// # Errors
    /// When the node is going down.
    pub async fn look<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Site, Millis) -> T + Send + Sync + 'static,
    ) -> Result<T, Stopping> {
        let (tx, rx) = oneshot::channel();
        let look = move |site: &Site, now| drop(tx.send(look(site, now)));
        let question = Question::Look(Box::new(look));
        self.question_tx.send(question).await.map_err(|_gone| Stopping)?;
        rx.await.map_err(|_gone| Stopping)
    }

    /// Everything that happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Arc<Happened>> {
        self.event_tx.subscribe()
    }

    /// Tell everybody who listens.
    pub(crate) fn tell(&self, happened: Happened) {
        // Nobody listening is no error.
        drop(self.event_tx.send(Arc::new(happened)));
    }
}
