//! A member that opens lanes and does not use them as they are meant.

use std::sync::Arc;

use libp2p::futures::{AsyncWriteExt, StreamExt};
use meshfarm_protocol::message::{LaneHello, PieceHeader, PieceKind};

use super::hostile::{Rogue, ended};
use super::*;

/// A thousand bytes for whatever is asked.
struct Always;

impl Shelf for Always {
    fn get(&self, _: &AskedId, onto: &mut Vec<u8>) -> bool {
        onto.extend([7; 1000]);
        true
    }

    async fn admit(&self, _: u64) {}

    fn left(&self, _: u64) {}
}

fn hello() -> LaneHello {
    LaneHello { lease: LeaseId([1; 16]), root: ChunkId([2; 32]), pass: None }
}

/// Serves whatever is asked, until the node stops.
fn serving(mut node: Node) {
    tokio::spawn(async move {
        let _runs = node.net.clone();
        while let Some(event) = node.events.recv().await {
            if let Event::Lane { stream, .. } = event {
                tokio::spawn(serve(stream, Arc::new(Always), None));
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
    let mut lane = within("a lane", honest.net.lane(from, &hello())).await.unwrap();
    lane.ask(&[ChunkId([1; 32]), ChunkId([2; 32])], 0).await.unwrap();
    for index in 0..2 {
        let piece = within("a piece", lane.next()).await.unwrap();
        assert_eq!(piece, Piece::Chunk { index, bytes: Some(vec![7; 1000]) });
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
    let mut open = Vec::new();
    let mut held = Vec::new();
    for n in 0..12 {
        let mut stream = rogue.open_as(lanes::PROTOCOL).await.unwrap();
        let _reset = codec::write(&mut stream, &hello(), 1000).await;
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
    codec::write(&mut stream, &hello(), 1000).await.unwrap();
    within("a lane", async { while !matches!(events.recv().await, Some(Event::Lane { .. })) {} })
        .await;
}

/// What comes of an ask for two chunks that a source answers with these bytes.
async fn answered(bytes: Vec<u8>) -> LaneError {
    let (honest, _other) = pair(TCP).await;
    let mut rogue = Rogue::member(&honest, 66).await;
    let site = rogue.site;
    until("the rogue to be up", || async {
        honest.net.peers().await.iter().any(|peer| peer.site == site)
    })
    .await;
    let mut lane = within("a lane", honest.net.lane(site, &hello())).await.unwrap();
    lane.ask(&[ChunkId([1; 32]), ChunkId([2; 32])], 0).await.unwrap();
    let (_, mut stream) = within("the lane", rogue.lanes.next()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    stream.flush().await.unwrap();
    loop {
        if let Err(error) = within("what comes of it", lane.next()).await {
            return error;
        }
    }
}

fn header(kind: PieceKind, len: u32, index: u32) -> Vec<u8> {
    PieceHeader { len, kind, index }.to_bytes().into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_lies_about_its_pieces_is_found_out_before_anything_is_allocated() {
    for lie in [
        header(PieceKind::Chunk, 3 << 20, 0),
        header(PieceKind::Chunk, 10, 1),
        header(PieceKind::Missing, 0, u32::MAX),
        [0xff; 12].to_vec(),
        [header(PieceKind::Missing, 0, 0), header(PieceKind::Missing, 0, 0)].concat(),
        [0, 1, 2].map(|n| header(PieceKind::Missing, 0, n)).concat(),
    ] {
        let error = answered(lie.clone()).await;
        assert!(matches!(error, LaneError::Garbled), "{lie:?}: {error}");
    }
}
