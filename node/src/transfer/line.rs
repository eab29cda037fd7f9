//! One line of a fetch while it is open: asks as much as its window allows, and has what comes checked and written.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use meshfarm_core::Input;
use meshfarm_core::transfer::{Dropped, Line, Run, Window};
use meshfarm_protocol::id::{ChunkId, Millis};
use meshfarm_protocol::message::{MAX_ASKED, asked_id};
use meshfarm_protocol::seal::chunk_id;
use tokio::task::JoinSet;

use super::Work;
use crate::chunks::ChunkError;
use crate::means::FetchError;
use crate::net::{Lane, LaneError, Piece};

/// Pieces are checked and written when so many bytes of them are here, or no more are at hand.
const GATHER: usize = 1 << 20;

/// A line with nothing to ask for looks again after this, should others have become slow meanwhile.
const LOOK_AGAIN: Millis = Millis::seconds(1);

/// A chunk that was asked for on a line.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    pub(super) run: Run,
    pub(super) cid: ChunkId,
    pub(super) len: u32,
}

/// Why a line ended.
pub(super) enum Ended {
    /// Nothing is left to be fetched, or everything has failed.
    Over,
    /// It broke, and may be opened again.
    Lost(LaneError),
    /// Its source misbehaves.
    Dropped(Dropped),
}

/// The runs of the chunks that were written; or of which chunk what went wrong, and the address of what came.
type Written = Result<Vec<Run>, (ChunkId, ChunkId, ChunkError)>;

/// A line while it is open.
pub(super) struct OnLine {
    work: Arc<Work>,
    line: Line,
    lane: Lane,
    /// Whether its source says what it has, and is worth waiting for when it has nothing new.
    shares: bool,
    window: Window,
    asked: VecDeque<Asked>,
    /// How many chunks of each run were asked for and are not stored yet, and whether one of them is missing.
    open: BTreeMap<Run, (usize, bool)>,
    writes: JoinSet<Written>,
    pub(super) received: u64,
}

impl OnLine {
    pub(super) fn new(work: Arc<Work>, line: Line, lane: Lane, shares: bool) -> Self {
        Self {
            work,
            line,
            lane,
            shares,
            window: Window::default(),
            asked: VecDeque::new(),
            open: BTreeMap::new(),
            writes: JoinSet::new(),
            received: 0,
        }
    }

    pub(super) async fn run(&mut self, first: Vec<Asked>) -> Ended {
        if let Err(ended) = self.ask(first).await {
            return ended;
        }
        loop {
            if self.work.is_over() {
                return Ended::Over;
            }
            let changed = Arc::clone(&self.work);
            let changed = changed.changed.notified();
            if let Err(ended) = self.ask_more().await {
                return ended;
            }
            let idle = self.asked.is_empty() && self.writes.is_empty();
            let clock = &self.work.means.machine.clock;
            let later = clock.wait_until(clock.now().plus(LOOK_AGAIN));
            let step = tokio::select! {
                biased;
                Some(written) = self.writes.join_next() => self.written(written),
                piece = self.lane.next(), if self.shares || !self.asked.is_empty() => {
                    self.came(piece).await
                }
                () = changed, if idle => Ok(()),
                () = later, if idle => Ok(()),
            };
            if let Err(ended) = step {
                return ended;
            }
        }
    }

    /// Asks for as much as the window allows.
    async fn ask_more(&mut self) -> Result<(), Ended> {
        if !self.window.is_open() || self.asked.len() >= MAX_ASKED {
            return Ok(());
        }
        let room = self.window.room();
        let taken = Arc::clone(&self.work).take(self.line, room).await;
        let taken = taken.map_err(|error| {
            self.work.fail(error);
            Ended::Over
        })?;
        self.ask(taken).await
    }

    async fn ask(&mut self, taken: Vec<Asked>) -> Result<(), Ended> {
        if taken.is_empty() {
            return Ok(());
        }
        let means = &self.work.means;
        let bytes = taken.iter().map(|asked| u64::from(asked.len)).sum();
        means.pace.receive(self.line.site, bytes, &means.machine.clock).await;
        let cids: Vec<_> = taken.iter().map(|asked| asked.cid).collect();
        let said = self.lane.ask(&cids, self.work.left()).await.map_err(Ended::Lost)?;
        means.meter.asked((self.line.site, self.work.from.job), said, self.asked.is_empty());
        for asked in taken {
            self.window.ask(asked.len.into());
            self.open.entry(asked.run).or_default().0 += 1;
            self.asked.push_back(asked);
        }
        Ok(())
    }

    /// A piece has come: gather what else is at hand, and have it checked and written.
    async fn came(&mut self, piece: Result<Piece, LaneError>) -> Result<(), Ended> {
        let mut gathered = Vec::new();
        let mut size = 0;
        let mut next = Some(piece);
        while let Some(piece) = next {
            match piece {
                Err(LaneError::Garbled) => return Err(Ended::Dropped(Dropped::Garbled)),
                Err(error) => return Err(Ended::Lost(error)),
                Ok(Piece::Have(bitmap)) => {
                    self.work.lock().transfer.has(self.line, &bitmap);
                }
                Ok(Piece::Chunk { bytes, .. }) => {
                    let asked = self.asked.pop_front();
                    let asked = asked.ok_or(Ended::Dropped(Dropped::Garbled))?;
                    self.window.came(asked.len.into());
                    match bytes {
                        Some(bytes) if bytes.len() > asked.len as usize => {
                            return Err(Ended::Dropped(Dropped::Wrong));
                        }
                        Some(bytes) => {
                            size += bytes.len();
                            gathered.push((asked, bytes));
                        }
                        None => self.missing(asked),
                    }
                }
            }
            next = if size < GATHER { self.lane.ready() } else { None };
        }
        if !gathered.is_empty() {
            self.write(gathered, size).await;
        }
        Ok(())
    }

    fn missing(&mut self, Asked { run, cid, .. }: Asked) {
        if let Some((_, lacking)) = self.open.get_mut(&run) {
            *lacking = true;
        }
        tracing::debug!(chunk = %cid.short(), from = %self.line.site.short(), "not there");
        self.settle(&[run], Some(cid));
    }

    async fn write(&mut self, gathered: Vec<(Asked, Vec<u8>)>, size: usize) {
        self.received += size as u64;
        let means = &self.work.means;
        let from = (self.line.site, self.work.from.job);
        means.meter.received(means.machine.clock.now(), from, size as u64);
        let permit = means.receiving(size).await;
        let chunks = Arc::clone(&means.chunks);
        let write = move || {
            let _permit = permit;
            for (Asked { cid, .. }, bytes) in &gathered {
                chunks.put(cid, bytes).map_err(|error| (*cid, chunk_id(bytes), error))?;
            }
            Ok(gathered.into_iter().map(|(asked, _)| asked.run).collect())
        };
        self.writes.spawn_blocking(write);
    }

    /// Some pieces were checked and written, or not.
    fn written(&mut self, written: Result<Written, tokio::task::JoinError>) -> Result<(), Ended> {
        match written {
            Ok(Ok(runs)) => {
                self.settle(&runs, None);
                self.work.arrivals.some();
                Ok(())
            }
            Ok(Err((chunk, came, ChunkError::Wrong(_)))) if asked_id(&chunk) == asked_id(&came) => {
                // It sent what it was asked for: whoever made the content has made two chunks that begin alike.
                self.work.fail(FetchError::Missing(chunk));
                Err(Ended::Over)
            }
            Ok(Err((chunk, came, ChunkError::Wrong(_)))) => {
                self.blame(chunk, came);
                Err(Ended::Dropped(Dropped::Wrong))
            }
            Ok(Err((_, _, error))) => {
                self.work.fail(FetchError::Chunk(error));
                Err(Ended::Over)
            }
            Err(_panicked) => {
                self.work.fail(FetchError::Thread);
                Err(Ended::Over)
            }
        }
    }

    /// One chunk of each of these runs needs no waiting for any more.
    fn settle(&mut self, runs: &[Run], missing: Option<ChunkId>) {
        let now = self.work.means.machine.clock.now();
        let mut more = false;
        for run in runs {
            let Some((left, lacking)) = self.open.get_mut(run) else {
                continue;
            };
            *left -= 1;
            if *left > 0 {
                continue;
            }
            let lacking = *lacking;
            self.open.remove(run);
            let transfer = &mut self.work.lock().transfer;
            if lacking {
                transfer.lacking(self.line, *run, now);
            } else {
                transfer.done(*run, Some(self.line), now);
            }
            more = true;
        }
        if !more {
            return;
        }
        let lost = self.work.lock().transfer.lacked_by_all();
        if let (Some(_), Some(cid)) = (lost, missing) {
            self.work.fail(FetchError::Missing(cid));
        }
        self.work.tell();
    }

    fn blame(&self, chunk: ChunkId, came: ChunkId) {
        let (site, lease) = (self.line.site, self.work.from.lease);
        let input = Input::WrongChunk { site, lease, chunk, came };
        // When the loop is too busy to hear it, the log has it.
        drop(self.work.means.input_tx.try_send(input));
    }
}
