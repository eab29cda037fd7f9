//! A store with real chunks and real manifests: what is in use stays, what is not goes, damage is found.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;

use futures::future::BoxFuture;
use meshfarm_core::{Change, Content, JobPhase, JobRecord, Key, Output, Record, Steering};
use meshfarm_protocol::id::{AttemptId, LeaseId, StepNo, TenantId};
use meshfarm_protocol::job::{JailProfile, Layout, SessionSpec};
use meshfarm_protocol::manifest::RootLink;
use meshfarm_protocol::receipt::Exact;
use meshfarm_protocol::seal::TenantSecret;
use tokio::sync::mpsc;

use super::*;
use crate::chunks::Settings as ChunkSettings;
use crate::content::ingest::{Cutting, Ingest, Input, Source};
use crate::content::uses::uses;
use crate::machine::Machine;
use crate::means::Means;
use crate::net::Clock;
use crate::pins::Why;
use crate::store::{Batch, Family};
use crate::sys;

const LIMITS: Limits = Limits::granting(1 << 40);
const ME: SiteId = SiteId([1; 32]);
const LYON: SiteId = SiteId([2; 32]);
const DAY: u64 = 86_400_000;
const NOW: Millis = Millis(1000 * DAY);
const LATER: Millis = Millis(2000 * DAY);

struct World {
    home: PathBuf,
    store: Arc<Store>,
    chunks: Arc<Chunks>,
    pins: Arc<Pins>,
    sweeper: Arc<Sweeper>,
}

fn settings() -> Settings {
    Settings {
        keep: Millis(14 * DAY),
        total: None,
        tenant: u64::MAX,
        keep_free: 0,
        free_bytes: |_| Ok(u64::MAX),
    }
}

impl World {
    fn open(home: &Path, records: &[Record]) -> Self {
        Self::open_with(home, records, settings(), 0)
    }

    fn open_with(home: &Path, records: &[Record], settings: Settings, keep_free: u64) -> Self {
        let store = Arc::new(Store::open(&home.join("records")).unwrap());
        let kept = ChunkSettings {
            keep_free,
            ..ChunkSettings::new(settings.free_bytes, sys::punch_hole, || NOW)
        };
        let chunks = Chunks::open(&home.join("segments"), Arc::clone(&store), kept).unwrap();
        let chunks = Arc::new(chunks);
        let pins = Pins::load(Arc::clone(&store), Arc::clone(&chunks), records).unwrap();
        let pins = Arc::new(pins);
        let rooms = (Arc::clone(&store), Arc::clone(&chunks), Arc::clone(&pins));
        let sweeper = Sweeper::new(ME, rooms, home.to_owned(), settings).unwrap();
        Self { home: home.to_owned(), store, chunks, pins, sweeper: Arc::new(sweeper) }
    }

    fn ingest(&self, tenant: u8, files: &[(&str, Vec<u8>)]) -> RootLink {
        let secret = TenantSecret::new(TenantId([tenant; 16]), 1, [tenant; 32]);
        let cutting = Cutting::ByContent;
        let ingest =
            Ingest { chunks: &self.chunks, secret: &secret, cutting, created: NOW, limits: LIMITS };
        let input = |(path, bytes): &(&str, Vec<u8>)| Input {
            path: (*path).to_owned(),
            source: Source::Bytes(bytes.clone()),
        };
        let built = ingest.run(files.iter().map(input).collect(), |_| ControlFlow::Continue(()));
        built.unwrap().link
    }

    fn learned(&self, tenant: u8, site: SiteId, files: &[(&str, Vec<u8>)]) -> RootLink {
        let link = self.ingest(tenant, files);
        self.pins.learn(&link, LIMITS, (site, false), NOW).unwrap();
        link
    }

    /// Whether every chunk of some content is here and whole.
    fn has(&self, link: &RootLink) -> bool {
        let Ok(uses) = uses(&self.chunks, link, LIMITS) else { return false };
        uses.cids.iter().all(|cid| self.chunks.get(cid).unwrap().is_some())
    }

    /// Removes all that may go.
    fn collect_all(&self) -> Collected {
        self.sweeper.collect(LATER, u64::MAX, false).unwrap()
    }

    fn bytes(&self) -> u64 {
        self.chunks.count().unwrap().live
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(&mut next).flatten().take(len).collect()
}

fn session() -> SessionSpec {
    let layout = Layout::default();
    SessionSpec {
        layout,
        step: StepNo(0),
        environments: false,
        timeout: None,
        silence: None,
        profile: JailProfile::Command,
    }
}

fn prepare(lease: u8, root: ChunkId) -> Output {
    let lease = LeaseId([lease; 16]);
    let content = Content::Own(JobId([1; 16]), session());
    Output::Prepare { lease, borrower: LYON, root, content }
}

fn job(phase: JobPhase, root: ChunkId) -> JobRecord {
    let job = JobId([7; 16]);
    let (inputs, canceled, steering) = (Vec::new(), Vec::new(), Steering::default());
    JobRecord {
        job,
        submitted: NOW,
        ended: None,
        phase,
        root,
        bytes: 1,
        inputs,
        canceled,
        steering,
        warned: meshfarm_core::Warned::default(),
        spent: Exact(0),
    }
}

fn put(record: Record) -> Output {
    Output::Persist(Change::Put(Box::new(record)))
}

#[test]
fn content_of_a_lease_stays_while_it_lasts_and_goes_after_it() {
    let home = tempfile::tempdir().unwrap();
    let world = World::open(home.path(), &[]);
    let link = world.ingest(1, &[("r0/a", noise(1, 900_000)), ("r0/b", noise(2, 2000))]);
    world.pins.place_for(&[prepare(1, link.cid)]).unwrap();
    // The transfer finds everything here, and nobody knows yet what the manifest names.
    assert!(world.has(&link));
    assert_eq!(world.collect_all().chunks, 0);
    world.pins.learn(&link, LIMITS, (LYON, false), NOW).unwrap();
    world.collect_all();
    assert!(world.has(&link));
    world.pins.lift_for(&[Output::Release(LeaseId([1; 16]))]);
    // While it was pinned, it was noted that it was in use.
    let old = Millis(LATER.0 + 14 * DAY);
    assert_eq!(world.sweeper.collect(Millis(old.0 - 1), 0, false).unwrap().roots, 0);
    let dry = world.sweeper.collect(old, 0, true).unwrap();
    let done = world.sweeper.collect(old, 0, false).unwrap();
    assert!(done.chunks > 3 && done.roots == 1);
    assert_eq!(Collected { segments: 0, ..done }, dry);
    assert!(!world.has(&link) && world.bytes() == 0);
}

#[test]
fn a_version_stays_whole_when_the_one_before_it_goes() {
    let home = tempfile::tempdir().unwrap();
    let world = World::open(home.path(), &[]);
    let (shared, old, new) = (noise(1, 3_000_000), noise(2, 500_000), noise(3, 500_000));
    let first = world.learned(1, LYON, &[("r0/a", shared.clone()), ("r0/b", old)]);
    let second = world.learned(1, LYON, &[("r0/a", shared), ("r0/b", new)]);
    world.pins.place_for(&[prepare(1, second.cid)]).unwrap();
    let before = world.bytes();
    assert_eq!(world.collect_all().roots, 1);
    assert!(world.has(&second) && !world.has(&first));
    assert!(before - world.bytes() >= 500_000 && world.bytes() > 3_000_000);
}

#[test]
fn unused_content_stays_cached_for_its_time_and_a_tenant_within_its_quota() {
    let home = tempfile::tempdir().unwrap();
    let tight = Settings { tenant: 1_500_000, ..settings() };
    let world = World::open_with(home.path(), &[], tight, 0);
    let mine = world.learned(1, ME, &[("r0/a", noise(1, 2_000_000))]);
    let first = world.learned(2, LYON, &[("r0/a", noise(2, 1_000_000))]);
    let soon = Millis(NOW.0 + DAY);
    assert_eq!(world.sweeper.collect(soon, 0, false).unwrap().chunks, 0);
    let second = world.ingest(2, &[("r0/a", noise(3, 1_000_000))]);
    world.pins.learn(&second, LIMITS, (LYON, false), Millis(NOW.0 + 1)).unwrap();
    assert_eq!(world.sweeper.collect(soon, 0, false).unwrap().roots, 1);
    assert!(world.has(&mine) && world.has(&second) && !world.has(&first));
    let stock = world.sweeper.stock().unwrap();
    assert_eq!(stock.owners.len(), 2);
    assert_eq!(stock.owners.iter().map(|(_, all, _)| all).sum::<u64>(), world.bytes());
    assert!(world.sweeper.collect(LATER, 0, false).unwrap().roots == 2 && world.bytes() == 0);
}

#[test]
fn a_job_keeps_its_content_through_restarts_until_it_has_ended() {
    let home = tempfile::tempdir().unwrap();
    let world = World::open(home.path(), &[]);
    let link = world.learned(1, ME, &[("r0/a", noise(1, 900_000))]);
    let record = Record::Job(job(JobPhase::Active, link.cid));
    world.pins.place_for(&[put(record.clone())]).unwrap();
    world.collect_all();
    assert!(world.has(&link));
    drop(world);
    let world = World::open(home.path(), std::slice::from_ref(&record));
    world.collect_all();
    assert!(world.has(&link));
    // It ends and begins again in one go.
    let ended = Record::Job(job(JobPhase::Done, link.cid));
    let outputs = [put(ended.clone()), put(record)];
    world.pins.place_for(&outputs).unwrap();
    world.pins.lift_for(&outputs);
    world.collect_all();
    assert!(world.has(&link));
    world.pins.check_whole(&link, ME, NOW).unwrap();
    world.pins.lift_for(&[put(ended)]);
    world.collect_all();
    assert!(!world.has(&link));
    assert!(world.pins.check_whole(&link, ME, NOW).is_err());
}

#[test]
fn results_stay_until_they_are_accepted_and_then_go_soon() {
    let home = tempfile::tempdir().unwrap();
    let world = World::open(home.path(), &[]);
    let link = world.ingest(9, &[("out/a.exr", noise(1, 900_000))]);
    world.pins.learn(&link, LIMITS, (LYON, true), NOW).unwrap();
    let attempt = AttemptId([3; 16]);
    world.pins.place(Why::Attempt(attempt), link.cid).unwrap();
    let soon = Millis(NOW.0 + DAY);
    assert_eq!(world.sweeper.collect(soon, u64::MAX, false).unwrap().chunks, 0);
    let accepted = [
        Output::Persist(Change::Delete(Key::Finished(attempt))),
        Output::Forget { attempt, root: None },
    ];
    world.pins.lift_for(&accepted);
    let arrived = soon.plus(choose::RECENT);
    assert_eq!(world.sweeper.collect(arrived, 0, false).unwrap().roots, 1);
    assert_eq!(world.bytes(), 0);
}

#[test]
fn content_in_use_that_nobody_knows_keeps_everything_until_it_is_known() {
    let home = tempfile::tempdir().unwrap();
    let world = World::open(home.path(), &[]);
    let link = world.ingest(1, &[("r0/a", noise(1, 900_000))]);
    let stray = world.ingest(2, &[("r0/a", noise(2, 900_000))]);
    drop(world);
    // A home from before it was written down what content uses.
    let world = World::open(home.path(), &[Record::Job(job(JobPhase::Active, link.cid))]);
    assert_eq!(world.collect_all().blocked, Some(link.cid));
    assert!(world.has(&link) && world.has(&stray));
    // With the key of its root, which jobs of ours have, it is learned.
    let mut batch = Batch::new();
    Means::keep_root(&mut batch, &link);
    world.store.commit(batch).unwrap();
    assert_eq!(world.collect_all().blocked, None);
    assert!(world.has(&link) && !world.has(&stray));
}

#[test]
fn what_comes_into_use_while_a_collection_decides_stays() {
    let home = tempfile::tempdir().unwrap();
    let world = World::open(home.path(), &[]);
    let link = world.learned(1, LYON, &[("r0/a", noise(1, 900_000))]);
    let listed = world.pins.known().unwrap();
    world.pins.place_for(&[prepare(1, link.cid)]).unwrap();
    assert!(!world.pins.forget(&listed).unwrap(), "it was pinned meanwhile");
    world.pins.lift_for(&[Output::Release(LeaseId([1; 16]))]);
    world.pins.learn(&link, LIMITS, (LYON, false), LATER).unwrap();
    assert!(!world.pins.forget(&listed).unwrap(), "it was used meanwhile");
    let listed = world.pins.known().unwrap();
    assert!(world.pins.forget(&listed).unwrap());
    // Forgotten, and its chunks still here: a new lease looks at each of them, and they stay.
    world.pins.place_for(&[prepare(2, link.cid)]).unwrap();
    assert!(world.has(&link));
    world.collect_all();
    assert!(world.has(&link));
}

/// Changes a byte of the last chunk of the first segment.
fn damage(world: &World) -> ChunkId {
    let (offset, cid) = *world.chunks.chunks_in(0, 0).unwrap().last().unwrap();
    let path = world.home.join("segments/00000000.seg");
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(b"rot", u64::from(offset) + 20).unwrap();
    cid
}

#[test]
fn verification_finds_damage_forgets_it_and_names_the_job_that_needs_it() {
    let home = tempfile::tempdir().unwrap();
    let world = World::open(home.path(), &[]);
    let link = world.learned(1, ME, &[("r0/a", noise(1, 900_000))]);
    world.pins.place_for(&[put(Record::Job(job(JobPhase::Active, link.cid)))]).unwrap();
    let (chunks, bytes) = (world.chunks.spots().unwrap().len() as u64, world.bytes());
    let whole = world.sweeper.verify(NOW, false, |_, _| true).unwrap();
    assert_eq!(whole, Verified { chunks, bytes, ..Verified::default() });
    let cid = damage(&world);
    let found = world.sweeper.verify(NOW, false, |_, _| true).unwrap();
    assert_eq!((found.n_damaged, &found.damaged[..]), (1, &[cid][..]));
    assert_eq!(found.jobs, [JobId([7; 16])]);
    assert!(!world.chunks.has(&cid).unwrap());
    assert_eq!(world.sweeper.stock().unwrap().damaged, 1);
    assert_eq!(world.sweeper.verify(NOW, true, |_, _| true).unwrap().n_damaged, 0);
}

#[test]
fn slow_verification_goes_on_after_a_restart_and_rests_when_it_is_through() {
    let home = tempfile::tempdir().unwrap();
    let world = World::open(home.path(), &[]);
    world.learned(1, ME, &[("r0/a", noise(1, 4_000_000))]);
    assert!(world.sweeper.scrub(NOW, 1_000_000).unwrap());
    // As it is written down now and then.
    lock(&world.sweeper.scrub).note(&world.store).unwrap();
    drop(world);
    let world = World::open(home.path(), &[]);
    let cid = damage(&world);
    let mut steps = 0;
    while world.sweeper.scrub(NOW, 1_000_000).unwrap() {
        steps += 1;
    }
    assert!((2..=3).contains(&steps), "{steps} steps for the other three quarters");
    assert!(!world.chunks.has(&cid).unwrap());
    let stock = world.sweeper.stock().unwrap();
    assert_eq!((stock.damaged, stock.verified), (1, Some(NOW)));
    assert!(!world.sweeper.scrub(Millis(NOW.0 + 29 * DAY), 1).unwrap());
    assert!(world.sweeper.scrub(Millis(NOW.0 + 31 * DAY), 1).unwrap());
}

/// A clock that goes as fast as it is waited for.
struct Fast(std::sync::atomic::AtomicU64);

impl Clock for Fast {
    fn now(&self) -> Millis {
        Millis(self.0.load(std::sync::atomic::Ordering::SeqCst))
    }

    fn wait_until(&self, at: Millis) -> BoxFuture<'static, ()> {
        self.0.fetch_max(at.0, std::sync::atomic::Ordering::SeqCst);
        Box::pin(tokio::time::sleep(std::time::Duration::from_millis(2)))
    }
}

/// Runs this test again in a mount namespace whose `/mnt` is a disk of 24 MB, and returns there.
fn on_a_small_disk(test: &str) -> bool {
    if std::env::var_os("MESHFARM_SMALL_DISK").is_some() {
        return true;
    }
    let script = "mount -t tmpfs -o size=24m none /mnt && exec \"$0\" \"$@\"";
    let done = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("MESHFARM_SMALL_DISK", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    false
}

/// Writes until no more than `left` bytes of the small disk are free.
fn fill(file: &mut fs::File, left: u64) {
    while sys::free_bytes(Path::new("/mnt")).unwrap() > left {
        io::Write::write_all(file, &[1; 64 << 10]).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_intake_and_unused_content_makes_room_again() {
    let name = "sweep::tests::a_full_disk_stops_intake_and_unused_content_makes_room_again";
    if !on_a_small_disk(name) {
        return;
    }
    let keep = Millis(u64::MAX);
    let small = Settings { keep, keep_free: 4 << 20, free_bytes: sys::free_bytes, ..settings() };
    let world = World::open_with(Path::new("/mnt"), &[], small, 2 << 20);
    let machine = Machine { clock: Arc::new(Fast(LATER.0.into())), ..Machine::real() };
    let (input_tx, mut input_rx) = mpsc::channel(8);
    // In use, so that it cannot go; the rest of the disk is something else's.
    let used = world.learned(1, LYON, &[("r0/a", noise(1, 6_000_000))]);
    world.pins.place_for(&[prepare(1, used.cid)]).unwrap();
    let cached = world.learned(1, LYON, &[("r0/b", noise(2, 6_000_000))]);
    let watch = tokio::spawn(Arc::clone(&world.sweeper).watch_disk(machine.clone(), input_tx));
    let collect = tokio::spawn(Arc::clone(&world.sweeper).collect_in_time(machine));
    // Near the mark what is only cached goes, before anybody is declined.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    // By what is free and not by so many bytes: how much the database takes for itself differs.
    fill(&mut fs::File::create("/mnt/ballast").unwrap(), 5 << 20);
    while world.has(&cached) {
        assert!(std::time::Instant::now() < deadline, "room was not made");
        tokio::task::yield_now().await;
    }
    assert!(world.has(&used));
    fill(&mut fs::File::create("/mnt/more").unwrap(), 3 << 20);
    let said = |input| match input {
        Some(meshfarm_core::Input::Disk { full }) => full,
        other => panic!("{other:?}"),
    };
    assert!(said(input_rx.recv().await), "intake stops");
    let hold = world.chunks.hold();
    let chunk = (10..30).find_map(|seed| {
        let chunk = meshfarm_protocol::seal::seal_chunk(
            &TenantSecret::new(TenantId([5; 16]), 1, [5; 32]).chunks(),
            &noise(seed, 1_000_000),
        );
        world.chunks.put(&chunk.cid, &chunk.bytes).err()
    });
    assert!(matches!(chunk, Some(ChunkError::DiskFull { .. })), "{chunk:?}");
    assert!(world.has(&used), "running work keeps its content");
    drop(hold);
    world.pins.lift_for(&[Output::Release(LeaseId([1; 16]))]);
    assert!(!said(input_rx.recv().await), "intake goes on");
    assert!(!world.has(&used));
    watch.abort();
    collect.abort();
}

#[test]
fn a_hundred_thousand_chunks_are_opened_listed_and_collected() {
    let home = tempfile::tempdir().unwrap();
    let store = Store::open(&home.path().join("records")).unwrap();
    let mut batch = Batch::new();
    let mut made: BTreeMap<u32, u64> = BTreeMap::new();
    // The index of many chunks of 256 KiB, without their bytes.
    for number in 0..100_000_u32 {
        let cid = meshfarm_protocol::seal::content_hash(&number.to_be_bytes());
        let (segment, len) = (number / 4000, 262_144_u32);
        let offset = (number % 4000) * (len + 16);
        let place = [segment, offset, len, 7 + number / 1000].map(u32::to_be_bytes).concat();
        batch.put(Family::Chunk, cid, place);
        *made.entry(segment).or_default() += u64::from(len) + 16;
        if batch.len() >= 10_000 {
            store.commit(std::mem::take(&mut batch)).unwrap();
        }
    }
    for (segment, bytes) in made {
        let extent = [bytes.to_be_bytes(), bytes.to_be_bytes()].concat();
        batch.put(Family::Segment, segment.to_be_bytes(), extent);
    }
    store.commit(batch).unwrap();
    drop(store);
    let world = World::open(home.path(), &[]);
    let cid = ChunkId(meshfarm_protocol::seal::content_hash(&77_u32.to_be_bytes()));
    assert!(world.chunks.has(&cid).unwrap());
    assert_eq!(world.sweeper.stock().unwrap().chunks, 100_000);
    world.sweeper.collect(NOW, 0, true).unwrap();
    let wanted = 10_000 * 262_160;
    let some = Sweeper::new(
        ME,
        (Arc::clone(&world.store), Arc::clone(&world.chunks), Arc::clone(&world.pins)),
        home.path().to_owned(),
        Settings { keep: Millis(u64::MAX), ..settings() },
    );
    let done = some.unwrap().collect(NOW, wanted, false).unwrap();
    assert!(done.chunks >= 10_000, "{} chunks", done.chunks);
}
