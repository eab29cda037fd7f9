//! Tasks on our slots, other sites' and our own: their content, their sessions, and what those leave behind.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use meshfarm_core::{Content, Ended, Input, PrepareError, Session};
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, SiteId, TenantId};
use meshfarm_protocol::job::{Access, Layout, PathFormat, SessionSpec};
use meshfarm_protocol::lease::{Assignment, LeaseSecrets, Outcome, Outputs};
use meshfarm_protocol::manifest::{Limits, RootLink};
use meshfarm_protocol::message::LaneRequest;
use meshfarm_protocol::seal::{ChunkKey, SealingKey, TenantSecret};
use meshfarm_protocol::session::OutputPath;
use meshfarm_sandbox::{self as sandbox, CollectLimits, Level, Programs};

use crate::content::ingest::{Cutting, Ingest, Input as Taken, Source};
use crate::content::tree::Files;
use crate::logs::Logs;
use crate::means::{FetchError, Means};
use crate::net::{self, LaneStream};
use crate::pins::Why;
use crate::session::{self, Listen, Plan, Ran, Stop};
use crate::sys;

/// The most bytes of content that one lease may bring.
const MAX_CONTENT: u64 = 1 << 40;

/// So many bytes of the disk stay free when content is laid out.
const KEEP_FREE: u64 = 1 << 30;

/// First host uid of tenants, when the node runs as root: one for each session.
pub(crate) const TENANT_UIDS: u32 = 3_000_001_000;

/// So many tenant uids are used in turn.
const N_TENANT_UIDS: u64 = 60_000;

/// The lender's hands.
#[derive(Debug)]
pub struct Lending {
    means: Arc<Means>,
    logs: Arc<Logs>,
    programs: Programs,
    /// The weakest isolation that this site has said it reaches.
    level: Level,
    /// Whether we may give files to tenants' uids.
    root: bool,
    /// Plaintext of running leases; emptied at every start.
    folder: PathBuf,
    leases: Mutex<BTreeMap<LeaseId, Arc<Lease>>>,
    sessions: Mutex<BTreeMap<Session, Arc<Stop>>>,
    /// Laid-out content that some lease uses.
    laid_out: Mutex<BTreeMap<ChunkId, Weak<LaidOut>>>,
}

/// A lease whose content is in place.
#[derive(Debug)]
struct Lease {
    borrower: SiteId,
    job: JobId,
    content: Arc<LaidOut>,
    session: SessionSpec,
    /// Under what its outputs are sealed: fresh for each lease, and gone with it.
    outputs: TenantSecret,
    outputs_to: SealingKey,
}

/// A folder of plaintext. It goes with the last lease that uses it.
#[derive(Debug)]
struct LaidOut(PathBuf);

impl Drop for LaidOut {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!(folder = %self.0.display(), %error, "content was left behind");
        }
    }
}

/// Where and how this site runs sessions.
#[derive(Debug)]
pub struct Ground {
    /// Programs of this installation.
    pub programs: Programs,
    /// The isolation that the machine reaches.
    pub level: Level,
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
        let Ground { programs, level, root, folder } = ground;
        Ok(Self {
            means,
            logs,
            programs,
            level,
            root,
            folder,
            leases: Mutex::default(),
            sessions: Mutex::default(),
            laid_out: Mutex::default(),
        })
    }

    /// Send chunks to a site that has the right to them.
    pub fn serve(&self, stream: LaneStream, request: LaneRequest, to: SiteId, job: Option<JobId>) {
        let (chunks, meter) = (Arc::clone(&self.means.chunks), Arc::clone(&self.means.meter));
        tokio::spawn(async move {
            let get = move |cid: &ChunkId| {
                let bytes = chunks.get(cid).ok().flatten()?;
                meter.sent(to, job, bytes.len() as u64);
                Some(bytes)
            };
            if let Err(error) = net::serve(stream, request, get).await {
                tracing::debug!(%error, "a lane ended early");
            }
        });
    }

    /// Fetch and lay out the content of a lease, and say so to the loop.
    pub fn prepare(
        self: Arc<Self>,
        lease: LeaseId,
        borrower: SiteId,
        root: ChunkId,
        from: Content,
    ) {
        tokio::spawn(async move {
            let result = self.make_ready(lease, borrower, root, from).await;
            if let Err(error) = &result {
                tracing::warn!(%lease, ?error, "a lease's content is not in place");
            }
            self.means.tell(Input::Prepared { lease, result }).await;
        });
    }

    async fn make_ready(
        &self,
        lease: LeaseId,
        borrower: SiteId,
        root: ChunkId,
        from: Content,
    ) -> Result<bool, PrepareError> {
        let means = &self.means;
        let (job, secrets) = match from {
            Content::Sealed(envelope) => {
                let secrets: Result<LeaseSecrets, _> = means.open(&envelope, borrower, root);
                (envelope.address.job, secrets.map_err(PrepareError::Bad)?)
            }
            Content::Own(job, session) => {
                let link = means.root(root).map_err(|e| PrepareError::Broken(e.to_string()))?;
                let link =
                    link.ok_or_else(|| PrepareError::Broken("its key is gone".to_owned()))?;
                let outputs_to = means.sealing.public();
                (job, LeaseSecrets { root_key: link.key, outputs_to, session })
            }
        };
        secrets.session.layout.check().map_err(PrepareError::Bad)?;
        let link = RootLink { cid: root, key: secrets.root_key };
        let quota = if borrower == means.me { MAX_CONTENT } else { means.quota };
        let limits = Limits::granting(MAX_CONTENT.min(quota));
        means.fetch(&link, limits, (borrower, lease, None)).await.map_err(prepare_error)?;
        means.learn(&link, limits, (borrower, false)).await.map_err(prepare_error)?;
        let content = self.lay_out(link, limits, secrets.session.layout.clone()).await?;
        let environments = secrets.session.environments;
        let outputs =
            TenantSecret::new(TenantId(means.machine.random()), 0, means.machine.random());
        let (session, outputs_to) = (secrets.session, secrets.outputs_to);
        let ready = Lease { borrower, job, content, session, outputs, outputs_to };
        lock(&self.leases).insert(lease, Arc::new(ready));
        Ok(environments)
    }

    /// Plaintext of some content in a folder that leases of the same content share.
    async fn lay_out(
        &self,
        link: RootLink,
        limits: Limits,
        layout: Layout,
    ) -> Result<Arc<LaidOut>, PrepareError> {
        if let Some(there) = lock(&self.laid_out).get(&link.cid).and_then(Weak::upgrade) {
            return Ok(there);
        }
        let cid = link.cid;
        let name = format!("content-{}", AttemptId(self.means.machine.random()).short());
        let (home, folder) = (self.folder.clone(), self.folder.join(name));
        let chunks = Arc::clone(&self.means.chunks);
        let laid_out = self.means.machine.block(move || -> Result<_, PrepareError> {
            let files = Files { chunks: &chunks, link, limits };
            let refused = |error| prepare_error(FetchError::Content(error));
            // A manifest may name one small chunk a million times: what it unpacks to is looked at first.
            let free = sys::free_bytes(&home).unwrap_or(0);
            if files.bytes().map_err(refused)? > free.saturating_sub(KEEP_FREE) {
                return Err(PrepareError::Full);
            }
            let laid_out = LaidOut(folder);
            files.materialise(&laid_out.0, None).map_err(refused)?;
            prepare_mount_points(&laid_out.0, &layout)
                .map_err(|error| PrepareError::Broken(error.to_string()))?;
            Ok(Arc::new(laid_out))
        });
        let laid_out = laid_out.await.ok_or_else(panicked)??;
        let mut known = lock(&self.laid_out);
        known.retain(|_, laid_out| laid_out.strong_count() > 0);
        known.insert(cid, Arc::downgrade(&laid_out));
        Ok(laid_out)
    }

    /// Run a session, and say to the loop how it ended when its outputs are sealed and durable.
    pub fn start(
        self: Arc<Self>,
        session: Session,
        lease: LeaseId,
        borrower: SiteId,
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
        let known = lock(&self.leases).get(&lease).cloned();
        let this = Arc::clone(&self);
        let attempts: Vec<_> = run.iter().map(|assignment| assignment.attempt).collect();
        tokio::spawn(async move {
            let work = move || known.map(|known| self.run(session, &known, run, &stop));
            let results = this.means.machine.block(work).await.flatten().unwrap_or_default();
            lock(&this.sessions).remove(&session);
            for attempt in attempts.into_iter().filter(|_| !own) {
                this.logs.end_sending(attempt);
            }
            tracing::debug!(session = session.0, "outputs are sealed");
            this.means.tell(Input::SessionEnded { session, results }).await;
        });
    }

    /// One session from its folder to its sealed outputs. Blocks.
    fn run(
        &self,
        session: Session,
        lease: &Lease,
        run: Vec<Assignment>,
        stop: &Stop,
    ) -> Vec<Ended> {
        let folder = self.folder.join(format!("session-{}", session.0));
        let uid = u32::try_from(session.0 % N_TENANT_UIDS).unwrap_or(0);
        let plan = Plan {
            folder: folder.clone(),
            content: lease.content.0.clone(),
            session: lease.session.clone(),
            run,
            floor: self.level,
            tenant_uid: self.root.then_some(TENANT_UIDS + uid),
            programs: self.programs.clone(),
            clock: Arc::clone(&self.means.machine.clock),
        };
        let listener = Listener { lending: self, own: lease.borrower == self.means.me };
        let ran = session::run(&plan, stop, &listener);
        let results = ran.into_iter().map(|ran| self.seal_outputs(lease, &plan, ran)).collect();
        if let Err(error) = fs::remove_dir_all(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "a session's folder was left behind");
        }
        results
    }

    /// Make an attempt's outputs durable as ciphertext, with their key sealed to the borrower.
    fn seal_outputs(&self, lease: &Lease, plan: &Plan, ran: Ran) -> Ended {
        let Ran { attempt, mut outcome, mut usage, files } = ran;
        let mut outputs = None;
        if outcome == Outcome::Done {
            match self.try_seal(lease, plan, (attempt, &files)) {
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
        plan: &Plan,
        (attempt, named): (AttemptId, &[OutputPath]),
    ) -> Result<(Option<Outputs>, u64), String> {
        let mut sources = Vec::new();
        for root in lease.session.layout.roots.iter().filter(|root| root.access == Access::Out) {
            let folder = session::output_folder(&plan.folder, &root.id);
            let wanted: BTreeSet<_> =
                named.iter().filter(|file| file.root == root.id).map(|f| f.path.as_str()).collect();
            let collected = sandbox::collect(&folder, CollectLimits::default(), |path, _, _| {
                if let Some(name) = path.to_str().filter(|path| wanted.contains(path)) {
                    let (folder, path) = (folder.clone(), name.to_owned());
                    let source = Source::Beneath { folder, path };
                    sources.push(Taken { path: format!("{}/{name}", root.id), source });
                }
                Ok(())
            });
            let collected = collected.map_err(|error| error.to_string())?;
            for skipped in &collected.skipped {
                tracing::debug!(path = %skipped.path.display(), why = %skipped.why, "not collected");
            }
        }
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

    /// A lease is over: drop its keys, and its content unless another lease uses it.
    pub fn release(&self, lease: LeaseId) {
        let lease = lock(&self.leases).remove(&lease);
        self.means.machine.blocking.run(Box::new(move || drop(lease)));
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

/// Make the folders at which deeper roots are shown beneath shallower ones, and a folder for every input
/// root, also where no file of it came.
fn prepare_mount_points(content: &Path, layout: &Layout) -> io::Result<()> {
    let posix = || layout.roots.iter().filter(|root| root.format == PathFormat::Posix);
    for root in &layout.roots {
        fs::create_dir_all(content.join(&root.id))?;
    }
    for outer in posix() {
        for inner in posix() {
            let beneath = Path::new(&inner.source).strip_prefix(&outer.source);
            if let Ok(beneath) = beneath.map(Path::to_owned)
                && inner.id != outer.id
            {
                fs::create_dir_all(content.join(&outer.id).join(beneath))?;
            }
        }
    }
    Ok(())
}

fn prepare_error(error: FetchError) -> PrepareError {
    match error {
        FetchError::Unreachable(_) | FetchError::Broken(_) => PrepareError::Unreachable,
        FetchError::Chunk(error) if error.is_full() => PrepareError::Full,
        FetchError::Content(error) if error.is_full() => PrepareError::Full,
        FetchError::Thread => panicked(),
        error @ (FetchError::Missing(_)
        | FetchError::Nonsense
        | FetchError::Chunk(_)
        | FetchError::Content(_)) => PrepareError::Bad(error.to_string()),
    }
}

fn panicked() -> PrepareError {
    PrepareError::Broken("a thread of this node ended unexpectedly".to_owned())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
