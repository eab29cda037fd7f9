//! Backups: what is in one, what comes back of it, and files that are none.

use std::os::unix::fs::PermissionsExt;

use meshfarm_core::{FinishedRecord, HostMode, HostRecord, JobRecord, LentRecord};
use meshfarm_protocol::id::{AttemptId, JobId, LeaseId, Millis, SiteId, TenantId};
use meshfarm_protocol::lease::{Done, Outcome, Usage};
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::{Exact, Terms};

use super::*;

/// A chunk of the open job.
const OWN: [u8; 100] = [1; 100];

struct Made {
    folder: tempfile::TempDir,
    home: Home,
    own: ChunkId,
}

fn job(job: u8, phase: JobPhase, root: ChunkId) -> Record {
    let (job, submitted, ended) = (JobId([job; 16]), Millis(1), None);
    Record::Job(JobRecord {
        job,
        submitted,
        ended,
        phase,
        root,
        bytes: 9,
        inputs: Vec::new(),
        steering: meshfarm_core::Steering::default(),
        canceled: Vec::new(),
        warned: meshfarm_core::Warned::default(),
        spent: Exact(0),
    })
}

fn chunk(bytes: &[u8]) -> ChunkId {
    ChunkId(seal::content_hash(bytes))
}

fn open(home: &Home) -> (Arc<Store>, Chunks) {
    let records = home.store().join("records");
    fs::create_dir_all(&records).unwrap();
    let store = Arc::new(Store::open(&records).unwrap());
    let settings = Settings::new(|_| Ok(1 << 40), |_, _, _| Ok(()), || Millis(1));
    let chunks = Chunks::open(&home.store().join("segments"), Arc::clone(&store), settings);
    (store, chunks.unwrap())
}

/// A home with an open job and an ended one, a host, what it lent to others, and content of all of them.
fn made() -> Made {
    let folder = tempfile::tempdir().unwrap();
    let home = Home::find(Some(folder.path().join("home"))).unwrap();
    home.create(&Config::new("oslo")).unwrap();
    fs::create_dir_all(home.secrets()).unwrap();
    create(&home.secrets().join("node.key"), b"secret\n").unwrap();
    create(&home.secrets().join("other.txt"), b"no key\n").unwrap();
    let (own, ended, foreign) = (&OWN[..], &[2; 100][..], &[3; 100][..]);
    let (store, chunks) = open(&home);
    let mut batch = Batch::new();
    let finished = Done {
        lease: LeaseId([5; 16]),
        attempt: AttemptId([6; 16]),
        outcome: Outcome::Done,
        outputs: None,
        usage: Usage::default(),
    };
    let (borrower, host) = (SiteId([7; 32]), SiteId([8; 32]));
    for record in [
        job(1, JobPhase::Active, chunk(own)),
        job(2, JobPhase::Done, chunk(ended)),
        Record::Host(HostRecord {
            host,
            name: "render01".into(),
            joined: Millis(1),
            mode: HostMode::Stopped,
        }),
        Record::Lent(LentRecord {
            lease: LeaseId([5; 16]),
            borrower,
            tenant: TenantId([1; 16]),
            terms: Terms::default(),
            isolation: Level::S2,
            content: 0,
        }),
        Record::Finished(FinishedRecord { borrower, at: Millis(1), done: finished }),
    ] {
        records::stage(&meshfarm_core::Change::Put(Box::new(record)), &mut batch);
    }
    for bytes in [own, ended, foreign] {
        assert!(chunks.put(&chunk(bytes), bytes).unwrap());
        let key = [b"m".as_slice(), &chunk(bytes).0].concat();
        batch.put(Family::Root, key, Marks::of(&[chunk(bytes)]).to_bytes());
    }
    store.commit(batch).unwrap();
    chunks.flush().unwrap();
    Made { own: chunk(own), folder, home }
}

impl Made {
    fn write(&self) -> (PathBuf, Counted) {
        let file = self.folder.path().join("backup");
        let (store, chunks) = open(&self.home);
        let counted = write(&self.home, (&store, &chunks), &file).unwrap();
        (file, counted)
    }

    fn other(&self) -> Home {
        Home::find(Some(self.folder.path().join("other"))).unwrap()
    }

    /// Nothing was made of it, and the reason names `words`.
    fn refused(&self, file: &Path, words: &str) {
        let error = restore(&self.other(), file).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
        let mut left: Vec<_> = fs::read_dir(self.folder.path()).unwrap().flatten().collect();
        left.retain(|entry| !matches!(entry.file_name().to_str(), Some("home" | "backup" | "bad")));
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn a_restored_home_has_the_keys_the_records_and_the_content_of_open_jobs() {
    let made = made();
    let (file, counted) = made.write();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&file), counted), (0o600, Counted { records: 4, chunks: 1 }));
    let other = made.other();
    fs::create_dir(other.root()).unwrap();
    assert_eq!(restore(&other, &file).unwrap(), counted);
    assert_eq!(other.load().unwrap().name, "oslo");
    let key = other.secrets().join("node.key");
    assert_eq!((fs::read(&key).unwrap(), mode(&key)), (b"secret\n".to_vec(), 0o600));
    assert_eq!((mode(other.root()), mode(&other.secrets())), (0o700, 0o700));
    assert!(!other.secrets().join("other.txt").exists());
    let (store, chunks) = open(&other);
    let records = records::load(&store).unwrap();
    assert_eq!(records.len(), 3, "{records:?}");
    let host = records.iter().find_map(|record| match record {
        Record::Host(host) => Some((host.name.as_str(), host.mode)),
        _ => None,
    });
    assert_eq!(host, Some(("render01", HostMode::Stopped)));
    assert_eq!(chunks.get(&made.own).unwrap().unwrap(), OWN);
    assert_eq!(chunks.find(|_| true).unwrap(), [made.own]);
}

#[test]
fn nothing_is_overwritten() {
    let made = made();
    let (file, _) = made.write();
    let (store, chunks) = open(&made.home);
    let again = write(&made.home, (&store, &chunks), &file).unwrap_err();
    assert!(matches!(again, BackupError::Exists(_)), "{again}");
    let taken = restore(&made.home, &file).unwrap_err();
    assert!(matches!(taken, BackupError::HomeExists(_)), "{taken}");
    assert_eq!(made.home.load().unwrap().name, "oslo");
}

#[test]
fn a_backup_that_was_cut_or_changed_makes_no_home() {
    let made = made();
    let (file, _) = made.write();
    let whole = fs::read(&file).unwrap();
    let bad = made.folder.path().join("bad");
    let step = whole.len() / 23;
    for at in (0..whole.len()).step_by(step) {
        fs::write(&bad, &whole[..at]).unwrap();
        made.refused(&bad, "no whole backup");
        let mut changed = whole.clone();
        changed[at] ^= 1;
        fs::write(&bad, &changed).unwrap();
        made.refused(&bad, "no whole backup");
    }
}

#[test]
fn whatever_a_backup_says_it_writes_keys_settings_and_records_only() {
    let made = made();
    let bad = made.folder.path().join("bad");
    let settings = Config::new("oslo").to_text();
    let hostile = |entries: &[(Kind, &[u8], &[u8])]| {
        let mut bytes = MAGIC.to_vec();
        for (kind, name, body) in entries {
            put(&mut bytes, *kind, name, body).unwrap();
        }
        fs::write(&bad, bytes).unwrap();
    };
    for name in ["../node.key", "/tmp/x.key", "a/b.key", ".key", "node.sh", "NODE.key", "x.key\0"] {
        hostile(&[(Kind::Key, name.as_bytes(), b"x")]);
        made.refused(&bad, "a name that no key has");
    }
    hostile(&[(Kind::Key, b"a.key", b"x"), (Kind::Key, b"a.key", b"y")]);
    made.refused(&bad, "write");
    hostile(&[(Kind::Settings, b"", b"name = 'x'\nevil = 1")]);
    made.refused(&bad, "evil");
    for name in ["chunk/x", "meta/format", "lease/lx", "attempt/fx", "none/x", "job/", "job"] {
        hostile(&[
            (Kind::Settings, b"", settings.as_bytes()),
            (Kind::Record, name.as_bytes(), b""),
        ]);
        made.refused(&bad, "of no kind");
    }
    let end = [1u64.to_be_bytes(), 0u64.to_be_bytes()].concat();
    let settings = (Kind::Settings, b"".as_slice(), settings.as_bytes());
    hostile(&[settings, (Kind::Record, b"job/jx", b"junk"), (Kind::End, b"", &end)]);
    made.refused(&bad, "damaged");
    hostile(&[settings, (Kind::Chunk, &[1; 32], b"not that chunk")]);
    made.refused(&bad, "");
    hostile(&[settings, (Kind::End, b"", &end)]);
    made.refused(&bad, "missing");
}
