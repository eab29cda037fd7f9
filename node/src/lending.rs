//! Tasks on our slots, other sites' and our own: their content, their sessions, and what those leave behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::task::AbortHandle;

use meshfarm_core::{Content, Ended, Hold, Input, PrepareError, Ready, Session};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, SiteId, TenantId};
use meshfarm_protocol::job::SessionSpec;
use meshfarm_protocol::lease::{Assignment, LeaseSecrets, Outcome, Outputs};
use meshfarm_protocol::manifest::{Limits, RootLink};
use meshfarm_protocol::profile::{Level, MEMORY};
use meshfarm_protocol::seal::{ChunkKey, SealingKey, TenantSecret};
use meshfarm_protocol::session::OutputPath;
use meshfarm_sandbox::{self as sandbox, CollectLimits, KeptRoots, Programs, Report};

use crate::config::{IsolationConfig, ServiceConfig, SessionLimits};
use crate::content::ingest::{Cutting, Ingest, Input as Taken, Source};
use crate::laid_out::{LaidOut, MAX_CONTENT, Progress, Wanted};
use crate::logs::Logs;
use crate::means::Means;
use crate::pins::Why;
use crate::probe::Cards;
use crate::session::{self, Driver, Left, Listen, Plan, Ran, Stop};
use crate::traces::Purpose;

/// First host uid of tenants, when the node runs as root: one for each session.
pub(crate) const TENANT_UIDS: u32 = 3_000_001_000;

/// So many tenant uids are used in turn.
const N_TENANT_UIDS: u64 = 60_000;

/// Where the empty roots of jails lie, in the folder for plaintext.
const ROOTS: &str = "roots";

/// The lender's hands.
#[derive(Debug)]
pub struct Lending {
    means: Arc<Means>,
    logs: Arc<Logs>,
    driver: Driver,
    programs: Programs,
    /// How much of the machine one session may use.
    limits: SessionLimits,
    services: Vec<ServiceConfig>,
    isolation: IsolationConfig,
    cards: Arc<Cards>,
    /// Whether we may give files to tenants' uids.
    root: bool,
    /// Plaintext of running leases; emptied at every start.
    folder: PathBuf,
    leases: Mutex<BTreeMap<LeaseId, Entered>>,
    sessions: Mutex<BTreeMap<Session, Arc<Stop>>>,
    /// Content that some lease uses, by what opens it.
    laid_out: Mutex<Vec<(RootLink, Weak<LaidOut>)>>,
}

/// A lease of which the loop has heard.
#[derive(Debug)]
struct Entered {
    /// Waits for its content.
    preparing: AbortHandle,
    /// As soon as its keys are known.
    lease: Option<Arc<Lease>>,
}

/// A lease whose content is in place or on its way.
#[derive(Debug)]
struct Lease {
    borrower: SiteId,
    job: JobId,
    content: Arc<LaidOut>,
    session: SessionSpec,
    purpose: Purpose,
    /// Under what its outputs are sealed: fresh for each lease, and gone with it.
    outputs: TenantSecret,
    outputs_to: SealingKey,
    /// Attempts that will run again because they read too early: their logs go on.
    spoiled: Mutex<BTreeSet<AttemptId>>,
}

/// How a session is over.
enum Over {
    /// It ended, its outputs are sealed and durable.
    Ended(Vec<Ended>),
    /// It has read a file that was not there yet.
    TooEarly,
}

/// Where and how this site runs sessions.
#[derive(Debug)]
pub struct Ground {
    /// What runs them.
    pub driver: Driver,
    /// Programs of this installation.
    pub programs: Programs,
    /// How much of the machine one session may use.
    pub limits: SessionLimits,
    /// What of the network it may reach.
    pub services: Vec<ServiceConfig>,
    /// The most that jails of others allow, and the software that all sessions see.
    pub isolation: IsolationConfig,
    /// The graphics cards, by their numbers in the profile.
    pub cards: Arc<Cards>,
    /// Whether the node runs as root and may give sessions host users of their own.
    pub root: bool,
    /// A folder of our own for plaintext; whatever is in it is removed.
    pub folder: PathBuf,
}

impl Lending {
    /// Hands that are empty. What a crash has left in the folder is removed.
    ///
    /// # Errors
    /// When the folder cannot be made or emptied.
    pub fn new(means: Arc<Means>, logs: Arc<Logs>, ground: Ground) -> io::Result<Self> {
        match fs::remove_dir_all(&ground.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        session::private_folder(&ground.folder)?;
        session::private_folder(&ground.folder.join(ROOTS))?;
        let Ground { driver, programs, limits, services, isolation, cards, root, folder } = ground;
        Ok(Self {
            means,
            logs,
            driver,
            programs,
            limits,
            services,
            isolation,
            cards,
            root,
            folder,
            leases: Mutex::default(),
            sessions: Mutex::default(),
            laid_out: Mutex::default(),
        })
    }

    /// Fetch and lay out the content of a lease, and say so to the loop.
    pub fn prepare(
        self: Arc<Self>,
        lease: LeaseId,
        borrower: SiteId,
        root: ChunkId,
        from: Content,
    ) {
        // Held until the lease is entered, so that its own task finds it.
        let mut leases = lock(&self.leases);
        let this = Arc::clone(&self);
        let preparing = tokio::spawn(async move {
            if let Err(error) = this.make_ready(lease, borrower, root, from).await {
                tracing::warn!(%lease, ?error, "a lease's content is not in place");
                this.means.tell(Input::Prepared { lease, result: Err(error) }).await;
            }
        });
        let preparing = preparing.abort_handle();
        leases.insert(lease, Entered { preparing, lease: None });
    }

    /// Returns when everything is in place, or the lease is over. Dropping it midway is safe.
    async fn make_ready(
        &self,
        lease: LeaseId,
        borrower: SiteId,
        root: ChunkId,
        from: Content,
    ) -> Result<(), PrepareError> {
        let (job, secrets) = self.secrets(borrower, root, from)?;
        let LeaseSecrets { root_key, outputs_to, session } = secrets;
        session.layout.check().map_err(PrepareError::Bad)?;
        let shared_sessions = session.environments;
        let purpose = Purpose::new(session.step, &session.layout);
        let link = RootLink { cid: root, key: root_key };
        let wanted = Wanted { link, layout: session.layout.clone(), purpose };
        let machine = &self.means.machine;
        let outputs = TenantSecret::new(TenantId(machine.random()), 0, machine.random());
        let mut progress = {
            let content = self.share(wanted, (lease, borrower));
            let progress = content.progress();
            let spoiled = Mutex::default();
            let it =
                Lease { borrower, job, content, session, purpose, outputs, outputs_to, spoiled };
            let mut leases = lock(&self.leases);
            // It is over already when nobody has it entered.
            let Some(entered) = leases.get_mut(&lease) else {
                return Ok(());
            };
            entered.lease = Some(Arc::new(it));
            progress
        };
        let mut begun = false;
        loop {
            let now = progress.borrow_and_update().clone();
            let whole = match now {
                Progress::Failed(error) => return Err(error),
                Progress::Whole => true,
                Progress::Enough(for_whom) if for_whom == purpose && !begun => false,
                Progress::Enough(_) | Progress::Coming => {
                    progress.changed().await.map_err(|_gone| PrepareError::Unreachable)?;
                    continue;
                }
            };
            begun = true;
            let result = Ok(Ready { shared_sessions, whole });
            self.means.tell(Input::Prepared { lease, result }).await;
            if whole {
                return Ok(());
            }
        }
    }

    /// The job and what only the lender may know of it.
    fn secrets(
        &self,
        borrower: SiteId,
        root: ChunkId,
        from: Content,
    ) -> Result<(JobId, LeaseSecrets), PrepareError> {
        let means = &self.means;
        match from {
            Content::Sealed(envelope) => {
                let secrets: Result<LeaseSecrets, _> = means.open(&envelope, borrower, root);
                Ok((envelope.address.job, secrets.map_err(PrepareError::Bad)?))
            }
            Content::Own(job, session) => {
                let link = means.root(root).map_err(|e| PrepareError::Broken(e.to_string()))?;
                let link =
                    link.ok_or_else(|| PrepareError::Broken("its key is gone".to_owned()))?;
                let outputs_to = means.sealing.public();
                Ok((job, LeaseSecrets { root_key: link.key, outputs_to, session }))
            }
        }
    }

    /// Some content in a folder that leases of the same content share.
    fn share(&self, wanted: Wanted, right: (LeaseId, SiteId)) -> Arc<LaidOut> {
        let mut known = lock(&self.laid_out);
        known.retain(|(_, content)| content.strong_count() > 0);
        // Who has another key for the same address must not see what the right one has opened.
        let same = known.iter().filter(|(link, _)| *link == wanted.link);
        let good =
            |content: &Arc<LaidOut>| !matches!(*content.progress().borrow(), Progress::Failed(_));
        if let Some(there) = same.filter_map(|(_, content)| content.upgrade()).find(good) {
            there.join(right);
            return there;
        }
        let name = format!("content-{}", AttemptId(self.means.machine.random()).short());
        let link = wanted.link.clone();
        let begun = LaidOut::begin(&self.means, self.folder.join(name), wanted, right);
        let begun = Arc::new(begun);
        known.push((link, Arc::downgrade(&begun)));
        begun
    }

    /// Run a session, and say to the loop how it ended when its outputs are sealed and durable.
    pub fn start(
        self: Arc<Self>,
        (session, lease): (Session, LeaseId),
        borrower: SiteId,
        (isolation, holds): (Level, Hold),
        run: Vec<Assignment>,
    ) {
        tracing::debug!(session = session.0, tasks = run.len(), "a session starts");
        let stop = Arc::new(Stop::default());
        lock(&self.sessions).insert(session, Arc::clone(&stop));
        let own = borrower == self.means.me;
        for assignment in run.iter().filter(|_| !own) {
            if let Err(error) = self.logs.send(assignment.attempt, borrower, &self.means.net) {
                tracing::warn!(%error, "a log will not be sent");
            }
        }
        let known = lock(&self.leases).get(&lease).and_then(|entered| entered.lease.clone());
        let this = Arc::clone(&self);
        let attempts: Vec<_> = run.iter().map(|assignment| assignment.attempt).collect();
        tokio::spawn(async move {
            let work = move || {
                let promised = (isolation, holds);
                known.map(|known| self.run(session, &known, (promised, run), &stop))
            };
            let over = this.means.machine.block(work).await.flatten();
            lock(&this.sessions).remove(&session);
            let input = match over {
                Some(Over::TooEarly) if this.keeps_open(lease, &attempts) => {
                    Input::SessionSpoiled { session }
                }
                over => {
                    for attempt in attempts {
                        this.end_log(attempt, own);
                    }
                    match over {
                        Some(Over::TooEarly) => Input::SessionSpoiled { session },
                        Some(Over::Ended(results)) => Input::SessionEnded { session, results },
                        None => Input::SessionEnded { session, results: Vec::new() },
                    }
                }
            };
            tracing::debug!(session = session.0, "a session is over");
            this.means.tell(input).await;
        });
    }

    /// Nothing more comes of an attempt's log.
    fn end_log(&self, attempt: AttemptId, own: bool) {
        if !own {
            self.logs.end_sending(attempt);
        } else if let Err(error) = self.logs.end_here(attempt) {
            tracing::warn!(%attempt, %error, "the end of a log is not noted");
        }
    }

    /// The attempts of a spoiled session will run again, and their logs go on, unless the lease is over: then
    /// this returns false.
    fn keeps_open(&self, lease: LeaseId, attempts: &[AttemptId]) -> bool {
        let leases = lock(&self.leases);
        let lease = leases.get(&lease).and_then(|entered| entered.lease.as_ref());
        lease.is_some_and(|lease| {
            lock(&lease.spoiled).extend(attempts);
            true
        })
    }

    /// One session from its folder to its sealed outputs. Blocks. Tasks behind one that fails get a jail of their own:
    /// they have not failed.
    fn run(
        &self,
        session: Session,
        lease: &Lease,
        ((isolation, holds), run): ((Level, Hold), Vec<Assignment>),
        stop: &Arc<Stop>,
    ) -> Over {
        let all = run.clone();
        let own = lease.borrower == self.means.me;
        let listener = Listener { lending: self, own };
        let profile = lease.session.profile;
        let profile = if own { profile } else { profile.narrower(self.isolation.profile) };
        let uid = u32::try_from(session.0 % N_TENANT_UIDS).unwrap_or(0);
        let memory = holds.amounts.get(MEMORY).copied().unwrap_or_default();
        let roots = self.roots_of(lease.borrower);
        if let Err(error) = session::private_folder(&roots) {
            tracing::warn!(folder = %roots.display(), %error, "no folder for the roots of jails");
        }
        let (mut rest, mut jails) = (run, Vec::new());
        let mut early = false;
        while !rest.is_empty() && !early {
            let plan = Plan {
                folder: self.folder.join(format!("session-{}-{}", session.0, jails.len())),
                content: lease.content.folder().to_owned(),
                session: lease.session.clone(),
                run: rest,
                floor: level_of(isolation),
                limits: self.limits.with_memory(memory),
                profile,
                software: self.isolation.software.clone(),
                cards: Arc::clone(&self.cards),
                gpus: holds.gpus.clone(),
                services: self.services.clone(),
                tenant_uid: self.root.then_some(TENANT_UIDS + uid),
                roots: KeptRoots { folder: roots.clone(), owner: lease.borrower.to_string() },
                programs: self.programs.clone(),
                clock: Arc::clone(&self.means.machine.clock),
            };
            let reading = lease.content.read(stop);
            let Left { ran, untried, written } = (self.driver)(&plan, stop, &listener);
            early = lease.content.read_too_early(&reading, stop);
            rest = untried;
            jails.push((plan.folder, ran, written));
        }
        let over = if early {
            self.note_too_early(&listener, &all);
            Over::TooEarly
        } else {
            if jails.iter().any(|(_, ran, _)| ran.iter().any(|ran| ran.outcome == Outcome::Done)) {
                lease.content.served(lease.purpose);
            }
            let sealed = jails.iter_mut().flat_map(|(_, ran, written)| {
                let ran = std::mem::take(ran).into_iter();
                ran.map(|ran| self.seal_outputs(lease, written, ran))
            });
            Over::Ended(sealed.collect())
        };
        for (folder, _, written) in jails {
            drop(written);
            if let Err(error) = fs::remove_dir_all(&folder)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(folder = %folder.display(), %error, "a session's folder was left behind");
            }
        }
        over
    }

    fn note_too_early(&self, listener: &Listener<'_>, run: &[Assignment]) {
        tracing::debug!(tasks = run.len(), "a session read a file that was not here yet");
        let note = b"meshfarm: a file was opened before it was here: the task runs again\n";
        for assignment in run {
            listener.log(assignment.attempt, note);
        }
    }

    /// Make an attempt's outputs durable as ciphertext, with their key sealed to the borrower.
    fn seal_outputs(&self, lease: &Lease, written: &BTreeMap<String, OwnedFd>, ran: Ran) -> Ended {
        let Ran { attempt, mut outcome, mut usage, files } = ran;
        let mut outputs = None;
        if outcome == Outcome::Done {
            match find_outputs(written, &files)
                .and_then(|found| self.try_seal(lease, attempt, found))
            {
                Ok(sealed) => {
                    usage.output_bytes = sealed.1;
                    outputs = sealed.0;
                }
                Err(reason) => outcome = Outcome::Failed(format!("its outputs: {reason}")),
            }
        }
        Ended { attempt, outcome, outputs, usage }
    }

    fn try_seal(
        &self,
        lease: &Lease,
        attempt: AttemptId,
        sources: Vec<Taken>,
    ) -> Result<(Option<Outputs>, u64), String> {
        if sources.is_empty() {
            return Ok((None, 0));
        }
        let means = &self.means;
        let _hold = means.chunks.hold();
        let ingest = Ingest {
            chunks: &means.chunks,
            secret: &lease.outputs,
            cutting: Cutting::Fixed,
            created: means.machine.clock.now(),
            limits: Limits::granting(MAX_CONTENT),
        };
        let sealed = ingest.run(sources, |_| ControlFlow::Continue(()));
        let sealed = sealed.map_err(|error| error.to_string())?;
        let link = sealed.link;
        let (whose, now) = ((lease.borrower, true), means.machine.clock.now());
        let learned = means.pins.learn(&link, Limits::granting(MAX_CONTENT), whose, now);
        learned.map_err(|error| error.to_string())?;
        let placed = means.pins.place(Why::Attempt(attempt), link.cid);
        placed.map_err(|error| error.to_string())?;
        let to = (lease.borrower, lease.outputs_to);
        let contents = codec::encode::<ChunkKey>(&link.key);
        let envelope = means.seal(to, (lease.job, link.cid), &contents);
        let envelope = envelope.map_err(|error| error.to_string())?;
        Ok((Some(Outputs { root: link.cid, envelope }), sealed.bytes))
    }

    /// End a session now.
    pub fn stop(&self, session: Session) {
        let stop = lock(&self.sessions).get(&session).cloned();
        if let Some(stop) = stop {
            self.means.machine.blocking.run(Box::new(move || stop.stop()));
        }
    }

    /// End every session and wait until nothing of them is left.
    pub async fn stop_all(&self) {
        let stops: Vec<_> = lock(&self.sessions).values().cloned().collect();
        for stop in stops {
            stop.stop();
        }
        let clock = &self.means.machine.clock;
        while !lock(&self.sessions).is_empty() {
            clock.wait_until(clock.now().plus(meshfarm_protocol::id::Millis(20))).await;
        }
    }

    /// Where the empty roots of a borrower's jails lie: they tell where its files belong, and go with its last lease.
    fn roots_of(&self, borrower: SiteId) -> PathBuf {
        self.folder.join(ROOTS).join(borrower.to_string())
    }

    /// Out of the way at once, so that a next lease begins anew; gone when there is time.
    fn forget_roots(&self, borrower: SiteId, lease: LeaseId) {
        let gone = self.folder.join(ROOTS).join(format!("gone-{lease}"));
        if fs::rename(self.roots_of(borrower), &gone).is_ok() {
            let remove = move || drop(fs::remove_dir_all(&gone));
            self.means.machine.blocking.run(Box::new(remove));
        }
    }

    /// A lease is over: drop its keys, and its content unless another lease uses it.
    pub fn release(&self, lease: LeaseId) {
        self.means.sharing.forget(lease);
        let mut leases = lock(&self.leases);
        let Some(entered) = leases.remove(&lease) else {
            return;
        };
        if let Some(over) = &entered.lease {
            let of_it = |other: &Entered| {
                other.lease.as_ref().is_some_and(|other| other.borrower == over.borrower)
            };
            if over.borrower != self.means.me && !leases.values().any(of_it) {
                self.forget_roots(over.borrower, lease);
            }
        }
        drop(leases);
        entered.preparing.abort();
        if let Some(over) = &entered.lease {
            over.content.leave(lease);
            for attempt in lock(&over.spoiled).iter() {
                self.end_log(*attempt, over.borrower == self.means.me);
            }
        }
        self.means.machine.blocking.run(Box::new(move || drop(entered)));
    }
}

/// Find the files that a task has named among those that lie in its output folders.
fn find_outputs(
    written: &BTreeMap<String, OwnedFd>,
    named: &[OutputPath],
) -> Result<Vec<Taken>, String> {
    let mut sources = Vec::new();
    for (root, opened) in written {
        let wanted: BTreeSet<_> =
            named.iter().filter(|file| file.root == *root).map(|f| f.path.as_str()).collect();
        // The descriptor's own entry in /proc leads to the folder wherever it lies: a disk of the jail's own has no
        // path in our mount namespace. Nobody else can make it lead elsewhere.
        let folder = PathBuf::from(format!("/proc/self/fd/{}", opened.as_raw_fd()));
        let collected = sandbox::collect(opened, CollectLimits::default(), |path, _, _| {
            if let Some(name) = path.to_str().filter(|path| wanted.contains(path)) {
                let (folder, path) = (folder.clone(), name.to_owned());
                let source = Source::Beneath { folder, path };
                sources.push(Taken { path: format!("{root}/{name}"), source });
            }
            Ok(())
        });
        let collected = collected.map_err(|error| error.to_string())?;
        for skipped in &collected.skipped {
            tracing::debug!(path = %skipped.path.display(), why = %skipped.why, "not collected");
        }
    }
    Ok(sources)
}

fn level_of(level: Level) -> sandbox::Level {
    match level {
        Level::S0 => sandbox::Level::S0,
        Level::S1 => sandbox::Level::S1,
        Level::S2 => sandbox::Level::S2,
        Level::S3 => sandbox::Level::S3,
    }
}

/// Passes on what a session tells.
struct Listener<'a> {
    lending: &'a Lending,
    own: bool,
}

impl Listen for Listener<'_> {
    fn started(&self, attempt: AttemptId) {
        let input = Input::AttemptStarted { attempt };
        // The loop being gone means that the node stops, and this session with it.
        drop(self.lending.means.input_tx.blocking_send(input));
    }

    fn isolated(&self, attempts: &[Assignment], report: &Report) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let text = serde_json::to_vec_pretty(report).unwrap_or_default();
            for Assignment { attempt, .. } in attempts {
                if let Err(error) = self.lending.logs.keep_report(*attempt, &text) {
                    tracing::warn!(%attempt, %error, "a sandbox report is not kept");
                }
            }
        }
    }

    fn log(&self, attempt: AttemptId, text: &[u8]) {
        let logs = &self.lending.logs;
        let written = match self.own {
            true => logs.append_here(attempt, text),
            false => logs.append_sending(attempt, text),
        };
        if let Err(error) = written {
            tracing::warn!(%attempt, %error, "log lines were lost");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn named_outputs_are_found_behind_descriptors_wherever_their_folder_lies_by_then() {
        let room = tempfile::tempdir().unwrap();
        let folder = room.path().join("out");
        fs::create_dir_all(folder.join("a")).unwrap();
        for name in ["a/f1.png", "a/unnamed.png"] {
            fs::write(folder.join(name), name).unwrap();
        }
        symlink("/etc/passwd", folder.join("a/link.png")).unwrap();
        let written =
            BTreeMap::from([("out".to_owned(), OwnedFd::from(File::open(&folder).unwrap()))]);
        // As a disk of the jail's own: no path of ours leads there any more.
        fs::rename(&folder, room.path().join("elsewhere")).unwrap();
        let name = |path: &str| OutputPath { root: "out".into(), path: path.into() };
        let named = ["a/f1.png", "a/link.png", "a/absent.png", "../elsewhere/a/f1.png"].map(name);
        let found = find_outputs(&written, &named).unwrap();
        let paths: Vec<_> = found.iter().map(|taken| taken.path.as_str()).collect();
        assert_eq!(paths, ["out/a/f1.png"]);
        let Source::Beneath { folder, path } = &found[0].source else { panic!("{found:?}") };
        assert_eq!(fs::read_to_string(folder.join(path)).unwrap(), "a/f1.png");
    }
}
