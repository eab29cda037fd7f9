//! The content of leases in folders: fetched and laid out once for all leases that use it, and read by
//! sessions before everything has come when an earlier version's tasks show what can wait, or when most of it is
//! here from before: then files that are not laid out yet are kept closed until they are.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

use tokio::sync::watch;
use tokio::task::AbortHandle;

use meshfarm_core::PrepareError;
use meshfarm_protocol::id::{LeaseId, Millis, SiteId};
use meshfarm_protocol::job::{Layout, PathFormat};
use meshfarm_protocol::manifest::{Limits, RootLink};

use crate::arrivals::Arrivals;
use crate::content::ContentError;
use crate::content::tree::Files;
use crate::content::unpack::{Held, Late, Unpack};
use crate::means::{FetchError, From, Means};
use crate::opened::Opened;
use crate::session::{self, Stop};
use crate::sys;
use crate::traces::{Mark, Marks, Purpose, Trace, TraceKey};

mod order;

use order::Order;

/// The most bytes of content that one lease may bring.
pub const MAX_CONTENT: u64 = 1 << 40;

/// So many bytes of the disk stay free when content is laid out.
const KEEP_FREE: u64 = 1 << 30;

/// When the rest of a content is asked for again that sessions read already.
const AGAIN: Millis = Millis::seconds(2);

/// How far a content is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// On its way.
    Coming,
    /// What tasks that serve this purpose have opened so far is in place.
    Enough(Purpose),
    /// Everything is in place.
    Whole,
    /// It will not come.
    Failed(PrepareError),
}

/// A folder of plaintext. It goes with the last lease that uses it.
#[derive(Debug)]
pub struct LaidOut {
    means: Arc<Means>,
    place: Arc<Place>,
    laying: AbortHandle,
    /// For whom tasks have ended well.
    served: Mutex<BTreeSet<TraceKey>>,
}

/// What the threads that write share with those that read.
#[derive(Debug)]
struct Place {
    link: RootLink,
    folder: PathBuf,
    aside: PathBuf,
    /// The leases that give the right to the content, and who has it.
    rights: Mutex<Vec<(LeaseId, SiteId)>>,
    progress: watch::Sender<Progress>,
    /// What is known of the files, as soon as the manifest is here.
    seen: OnceLock<Seen>,
    /// Sessions that began before everything was there: by then a placeholder had been opened so often.
    early: Mutex<Vec<(u64, Arc<Stop>)>>,
}

/// The files of a content, as traces know them.
#[derive(Debug)]
struct Seen {
    marks: Marks,
    files: BTreeSet<Mark>,
    opened: Option<Arc<Opened>>,
}

/// A session that reads the content. Its beginning counts, if it began before everything was there.
#[derive(Debug)]
pub struct Reading(Option<u64>);

/// When sessions may begin to read.
#[derive(Debug)]
struct Begin {
    purpose: Purpose,
    /// What is still to happen before.
    left: AtomicUsize,
}

/// The files that one step's tasks get.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Their manifest.
    pub link: RootLink,
    /// Where they lie.
    pub layout: Layout,
    /// What they are read for.
    pub purpose: Purpose,
}

impl LaidOut {
    /// Begin to fetch and lay out some content in `folder`, which must not exist.
    pub fn begin(
        means: &Arc<Means>,
        folder: PathBuf,
        wanted: Wanted,
        right: (LeaseId, SiteId),
    ) -> Self {
        let place = Arc::new(Place {
            link: wanted.link.clone(),
            aside: folder.with_extension("late"),
            folder,
            rights: Mutex::new(vec![right]),
            progress: watch::Sender::new(Progress::Coming),
            seen: OnceLock::new(),
            early: Mutex::default(),
        });
        let laying = tokio::spawn(lay(Arc::clone(means), Arc::clone(&place), wanted));
        let (means, laying) = (Arc::clone(means), laying.abort_handle());
        Self { means, place, laying, served: Mutex::default() }
    }

    /// Where it lies.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.place.folder
    }

    /// What finds and opens it.
    #[must_use]
    pub fn link(&self) -> &RootLink {
        &self.place.link
    }

    /// How far it is, and will be.
    #[must_use]
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.place.progress.subscribe()
    }

    /// Another lease gives a right to the same content.
    pub fn join(&self, right: (LeaseId, SiteId)) {
        lock(&self.place.rights).push(right);
    }

    /// A lease is over.
    pub fn leave(&self, lease: LeaseId) {
        lock(&self.place.rights).retain(|(other, _)| *other != lease);
    }

    /// A session begins to read; `stop` ends it when it turns out to be too early.
    #[must_use]
    pub fn read(&self, stop: &Arc<Stop>) -> Reading {
        let opened = self.place.seen.get().and_then(|seen| seen.opened.as_ref());
        let mut early = lock(&self.place.early);
        match opened {
            Some(opened) if *self.place.progress.borrow() != Progress::Whole => {
                let since = opened.n_early();
                early.push((since, Arc::clone(stop)));
                Reading(Some(since))
            }
            Some(_) | None => Reading(None),
        }
    }

    /// The session is dead. Returns whether it may have read a file that was not there yet: then nothing
    /// that it made counts.
    #[must_use]
    pub fn read_too_early(&self, reading: &Reading, stop: &Arc<Stop>) -> bool {
        lock(&self.place.early).retain(|(_, other)| !Arc::ptr_eq(other, stop));
        let opened = self.place.seen.get().and_then(|seen| seen.opened.as_ref());
        reading.0.zip(opened).is_some_and(|(since, opened)| opened.n_early() != since)
    }

    /// A task that was for this purpose has ended well.
    pub fn served(&self, purpose: Purpose) {
        if let Some(seen) = self.place.seen.get() {
            lock(&self.served).insert(seen.marks.trace(purpose));
        }
    }

    /// What tasks have opened is remembered for the next version.
    fn remember(&self) {
        let Some(seen) = self.place.seen.get().filter(|seen| !seen.files.is_empty()) else {
            return;
        };
        let Some(opened) = seen.opened.as_ref().and_then(|opened| opened.all()) else {
            return;
        };
        let now = self.means.machine.clock.now();
        for key in std::mem::take(&mut *lock(&self.served)) {
            let known = (&seen.files, &opened);
            if let Err(error) = Trace::remember(&self.means.store, key, known, now) {
                tracing::warn!(%error, "what tasks have opened is forgotten");
            }
        }
    }
}

impl Drop for LaidOut {
    fn drop(&mut self) {
        self.laying.abort();
        self.remember();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for folder in [&self.folder, &self.aside] {
            match fs::remove_dir_all(folder) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(folder = %folder.display(), %error, "content was left behind");
                }
                Ok(()) | Err(_) => {}
            }
        }
    }
}

impl Place {
    fn files<'a>(&self, means: &'a Means) -> Files<'a> {
        let limits = Limits::granting(MAX_CONTENT);
        Files { chunks: &means.chunks, link: self.link.clone(), limits }
    }

    fn right(&self) -> Result<From, PrepareError> {
        let right = lock(&self.rights).first().copied();
        let (lease, source) = right.ok_or(PrepareError::Unreachable)?;
        Ok(From { source, lease, job: None })
    }

    /// A placeholder has now been opened so often: end who may have done it.
    fn too_early(&self, n: u64) {
        let early: Vec<_> = lock(&self.early).clone();
        for (_, stop) in early.into_iter().filter(|(since, _)| *since != n) {
            stop.stop();
        }
    }

    fn watch_folders(&self, order: &Order) {
        if let Some(opened) = self.seen.get().and_then(|seen| seen.opened.as_ref()) {
            for (here, name) in &order.folders {
                opened.watch(&self.folder.join(here), name);
            }
        }
    }
}

/// Fetch and lay out, say how far it is, and then see what is opened. Never ends by itself; dropping it midway
/// is safe.
async fn lay(means: Arc<Means>, place: Arc<Place>, wanted: Wanted) {
    let purpose = wanted.purpose;
    let order = match look(&means, &place, wanted).await {
        Ok(order) => Arc::new(order),
        Err(error) => return drop(place.progress.send_replace(Progress::Failed(error))),
    };
    let filled = async {
        let filled = fill_patiently(&means, &place, &order, purpose).await;
        place.progress.send_replace(filled.map_or_else(Progress::Failed, |()| Progress::Whole));
    };
    let opened = place.seen.get().and_then(|seen| seen.opened.clone());
    let followed = async {
        if let Some(opened) = opened {
            opened.follow(&*means.machine.clock, |n| place.too_early(n)).await;
        }
    };
    tokio::join!(filled, followed);
}

/// Fetch the manifest, and see what is in it.
async fn look(
    means: &Arc<Means>,
    place: &Arc<Place>,
    wanted: Wanted,
) -> Result<Order, PrepareError> {
    let from = place.right()?;
    let quota = if from.source == means.me { MAX_CONTENT } else { means.quota };
    let limits = Limits::granting(MAX_CONTENT.min(quota));
    means.fetch_manifest(&place.link, limits, from).await.map_err(prepare_error)?;
    means.learn(&place.link, limits, (from.source, false)).await.map_err(prepare_error)?;
    let (its_means, its_place) = (Arc::clone(means), Arc::clone(place));
    let settled = means.machine.block(move || settle(&its_means, &its_place, &wanted));
    settled.await.ok_or_else(panicked)?
}

/// Fetch and lay out everything. A line that breaks when sessions read already is waited for.
async fn fill_patiently(
    means: &Arc<Means>,
    place: &Arc<Place>,
    order: &Arc<Order>,
    purpose: Purpose,
) -> Result<(), PrepareError> {
    let mut filled = fill(means, place, order, Some(purpose)).await;
    while filled == Err(PrepareError::Unreachable)
        && matches!(*place.progress.borrow(), Progress::Enough(_))
    {
        // The loop takes their lease back when its borrower stays silent.
        let clock = &means.machine.clock;
        clock.wait_until(clock.now().plus(AGAIN)).await;
        filled = fill(means, place, order, None).await;
    }
    filled
}

/// With the manifest here: see whether its files have room, and which of them can wait.
fn settle(means: &Means, place: &Place, wanted: &Wanted) -> Result<Order, PrepareError> {
    let refused = |error| prepare_error(FetchError::Content(error));
    let broken = |error: io::Error| PrepareError::Broken(error.to_string());
    let files = place.files(means);
    let head = files.head().map_err(refused)?;
    let home = place.folder.parent().unwrap_or(&place.folder);
    // A manifest may name one small chunk a million times: what it unpacks to is looked at first.
    let free = sys::free_bytes(home).unwrap_or(0);
    if head.bytes > free.saturating_sub(KEEP_FREE) {
        return Err(PrepareError::Full);
    }
    session::private_folder(&place.folder).map_err(broken)?;
    prepare_mount_points(&place.folder, &wanted.layout).map_err(broken)?;
    let marks = Marks::new(&means.key, head.tenant);
    let trace = Trace::load(&means.store, marks.trace(wanted.purpose)).unwrap_or_else(|error| {
        tracing::warn!(%error, "what earlier tasks have opened is not known");
        None
    });
    let order = Order::of(&files, &wanted.layout, (&marks, trace.as_ref()));
    let mut order = order.map_err(refused)?;
    let opened = Opened::new(marks.clone(), order.files.clone());
    let opened = opened.map(Arc::new).map_err(|error| {
        tracing::debug!(%error, "what tasks open is not seen");
        // Nobody would see that a task was too early.
        (order.late, order.held, order.first) = Default::default();
    });
    let files = std::mem::take(&mut order.files);
    drop(place.seen.set(Seen { marks, files, opened: opened.ok() }));
    Ok(order)
}

impl Begin {
    fn new(purpose: Purpose, order: &Order) -> Self {
        Self { purpose, left: AtomicUsize::new(1 + usize::from(order.all_comes_first())) }
    }

    /// Something has happened that sessions waited for.
    fn one_less(&self, place: &Place) {
        let seen = place.seen.get().and_then(|seen| seen.opened.as_ref());
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1
            && seen.is_some_and(|opened| !opened.is_blind())
        {
            place.progress.send_replace(Progress::Enough(self.purpose));
        }
    }
}

/// Fetch what is missing, and lay it out meanwhile: everything for a `purpose`, or only what is late.
async fn fill(
    means: &Arc<Means>,
    place: &Arc<Place>,
    order: &Arc<Order>,
    purpose: Option<Purpose>,
) -> Result<(), PrepareError> {
    let limits = Limits::granting(MAX_CONTENT);
    let arrivals = Arc::new(Arrivals::default());
    let from = place.right()?;
    let begin = purpose.map(|purpose| Arc::new(Begin::new(purpose, order)));
    let write = {
        let (means, place) = (Arc::clone(means), Arc::clone(place));
        let (order, arrivals) = (Arc::clone(order), Arc::clone(&arrivals));
        let begin = begin.clone();
        move || write(&means, &place, (&order, &arrivals), begin.as_deref())
    };
    let written = means.machine.block(write);
    let fetched =
        means.fetch_chunks(&place.link, limits, from, (order.first.clone(), Arc::clone(&arrivals)));
    tokio::pin!(written, fetched);
    let laid = tokio::select! {
        biased;
        written = &mut written => written,
        fetched = &mut fetched => {
            if let Some(begin) = begin.filter(|_| fetched.is_ok() && order.all_comes_first()) {
                begin.one_less(place);
            }
            let written = written.await;
            fetched.map_err(prepare_error)?;
            return written.ok_or_else(panicked)?;
        }
    };
    laid.ok_or_else(panicked)??;
    // Everything is in place. That it is durable in the store too matters to nobody who waits here: after a
    // crash it is fetched again.
    place.progress.send_replace(Progress::Whole);
    if let Err(error) = fetched.await {
        tracing::debug!(%error, "a fetch ended badly after everything had come");
    }
    Ok(())
}

fn write(
    means: &Means,
    place: &Place,
    (order, arrivals): (&Order, &Arrivals),
    begin: Option<&Begin>,
) -> Result<(), PrepareError> {
    let threads = thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let unpack = Unpack { files: place.files(means), arrivals, threads };
    let opened = place.seen.get().and_then(|seen| seen.opened.as_ref());
    let placed = |path: &Path| {
        if let Some(opened) = opened {
            opened.hold(path);
        }
    };
    let enough = || {
        place.watch_folders(order);
        if let Some(begin) = begin {
            begin.one_less(place);
        }
    };
    let close = |file: &File, path: &Path| {
        let closed = sys::keep_closed(file);
        if let Err(error) = &closed {
            tracing::debug!(%error, "a file cannot be kept closed");
        } else {
            placed(path);
        }
        closed.is_ok()
    };
    let open = |file: &File, path: &Path| {
        // The other way round whoever waits would seem to have been too early.
        if let Some(opened) = opened {
            opened.release(path);
        }
        if let Err(error) = sys::let_open(file) {
            tracing::debug!(%error, "a file was open for others before it was whole");
        }
    };
    let held = Held { which: &order.held, close: &close, open: &open };
    let (which, aside) = (&order.late, &place.aside);
    let late = Late { which, aside, placed: &placed, enough: &enough, held };
    let written = match begin {
        Some(_) => unpack.run(&place.folder, Some(&late)),
        None => unpack.run_late(&place.folder, &late),
    };
    written.map_err(|error| prepare_error(FetchError::Content(error)))?;
    if order.late.is_empty() && order.held.is_empty() {
        place.watch_folders(order);
    }
    Ok(())
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

pub(crate) fn prepare_error(error: FetchError) -> PrepareError {
    match error {
        FetchError::Unreachable(_) | FetchError::Broken(_) => PrepareError::Unreachable,
        FetchError::Chunk(error) if error.is_full() => PrepareError::Full,
        FetchError::Content(error) if error.is_full() => PrepareError::Full,
        // It was here and is damaged on our disk: nobody else is to blame.
        FetchError::Content(ContentError::Missing(_)) => PrepareError::Unreachable,
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
