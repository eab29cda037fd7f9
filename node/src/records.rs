//! The core's records in the store: which family, which key, which bytes.

use std::ops::ControlFlow;

use meshfarm_core::{Change, Key, Record};
use meshfarm_protocol::codec::{self, DecodeError};

use crate::store::{Batch, Family, Store, StoreError};

/// A record longer than this was not written by us. A job of a million tasks has some tens of megabytes.
pub(crate) const MAX_RECORD: usize = 256 << 20;

/// Why the records cannot be read back. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A record is not what we wrote.
    #[error("a record of the family {family} is damaged; restore the home from a backup")]
    Damaged {
        /// Where it stands.
        family: &'static str,
        /// What is wrong with it.
        #[source]
        source: DecodeError,
    },
}

/// Add a change of the core to a batch.
pub fn stage(change: &Change, batch: &mut Batch) {
    match change {
        Change::Put(record) => {
            let (family, key) = place(record.key());
            batch.put(family, key, codec::encode(record));
        }
        Change::Delete(key) => {
            let (family, key) = place(*key);
            batch.delete(family, key);
        }
    }
}

/// Every record that the core has made durable.
///
/// # Errors
/// When the store refuses or a record is damaged.
pub fn load(store: &Store) -> Result<Vec<Record>, RecordsError> {
    let mut records = Vec::new();
    // Receipts that both sides have signed are many, and the core needs none of them.
    for (family, tag) in KINDS.into_iter().filter(|kind| *kind != ENTRIES) {
        let mut damaged = None;
        store.scan(family, &[tag], |_, value| match codec::decode(value, MAX_RECORD) {
            Ok(record) => {
                records.push(record);
                ControlFlow::Continue(())
            }
            Err(source) => {
                damaged = Some(RecordsError::Damaged { family: family.name(), source });
                ControlFlow::Break(())
            }
        })?;
        if let Some(error) = damaged {
            return Err(error);
        }
    }
    Ok(records)
}

/// Kinds of records: their family, and the first byte of their keys where kinds share a family.
const KINDS: [(Family, u8); 17] = [
    (Family::Job, b's'),
    (Family::Job, b'j'),
    (Family::Task, b't'),
    (Family::Lease, b'b'),
    (Family::Lease, b'l'),
    (Family::Attempt, b'f'),
    (Family::Membership, b'i'),
    (Family::Receipt, b'e'),
    (Family::Membership, b'p'),
    (Family::Membership, b'h'),
    // A lease that is under way is in no backup, and neither is what it costs so far.
    (Family::Lease, b'c'),
    (Family::Receipt, b'c'),
    (Family::Receipt, b'p'),
    ENTRIES,
    (Family::Receipt, b'm'),
    TALLIES,
    (Family::Lease, b'r'),
];

/// Receipts that both sides have signed.
pub(crate) const ENTRIES: (Family, u8) = (Family::Receipt, b'r');

/// What our own tasks used, by day.
pub(crate) const TALLIES: (Family, u8) = (Family::Receipt, b't');

/// Where a record stands.
pub(crate) fn place(key: Key) -> (Family, Vec<u8>) {
    let (family, tag) = KINDS[match key {
        Key::Spec(_) => 0,
        Key::Job(_) => 1,
        Key::Task(_) => 2,
        Key::Borrowed(_) => 3,
        Key::Lent(_) => 4,
        Key::Finished(_) => 5,
        Key::Invite(_) => 6,
        Key::Evidence(_) => 7,
        Key::Site => 8,
        Key::Host(_) => 9,
        Key::Charge(_) => 10,
        Key::Chain(_) => 11,
        Key::Pending(..) => 12,
        Key::Entry(..) => 13,
        Key::Misdeed(..) => 14,
        Key::Tally(..) => 15,
        Key::Relay(_) => 16,
    }];
    let mut bytes = vec![tag];
    bytes.extend(key.to_bytes());
    (family, bytes)
}
