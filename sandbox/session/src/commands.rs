//! What the node wants: lines of standard input, read by a thread of their own within bounds.

use std::fs::File;
use std::future::Future;
use std::io::{BufRead, BufReader, Read};
use std::pin::pin;
use std::time::Duration;

use meshfarm_protocol::session::{MAX_LINE, ToRunner, from_line};
use openjd_sessions::SessionCancelHandle;
use tokio::sync::mpsc;

/// A node that runs ahead by more commands than this waits.
const QUEUE: usize = 16;

/// How long to wait before asking again an action to stop that had not started yet.
const CANCEL_AGAIN: Duration = Duration::from_millis(20);

/// What the node wants of the session as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Go on.
    GoOn,
    /// End after the running task.
    Finish,
    /// End now.
    Cancel,
    /// It broke the rules of the conversation, or its line: end now, and say why.
    Broken(String),
}

/// The node's commands as they come.
#[derive(Debug)]
pub(crate) struct Commands {
    heard_rx: mpsc::Receiver<Result<ToRunner, String>>,
    /// What it wants by now.
    pub(crate) wish: Wish,
}

/// Starts to listen to `input`.
pub(crate) fn listen(input: File) -> Commands {
    let (heard_tx, heard_rx) = mpsc::channel(QUEUE);
    std::thread::spawn(move || {
        let mut input = BufReader::new(input);
        while let Some(heard) = read_command(&mut input) {
            let broken = heard.is_err();
            if heard_tx.blocking_send(heard).is_err() || broken {
                return;
            }
        }
    });
    Commands { heard_rx, wish: Wish::GoOn }
}

/// The next command; none at the end of the input.
fn read_command(input: &mut impl BufRead) -> Option<Result<ToRunner, String>> {
    let mut line = Vec::new();
    let limit = MAX_LINE as u64 + 2;
    match input.take(limit).read_until(b'\n', &mut line) {
        Ok(0) => None,
        Ok(_) => Some(from_line(&line).map_err(|error| error.to_string())),
        Err(error) => Some(Err(error.to_string())),
    }
}

impl Commands {
    /// The next command between tasks; none when the node is gone.
    ///
    /// Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Result<ToRunner, String>> {
        self.heard_rx.recv().await
    }

    /// Runs `action` to its end, and stops it when the node says so.
    pub(crate) async fn during<T>(
        &mut self,
        handle: &SessionCancelHandle,
        action: impl Future<Output = T>,
    ) -> T {
        let mut action = pin!(action);
        let mut again = tokio::time::interval(CANCEL_AGAIN);
        let mut delivered = false;
        loop {
            let listening = matches!(self.wish, Wish::GoOn | Wish::Finish);
            tokio::select! {
                biased;
                result = &mut action => return result,
                heard = self.heard_rx.recv(), if listening => self.note(heard),
                _ = again.tick(), if !listening && !delivered => delivered = handle.cancel(None, false),
            }
        }
    }

    /// Notes a command that came while an action runs.
    fn note(&mut self, heard: Option<Result<ToRunner, String>>) {
        self.wish = match heard {
            Some(Ok(ToRunner::Finish)) => Wish::Finish,
            None | Some(Ok(ToRunner::Cancel)) => Wish::Cancel,
            Some(Ok(ToRunner::Run { .. } | ToRunner::Start(_) | ToRunner::Play(_))) => {
                Wish::Broken("a command came while an action was running".into())
            }
            Some(Err(error)) => Wish::Broken(error),
        };
    }
}
