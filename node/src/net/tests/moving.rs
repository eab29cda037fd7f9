//! Chunks over lanes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meshfarm_protocol::message::{LaneHello, MAX_ASKED};
use meshfarm_protocol::seal::{check_chunk, chunk_id};
use tokio::sync::watch;

use super::*;

/// So many chunks of a size, and their ids.
fn chunks(n: u32, len: usize) -> (Vec<ChunkId>, HashMap<ChunkId, Vec<u8>>) {
    let made: Vec<(ChunkId, Vec<u8>)> = (0..n)
        .map(|seed| {
            let mut bytes = vec![0; len];
            for (at, word) in (0_u32..).zip(bytes.chunks_mut(4)) {
                let value = at.wrapping_mul(2_654_435_761).wrapping_add(seed);
                word.copy_from_slice(&value.to_be_bytes()[..word.len()]);
            }
            (chunk_id(&bytes), bytes)
        })
        .collect();
    let ids = made.iter().map(|(id, _)| *id).collect();
    (ids, made.into_iter().collect())
}

/// What is served.
#[derive(Default)]
struct Has {
    chunks: HashMap<ChunkId, Vec<u8>>,
    left: AtomicU64,
}

impl Shelf for Has {
    fn get(&self, id: &AskedId, onto: &mut Vec<u8>) -> bool {
        let found = self.chunks.iter().find(|(cid, _)| cid.0.starts_with(id));
        found.map(|(_, bytes)| onto.extend_from_slice(bytes)).is_some()
    }

    async fn admit(&self, _: u64) {}

    fn left(&self, bytes: u64) {
        self.left.store(bytes, Ordering::Relaxed);
    }
}

fn shelf(chunks: HashMap<ChunkId, Vec<u8>>) -> Arc<Has> {
    Arc::new(Has { chunks, ..Has::default() })
}

fn hello() -> LaneHello {
    LaneHello { lease: LeaseId([1; 16]), root: ChunkId([2; 32]), pass: None }
}

/// Serves every lane that a member opens.
fn serving(mut node: Node, has: Arc<Has>) {
    tokio::spawn(async move {
        // The node stops when its last handle is gone.
        let _runs = node.net.clone();
        while let Some(event) = node.events.recv().await {
            if let Event::Lane { stream, .. } = event {
                tokio::spawn(serve(stream, Arc::clone(&has), None));
            }
        }
    });
}

async fn a_stream(node: &mut Node) -> LaneStream {
    let lane = |event| match event {
        Event::Lane { stream, .. } => Some(stream),
        _ => None,
    };
    node.event("a lane", lane).await
}

async fn chunk(lane: &mut Lane) -> (u32, Option<Vec<u8>>) {
    match within("a piece", lane.next()).await.unwrap() {
        Piece::Chunk { index, bytes } => (index, bytes),
        Piece::Have(_) => panic!("nobody says what there is"),
    }
}

async fn fifty_megabytes_arrive(listen: &str) {
    let (a, b) = pair(listen).await;
    let from = b.site();
    let (mut ids, has) = chunks(200, 256 * 1024);
    ids.insert(100, ChunkId([9; 32]));
    let has = shelf(has);
    serving(b, Arc::clone(&has));
    let started = std::time::Instant::now();
    let mut lane = a.net.lane(from, &hello()).await.unwrap();
    let mut total = 0;
    let mut missing = Vec::new();
    let mut left = ids.iter();
    // Asked for in several parts, the next one before the last has come.
    for part in ids.chunks(64) {
        lane.ask(part, part.len() as u64).await.unwrap();
    }
    for _ in 0..ids.len() {
        let (index, bytes) = chunk(&mut lane).await;
        let id = left.next().unwrap();
        assert_eq!(*id, ids[index as usize]);
        match bytes {
            Some(bytes) => {
                check_chunk(id, &bytes).unwrap();
                total += bytes.len();
            }
            None => missing.push(index),
        }
    }
    println!("{total} bytes over {listen} in {:?}", started.elapsed());
    assert_eq!(total, 200 * 256 * 1024);
    assert_eq!(missing, [100]);
    assert_eq!(has.left.load(Ordering::Relaxed), 9, "the last of 201 in parts of 64");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_megabytes_arrive_whole_and_a_missing_chunk_is_said_over_tcp() {
    fifty_megabytes_arrive(TCP).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_megabytes_arrive_whole_and_a_missing_chunk_is_said_over_quic() {
    fifty_megabytes_arrive(QUIC).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_lanes_at_once_all_arrive_on_connections_of_their_own() {
    let (a, b) = pair(TCP).await;
    let from = b.site();
    let (ids, has) = chunks(20, 64 * 1024);
    serving(b, shelf(has));
    a.net.widen(from, 4).await;
    let one = || async {
        let mut lane = a.net.lane(from, &hello()).await.unwrap();
        lane.ask(&ids, 0).await.unwrap();
        for _ in &ids {
            assert!(chunk(&mut lane).await.1.is_some());
        }
    };
    within("eight lanes", futures::future::join_all((0..8).map(|_| one()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_thousand_small_chunks_come_in_few_batches() {
    let (a, b) = pair(TCP).await;
    let from = b.site();
    let (ids, has) = chunks(4000, 100);
    serving(b, shelf(has));
    let mut lane = a.net.lane(from, &hello()).await.unwrap();
    lane.ask(&ids, 0).await.unwrap();
    for id in &ids {
        check_chunk(id, &chunk(&mut lane).await.1.unwrap()).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_source_has_is_heard_between_the_pieces_and_whenever_it_grows() {
    let (a, mut b) = pair(TCP).await;
    let mut lane = a.net.lane(b.site(), &hello()).await.unwrap();
    let stream = a_stream(&mut b).await;
    let have = watch::Sender::new(Arc::from(&[1_u8][..]));
    let (ids, has) = chunks(1, 1000);
    tokio::spawn(serve(stream, shelf(has), Some(have.subscribe())));
    assert_eq!(within("what there is", lane.next()).await.unwrap(), Piece::Have(vec![1]));
    lane.ask(&ids, 0).await.unwrap();
    assert!(chunk(&mut lane).await.1.is_some());
    have.send_replace(Arc::from(&[3_u8][..]));
    assert_eq!(within("more", lane.next()).await.unwrap(), Piece::Have(vec![3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_ends_with_an_error_when_its_source_goes_away() {
    let (a, mut b) = pair(TCP).await;
    let mut lane = a.net.lane(b.site(), &hello()).await.unwrap();
    let stream = a_stream(&mut b).await;
    drop(stream);
    // Whether the ask still goes out depends on who is faster.
    let _sent = lane.ask(&[ChunkId([1; 32])], 0).await;
    let error = within("the end", lane.next()).await.unwrap_err();
    assert!(matches!(error, LaneError::Broken { after: 0, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_asks_for_more_than_a_lane_carries_is_cut_off() {
    let (a, mut b) = pair(TCP).await;
    let mut lane = a.net.lane(b.site(), &hello()).await.unwrap();
    let stream = a_stream(&mut b).await;
    // A shelf that lets nothing out, so that what is asked for piles up.
    struct Closed;
    impl Shelf for Closed {
        fn get(&self, _: &AskedId, _: &mut Vec<u8>) -> bool {
            false
        }
        async fn admit(&self, _: u64) {
            std::future::pending().await
        }
        fn left(&self, _: u64) {}
    }
    let serving = tokio::spawn(serve(stream, Arc::new(Closed), None));
    let ids = vec![ChunkId([1; 32]); MAX_ASKED];
    for _ in 0..4 {
        let _refused = lane.ask(&ids, 0).await;
    }
    assert!(within("the end", lane.next()).await.is_err());
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_to_nobody_is_not_opened() {
    let (a, _b) = pair(TCP).await;
    let error = a.net.lane(key(9).site(), &hello()).await.unwrap_err();
    assert!(matches!(error, NetError::NotConnected(_)), "{error}");
}
