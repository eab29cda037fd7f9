//! A member that opens lanes and does not use them as they are meant.

use std::sync::Arc;

use libp2p::futures::AsyncWriteExt;
use meshfarm_protocol::message::LaneRequest;

use super::hostile::{Rogue, ended};
use super::*;

/// Serves a thousand bytes for whatever is asked, until the node stops.
fn serving(mut node: Node) {
    tokio::spawn(async move {
        let _runs = node.net.clone();
        while let Some(event) = node.events.recv().await {
            if let Event::Lane { request, stream, .. } = event {
                tokio::spawn(serve(stream, request, |_| Some(vec![7; 1000])));
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_that_say_nothing_or_nonsense_are_dropped_and_an_honest_one_moves_meanwhile() {
    let (honest, target) = pair(TCP).await;
    let (net, from) = (target.net.clone(), target.site());
    let mut rogue = Rogue::member(&target, 66).await;
    serving(target);
    let dropped = || net.counters().lanes_dropped.load(Ordering::Relaxed);
    let mut silent = Vec::new();
    for n in 0..50_u8 {
        let mut stream = rogue.open_as(lanes::PROTOCOL).await.unwrap();
        let said: &[u8] = match n % 3 {
            0 => &[],
            1 => &[0xff; 4],
            _ => &[0, 0, 0, 4, 0x9b, 0xff, 0xff, 0xff],
        };
        let _reset = stream.write_all(said).await;
        let _reset = stream.flush().await;
        silent.push(stream);
    }
    let chunks = vec![ChunkId([1; 32]), ChunkId([2; 32])];
    let request = LaneRequest { lease: LeaseId([1; 16]), chunks };
    let mut lane = within("a lane", honest.net.lane(from, request)).await.unwrap();
    for index in 0..2 {
        let piece = within("a piece", lane.next()).await.unwrap().unwrap();
        assert_eq!((piece.index, piece.bytes.map(|bytes| bytes.len())), (index, Some(1000)));
    }
    for stream in &mut silent {
        ended(stream).await;
    }
    until("all of them to be counted", || async { dropped() == 50 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_has_eight_lanes_and_its_own_are_free_again_when_it_lets_go() {
    let (_honest, target) = pair(TCP).await;
    let net = target.net.clone();
    let mut rogue = Rogue::member(&target, 66).await;
    let mut events = target.events;
    let counted = || net.counters().lanes_dropped.load(Ordering::Relaxed);
    let chunks = Arc::new(vec![ChunkId([1; 32])]);
    let mut open = Vec::new();
    let mut held = Vec::new();
    for n in 0..12 {
        let mut stream = rogue.open_as(lanes::PROTOCOL).await.unwrap();
        let request = LaneRequest { lease: LeaseId([1; 16]), chunks: chunks.to_vec() };
        let _reset = codec::write(&mut stream, &request, 1000).await;
        open.push(stream);
        if n < 8 {
            held.push(
                within("a lane", async {
                    loop {
                        if let Some(Event::Lane { stream, .. }) = events.recv().await {
                            return stream;
                        }
                    }
                })
                .await,
            );
        }
    }
    until("four to be counted", || async { counted() == 4 }).await;
    drop((open, held));
    let mut stream = rogue.open_as(lanes::PROTOCOL).await.unwrap();
    let request = LaneRequest { lease: LeaseId([1; 16]), chunks: chunks.to_vec() };
    codec::write(&mut stream, &request, 1000).await.unwrap();
    within("a lane", async { while !matches!(events.recv().await, Some(Event::Lane { .. })) {} })
        .await;
}
