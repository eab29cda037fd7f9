//! Content that several sites have, one of which lies, or whose line breaks.

use std::ops::ControlFlow;
use std::path::Path;

use meshfarm_core::Input;
use meshfarm_protocol::id::{LeaseId, TenantId};
use meshfarm_protocol::manifest::build::Built;
use meshfarm_protocol::message::PassBody;
use meshfarm_protocol::seal::{SealingSecret, SigningKey, TenantSecret};
use tempfile::TempDir;
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::chunks::{Chunks, Settings};
use crate::content::ingest::{Cutting, Ingest, Input as Taken, Source};
use crate::machine::Machine;
use crate::means::MAX_UNITS;
use crate::meter::Meter;
use crate::net::tests::{FOREVER, Node, TCP, certificate, member, root, start_at, until, within};
use crate::net::{self, AskedId, Event, Shelf};
use crate::pace::{Pace, Rate, RateSettings};
use crate::pins::Pins;
use crate::sharing::Sharing;
use crate::store::Store;

const LEASE: LeaseId = LeaseId([7; 16]);
const LIMITS: Limits = Limits::granting(1 << 40);

/// More than a window of every line, and many runs.
const BYTES: usize = 60_000_000;

/// A node with a store, as the rooms of data see it.
struct Place {
    means: Arc<Means>,
    inputs: mpsc::Receiver<Input>,
    _home: TempDir,
}

impl Place {
    fn new(node: &Node, send: Option<u64>) -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&home.path().join("records")).unwrap());
        let quiet = Settings::new(|_: &Path| Ok(u64::MAX), crate::sys::punch_hole, || Millis(7000));
        let settings = Settings { keep_free: 0, ..quiet };
        let chunks = Chunks::open(&home.path().join("segments"), Arc::clone(&store), settings);
        let chunks = Arc::new(chunks.unwrap());
        let pins = Pins::load(Arc::clone(&store), Arc::clone(&chunks), &[]).unwrap();
        let rates = RateSettings { send: send.map(Rate), ..RateSettings::default() };
        let (input_tx, inputs) = mpsc::channel(64);
        let means = Means {
            me: node.site(),
            key: node.key.clone(),
            sealing: SealingSecret::from_seed([3; 32]),
            machine: Machine::real(),
            store,
            chunks,
            pins: Arc::new(pins),
            quota: u64::MAX,
            net: node.net.clone(),
            meter: Arc::new(Meter::default()),
            sharing: Sharing::default(),
            pace: Pace::new(&rates),
            received: Arc::new(Semaphore::new(MAX_UNITS as usize)),
            input_tx,
        };
        Self { means: Arc::new(means), inputs, _home: home }
    }

    fn take_in(&self, bytes: Vec<u8>) -> Built {
        let secret = TenantSecret::new(TenantId([1; 16]), 1, [1; 32]);
        let (chunks, cutting, created) = (&*self.means.chunks, Cutting::ByContent, Millis(0));
        let ingest = Ingest { chunks, secret: &secret, cutting, created, limits: LIMITS };
        let taken = Taken { path: "r0/cache.vdb".into(), source: Source::Bytes(bytes) };
        ingest.run(vec![taken], |_| ControlFlow::Continue(())).unwrap()
    }

    fn from(&self, source: SiteId) -> u64 {
        let sites = self.means.meter.sites(Millis(0));
        sites.get(&source).map_or(0, |moved| moved.received)
    }

    fn is_whole(&self, built: &Built) -> bool {
        let mut plan = Plan::new(built.link.clone(), LIMITS);
        assert!(plan.next(&self.means.chunks, 100).unwrap().is_empty());
        let contents = plan.contents().unwrap();
        let lacking = |run| contents.lacking(&self.means.chunks, run).unwrap();
        (0..contents.n_runs()).all(|run| lacking(meshfarm_core::transfer::Run(run)).is_empty())
    }
}

fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Serves lanes honestly, saying what there is to those that show a pass.
fn serving(mut node: Node, means: Arc<Means>, have: Arc<[u8]>) {
    tokio::spawn(async move {
        let _runs = node.net.clone();
        while let Some(event) = node.events.recv().await {
            if let Event::Lane { from, hello, stream } = event {
                let here = hello.pass.is_some().then(|| watch::channel(Arc::clone(&have)).1);
                means.serve(stream, (from, None), here);
            }
        }
    });
}

/// What it is asked for, with one byte changed.
struct Liar(Arc<Means>);

impl Shelf for Liar {
    fn get(&self, id: &AskedId, onto: &mut Vec<u8>) -> bool {
        let before = onto.len();
        let cid = self.0.chunks.beginning(id).unwrap();
        let found = cid.is_some_and(|cid| self.0.chunks.get_onto(&cid, onto).unwrap());
        if found {
            onto[before] ^= 1;
        }
        found
    }

    async fn admit(&self, _: u64) {}

    fn left(&self, _: u64) {}
}

fn lying(mut node: Node, means: Arc<Means>) {
    tokio::spawn(async move {
        let _runs = node.net.clone();
        while let Some(event) = node.events.recv().await {
            if let Event::Lane { stream, .. } = event {
                let have = watch::channel(Arc::from(&[0xff_u8; 100][..])).1;
                tokio::spawn(net::serve(stream, Arc::new(Liar(Arc::clone(&means))), Some(have)));
            }
        }
    });
}

fn sharer(site: SiteId, to: SiteId, root: ChunkId) -> Sharer {
    let key = SigningKey::from_seed(&[9; 32]);
    let body = PassBody { borrower: key.site(), lease: LEASE, to, root, expires: FOREVER };
    Sharer { site, pass: Pass::sign(&body, &key) }
}

async fn acquainted() -> (Node, Node, Node) {
    let (mut a, mut b, mut c) = (member(1, TCP).await, member(2, TCP).await, member(3, TCP).await);
    a.call(&b).await;
    a.up(&b).await;
    b.up(&a).await;
    a.call(&c).await;
    a.up(&c).await;
    c.up(&a).await;
    (a, b, c)
}

fn lent(source: SiteId) -> From {
    From { source, lease: LEASE, job: None }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_slow_owner_has_comes_from_a_fast_sharer() {
    let (a, owner, other) = acquainted().await;
    let (receiver, slow) = (Place::new(&a, None), Place::new(&owner, Some(4_000_000)));
    let fast = Place::new(&other, None);
    let built = slow.take_in(noise(BYTES));
    assert_eq!(fast.take_in(noise(BYTES)).link, built.link, "the same secret, the same chunks");
    let (from, with) = (owner.site(), other.site());
    receiver.means.sharing.add(LEASE, sharer(with, a.site(), built.link.cid));
    let all: Arc<[u8]> = Arc::from(&[0xff; 100][..]);
    serving(owner, Arc::clone(&slow.means), Arc::clone(&all));
    serving(other, Arc::clone(&fast.means), all);
    within("the content", receiver.means.fetch(&built.link, LIMITS, lent(from))).await.unwrap();
    assert!(receiver.is_whole(&built));
    let (slowly, fast) = (receiver.from(from), receiver.from(with));
    assert!(fast > slowly && slowly > 0, "{fast} from the fast one, {slowly} from the slow one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_lies_is_dropped_and_named_and_its_share_comes_from_elsewhere() {
    let (a, owner, other) = acquainted().await;
    let mut receiver = Place::new(&a, None);
    let (honest, liar) = (Place::new(&owner, Some(10_000_000)), Place::new(&other, None));
    let built = honest.take_in(noise(BYTES));
    liar.take_in(noise(BYTES));
    let (from, with) = (owner.site(), other.site());
    receiver.means.sharing.add(LEASE, sharer(with, a.site(), built.link.cid));
    serving(owner, Arc::clone(&honest.means), Arc::from(&[][..]));
    lying(other, Arc::clone(&liar.means));
    within("the content", receiver.means.fetch(&built.link, LIMITS, lent(from))).await.unwrap();
    assert!(receiver.is_whole(&built));
    match receiver.inputs.try_recv() {
        Ok(Input::WrongChunk { site, lease, chunk, came }) => {
            assert_eq!((site, lease), (with, LEASE));
            assert_ne!(chunk, came);
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_goes_on_when_its_source_is_back_and_little_comes_twice() {
    let (a, owner, _other) = acquainted().await;
    let (receiver, place) = (Place::new(&a, None), Place::new(&owner, Some(20_000_000)));
    let built = place.take_in(noise(BYTES));
    let (from, address, net) = (owner.site(), owner.address().await, owner.net.clone());
    serving(owner, Arc::clone(&place.means), Arc::from(&[][..]));
    let fetching = {
        let (means, link) = (Arc::clone(&receiver.means), built.link.clone());
        tokio::spawn(async move { means.fetch(&link, LIMITS, lent(from)).await })
    };
    until("a part of it", || async { receiver.from(from) > 12_000_000 }).await;
    net.shutdown().await;
    drop(net);
    let again = start_at(2, std::slice::from_ref(&address)).unwrap();
    let shown = certificate(&root(), &again.key, FOREVER);
    again.net.add_mesh(root().mesh(), shown).await;
    serving(again, Arc::clone(&place.means), Arc::from(&[][..]));
    within("the content", fetching).await.unwrap().unwrap();
    assert!(receiver.is_whole(&built));
    let came = receiver.from(from);
    // What was under way when the line broke is asked for again: a window of each line.
    assert!(came < BYTES as u64 + 20_000_000, "{came} bytes came for {BYTES}");
}
