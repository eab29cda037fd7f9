//! Which content is in use, why, and which chunks that means.
//!
//! That a root is in use is written nowhere twice: it follows from the core's records of jobs and finished
//! attempts, of leases that run on another machine, and from the leases whose content is here, which end with the
//! process. So no crash can leave a pin
//! without its reason, or a reason without its pin. What is written is which chunks a root uses, as [`Marks`],
//! at the moment when its manifest is known. Until then a [`Hold`] keeps whatever the transfer looks at.
//!
//! A pin is placed before the record that is its reason is written, and lifted only after the reason is gone
//! from the disk. A root that nothing pins any more is a cache of its chunks, until its time has come.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use meshfarm_core::{Change, JobPhase, Key, Output, Record, TaskRef};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, StepNo, TenantId};
use meshfarm_protocol::manifest::{Limits, RootLink};

use crate::chunks::{ChunkError, Chunks, Hold};
use crate::content::ContentError;
use crate::content::uses::uses;
use crate::store::{Batch, Family, Store, StoreError};
use marks::Marks;

pub mod marks;

/// A longer record about a root was not written by us.
const MAX_ABOUT: usize = 1024;

/// Why content is in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// A job of ours that has not ended reads it.
    Job(JobId),
    /// A lease that we gave reads it.
    Lease(LeaseId),
    /// It is what an attempt here has made, and its borrower has not accepted it.
    Attempt(AttemptId),
}

/// Whose content it is, for quotas and for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Owner {
    /// The site that brought it.
    pub site: SiteId,
    /// Which of its tenants. None: results of tasks, each under a secret of its own.
    pub tenant: Option<TenantId>,
}

/// A root, as far as is known without its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its address.
    pub root: ChunkId,
    /// Whose it is.
    pub owner: Owner,
    /// Whether it is in use now.
    pub pinned: bool,
    /// When it was last in use.
    pub used: Millis,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct About {
    owner: Owner,
    used: Millis,
}

/// Which content is in use. Shared by all rooms that move content.
#[derive(Debug)]
pub struct Pins {
    store: Arc<Store>,
    chunks: Arc<Chunks>,
    state: Mutex<State>,
    /// Something is in use no more.
    pub(crate) lifted: Notify,
}

#[derive(Debug, Default)]
struct State {
    pins: BTreeMap<Why, BTreeSet<ChunkId>>,
    /// What keeps the content of roots whose chunks are not known yet.
    holds: BTreeMap<ChunkId, Hold>,
    /// Steps of each job whose outputs other steps read.
    read_on: BTreeMap<JobId, BTreeSet<StepNo>>,
}

impl State {
    fn has(&self, root: &ChunkId) -> bool {
        self.pins.values().any(|roots| roots.contains(root))
    }
}

impl Pins {
    /// What is in use according to the core's records. Of leases only those survive a restart that run on another
    /// machine.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn load(
        store: Arc<Store>,
        chunks: Arc<Chunks>,
        records: &[Record],
    ) -> Result<Self, StoreError> {
        let pins = Self { store, chunks, state: Mutex::default(), lifted: Notify::new() };
        let mut state = pins.lock();
        for record in records {
            for (why, root) in reasons(record) {
                state.pins.entry(why).or_default().insert(root);
            }
            if let Record::Spec(job, spec) = record {
                let read_on = spec.steps.iter().flat_map(|step| step.needs.iter().copied());
                state.read_on.insert(*job, read_on.collect());
            }
        }
        let jobs: Vec<_> = state.pins.keys().copied().collect();
        for why in jobs {
            let Why::Job(job) = why else { continue };
            let read_on = state.read_on.get(&job).cloned().unwrap_or_default();
            for step in read_on {
                let roots = pins.outputs_of(job, step)?;
                state.pins.entry(why).or_default().extend(roots);
            }
        }
        drop(state);
        Ok(pins)
    }

    /// The outputs of a step that are kept for steps that read them.
    fn outputs_of(&self, job: JobId, step: StepNo) -> Result<Vec<ChunkId>, StoreError> {
        let prefix = [b"o".as_slice(), &job.0, &step.0.to_be_bytes()].concat();
        let mut roots = Vec::new();
        self.store.scan(Family::Output, &prefix, |_, value| {
            let link = codec::decode::<RootLink>(value, MAX_ABOUT);
            roots.extend(link.ok().map(|link| link.cid));
            ControlFlow::Continue(())
        })?;
        Ok(roots)
    }

    /// Pin what outputs of the core will rely on: before they are made durable.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn place_for(&self, outputs: &[Output]) -> Result<(), StoreError> {
        for output in outputs {
            match output {
                Output::Persist(Change::Put(record)) => {
                    if let Record::Spec(job, spec) = &**record {
                        let read_on = spec.steps.iter().flat_map(|step| step.needs.clone());
                        self.lock().read_on.insert(*job, read_on.collect());
                    }
                    for (why, root) in reasons(record) {
                        self.place(why, root)?;
                    }
                }
                Output::Prepare { lease, root, .. } | Output::Fetch { lease, root, .. } => {
                    self.place(Why::Lease(*lease), *root)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Lift the pins whose reason has gone from the disk with these outputs of the core.
    pub fn lift_for(&self, outputs: &[Output]) {
        // The last word about a reason counts: a job may end and begin again in one go.
        let mut over = BTreeMap::new();
        for output in outputs {
            match output {
                Output::Persist(Change::Put(record)) => {
                    if let Record::Job(job) = &**record {
                        over.insert(Why::Job(job.job), job.phase != JobPhase::Active);
                    }
                }
                Output::Persist(Change::Delete(Key::Job(job))) => {
                    over.insert(Why::Job(*job), true);
                }
                Output::Prepare { lease, .. } | Output::Fetch { lease, .. } => {
                    over.insert(Why::Lease(*lease), false);
                }
                Output::Release(lease) => drop(over.insert(Why::Lease(*lease), true)),
                Output::Forget { attempt, .. } => drop(over.insert(Why::Attempt(*attempt), true)),
                _ => {}
            }
        }
        over.into_iter().filter(|(_, over)| *over).for_each(|(why, _)| self.lift(why));
    }

    /// Pin a root. A lease's content is fetched only now: until [it is learned](Pins::learn) what it uses,
    /// whatever anybody looks at is kept. All else must be learned before.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn place(&self, why: Why, root: ChunkId) -> Result<(), StoreError> {
        let mut state = self.lock();
        // Asked under the lock: what is forgotten at this moment is either pinned first or not known any more.
        let is_fetched = matches!(why, Why::Lease(_)) && !state.has(&root);
        if is_fetched && self.about(root)?.is_none() {
            let hold = self.chunks.hold();
            state.holds.insert(root, hold);
        }
        state.pins.entry(why).or_default().insert(root);
        Ok(())
    }

    /// Pin outputs of a task for as long as its job goes on, if a step of the job reads them.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn place_outputs(&self, task: TaskRef, root: ChunkId) -> Result<(), StoreError> {
        let state = self.lock();
        let why = Why::Job(task.job);
        let is_read = state.read_on.get(&task.job).is_some_and(|steps| steps.contains(&task.step));
        let goes_on = state.pins.contains_key(&why);
        drop(state);
        if is_read && goes_on { self.place(why, root) } else { Ok(()) }
    }

    /// Pin further content of a job, unless it has ended.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn place_inputs(&self, job: JobId, root: ChunkId) -> Result<(), StoreError> {
        let why = Why::Job(job);
        let goes_on = self.lock().pins.contains_key(&why);
        if goes_on { self.place(why, root) } else { Ok(()) }
    }

    fn lift(&self, why: Why) {
        let mut state = self.lock();
        let Some(roots) = state.pins.remove(&why) else { return };
        for root in roots {
            if !state.has(&root) {
                state.holds.remove(&root);
            }
        }
        drop(state);
        self.lifted.notify_one();
    }

    /// Read and write down which chunks a root uses, whose manifest is here whole. From now on it counts as
    /// used at `now`.
    ///
    /// # Errors
    /// When the manifest cannot be read, or the store refuses.
    pub fn learn(
        &self,
        link: &RootLink,
        limits: Limits,
        (site, is_result): (SiteId, bool),
        now: Millis,
    ) -> Result<(), ContentError> {
        let root = link.cid;
        let state = self.lock();
        if let Some(about) = self.about(root).map_err(ChunkError::from)? {
            let known = Known { root, owner: about.owner, pinned: true, used: about.used };
            self.touch(&[known], now).map_err(ChunkError::from)?;
            return Ok(());
        }
        drop(state);
        let uses = uses(&self.chunks, link, limits)?;
        let tenant = (!is_result).then_some(uses.tenant);
        let about = About { owner: Owner { site, tenant }, used: now };
        let mut batch = Batch::new();
        batch.put(Family::Root, about_key(root), codec::encode(&about));
        batch.put(Family::Root, marks_key(root), Marks::of(&uses.cids).to_bytes());
        let mut state = self.lock();
        self.store.commit(batch).map_err(ChunkError::from)?;
        state.holds.remove(&root);
        Ok(())
    }

    /// Roots that are in use and of which nobody knows what they use: nothing can be collected until they are
    /// learned or their use is over. A root that a hold keeps is not among them.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn unknown(&self) -> Result<Vec<ChunkId>, StoreError> {
        let state = self.lock();
        let pinned: BTreeSet<_> = state.pins.values().flatten().copied().collect();
        let mut unknown = Vec::new();
        for root in pinned {
            if !state.holds.contains_key(&root) && self.about(root)?.is_none() {
                unknown.push(root);
            }
        }
        Ok(unknown)
    }

    /// Every root of which it is known what it uses.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn known(&self) -> Result<Vec<Known>, StoreError> {
        let state = self.lock();
        let pinned: BTreeSet<_> = state.pins.values().flatten().copied().collect();
        drop(state);
        let mut known = Vec::new();
        self.store.scan(Family::Root, b"a", |key, value| {
            let about = codec::decode::<About>(value, MAX_ABOUT);
            if let (Ok(root), Ok(About { owner, used })) = (key[1..].try_into(), about) {
                let root = ChunkId(root);
                known.push(Known { root, owner, pinned: pinned.contains(&root), used });
            }
            ControlFlow::Continue(())
        })?;
        Ok(known)
    }

    /// What a root uses. None where that is not known.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn marks(&self, root: ChunkId) -> Result<Option<Marks>, StoreError> {
        let bytes = self.store.get(Family::Root, &marks_key(root))?;
        Ok(bytes.and_then(|bytes| Marks::from_bytes(&bytes)))
    }

    /// Write down that roots were in use until now.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn touch(&self, roots: &[Known], now: Millis) -> Result<(), StoreError> {
        let mut batch = Batch::new();
        for known in roots {
            let about = About { owner: known.owner, used: now };
            batch.put(Family::Root, about_key(known.root), codec::encode(&about));
        }
        self.store.commit(batch)
    }

    /// Forget what some roots use, so that their chunks may go. False, and nothing is forgotten, when one of
    /// them has come into use since it was [listed](Pins::known).
    ///
    /// # Errors
    /// When the store refuses.
    pub fn forget(&self, roots: &[Known]) -> Result<bool, StoreError> {
        let state = self.lock();
        let mut batch = Batch::new();
        for known in roots {
            let used = self.about(known.root)?.map(|about| about.used);
            if state.has(&known.root) || used != Some(known.used) {
                return Ok(false);
            }
            batch.delete(Family::Root, about_key(known.root));
            batch.delete(Family::Root, marks_key(known.root));
        }
        self.store.commit(batch)?;
        drop(state);
        Ok(true)
    }

    /// The jobs of ours, not ended, whose content may need a chunk.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn jobs_that_need(&self, cid: &ChunkId) -> Result<Vec<JobId>, StoreError> {
        let pins = self.lock().pins.clone();
        let mut jobs = Vec::new();
        for (why, roots) in pins {
            let Why::Job(job) = why else { continue };
            for root in roots {
                if self.marks(root)?.is_some_and(|marks| marks.may_have(cid)) {
                    jobs.push(job);
                    break;
                }
            }
        }
        Ok(jobs)
    }

    /// Make sure that content of ours which nobody uses now is still here whole, and will be for a while.
    ///
    /// # Errors
    /// When a chunk of it is gone, or the store refuses.
    pub fn check_whole(
        &self,
        link: &RootLink,
        me: SiteId,
        now: Millis,
    ) -> Result<(), ContentError> {
        let _hold = self.chunks.hold();
        let limits = Limits::granting(u64::MAX);
        for cid in uses(&self.chunks, link, limits)?.cids {
            if !self.chunks.has(&cid)? {
                return Err(ContentError::Missing(cid));
            }
        }
        self.learn(link, limits, (me, false), now)
    }

    fn about(&self, root: ChunkId) -> Result<Option<About>, StoreError> {
        let bytes = self.store.get(Family::Root, &about_key(root))?;
        Ok(bytes.and_then(|bytes| codec::decode(&bytes, MAX_ABOUT).ok()))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a record keeps in use.
fn reasons(record: &Record) -> Vec<(Why, ChunkId)> {
    match record {
        Record::Job(job) if job.phase == JobPhase::Active => {
            let inputs = job.inputs.iter().map(|(_, root, _)| *root);
            let roots = std::iter::once(job.root).chain(inputs);
            roots.map(|root| (Why::Job(job.job), root)).collect()
        }
        Record::Finished(finished) => {
            let outputs = finished.done.outputs.iter();
            outputs.map(|made| (Why::Attempt(finished.done.attempt), made.root)).collect()
        }
        Record::Relay(relay) => vec![(Why::Lease(relay.lease), relay.root)],
        Record::Job(_)
        | Record::Spec(..)
        | Record::Task(..)
        | Record::Borrowed(_)
        | Record::Lent(_)
        | Record::Invite(_)
        | Record::Evidence(_)
        | Record::Site(_)
        | Record::Host(_)
        | Record::Charge(_)
        | Record::Chain(_)
        | Record::Pending(_)
        | Record::Entry(_)
        | Record::Misdeed(_)
        | Record::Tally(_) => Vec::new(),
    }
}

fn about_key(root: ChunkId) -> Vec<u8> {
    [b"a".as_slice(), &root.0].concat()
}

fn marks_key(root: ChunkId) -> Vec<u8> {
    [b"m".as_slice(), &root.0].concat()
}
