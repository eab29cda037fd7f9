//! The store kept in order: what nobody uses goes in time, what is damaged is found, and the disk has room.
//!
//! What goes is [chosen](mod@choose) from a list of everything; here the list is made, the choice carried out, and
//! the disk watched. Nothing of this is in a hurry, apart from making room when the disk is nearly full.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshfarm_protocol::id::{ChunkId, JobId, Millis, SiteId};
use meshfarm_protocol::manifest::Limits;

use crate::chunks::{ChunkError, Chunks, Counted, Seen, mark};
use crate::means::kept_root;
use crate::pins::{Known, Owner, Pins};
use crate::store::{Store, StoreError};
use choose::{Census, Rules, choose, sort};
use scrub::Scrub;

pub mod choose;
mod run;
mod scrub;

/// A collection that is overtaken by new use begins anew so often.
const TRIES: usize = 3;

/// The use of pinned content is written down when the last note of it is so old.
const NOTE: Millis = Millis::seconds(3600);

/// So many damaged chunks are listed; more are only counted.
const MAX_LISTED: usize = 100;

/// Why the store is not in order.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The chunks' disk or index refuses.
    #[error(transparent)]
    Chunks(#[from] ChunkError),
    /// The records refuse.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How the store is kept.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How long content stays after its last use.
    pub keep: Millis,
    /// The most bytes of all chunks together.
    pub total: Option<u64>,
    /// The most bytes of each tenant of another site.
    pub tenant: u64,
    /// Other sites' work is not taken when less than this is free on the disk, in bytes.
    pub keep_free: u64,
    /// How many bytes are free on the disk of a folder.
    pub free_bytes: fn(&Path) -> io::Result<u64>,
}

/// What a collection removed, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Collected {
    /// Roots that were forgotten.
    pub roots: u64,
    /// Chunks that were removed.
    pub chunks: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Segments that were compacted.
    pub segments: u64,
    /// A root in use of which nobody knows what it uses, so that nothing was removed.
    pub blocked: Option<ChunkId>,
}

/// What is in the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stock {
    /// Chunks.
    pub chunks: u64,
    /// Segments and their bytes.
    pub segments: Counted,
    /// Bytes of chunks in use.
    pub pinned: u64,
    /// Bytes of chunks that no known content uses.
    pub strays: u64,
    /// By owner: bytes, and those of them in use.
    pub owners: Vec<(Owner, u64, u64)>,
    /// Bytes free on the disk.
    pub free: u64,
    /// Chunks that were found damaged since the node started.
    pub damaged: u64,
    /// When every chunk had been looked at the last time.
    pub verified: Option<Millis>,
}

/// What looking at every chunk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Chunks that were looked at.
    pub chunks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chunks that the index had lost.
    pub found: u64,
    /// How many are damaged.
    pub n_damaged: u64,
    /// The first of them.
    pub damaged: Vec<ChunkId>,
    /// Jobs of ours that need one of them.
    pub jobs: Vec<JobId>,
}

/// Keeps the store in order. Shared.
#[derive(Debug)]
pub struct Sweeper {
    me: SiteId,
    store: Arc<Store>,
    chunks: Arc<Chunks>,
    pins: Arc<Pins>,
    folder: PathBuf,
    settings: Settings,
    /// One collection at a time.
    busy: Mutex<()>,
    scrub: Mutex<Scrub>,
    /// The disk is nearly full.
    pressed: tokio::sync::Notify,
}

impl Sweeper {
    /// For the chunks in `folder`, of the site `me`.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn new(
        me: SiteId,
        (store, chunks, pins): (Arc<Store>, Arc<Chunks>, Arc<Pins>),
        folder: PathBuf,
        settings: Settings,
    ) -> Result<Self, StoreError> {
        let scrub = Mutex::new(Scrub::load(&store)?);
        let (busy, pressed) = (Mutex::default(), tokio::sync::Notify::new());
        Ok(Self { me, store, chunks, pins, folder, settings, busy, scrub, pressed })
    }

    /// How the store is kept.
    #[must_use]
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Remove what has been unused for too long or is too much, and so many bytes more where `wanted` says so.
    ///
    /// # Errors
    /// When the disk or a database refuses. What was removed before is gone.
    pub fn collect(&self, now: Millis, wanted: u64, is_dry: bool) -> Result<Collected, SweepError> {
        let _busy = lock(&self.busy);
        self.learn(now)?;
        for _ in 0..TRIES {
            if let Some(collected) = self.try_collect(now, wanted, is_dry)? {
                return Ok(collected);
            }
        }
        Ok(Collected::default())
    }

    /// None when something that was chosen came into use meanwhile.
    fn try_collect(
        &self,
        now: Millis,
        wanted: u64,
        is_dry: bool,
    ) -> Result<Option<Collected>, SweepError> {
        // From here on nothing goes that anybody looks at.
        let _hold = self.chunks.hold_all();
        if let Some(root) = self.pins.unknown()?.first() {
            return Ok(Some(Collected { blocked: Some(*root), ..Collected::default() }));
        }
        let roots = self.roots(now)?;
        let mut census = Census::new(self.chunks.spots()?);
        self.charge(&mut census, &roots, |_| true)?;
        let (used, bytes) = (census.used(), census.bytes(roots.len()));
        let rules = Rules {
            me: self.me,
            keep: self.settings.keep,
            total: self.settings.total,
            tenant: self.settings.tenant,
            wanted,
        };
        let choice = choose(now, &rules, &roots, &bytes, &census.strays());
        census.clear();
        self.charge(&mut census, &roots, |n| choice.forget.binary_search(&n).is_err())?;
        let (goes, chunks, bytes) = census.goes(&used, choice.strays_before);
        let n_roots = choice.forget.len() as u64;
        let mut collected = Collected { roots: n_roots, chunks, bytes, segments: 0, blocked: None };
        if is_dry {
            return Ok(Some(collected));
        }
        let forget: Vec<_> = choice.forget.iter().map(|number| roots[*number]).collect();
        if !self.pins.forget(&forget)? {
            return Ok(None);
        }
        let goes = self.chunks.find(|cid| goes.binary_search(&mark(cid)).is_ok())?;
        let removed = self.chunks.collect(&goes)?;
        (collected.chunks, collected.bytes) = (removed.chunks, removed.bytes);
        collected.segments = self.compact()?;
        if collected.chunks > 0 {
            tracing::info!(
                chunks = collected.chunks,
                bytes = collected.bytes,
                "unused content is gone"
            );
        }
        Ok(Some(collected))
    }

    /// Every known root in the order in which they are chosen, noting that what is pinned is in use.
    fn roots(&self, now: Millis) -> Result<Vec<Known>, SweepError> {
        let mut roots = self.pins.known()?;
        let stale = |root: &&mut Known| root.pinned && now.since(root.used) >= NOTE;
        let mut noted = Vec::new();
        for root in roots.iter_mut().filter(stale) {
            root.used = now;
            noted.push(*root);
        }
        self.pins.touch(&noted, now)?;
        sort(&mut roots);
        Ok(roots)
    }

    /// Say who uses what. The marks of one root are in memory at a time.
    fn charge(
        &self,
        census: &mut Census,
        roots: &[Known],
        is_kept: impl Fn(usize) -> bool,
    ) -> Result<(), SweepError> {
        for (number, root) in roots.iter().enumerate().filter(|(number, _)| is_kept(*number)) {
            if let Some(marks) = self.pins.marks(root.root)? {
                census.charge(number, &marks);
            }
        }
        Ok(())
    }

    /// Empty sparse segments until none is left or the disk is too full for it.
    fn compact(&self) -> Result<u64, SweepError> {
        let mut segments = 0;
        loop {
            match self.chunks.compact() {
                Ok(done) if done.segments == 0 => return Ok(segments),
                Ok(done) => segments += done.segments,
                Err(error) if error.is_full() => {
                    tracing::debug!(%error, "compaction waits for room");
                    return Ok(segments);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Learn what roots use that are in use since before this was written down, where their keys are ours.
    fn learn(&self, now: Millis) -> Result<(), SweepError> {
        for root in self.pins.unknown()? {
            let Some(link) = kept_root(&self.store, root)? else { continue };
            let learned = self.pins.learn(&link, Limits::granting(u64::MAX), (self.me, false), now);
            if let Err(error) = learned {
                tracing::warn!(root = %root.short(), %error, "what some content uses is not known");
            }
        }
        Ok(())
    }

    /// What is in the store.
    ///
    /// # Errors
    /// When the disk or a database refuses.
    pub fn stock(&self) -> Result<Stock, SweepError> {
        let mut roots = self.pins.known()?;
        sort(&mut roots);
        let spots = self.chunks.spots()?;
        let chunks = spots.len() as u64;
        let mut census = Census::new(spots);
        self.charge(&mut census, &roots, |_| true)?;
        let bytes = census.bytes(roots.len());
        let mut owners = std::collections::BTreeMap::<Owner, (u64, u64)>::new();
        for (root, bytes) in roots.iter().zip(&bytes) {
            let (all, pinned) = owners.entry(root.owner).or_default();
            *all += bytes;
            *pinned += if root.pinned { *bytes } else { 0 };
        }
        let pinned = owners.values().map(|(_, pinned)| pinned).sum();
        let scrub = lock(&self.scrub);
        Ok(Stock {
            chunks,
            segments: self.chunks.count()?,
            pinned,
            strays: census.strays().iter().map(|(_, span)| span).sum(),
            owners: owners.into_iter().map(|(owner, (all, used))| (owner, all, used)).collect(),
            free: self.free(),
            damaged: scrub.damaged(),
            verified: scrub.verified(),
        })
    }

    /// Look at every chunk; those that are damaged are forgotten, so that they are fetched again. With
    /// `rebuild` segments are read without their index first. `on_progress` is told bytes done and in all.
    ///
    /// # Errors
    /// When the disk or a database refuses.
    pub fn verify(
        &self,
        now: Millis,
        rebuild: bool,
        mut on_progress: impl FnMut(u64, u64) -> bool,
    ) -> Result<Verified, SweepError> {
        let mut verified = Verified::default();
        let lost = if rebuild { self.chunks.segments()? } else { self.chunks.unread()? };
        for segment in lost {
            verified.found += self.chunks.read_again(segment, |_| {})?;
        }
        let total = self.chunks.count()?.live;
        for segment in self.chunks.segments()? {
            for (_, cid) in self.chunks.chunks_in(segment, 0)? {
                self.verify_one(&cid, &mut verified)?;
                if !on_progress(verified.bytes, total.max(verified.bytes)) {
                    return Ok(verified);
                }
            }
        }
        lock(&self.scrub).complete(&self.store, now)?;
        Ok(verified)
    }

    fn verify_one(&self, cid: &ChunkId, verified: &mut Verified) -> Result<(), SweepError> {
        match self.chunks.check(cid)? {
            Seen::Gone => return Ok(()),
            Seen::Good(bytes) => verified.bytes += bytes,
            Seen::Damaged => {
                verified.n_damaged += 1;
                if verified.damaged.len() < MAX_LISTED {
                    verified.damaged.push(*cid);
                }
                for job in self.tell_damage(cid)? {
                    if !verified.jobs.contains(&job) {
                        verified.jobs.push(job);
                    }
                }
            }
        }
        verified.chunks += 1;
        Ok(())
    }

    /// Count a damaged chunk, and say plainly where nobody else has it.
    fn tell_damage(&self, cid: &ChunkId) -> Result<Vec<JobId>, SweepError> {
        lock(&self.scrub).count_damage();
        let jobs = self.pins.jobs_that_need(cid)?;
        for job in &jobs {
            tracing::error!(
                %cid, %job,
                "content of a job of this site is damaged on this disk and is nowhere else: submit the job again"
            );
        }
        Ok(jobs)
    }

    fn free(&self) -> u64 {
        (self.settings.free_bytes)(&self.folder).unwrap_or(u64::MAX)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
