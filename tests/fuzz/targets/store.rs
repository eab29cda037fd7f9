//! The recovery of the store: segments whose bytes are anything, read without their index.
#![no_main]

use std::cell::Cell;
use std::io::{self, Read};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use meshfarm_protocol::seal::content_hash;

#[path = "../../../node/src/chunks/segment.rs"]
#[allow(dead_code, reason = "the node uses all of it")]
mod segment;

use segment::{HEADER, Walk, header};

/// The longest chunk of this store.
const LONGEST: usize = 2048;

/// So many bytes may be hashed for each byte of the segment, and so many in all, before a walk leaves a place.
const TIMES: usize = 40;
const IN_VAIN: usize = 16 << 20;

#[derive(Arbitrary, Debug)]
struct Plan {
    parts: Vec<Part>,
    flips: Vec<(u16, u8)>,
    /// So many bytes come with each read.
    step: u8,
}

#[derive(Arbitrary, Debug)]
enum Part {
    Record(Vec<u8>),
    /// A chunk that was written by a hostile tenant: it holds records itself.
    Nested(Vec<Vec<u8>>),
    Torn(Vec<u8>, u8),
    Hole(u16),
    Garbage(Vec<u8>),
    FalseHeaders {
        len: u32,
        address: [u8; 8],
        times: u8,
    },
    /// A header whose address is right, over bytes of another length.
    Longer(Vec<u8>, u8),
}

struct Slow<'a> {
    bytes: &'a [u8],
    step: usize,
}

impl Read for Slow<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = self.step.min(into.len());
        self.bytes.read(&mut into[..n])
    }
}

fuzz_target!(|plan: Plan| {
    let mut bytes = Vec::new();
    let mut records = Vec::new();
    for part in plan.parts.into_iter().take(100) {
        add(part, &mut bytes, &mut records);
    }
    let whole = bytes.clone();
    for (at, flip) in plan.flips.into_iter().take(8) {
        let len = bytes.len();
        if let Some(byte) = bytes.get_mut(usize::from(at) % len.max(1)) {
            *byte ^= flip;
        }
    }
    let hashed = Cell::new(0);
    let hash = |bytes: &[u8]| {
        hashed.set(hashed.get() + bytes.len());
        content_hash(bytes)
    };
    let mut walk = Walk::new(Slow { bytes: &bytes, step: usize::from(plan.step) + 1 }, LONGEST);
    let (mut found, mut end) = (Vec::new(), 0);
    while let Some(chunk) = walk.next(hash).expect("memory can be read") {
        let from = usize::try_from(chunk.offset).expect("it lies in the segment");
        assert!(from >= end, "chunks overlap");
        end = from + HEADER + chunk.bytes.len();
        assert_eq!(&bytes[from + HEADER..end], chunk.bytes);
        assert_eq!(content_hash(chunk.bytes), chunk.address);
        assert!((1..=LONGEST).contains(&chunk.bytes.len()));
        found.push(from..end);
    }
    assert!(
        hashed.get() <= TIMES * bytes.len() + IN_VAIN + LONGEST,
        "{} were hashed",
        hashed.get()
    );
    for record in records {
        let intact = bytes[record.clone()] == whole[record.clone()];
        let seen =
            |found: &std::ops::Range<usize>| found.start <= record.start && record.end <= found.end;
        assert!(!intact || found.iter().any(seen), "the chunk at {record:?} was lost");
    }
});

fn record(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).expect("it is short");
    [&header(len, &content_hash(bytes))[..], bytes].concat()
}

fn add(part: Part, bytes: &mut Vec<u8>, records: &mut Vec<std::ops::Range<usize>>) {
    let from = bytes.len();
    match part {
        Part::Record(body) if (1..=LONGEST).contains(&body.len()) => {
            bytes.extend(record(&body));
            records.push(from..bytes.len());
        }
        Part::Record(body) => bytes.extend(record(&body)),
        Part::Nested(bodies) => {
            let mut inner: Vec<u8> = bodies.iter().flat_map(|body| record(body)).collect();
            inner.truncate(LONGEST);
            bytes.extend(record(&inner));
            if !inner.is_empty() {
                records.push(from..bytes.len());
            }
        }
        Part::Torn(body, cut) => {
            let mut torn = record(&body);
            torn.truncate(torn.len().saturating_sub(usize::from(cut)));
            bytes.extend(torn);
        }
        Part::Hole(len) => bytes.resize(from + usize::from(len), 0),
        Part::Garbage(garbage) => bytes.extend(garbage),
        Part::FalseHeaders { len, address, times } => {
            let mut whole = [0; 32];
            whole[..8].copy_from_slice(&address);
            bytes.extend(header(len, &whole).repeat(usize::from(times)));
        }
        Part::Longer(body, more) => {
            let len = u32::try_from(body.len()).expect("it is short") + u32::from(more);
            bytes.extend(header(len, &content_hash(&body)));
            bytes.extend(body);
        }
    }
}
