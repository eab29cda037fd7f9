//! Where members were reached or say that they listen, kept over restarts, so that a node finds its mesh
//! again by itself.

use std::collections::{BTreeSet, VecDeque};
use std::ops::ControlFlow;

use meshfarm_protocol::codec;
use meshfarm_protocol::id::SiteId;

use crate::net::Multiaddr;
use crate::store::{Batch, Family, Store, StoreError};

/// Members that are kept; the one noted longest ago makes room.
const MAX_SITES: usize = 200;

/// Addresses kept of each, the newest first.
const MAX_ADDRESSES: usize = 8;

/// A longer record was not written by us, in bytes.
const MAX_RECORD: usize = 1 << 14;

/// A longer address is not kept, in bytes.
const MAX_ADDRESS: usize = 512;

/// Addresses of members, those noted last at the back.
#[derive(Debug, Default)]
pub struct Neighbours {
    known: VecDeque<(SiteId, Vec<String>)>,
    changed: BTreeSet<SiteId>,
}

impl Neighbours {
    /// Those noted before the node was stopped. A record that is damaged is left out: its member will be
    /// found in another way.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn load(store: &Store) -> Result<Self, StoreError> {
        let mut known = VecDeque::new();
        store.scan(Family::Neighbour, &[], |key, value| {
            let site = <[u8; 32]>::try_from(key).map(SiteId);
            let addresses = codec::decode::<Vec<String>>(value, MAX_RECORD);
            if let (Ok(site), Ok(addresses)) = (site, addresses) {
                known.push_back((site, addresses));
            }
            if known.len() < MAX_SITES { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(Self { known, changed: BTreeSet::new() })
    }

    /// Every member with its addresses.
    pub fn all(&self) -> impl Iterator<Item = (SiteId, Vec<Multiaddr>)> {
        self.known.iter().map(|(site, addresses)| {
            (*site, addresses.iter().filter_map(|text| text.parse().ok()).collect())
        })
    }

    /// Note where a member was reached, or says that it listens.
    pub fn note(&mut self, site: SiteId, addresses: &[Multiaddr]) {
        let texts = addresses.iter().take(MAX_ADDRESSES).map(ToString::to_string);
        let mut texts: Vec<_> = texts.filter(|text| text.len() <= MAX_ADDRESS).collect();
        if texts.is_empty() {
            return;
        }
        let found = self.known.iter().position(|(known, _)| *known == site);
        let old = found.and_then(|at| self.known.remove(at)).map(|(_, old)| old);
        let old = old.unwrap_or_default();
        // What changed on disk is what a restart would miss; the order alone is not worth a write.
        if texts.iter().any(|text| !old.contains(text)) {
            self.changed.insert(site);
        }
        let older: Vec<_> = old.into_iter().filter(|text| !texts.contains(text)).collect();
        texts.extend(older);
        texts.truncate(MAX_ADDRESSES);
        self.known.push_back((site, texts));
        if self.known.len() > MAX_SITES
            && let Some((oldest, _)) = self.known.pop_front()
        {
            self.changed.insert(oldest);
        }
    }

    /// Add what was noted since the last call to a batch.
    pub fn stage(&mut self, batch: &mut Batch) {
        for site in std::mem::take(&mut self.changed) {
            match self.known.iter().find(|(known, _)| *known == site) {
                Some((_, addresses)) => {
                    batch.put(Family::Neighbour, site.0, codec::encode(addresses));
                }
                None => batch.delete(Family::Neighbour, site.0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(port: usize) -> Multiaddr {
        format!("/ip4/10.0.0.1/tcp/{port}").parse().unwrap()
    }

    fn site(n: usize) -> SiteId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        SiteId(id)
    }

    #[test]
    fn members_are_found_again_after_a_restart_where_they_were_last() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let mut noted = Neighbours::load(&store).unwrap();
        noted.note(site(1), &[at(1)]);
        noted.note(site(2), &[at(2)]);
        noted.note(site(1), &[at(3)]);
        noted.note(site(3), &[]);
        let mut batch = Batch::new();
        noted.stage(&mut batch);
        assert_eq!(batch.len(), 2);
        store.commit(batch).unwrap();

        let kept: Vec<_> = Neighbours::load(&store).unwrap().all().collect();
        assert_eq!(kept, [(site(1), vec![at(3), at(1)]), (site(2), vec![at(2)])]);
        noted.note(site(1), &[at(1)]);
        let mut batch = Batch::new();
        noted.stage(&mut batch);
        assert!(batch.is_empty(), "nothing new was noted");
    }

    #[test]
    fn members_and_addresses_are_bounded() {
        let mut noted = Neighbours::default();
        for n in 0..=MAX_SITES {
            noted.note(site(n), &(1..20).map(at).collect::<Vec<_>>());
            noted.note(site(n), &[at(n)]);
        }
        let all: Vec<_> = noted.all().collect();
        assert_eq!(all.len(), MAX_SITES);
        assert!(
            all.iter().all(|(id, addresses)| *id != site(0) && addresses.len() == MAX_ADDRESSES)
        );
        let mut batch = Batch::new();
        noted.stage(&mut batch);
        assert_eq!(batch.len(), MAX_SITES + 1, "the one that made room is deleted");
    }
}
