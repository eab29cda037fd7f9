//! Lenders of one job as sources for each other: who else has a lease's content, and what of it is here.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshfarm_protocol::id::{ChunkId, LeaseId, SiteId};
use meshfarm_protocol::message::Pass;
use tokio::sync::watch;

/// More sources than this of one lease are not used.
const MAX_SHARERS: usize = 8;

/// Another lender that has some of a lease's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sharer {
    /// Who.
    pub site: SiteId,
    /// What to show there.
    pub pass: Pass,
}

/// A bitmap of the runs that are here.
pub type Here = watch::Receiver<Arc<[u8]>>;

/// What is shared, by lease of ours. A lease is known from its first mention until it is forgotten.
#[derive(Debug, Default)]
pub struct Sharing(Mutex<BTreeMap<LeaseId, Shared>>);

#[derive(Debug)]
struct Shared {
    sharers: watch::Sender<Vec<Sharer>>,
    here: Option<(ChunkId, Here)>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { sharers: watch::Sender::new(Vec::new()), here: None }
    }
}

impl Sharing {
    /// The borrower says that another lender has some of a lease's content.
    pub fn add(&self, lease: LeaseId, sharer: Sharer) {
        self.lock().entry(lease).or_default().sharers.send_if_modified(|known| {
            let fresh = known.len() < MAX_SHARERS && known.iter().all(|k| k.site != sharer.site);
            if fresh {
                known.push(sharer);
            }
            fresh
        });
    }

    /// Who else has some of a lease's content, now and later.
    pub fn sharers(&self, lease: LeaseId) -> watch::Receiver<Vec<Sharer>> {
        self.lock().entry(lease).or_default().sharers.subscribe()
    }

    /// What of a lease's content is here, to be told to others as it grows.
    pub fn offer(&self, lease: LeaseId, root: ChunkId, here: Here) {
        self.lock().entry(lease).or_default().here = Some((root, here));
    }

    /// What of `root` is here for others, under a lease that we have.
    pub fn here(&self, lease: LeaseId, root: ChunkId) -> Option<Here> {
        let shared = self.lock();
        let (known, here) = shared.get(&lease)?.here.as_ref()?;
        (*known == root).then(|| here.clone())
    }

    /// A lease is over.
    pub fn forget(&self, lease: LeaseId) {
        self.lock().remove(&lease);
    }

    /// A panic elsewhere leaves a map that is whole.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<LeaseId, Shared>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use meshfarm_protocol::message::PassBody;
    use meshfarm_protocol::seal::SigningKey;

    use super::*;

    fn sharer(n: u8) -> Sharer {
        let key = SigningKey::from_seed(&[9; 32]);
        let (borrower, to, root) = (key.site(), SiteId([1; 32]), ChunkId([2; 32]));
        let expires = meshfarm_protocol::id::Millis(9);
        let body = PassBody { borrower, lease: LeaseId([n; 16]), to, root, expires };
        Sharer { site: SiteId([n; 32]), pass: Pass::sign(&body, &key) }
    }

    #[test]
    fn sharers_are_known_once_each_and_never_too_many() {
        let sharing = Sharing::default();
        let lease = LeaseId([1; 16]);
        let mut known = sharing.sharers(lease);
        for n in [1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10] {
            sharing.add(lease, sharer(n));
        }
        assert!(known.has_changed().unwrap());
        assert_eq!(known.borrow_and_update().len(), MAX_SHARERS);
        sharing.forget(lease);
        assert!(known.has_changed().is_err(), "a lease that is over has no sharers");
    }

    #[test]
    fn only_the_content_of_the_lease_is_offered() {
        let sharing = Sharing::default();
        let (lease, root) = (LeaseId([1; 16]), ChunkId([2; 32]));
        let (_tx, here) = watch::channel(Arc::from(&b"x"[..]));
        sharing.offer(lease, root, here);
        assert!(sharing.here(lease, root).is_some());
        assert!(sharing.here(lease, ChunkId([3; 32])).is_none());
        assert!(sharing.here(LeaseId([4; 16]), root).is_none());
    }
}
