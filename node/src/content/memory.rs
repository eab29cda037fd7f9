//! What was in files when they were last taken, so that those that did not change are not read again.
//!
//! A file's record has the list of its chunks, a chunk's record tells that these bytes were sealed
//! before. Both hold keys, so both are sealed under the tenant's secret; their names say nothing to
//! whoever lacks it. They are written after the chunks that they name are durable, and believed only
//! while all of those are still here.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use meshfarm_protocol::codec;
use meshfarm_protocol::manifest::Entry;
use meshfarm_protocol::seal::{ChunkKey, RecordSecret};
use serde::{Deserialize, Serialize};

use super::ContentError;
use super::ingest::{Cutting, Ingest, Stamp};
use crate::chunks::{ChunkError, Chunks};
use crate::store::{Batch, Family, Store, StoreError};

/// Rises when files are cut differently: old lists are then no longer found.
const CHUNKER: u8 = 1;

/// A file that was changed less than this before it was read is not remembered, in nanoseconds: another
/// change within the same tick of the file system's clock (two seconds at worst) would not be seen.
const TICK: i128 = 2_000_000_000;

/// Chunks of one record, which keeps records shorter than a MiB.
const MAX_ENTRIES: usize = 8192;

/// The longest record, in bytes.
const MAX_RECORD: usize = 1 << 20;

/// Chunks shorter than this are sealed faster than they are looked up, in bytes.
pub(super) const WORTH_KNOWING: usize = 32 << 10;

/// So much is written at once, in bytes.
const MAX_DRAFT: usize = 4 << 20;

/// A record that is found again is written anew after so many days.
const RENEWED_AFTER: u32 = 7;

/// A record that was not found for so many days is forgotten.
const KEPT_FOR: u32 = 30;

/// The most bytes of all records; the oldest go first.
const MAX_BYTES: u64 = 512 << 20;

/// Records that are deleted at once.
const MAX_DELETED: usize = 4096;

const DAY: u64 = 86_400_000;

const FILE: u8 = b'f';
const CHUNK: u8 = b'c';
/// When old records were last looked for.
const SWEPT: &[u8] = b"swept";

/// The records of one tenant, as they are used by one ingestion.
#[derive(Debug)]
pub(super) struct Memory<'a> {
    records: &'a Store,
    chunks: &'a Chunks,
    secret: RecordSecret,
    cutting: u8,
    today: u32,
    /// Nanoseconds since 1970; what changed later may change again unseen.
    settled_before: i128,
}

/// What is known.
#[derive(Debug)]
pub(super) struct Known<T> {
    pub(super) what: T,
    /// It should be remembered anew, or it will be forgotten though it is in use.
    pub(super) is_old: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRecord {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    /// How many records the file has.
    n: u32,
    entries: Vec<Entry>,
}

impl<'a> Memory<'a> {
    pub(super) fn new(records: &'a Store, ingest: &Ingest<'a>) -> Self {
        let cutting = match ingest.cutting {
            Cutting::ByContent => 0,
            Cutting::Fixed => 1,
        };
        Self {
            records,
            chunks: ingest.chunks,
            secret: ingest.secret.records(),
            cutting,
            today: u32::try_from(ingest.created.0 / DAY).unwrap_or(u32::MAX),
            settled_before: i128::from(ingest.created.0) * 1_000_000 - TICK,
        }
    }

    /// The chunks of a file that is as it was when it was remembered, if all of them are still here.
    pub(super) fn file(&self, stamp: &Stamp) -> Result<Option<Known<Vec<Entry>>>, ContentError> {
        let name = self.file_name(stamp);
        let mut entries = Vec::new();
        let (mut n, mut is_old) = (1, false);
        let mut place = 0;
        while place < n {
            let Some((day, record)) = self.read::<FileRecord>(&file_key(&name, place))? else {
                return Ok(None);
            };
            let is_same = (record.size, record.modified, record.changed)
                == (stamp.size, stamp.modified, stamp.changed);
            if !is_same || (place > 0 && record.n != n) {
                return Ok(None);
            }
            n = record.n;
            is_old |= self.is_old(day);
            entries.extend(record.entries);
            place += 1;
        }
        let sum: u64 = entries.iter().map(|entry| u64::from(entry.len)).sum();
        let is_whole = sum == stamp.size && self.chunks.has_all(entries.iter().map(|e| &e.cid))?;
        Ok(is_whole.then_some(Known { what: entries, is_old }))
    }

    /// The name of the record of bytes that have this key when they are sealed as they are.
    pub(super) fn chunk_name(&self, key: &ChunkKey) -> [u8; 16] {
        self.secret.name(&[b"chunk", &key.0])
    }

    /// The chunk with that name, if it is still here.
    pub(super) fn chunk(&self, name: &[u8; 16]) -> Result<Option<Known<Entry>>, ContentError> {
        let Some((day, entry)) = self.read::<Entry>(&chunk_key(name))? else {
            return Ok(None);
        };
        let is_here = self.chunks.has(&entry.cid)?;
        Ok(is_here.then(|| Known { what: entry, is_old: self.is_old(day) }))
    }

    pub(super) fn draft(&self) -> Draft<'_> {
        Draft { memory: self, batch: Batch::new(), bytes: 0 }
    }

    /// Once a day, forgets what was not seen for long, and the oldest when there is too much. It only
    /// costs reading files again, so a failure is not one of the caller's.
    pub(super) fn forget_old(&self) {
        match self.try_forget_old() {
            Ok(0) => {}
            Ok(forgotten) => tracing::debug!(forgotten, "old records of files were deleted"),
            Err(error) => tracing::warn!(%error, "old records of files were not deleted"),
        }
    }

    fn try_forget_old(&self) -> Result<usize, StoreError> {
        let swept = self.records.get(Family::Stat, SWEPT)?;
        if swept.as_deref() == Some(&self.today.to_be_bytes()) {
            return Ok(0);
        }
        let mut by_day = BTreeMap::<u32, u64>::new();
        self.records.scan(Family::Stat, &[], |key, value| {
            if let Some((day, _)) = split(value).filter(|_| key != SWEPT) {
                *by_day.entry(day).or_default() += (key.len() + value.len()) as u64;
            }
            ControlFlow::Continue(())
        })?;
        let oldest = oldest_kept(&by_day, self.today);
        let mut old = Vec::new();
        let mut keys = |key: &[u8], value: &[u8]| {
            if key != SWEPT && split(value).is_none_or(|(day, _)| day < oldest) {
                old.push(key.to_vec());
            }
            ControlFlow::Continue(())
        };
        self.records.scan(Family::Stat, &[], &mut keys)?;
        for keys in old.chunks(MAX_DELETED) {
            let mut batch = Batch::new();
            keys.iter().for_each(|key| batch.delete(Family::Stat, key.clone()));
            self.records.commit(batch)?;
        }
        let mut batch = Batch::new();
        batch.put(Family::Stat, SWEPT, self.today.to_be_bytes());
        self.records.commit(batch)?;
        Ok(old.len())
    }

    fn is_old(&self, day: u32) -> bool {
        self.today >= day.saturating_add(RENEWED_AFTER)
    }

    fn file_name(&self, stamp: &Stamp) -> [u8; 16] {
        let how = [CHUNKER, self.cutting];
        self.secret.name(&[b"file", &how, &stamp.dev.to_le_bytes(), &stamp.ino.to_le_bytes()])
    }

    /// A record that is damaged or another's is as good as none.
    fn read<T: serde::de::DeserializeOwned>(
        &self,
        key: &[u8],
    ) -> Result<Option<(u32, T)>, ContentError> {
        let value = self.records.get(Family::Stat, key).map_err(ChunkError::from)?;
        let Some((day, sealed)) = value.as_deref().and_then(split) else {
            return Ok(None);
        };
        let plain = self.secret.open(&place_of(key, day), sealed);
        let what = plain.and_then(|plain| codec::decode(&plain, MAX_RECORD).ok());
        Ok(what.map(|what| (day, what)))
    }

    fn seal<T: Serialize>(&self, key: &[u8], what: &T) -> Vec<u8> {
        let sealed = self.secret.seal(&place_of(key, self.today), &codec::encode(what));
        [&self.today.to_be_bytes()[..], &sealed].concat()
    }
}

/// Records on their way to the store.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    memory: &'a Memory<'a>,
    batch: Batch,
    bytes: usize,
}

impl Draft<'_> {
    /// Remembers the chunks of a file, unless it was changed too shortly before it was read.
    pub(super) fn file(&mut self, stamp: &Stamp, entries: &[Entry]) -> Result<(), ContentError> {
        let nanos = |(seconds, nanos)| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let changed = i128::max(nanos(stamp.modified), nanos(stamp.changed));
        if changed >= self.memory.settled_before {
            return Ok(());
        }
        let name = self.memory.file_name(stamp);
        let n = u32::try_from(entries.len().div_ceil(MAX_ENTRIES)).unwrap_or(u32::MAX);
        for (place, entries) in (0..n).zip(entries.chunks(MAX_ENTRIES)) {
            let (size, modified, changed) = (stamp.size, stamp.modified, stamp.changed);
            let record = FileRecord { size, modified, changed, n, entries: entries.to_vec() };
            self.put(file_key(&name, place), &record)?;
        }
        Ok(())
    }

    /// Remembers that the bytes of that name are in this chunk.
    pub(super) fn chunk(&mut self, name: &[u8; 16], entry: &Entry) -> Result<(), ContentError> {
        self.put(chunk_key(name), entry)
    }

    fn put<T: Serialize>(&mut self, key: Vec<u8>, what: &T) -> Result<(), ContentError> {
        let value = self.memory.seal(&key, what);
        self.bytes += key.len() + value.len();
        self.batch.put(Family::Stat, key, value);
        if self.bytes > MAX_DRAFT { self.write() } else { Ok(()) }
    }

    /// Makes the chunks durable first, then the records that name them.
    pub(super) fn write(&mut self) -> Result<(), ContentError> {
        if self.bytes == 0 {
            return Ok(());
        }
        self.memory.chunks.flush()?;
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        Ok(self.memory.records.commit(batch).map_err(ChunkError::from)?)
    }
}

fn file_key(name: &[u8; 16], place: u32) -> Vec<u8> {
    [&[FILE][..], name, &place.to_be_bytes()].concat()
}

fn chunk_key(name: &[u8; 16]) -> Vec<u8> {
    [&[CHUNK][..], name].concat()
}

fn place_of(key: &[u8], day: u32) -> Vec<u8> {
    [key, &day.to_be_bytes()].concat()
}

fn split(value: &[u8]) -> Option<(u32, &[u8])> {
    let (day, sealed) = value.split_first_chunk()?;
    Some((u32::from_be_bytes(*day), sealed))
}

/// The day before which records are forgotten.
fn oldest_kept(by_day: &BTreeMap<u32, u64>, today: u32) -> u32 {
    let too_old = today.saturating_sub(KEPT_FOR);
    let mut bytes = 0;
    for (day, more) in by_day.range(too_old..).rev() {
        bytes += more;
        if bytes > MAX_BYTES {
            return day.saturating_add(1);
        }
    }
    too_old
}
