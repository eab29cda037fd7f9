//! Content on its way here: first the nodes of its manifest, then its chunks from everybody who has some.
//!
//! What to ask of whom is decided in `meshfarm_core::transfer`; here it is asked, checked and stored. Each line
//! is a task: it asks for as much as its window allows, and hands what comes to threads that check and write it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshfarm_core::transfer::{Dropped, Line, Transfer, n_lanes};
use meshfarm_protocol::id::{ChunkId, Millis, SiteId};
use meshfarm_protocol::manifest::{Limits, RootLink};
use meshfarm_protocol::message::{LaneHello, MAX_ASKED, Pass};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::arrivals::Arrivals;
use crate::content::ContentError;
use crate::content::plan::{Contents, Lacking, Plan};
use crate::means::{FetchError, From, Means};
use crate::net::{Lane, NetError, Piece};
use crate::sharing::Sharer;

mod line;

use line::{Asked, Ended, OnLine};

/// Nodes that may be under way: the next level is known only when one is here.
const NODES: usize = 64;

/// Content with fewer runs than this needs no second lane.
const SMALL: u32 = 8;

/// How long a source that has everything is waited for when it cannot be reached: as long as a lender waits for a
/// silent borrower.
const PATIENCE: Millis = meshfarm_protocol::lease::BORROWER_GRACE;

/// The first pause before a lost line is tried again, doubled by each one that follows.
const FIRST_PAUSE: Millis = Millis(50);

/// The longest: the first byte flows within a second of the line's return.
const LONGEST_PAUSE: Millis = Millis(400);

/// One fetching of one manifest's content.
pub(crate) struct Fetch<'a> {
    pub(crate) means: &'a Arc<Means>,
    pub(crate) link: &'a RootLink,
    pub(crate) limits: Limits,
    pub(crate) from: From,
}

impl Fetch<'_> {
    /// Brings the manifest's nodes and says what it lists.
    pub(crate) async fn nodes(&self) -> Result<Contents, FetchError> {
        let mut plan = Plan::new(self.link.clone(), self.limits);
        let mut retry = Retry::new(self.means.machine.clock.now());
        loop {
            let (same, wanted) = self.plan_on(plan, NODES).await?;
            plan = same;
            if wanted.is_empty() && plan.is_done() {
                return plan.contents().ok_or(FetchError::Nonsense);
            }
            let before = plan.n_asked();
            let failed = match self.means.net.lane(self.from.source, &self.hello(None)).await {
                Ok(mut lane) => match self.bring_nodes(&mut lane, plan, wanted).await {
                    Ok(same) => {
                        plan = same;
                        continue;
                    }
                    Err((same, error)) => {
                        plan = same.ok_or(FetchError::Thread)?;
                        error
                    }
                },
                Err(error) => FetchError::Unreachable(error),
            };
            if plan.n_asked() != before {
                retry.progress(self.means.machine.clock.now());
            }
            plan.retry_all();
            match failed {
                FetchError::Unreachable(_) | FetchError::Broken(_) => {
                    retry.pause(self.means, failed).await?;
                }
                failed => return Err(failed),
            }
        }
    }

    /// Looks for nodes that are missing, on a thread that may wait.
    async fn plan_on(
        &self,
        mut plan: Plan,
        max: usize,
    ) -> Result<(Plan, Vec<ChunkId>), FetchError> {
        let chunks = Arc::clone(&self.means.chunks);
        let next = move || {
            let wanted = plan.next(&chunks, max);
            (plan, wanted)
        };
        let (plan, wanted) = self.means.machine.block(next).await.ok_or(FetchError::Thread)?;
        Ok((plan, wanted?))
    }

    /// Asks for nodes and, as they come, for those beneath them. The plan comes back in any case.
    async fn bring_nodes(
        &self,
        lane: &mut Lane,
        mut plan: Plan,
        mut wanted: Vec<ChunkId>,
    ) -> Result<Plan, (Option<Plan>, FetchError)> {
        let mut asked = VecDeque::new();
        loop {
            if !wanted.is_empty() {
                match lane.ask(&wanted, 0).await {
                    Ok(said) => {
                        let from = (self.from.source, self.from.job);
                        self.means.meter.asked(from, said, asked.is_empty());
                    }
                    Err(error) => return Err((Some(plan), FetchError::Broken(error))),
                }
                asked.extend(wanted.drain(..));
            }
            let Some(cid) = asked.pop_front() else {
                return Ok(plan);
            };
            match self.next_node(lane, cid).await {
                Ok(()) => plan.stored(&cid),
                Err(error) => return Err((Some(plan), error)),
            }
            // Many in one ask: what stands around the addresses would be more than they are.
            let under_way = plan.n_asked();
            if under_way <= NODES / 2 {
                let next = self.plan_on(plan, NODES - under_way).await;
                (plan, wanted) = next.map_err(|error| (None, error))?;
            }
        }
    }

    async fn next_node(&self, lane: &mut Lane, cid: ChunkId) -> Result<(), FetchError> {
        let bytes = loop {
            match lane.next().await.map_err(FetchError::Broken)? {
                Piece::Chunk { bytes, .. } => break bytes.ok_or(FetchError::Missing(cid))?,
                Piece::Have(_) => {}
            }
        };
        let now = self.means.machine.clock.now();
        let from = (self.from.source, self.from.job);
        self.means.meter.received(now, from, bytes.len() as u64);
        let chunks = Arc::clone(&self.means.chunks);
        let stored = self.means.machine.block(move || chunks.put(&cid, &bytes)).await;
        stored.ok_or(FetchError::Thread)?.map(drop).map_err(FetchError::Chunk)
    }

    fn hello(&self, pass: Option<Pass>) -> LaneHello {
        LaneHello { lease: self.from.lease, root: self.link.cid, pass }
    }

    /// Brings the chunks of `contents` that are missing, those in `first` before all others. `arrivals` hears of
    /// every one.
    pub(crate) async fn chunks(
        &self,
        contents: Contents,
        first: &[Range<u64>],
        arrivals: &Arc<Arrivals>,
    ) -> Result<(), FetchError> {
        let lent = self.from.job.is_none();
        // Outputs come from their lender alone, and nobody would forget what was asked about their lease.
        let mut sharers = match lent {
            true => self.means.sharing.sharers(self.from.lease),
            false => watch::channel(Vec::new()).1,
        };
        let n_runs = contents.n_runs();
        let transfer = Transfer::new(self.means.me, n_runs, &contents.runs_of(first));
        let have = watch::Sender::new(Arc::from(transfer.here().bytes()));
        if lent {
            self.means.sharing.offer(self.from.lease, self.link.cid, have.subscribe());
        }
        let work = Arc::new(Work {
            means: Arc::clone(self.means),
            from: self.from,
            contents,
            state: Mutex::new(State { transfer, failure: None }),
            changed: Notify::new(),
            have,
            arrivals: Arc::clone(arrivals),
        });
        let mut lines = JoinSet::new();
        let n = if n_runs < SMALL { 1 } else { n_lanes(processors()) };
        for lane in 0..u8::try_from(n).unwrap_or(1) {
            let line = Line { site: self.from.source, lane };
            lines.spawn(Arc::clone(&work).follow(line, self.hello(None), true));
        }
        let mut known = 0;
        loop {
            let new: Vec<Sharer> =
                sharers.borrow_and_update().iter().skip(known).cloned().collect();
            known += new.len();
            for Sharer { site, pass } in new.into_iter().filter(|_| lent) {
                let line = Line { site, lane: 0 };
                lines.spawn(Arc::clone(&work).follow(line, self.hello(Some(pass)), false));
            }
            tokio::select! {
                biased;
                () = work.over() => break,
                Ok(()) = sharers.changed() => {}
                Some(_) = lines.join_next() => {}
            }
        }
        lines.shutdown().await;
        work.result()
    }
}

/// How a source is waited for.
struct Retry {
    since: Millis,
    pause: Millis,
}

impl Retry {
    fn new(now: Millis) -> Self {
        Self { since: now, pause: FIRST_PAUSE }
    }

    fn progress(&mut self, now: Millis) {
        *self = Self::new(now);
    }

    /// Waits a little, or gives up with `error` when that went on for too long.
    async fn pause(&mut self, means: &Means, error: FetchError) -> Result<(), FetchError> {
        let clock = &means.machine.clock;
        let now = clock.now();
        if now.since(self.since) >= PATIENCE {
            return Err(error);
        }
        clock.wait_until(now.plus(self.pause)).await;
        self.pause = self.pause.times(2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// What the lines of one fetch share.
struct Work {
    means: Arc<Means>,
    from: From,
    contents: Contents,
    state: Mutex<State>,
    /// Something can be asked for that could not before, or all is over.
    changed: Notify,
    have: watch::Sender<Arc<[u8]>>,
    arrivals: Arc<Arrivals>,
}

struct State {
    transfer: Transfer,
    failure: Option<FetchError>,
}

impl Work {
    /// A panic elsewhere leaves a transfer that is asked for too much or too little, but stores nothing wrong.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_over(&self) -> bool {
        let state = self.lock();
        state.failure.is_some() || state.transfer.is_done()
    }

    async fn over(&self) {
        loop {
            let changed = self.changed.notified();
            if self.is_over() {
                return;
            }
            changed.await;
        }
    }

    fn result(&self) -> Result<(), FetchError> {
        self.lock().failure.take().map_or(Ok(()), Err)
    }

    fn fail(&self, error: FetchError) {
        self.lock().failure.get_or_insert(error);
        self.changed.notify_waiters();
    }

    /// Keeps a line to a source open until all is over or the source is given up.
    async fn follow(self: Arc<Self>, line: Line, hello: LaneHello, owner: bool) {
        let clock = Arc::clone(&self.means.machine.clock);
        let mut retry = Retry::new(clock.now());
        loop {
            if !self.join(line, owner) {
                return;
            }
            // Content that is here already needs no line.
            let first = match Arc::clone(&self).take(line, 1).await {
                Ok(first) => first,
                Err(error) => return self.fail(error),
            };
            if self.is_over() {
                return;
            }
            if line.lane > 0 {
                self.means.net.widen(line.site, usize::from(line.lane) + 1).await;
            }
            let error = match self.means.net.lane(line.site, &hello).await {
                Err(error) => FetchError::Unreachable(error),
                Ok(lane) => {
                    let mut on = OnLine::new(Arc::clone(&self), line, lane, !owner);
                    let ended = on.run(first).await;
                    if on.received > 0 {
                        retry.progress(clock.now());
                    }
                    match ended {
                        Ended::Over => return,
                        Ended::Dropped(why) => return self.drop_source(line.site, why, owner),
                        Ended::Lost(error) => FetchError::Broken(error),
                    }
                }
            };
            self.lock().transfer.lost(line);
            self.changed.notify_waiters();
            if let FetchError::Unreachable(NetError::Stopped) = error {
                return self.fail(error);
            }
            if let Err(error) = retry.pause(&self.means, error).await {
                return if owner {
                    self.fail(error)
                };
            }
        }
    }

    /// Whether the source may be asked.
    fn join(&self, line: Line, owner: bool) -> bool {
        let transfer = &mut self.lock().transfer;
        if owner {
            transfer.add_owner(line);
        } else {
            transfer.add_sharer(line);
        }
        !transfer.is_banned(line.site)
    }

    fn drop_source(&self, site: SiteId, why: Dropped, owner: bool) {
        self.lock().transfer.ban(site, why);
        if owner {
            self.fail(FetchError::Nonsense);
        }
        self.changed.notify_waiters();
    }

    /// Chunks to ask for on a line now, of at least `bytes` together if there are so many. Runs of which nothing
    /// is missing are done at once.
    async fn take(self: Arc<Self>, line: Line, bytes: u64) -> Result<Vec<Asked>, FetchError> {
        let machine = self.means.machine.clone();
        machine.block(move || self.take_now(line, bytes)).await.ok_or(FetchError::Thread)?
    }

    fn take_now(&self, line: Line, bytes: u64) -> Result<Vec<Asked>, FetchError> {
        let mut taken: Vec<Asked> = Vec::new();
        let mut size = 0;
        let mut here = false;
        let now = self.means.machine.clock.now();
        while size < bytes && taken.len() < MAX_ASKED / 2 {
            let next = self.lock().transfer.next(line, now);
            let Some(run) = next else {
                break;
            };
            let lacking = self.contents.lacking(&self.means.chunks, run)?;
            if lacking.is_empty() {
                self.lock().transfer.done(run, None, now);
                here = true;
            }
            size += lacking.iter().map(|(_, len)| u64::from(*len)).sum::<u64>();
            taken.extend(lacking.into_iter().map(|(cid, len): Lacking| Asked { run, cid, len }));
        }
        if here {
            self.tell();
        }
        Ok(taken)
    }

    /// Tells everybody that more is here.
    fn tell(&self) {
        let bitmap: Arc<[u8]> = self.lock().transfer.here().bytes().into();
        self.have.send_replace(bitmap);
        self.arrivals.some();
        self.changed.notify_waiters();
    }

    /// About how many bytes are still missing.
    fn left(&self) -> u64 {
        let (done, all) = self.lock().transfer.progress();
        let share = u128::from(all - done) * u128::from(self.contents.bytes());
        u64::try_from(share / u128::from(all.max(1))).unwrap_or(u64::MAX)
    }
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// A node that was here and is damaged now is fetched again by a new plan.
pub(crate) fn is_damage(error: &FetchError) -> bool {
    matches!(error, FetchError::Content(ContentError::Missing(_)))
}

#[cfg(test)]
mod tests;
