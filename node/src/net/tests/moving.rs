//! Chunks over lanes.

use std::sync::Arc;

use meshfarm_protocol::seal::{check_chunk, chunk_id};

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

/// Serves every lane that a member opens.
fn serving(mut node: Node, has: Arc<HashMap<ChunkId, Vec<u8>>>) {
    tokio::spawn(async move {
        // The node stops when its last handle is gone.
        let _runs = node.net.clone();
        while let Some(event) = node.events.recv().await {
            if let Event::Lane { request, stream, .. } = event {
                let has = Arc::clone(&has);
                tokio::spawn(serve(stream, request, move |id| has.get(id).cloned()));
            }
        }
    });
}

async fn fifty_megabytes_arrive(listen: &str) {
    let (a, b) = pair(listen).await;
    let from = b.site();
    let (mut ids, has) = chunks(200, 256 * 1024);
    ids.insert(100, ChunkId([9; 32]));
    serving(b, Arc::new(has));
    let request = LaneRequest { lease: LeaseId([1; 16]), chunks: ids.clone() };
    let started = std::time::Instant::now();
    let mut lane = a.net.lane(from, request).await.unwrap();
    let mut total = 0;
    let mut missing = Vec::new();
    while let Some(piece) = within("a piece", lane.next()).await.unwrap() {
        let id = &ids[piece.index as usize];
        match piece.bytes {
            Some(bytes) => {
                check_chunk(id, &bytes).unwrap();
                total += bytes.len();
            }
            None => missing.push(piece.index),
        }
    }
    println!("{total} bytes over {listen} in {:?}", started.elapsed());
    assert_eq!(total, 200 * 256 * 1024);
    assert_eq!(missing, [100]);
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
async fn eight_lanes_at_once_all_arrive() {
    let (a, b) = pair(TCP).await;
    let from = b.site();
    let (ids, has) = chunks(20, 64 * 1024);
    serving(b, Arc::new(has));
    let one = || async {
        let request = LaneRequest { lease: LeaseId([1; 16]), chunks: ids.clone() };
        let mut lane = a.net.lane(from, request).await.unwrap();
        let mut n = 0;
        while lane.next().await.unwrap().is_some() {
            n += 1;
        }
        n
    };
    let counted = within("eight lanes", futures::future::join_all((0..8).map(|_| one()))).await;
    assert_eq!(counted, [20; 8]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_ends_with_an_error_when_its_source_goes_away() {
    let (a, mut b) = pair(TCP).await;
    let request = LaneRequest { lease: LeaseId([1; 16]), chunks: vec![ChunkId([1; 32]); 10] };
    let mut lane = a.net.lane(b.site(), request).await.unwrap();
    let (asked, stream) = b
        .event("a lane", |event| match event {
            Event::Lane { request, stream, .. } => Some((request, stream)),
            _ => None,
        })
        .await;
    let first = LaneRequest { chunks: asked.chunks[..1].to_vec(), ..asked };
    serve(stream, first, |_| Some(vec![3; 10])).await.unwrap();
    assert!(lane.next().await.unwrap().is_some());
    let error = within("the end", lane.next()).await.unwrap_err();
    assert!(matches!(error, LaneError::Broken { after: 1, .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_for_too_many_chunks_or_to_nobody_is_not_opened() {
    let (a, b) = pair(TCP).await;
    let request = |n| LaneRequest { lease: LeaseId([1; 16]), chunks: vec![ChunkId([1; 32]); n] };
    let error = a.net.lane(b.site(), request(4097)).await.unwrap_err();
    assert!(matches!(error, NetError::Lane { .. }), "{error}");
    let error = a.net.lane(key(9).site(), request(1)).await.unwrap_err();
    assert!(matches!(error, NetError::NotConnected(_)), "{error}");
}
