//! What tasks have opened in earlier versions of their content, so that the next ones start before everything
//! is there.
//!
//! A trace names no file: it keeps keyed hashes of paths, under a key of this site and of the tenant.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use meshfarm_protocol::codec;
use meshfarm_protocol::id::{Millis, StepNo, TenantId};
use meshfarm_protocol::job::{Access, Layout};
use meshfarm_protocol::seal::{SigningKey, content_hash};

use crate::store::{Batch, Family, Store, StoreError};

/// Traces of contents with more files than this, counting those that matter, are not kept.
pub const MAX_MARKS: usize = 1 << 16;

/// More traces than this are not kept: the oldest go.
const MAX_TRACES: usize = 256;

/// A trace that was not used for so long is forgotten.
const KEEP: Millis = Millis::seconds(30 * 24 * 3600);

/// A longer record was not written by us.
const MAX_RECORD: usize = 2 << 20;

/// What stands for the path of one file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mark(u64);

/// Makes marks of the paths of one tenant.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Marks([u8; 32]);

impl fmt::Debug for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Marks(..)")
    }
}

impl Marks {
    /// The marks of `tenant` on the site with this key.
    #[must_use]
    pub fn new(site: &SigningKey, tenant: TenantId) -> Self {
        let seed = site.seed();
        let mut secret = [b"meshfarm v1 trace\0", seed.as_slice(), &tenant.0].concat();
        let marks = Self(content_hash(&secret));
        secret.zeroize();
        marks
    }

    /// The mark of a path.
    #[must_use]
    pub fn of(&self, path: &str) -> Mark {
        let hash = content_hash(&[self.0.as_slice(), path.as_bytes()].concat());
        Mark(u64::from_be_bytes(std::array::from_fn(|at| hash[at])))
    }

    /// The trace of tasks that serve a purpose.
    #[must_use]
    pub fn trace(&self, purpose: Purpose) -> TraceKey {
        TraceKey(content_hash(&[self.0.as_slice(), &purpose.0].concat()))
    }
}

/// What tasks have in common that read the same files in every version: the step, and where the files lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Purpose([u8; 32]);

impl Purpose {
    /// The purpose of the tasks of a step.
    #[must_use]
    pub fn new(step: StepNo, layout: &Layout) -> Self {
        let inputs = layout.roots.iter().filter(|root| root.access == Access::In);
        let inputs: BTreeSet<_> = inputs.map(|root| &root.source).collect();
        Self(content_hash(&codec::encode(&(step, inputs))))
    }
}

/// Where a trace is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TraceKey([u8; 32]);

/// Which of the files that there were have been opened, and which have not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trace {
    used: Millis,
    opened: BTreeSet<Mark>,
    idle: BTreeSet<Mark>,
}

impl Trace {
    /// Whether a file was there before and no task has opened it. One that is new, or was ever opened, must be
    /// there before a task starts.
    #[must_use]
    pub fn may_wait(&self, file: Mark) -> bool {
        self.idle.contains(&file)
    }

    /// The trace that `key` names, if there is one.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn load(store: &Store, key: TraceKey) -> Result<Option<Self>, StoreError> {
        let bytes = store.get(Family::Trace, &key.0)?;
        Ok(bytes.and_then(|bytes| codec::decode(&bytes, MAX_RECORD).ok()))
    }

    /// What is known after tasks had these files and opened those.
    fn after(self, files: &BTreeSet<Mark>, opened: &BTreeSet<Mark>, now: Millis) -> Self {
        let mut all = self.opened;
        // Files that are there no more are forgotten, so that the trace does not grow for ever.
        all.retain(|mark| files.contains(mark));
        all.extend(opened);
        let idle = files.difference(&all).copied().collect();
        Self { used: now, opened: all, idle }
    }

    /// Remember that tasks had these files and opened those, and forget what is old.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn remember(
        store: &Store,
        key: TraceKey,
        (files, opened): (&BTreeSet<Mark>, &BTreeSet<Mark>),
        now: Millis,
    ) -> Result<(), StoreError> {
        let old = Self::load(store, key)?.unwrap_or_default();
        let new = old.after(files, opened, now);
        let mut kept = Vec::new();
        store.scan(Family::Trace, &[], |other, bytes| {
            let used = codec::decode::<Self>(bytes, MAX_RECORD).map_or(Millis(0), |t| t.used);
            if other != key.0 {
                kept.push((used, other.to_vec()));
            }
            ControlFlow::Continue(())
        })?;
        kept.sort();
        let too_many = (kept.len() + 1).saturating_sub(MAX_TRACES);
        let mut batch = Batch::new();
        for (at, (used, other)) in kept.into_iter().enumerate() {
            if at < too_many || now.since(used) >= KEEP {
                batch.delete(Family::Trace, other);
            }
        }
        batch.put(Family::Trace, key.0, codec::encode(&new));
        store.commit(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(tenant: u8) -> Marks {
        Marks::new(&SigningKey::from_seed(&[1; 32]), TenantId([tenant; 16]))
    }

    fn set(names: &[&str]) -> BTreeSet<Mark> {
        names.iter().map(|name| marks(1).of(name)).collect()
    }

    #[test]
    fn only_what_was_there_and_was_never_opened_may_wait() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let key = marks(1).trace(Purpose::new(StepNo(0), &Layout::default()));
        assert_eq!(Trace::load(&store, key).unwrap(), None);
        let files = set(&["a", "b", "c"]);
        Trace::remember(&store, key, (&files, &set(&["a"])), Millis(1)).unwrap();
        let may_wait =
            |name: &str| Trace::load(&store, key).unwrap().unwrap().may_wait(marks(1).of(name));
        assert_eq!(["a", "b", "c", "new"].map(may_wait), [false, true, true, false]);

        let files = set(&["a", "b", "c", "d"]);
        Trace::remember(&store, key, (&files, &set(&["b"])), Millis(2)).unwrap();
        assert_eq!(["a", "b", "c", "d"].map(may_wait), [false, false, true, true]);

        let files = set(&["b", "c"]);
        Trace::remember(&store, key, (&files, &set(&[])), Millis(3)).unwrap();
        assert_eq!(["a", "b", "c", "d"].map(may_wait), [false, false, true, false]);
    }

    #[test]
    fn traces_are_few_and_age() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let key = |n: u32| marks(1).trace(Purpose::new(StepNo(n), &Layout::default()));
        let files = set(&["a"]);
        let there = |n| Trace::load(&store, key(n)).unwrap().is_some();
        for n in 0..300 {
            Trace::remember(&store, key(n), (&files, &files), Millis(u64::from(n))).unwrap();
        }
        assert_eq!([43, 44, 299].map(there), [false, true, true]);
        Trace::remember(&store, key(1000), (&files, &files), Millis(299).plus(KEEP)).unwrap();
        assert_eq!([299, 1000].map(there), [false, true]);
    }

    #[test]
    fn two_tenants_have_no_mark_and_no_trace_in_common() {
        let purpose = Purpose::new(StepNo(0), &Layout::default());
        assert_ne!(marks(1).of("a"), marks(2).of("a"));
        assert_ne!(marks(1).trace(purpose), marks(2).trace(purpose));
        let other = SigningKey::from_seed(&[2; 32]);
        assert_ne!(marks(1).of("a"), Marks::new(&other, TenantId([1; 16])).of("a"));
    }
}
