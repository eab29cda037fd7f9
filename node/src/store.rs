//! Records: one family per kind, written in synced batches.

use std::fmt;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRecoveryMode, Direction, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions,
};

/// The version of what is stored in a home. It rises when an older meshfarm could misread it.
pub const FORMAT: u32 = 1;

const FORMAT_KEY: &[u8] = b"format";

/// Memory for all families' newest records together, in bytes. A node at rest has 50 MB in all.
const WRITE_BUFFERS: usize = 8 << 20;

/// Memory for what is read from disk, indexes and filters included, in bytes.
const READ_CACHE: usize = 6 << 20;

/// The log is cut after this many bytes, so that a start replays little.
const MAX_LOG: u64 = 32 << 20;

/// A kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// The home itself: format, identity, counters.
    Meta,
    /// Jobs.
    Job,
    /// Tasks of jobs.
    Task,
    /// Leases, lent and borrowed.
    Lease,
    /// Attempts to run tasks.
    Attempt,
    /// Meshes, certificates and revocations.
    Membership,
    /// Profiles heard from other sites.
    Profile,
    /// Receipts and the ledger.
    Receipt,
    /// Where each chunk lies.
    Chunk,
    /// How far each segment is durable.
    Segment,
    /// Transfers under way.
    Xfer,
    /// Outputs of tasks, landed or to be delivered.
    Output,
    /// Where members were reached.
    Neighbour,
    /// What tasks have opened of their content.
    Trace,
    /// What was in files when they were last read.
    Stat,
    /// What content roots use.
    Root,
}

impl Family {
    /// All families. One that is added here is created when a home is opened.
    pub const ALL: [Self; 16] = [
        Self::Meta,
        Self::Job,
        Self::Task,
        Self::Lease,
        Self::Attempt,
        Self::Membership,
        Self::Profile,
        Self::Receipt,
        Self::Chunk,
        Self::Segment,
        Self::Xfer,
        Self::Output,
        Self::Neighbour,
        Self::Trace,
        Self::Stat,
        Self::Root,
    ];

    /// Its name on disk, which never changes.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Job => "job",
            Self::Task => "task",
            Self::Lease => "lease",
            Self::Attempt => "attempt",
            Self::Membership => "membership",
            Self::Profile => "profile",
            Self::Receipt => "receipt",
            Self::Chunk => "chunk",
            Self::Segment => "segment",
            Self::Xfer => "xfer",
            Self::Output => "output",
            Self::Neighbour => "neighbour",
            Self::Trace => "trace",
            Self::Stat => "stat",
            Self::Root => "root",
        }
    }
}

/// Why records could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Written by a newer meshfarm. Nothing was changed; update this one.
    #[error(
        "{} was written by a newer meshfarm (format {found}, this one knows {FORMAT}): update meshfarm",
        .folder.display()
    )]
    Newer {
        /// The records' folder.
        folder: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Has a kind of record that this meshfarm does not know. Nothing was changed; update this one.
    #[error("{} holds records named \"{name}\", unknown to this meshfarm: update it", .folder.display())]
    UnknownFamily {
        /// The records' folder.
        folder: PathBuf,
        /// The unknown name.
        name: String,
    },
    /// Another process has it open. Stop that one, or use another home.
    #[error("{} is in use by another meshfarm node: stop it, or choose another home", .folder.display())]
    InUse {
        /// The records' folder.
        folder: PathBuf,
    },
    /// The disk is full. The batch was not written; make room and try again.
    #[error("no space left on the disk of {}: make room", .folder.display())]
    NoSpace {
        /// The records' folder.
        folder: PathBuf,
        /// What the database said.
        #[source]
        source: DatabaseError,
    },
    /// A record is not as it was written. Restore a backup.
    #[error("records in {} are damaged: restore a backup", .folder.display())]
    Damaged {
        /// The records' folder.
        folder: PathBuf,
        /// What the database said.
        #[source]
        source: DatabaseError,
    },
    /// The disk or the database refused. Nothing of the batch was written.
    #[error("records in {} cannot be read or written", .folder.display())]
    Database {
        /// The records' folder.
        folder: PathBuf,
        /// What the database said.
        #[source]
        source: DatabaseError,
    },
}

/// What the database said.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct DatabaseError(rocksdb::Error);

/// Changes that are written together or not at all.
#[derive(Clone, Default, Debug)]
pub struct Batch {
    changes: Vec<Change>,
}

#[derive(Clone)]
struct Change {
    family: Family,
    key: Vec<u8>,
    /// Nothing deletes.
    value: Option<Vec<u8>>,
}

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let len = self.value.as_ref().map(Vec::len);
        write!(f, "{:?} key of {} bytes, value {len:?}", self.family, self.key.len())
    }
}

impl Batch {
    /// No changes.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes a record, in place of an older one with the same key.
    pub fn put(&mut self, family: Family, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.changes.push(Change { family, key: key.into(), value: Some(value.into()) });
    }

    /// Deletes a record, if there is one.
    pub fn delete(&mut self, family: Family, key: impl Into<Vec<u8>>) {
        self.changes.push(Change { family, key: key.into(), value: None });
    }

    /// Adds all changes of `other` after these.
    pub fn append(&mut self, mut other: Self) {
        self.changes.append(&mut other.changes);
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// The records of one node. Shared between threads.
pub struct Store {
    db: DB,
    folder: PathBuf,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({})", self.folder.display())
    }
}

impl Store {
    /// Opens the records in `folder`, which is created when it is absent.
    ///
    /// # Errors
    /// When another node has it open, a newer meshfarm wrote it, or the disk refuses.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        let fails = |error| StoreError::of(folder, error);
        let options = options();
        if folder.join("CURRENT").exists() {
            // A newer format names its version, which says more than an unknown family does.
            check_format(folder)?;
            check_families(folder, &options)?;
        }
        let cache = Cache::new_lru_cache(READ_CACHE);
        let families = Family::ALL
            .map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(&cache)));
        let db = DB::open_cf_descriptors(&options, folder, families).map_err(fails)?;
        let store = Self { db, folder: folder.to_owned() };
        if store.get(Family::Meta, FORMAT_KEY)?.is_none() {
            let mut batch = Batch::new();
            batch.put(Family::Meta, FORMAT_KEY, FORMAT.to_be_bytes());
            store.commit(batch)?;
        }
        Ok(store)
    }

    /// The folder of the records.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes a batch and syncs it: when this returns, it survives a crash of the machine.
    ///
    /// # Errors
    /// When the disk is full or refuses. Nothing was written then.
    pub fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut write = WriteBatch::default();
        for Change { family, key, value } in batch.changes {
            match value {
                Some(value) => write.put_cf(self.family(family), key, value),
                None => write.delete_cf(self.family(family), key),
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.db.write_opt(write, &options).map_err(|error| StoreError::of(&self.folder, error))
    }

    /// The value of a record, if there is one.
    ///
    /// # Errors
    /// When the disk refuses or the record is damaged.
    pub fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.db
            .get_cf(self.family(family), key)
            .map_err(|error| StoreError::of(&self.folder, error))
    }

    /// Visits the records whose keys begin with `prefix`, in the order of their keys, until
    /// `visit` breaks. It sees one state of the records, whatever is written meanwhile.
    ///
    /// # Errors
    /// When the disk refuses or a record is damaged. Records before it were visited.
    pub fn scan(
        &self,
        family: Family,
        prefix: &[u8],
        mut visit: impl FnMut(&[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        let from = IteratorMode::From(prefix, Direction::Forward);
        for record in self.db.iterator_cf_opt(self.family(family), options, from) {
            let (key, value) = record.map_err(|error| StoreError::of(&self.folder, error))?;
            if !key.starts_with(prefix) || visit(&key, &value).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Visits every record of these families, one family after the other, until `visit` breaks. It sees one state of all
    /// of them, whatever is written meanwhile.
    ///
    /// # Errors
    /// When the disk refuses or a record is damaged. Records before it were visited.
    pub fn snapshot(
        &self,
        families: &[Family],
        mut visit: impl FnMut(Family, &[u8], &[u8]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let snapshot = self.db.snapshot();
        for family in families {
            let mut options = ReadOptions::default();
            options.fill_cache(false);
            let records =
                snapshot.iterator_cf_opt(self.family(*family), options, IteratorMode::Start);
            for record in records {
                let (key, value) = record.map_err(|error| StoreError::of(&self.folder, error))?;
                if visit(*family, &key, &value).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn family(&self, family: Family) -> &ColumnFamily {
        self.db.cf_handle(family.name()).expect("every family was opened with the database")
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.db.cancel_all_background_work(true);
    }
}

impl StoreError {
    /// The database tells kinds of I/O errors apart in its text only.
    fn of(folder: &Path, error: rocksdb::Error) -> Self {
        let folder = folder.to_owned();
        let text = error.to_string();
        let source = DatabaseError(error);
        if text.contains("No space left on device") {
            Self::NoSpace { folder, source }
        } else if text.contains("lock hold by current process") || text.contains("/LOCK: ") {
            Self::InUse { folder }
        } else if text.starts_with("Corruption") {
            Self::Damaged { folder, source }
        } else {
            Self::Database { folder, source }
        }
    }
}

fn check_families(folder: &Path, options: &Options) -> Result<(), StoreError> {
    let names = DB::list_cf(options, folder).map_err(|error| StoreError::of(folder, error))?;
    let known = |name: &str| {
        name == rocksdb::DEFAULT_COLUMN_FAMILY_NAME
            || Family::ALL.iter().any(|family| family.name() == name)
    };
    match names.into_iter().find(|name| !known(name)) {
        Some(name) => Err(StoreError::UnknownFamily { folder: folder.to_owned(), name }),
        None => Ok(()),
    }
}

/// Reads the format without writing anything. A home that cannot be read this way is left to the
/// real opening, which says why.
fn check_format(folder: &Path) -> Result<(), StoreError> {
    let mut options = Options::default();
    options.create_if_missing(false);
    let families = [rocksdb::DEFAULT_COLUMN_FAMILY_NAME, Family::Meta.name()];
    let Ok(db) = DB::open_cf_for_read_only(&options, folder, families, false) else {
        return Ok(());
    };
    let meta = db.cf_handle(Family::Meta.name()).expect("the family was opened");
    let value = db.get_cf(meta, FORMAT_KEY).map_err(|error| StoreError::of(folder, error))?;
    match value.and_then(|value| value.try_into().ok()).map(u32::from_be_bytes) {
        Some(found) if found > FORMAT => {
            Err(StoreError::Newer { folder: folder.to_owned(), found })
        }
        Some(_) | None => Ok(()),
    }
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_max_total_wal_size(MAX_LOG);
    options.set_db_write_buffer_size(WRITE_BUFFERS);
    options.set_max_background_jobs(2);
    options.set_max_file_opening_threads(1);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_manifest_preallocation_size(64 << 10);
    // Statistics would wake a thread every few minutes for nobody.
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

fn family_options(cache: &Cache) -> Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_write_buffer_size(4 << 20);
    options.set_max_write_buffer_number(2);
    options.set_arena_block_size(64 << 10);
    options.set_compression_type(DBCompressionType::Lz4);
    options
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::time::SystemTime;

    use super::*;

    fn put(store: &Store, family: Family, key: &str, value: &str) {
        let mut batch = Batch::new();
        batch.put(family, key, value);
        store.commit(batch).unwrap();
    }

    fn records(store: &Store, family: Family, prefix: &str) -> Vec<String> {
        let mut found = Vec::new();
        let visit = |key: &[u8], value: &[u8]| {
            found.push(format!("{}={}", key.escape_ascii(), value.escape_ascii()));
            ControlFlow::Continue(())
        };
        store.scan(family, prefix.as_bytes(), visit).unwrap();
        found
    }

    fn copy(from: &Path, to: &Path) {
        fs::create_dir(to).unwrap();
        for file in fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }

    fn state(folder: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
        fs::read_dir(folder)
            .unwrap()
            .map(|file| {
                let file = file.unwrap();
                let about = file.metadata().unwrap();
                (file.path(), (about.len(), about.modified().unwrap()))
            })
            .collect()
    }

    #[test]
    fn records_are_found_by_key_and_by_prefix_in_their_family_only() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        for key in ["a", "ab", "abc", "b"] {
            put(&store, Family::Job, key, key);
        }
        put(&store, Family::Task, "ab", "other");
        assert_eq!(store.get(Family::Job, b"ab").unwrap().unwrap(), b"ab");
        assert_eq!(store.get(Family::Lease, b"ab").unwrap(), None);
        assert_eq!(records(&store, Family::Job, "ab"), ["ab=ab", "abc=abc"]);
        assert_eq!(records(&store, Family::Task, ""), ["ab=other"]);

        let mut batch = Batch::new();
        batch.delete(Family::Job, "ab");
        batch.put(Family::Task, "x", "new");
        store.commit(batch).unwrap();
        assert_eq!(records(&store, Family::Job, ""), ["a=a", "abc=abc", "b=b"]);
        assert_eq!(records(&store, Family::Task, ""), ["ab=other", "x=new"]);
    }

    #[test]
    fn what_was_committed_is_there_after_a_crash() {
        let home = tempfile::tempdir().unwrap();
        let (live, crashed) = (home.path().join("live"), home.path().join("crashed"));
        let store = Store::open(&live).unwrap();
        put(&store, Family::Job, "one", "1");
        // The files of a database that is still open are what a crash would leave.
        copy(&live, &crashed);
        put(&store, Family::Job, "two", "2");
        let store = Store::open(&crashed).unwrap();
        assert_eq!(records(&store, Family::Job, ""), ["one=1"]);
    }

    #[test]
    fn a_torn_log_ends_the_records_at_the_tear() {
        let home = tempfile::tempdir().unwrap();
        let (live, crashed) = (home.path().join("live"), home.path().join("crashed"));
        let store = Store::open(&live).unwrap();
        put(&store, Family::Job, "one", "1");
        put(&store, Family::Job, "two", "2");
        copy(&live, &crashed);
        let is_log = |path: &Path| path.extension().is_some_and(|end| end == "log");
        let (log, (len, _)) = state(&crashed).into_iter().rfind(|(path, _)| is_log(path)).unwrap();
        fs::File::options().write(true).open(log).unwrap().set_len(len - 3).unwrap();
        let store = Store::open(&crashed).unwrap();
        assert_eq!(records(&store, Family::Job, ""), ["one=1"]);
    }

    #[test]
    fn a_second_node_on_the_same_home_is_told_which() {
        let home = tempfile::tempdir().unwrap();
        let _store = Store::open(home.path()).unwrap();
        let error = Store::open(home.path()).unwrap_err();
        assert!(matches!(error, StoreError::InUse { .. }), "{error:?}");
        assert!(error.to_string().contains(home.path().to_str().unwrap()), "{error}");
    }

    #[test]
    fn a_home_of_a_newer_format_is_refused_untouched_and_both_versions_are_named() {
        let home = tempfile::tempdir().unwrap();
        let store = Store::open(home.path()).unwrap();
        let mut batch = Batch::new();
        batch.put(Family::Meta, FORMAT_KEY, 7_u32.to_be_bytes());
        store.commit(batch).unwrap();
        drop(store);
        let before = state(home.path());
        let error = Store::open(home.path()).unwrap_err().to_string();
        assert!(error.contains("format 7") && error.contains("knows 1"), "{error}");
        assert_eq!(state(home.path()), before);
    }

    #[test]
    fn a_home_with_unknown_records_is_refused() {
        let home = tempfile::tempdir().unwrap();
        drop(Store::open(home.path()).unwrap());
        let names = Family::ALL.map(Family::name);
        let mut db = DB::open_cf(&Options::default(), home.path(), names).unwrap();
        db.create_cf("dream", &Options::default()).unwrap();
        drop(db);
        let error = Store::open(home.path()).unwrap_err().to_string();
        assert!(error.contains("\"dream\""), "{error}");
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        let error = Store::open(&file.join("home")).unwrap_err().to_string();
        assert!(error.contains("file/home"), "{error}");
    }
}
