//! Chunks that survive what was promised, and are fetched again where nothing was.

use std::collections::HashSet;

use meshfarm_protocol::id::TenantId;
use meshfarm_protocol::seal::{SEAL_OVERHEAD, SealedChunk, TenantSecret, seal_chunk};

use super::*;

const PLENTY: fn(&Path) -> io::Result<u64> = |_| Ok(u64::MAX);

/// Commits only when asked, into segments of 64 KiB.
fn settings() -> Settings {
    Settings {
        segment_bytes: 64 << 10,
        commit_bytes: u64::MAX,
        commit_after: Duration::from_secs(3600),
        keep_free: 0,
        free_bytes: PLENTY,
    }
}

fn open_with(home: &Path, settings: Settings) -> Chunks {
    let store = Arc::new(Store::open(&home.join("records")).unwrap());
    Chunks::open(&home.join("segments"), store, settings).unwrap()
}

fn open(home: &Path) -> Chunks {
    open_with(home, settings())
}

fn chunk(number: u32, len: usize) -> SealedChunk {
    let secret = TenantSecret::new(TenantId([1; 16]), 1, [1; 32]).chunks();
    let mut plain = vec![0; len];
    plain[..4].copy_from_slice(&number.to_le_bytes());
    seal_chunk(&secret, &plain)
}

fn put(chunks: &Chunks, chunk: &SealedChunk) -> bool {
    chunks.put(&chunk.cid, &chunk.bytes).unwrap()
}

fn get(chunks: &Chunks, chunk: &SealedChunk) -> bool {
    let bytes = chunks.get(&chunk.cid).unwrap();
    assert!(bytes.as_ref().is_none_or(|bytes| *bytes == chunk.bytes));
    assert_eq!(bytes.is_some(), chunks.has(&chunk.cid).unwrap());
    bytes.is_some()
}

/// What a crash at this moment would leave: the files as they are, with nobody having closed them.
fn crash(home: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for folder in ["records", "segments"] {
        fs::create_dir(copy.path().join(folder)).unwrap();
        for file in fs::read_dir(home.join(folder)).unwrap() {
            let path = file.unwrap().path();
            fs::copy(&path, copy.path().join(folder).join(path.file_name().unwrap())).unwrap();
        }
    }
    copy
}

fn segments(home: &Path) -> Vec<(String, u64)> {
    let mut found: Vec<_> = fs::read_dir(home.join("segments"))
        .unwrap()
        .map(|file| {
            let file = file.unwrap();
            (file.file_name().into_string().unwrap(), file.metadata().unwrap().len())
        })
        .collect();
    found.sort();
    found
}

fn span(chunk: &SealedChunk) -> u64 {
    HEADER + chunk.bytes.len() as u64
}

#[test]
fn a_chunk_is_there_at_once_and_after_a_restart_and_is_stored_once() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let (one, two) = (chunk(1, 1000), chunk(2, 50_000));
    assert!(!get(&chunks, &one));
    assert!(put(&chunks, &one) && put(&chunks, &two));
    assert!(get(&chunks, &one) && get(&chunks, &two));
    assert!(!put(&chunks, &one));
    chunks.flush().unwrap();
    assert!(!put(&chunks, &one));
    drop(chunks);
    assert_eq!(segments(home.path()), [("00000000.seg".into(), span(&one) + span(&two))]);
    let chunks = open(home.path());
    assert!(get(&chunks, &one) && get(&chunks, &two));
}

#[test]
fn bytes_of_another_address_are_not_stored() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let (mut one, two) = (chunk(1, 1000), chunk(2, 1000));
    assert!(matches!(chunks.put(&one.cid, &two.bytes), Err(ChunkError::Wrong(_))));
    one.bytes[7] ^= 1;
    assert!(matches!(chunks.put(&one.cid, &one.bytes), Err(ChunkError::Wrong(_))));
    assert!(matches!(chunks.put(&one.cid, &[]), Err(ChunkError::Wrong(_))));
    assert!(!chunks.has(&one.cid).unwrap());
    assert_eq!(segments(home.path()), []);
}

#[test]
fn a_crash_takes_what_was_not_flushed_and_nothing_else() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let (kept, lost) = (chunk(1, 1000), chunk(2, 1000));
    put(&chunks, &kept);
    chunks.flush().unwrap();
    put(&chunks, &lost);
    let crashed = crash(home.path());
    assert_eq!(segments(crashed.path())[0].1, span(&kept) + span(&lost));

    let chunks = open(crashed.path());
    assert_eq!(segments(crashed.path())[0].1, span(&kept));
    assert!(get(&chunks, &kept) && !get(&chunks, &lost));
    assert!(put(&chunks, &lost));
    chunks.flush().unwrap();
    assert!(get(&open(crash(crashed.path()).path()), &lost));
}

#[test]
fn a_crash_before_the_first_flush_leaves_no_segment() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let lost = chunk(1, 1000);
    put(&chunks, &lost);
    let crashed = crash(home.path());
    assert_eq!(segments(crashed.path()).len(), 1);
    let chunks = open(crashed.path());
    assert_eq!(segments(crashed.path()), []);
    assert!(!get(&chunks, &lost) && put(&chunks, &lost) && get(&chunks, &lost));
}

#[test]
fn garbage_behind_the_committed_end_is_cut_off() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let kept = chunk(1, 1000);
    put(&chunks, &kept);
    drop(chunks);
    let path = home.path().join("segments/00000000.seg");
    let mut bytes = fs::read(&path).unwrap();
    bytes.extend_from_slice(&[0xaa; 5000]);
    fs::write(&path, bytes).unwrap();
    fs::write(home.path().join("segments/00000007.seg"), "an unknown segment").unwrap();
    fs::write(home.path().join("segments/notes.txt"), "not ours").unwrap();
    let chunks = open(home.path());
    let left = [("00000000.seg".into(), span(&kept)), ("notes.txt".into(), 8)];
    assert_eq!(segments(home.path()), left);
    let next = chunk(2, 1000);
    put(&chunks, &next);
    chunks.flush().unwrap();
    assert!(get(&chunks, &kept) && get(&chunks, &next));
}

#[test]
fn a_segment_that_lost_bytes_loses_those_chunks_and_never_grows_again() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let (one, two, three) = (chunk(1, 1000), chunk(2, 1000), chunk(3, 1000));
    put(&chunks, &one);
    put(&chunks, &two);
    drop(chunks);
    let path = home.path().join("segments/00000000.seg");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(span(&one) + 100).unwrap();
    let chunks = open(home.path());
    assert!(get(&chunks, &one));
    assert_eq!(chunks.get(&two.cid).unwrap(), None);
    assert!(!chunks.has(&two.cid).unwrap(), "a damaged chunk is forgotten");
    put(&chunks, &three);
    put(&chunks, &two);
    chunks.flush().unwrap();
    assert!(get(&chunks, &two) && get(&chunks, &three));
    assert_eq!(segments(home.path())[1].1, span(&two) + span(&three));
}

#[test]
fn a_chunk_that_rotted_is_noticed_forgotten_and_stored_again() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let (one, two) = (chunk(1, 1000), chunk(2, 1000));
    put(&chunks, &one);
    put(&chunks, &two);
    chunks.flush().unwrap();
    let path = home.path().join("segments/00000000.seg");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"rot", HEADER + 500).unwrap();
    assert_eq!(chunks.get(&one.cid).unwrap(), None);
    assert!(!chunks.has(&one.cid).unwrap() && get(&chunks, &two));
    assert!(put(&chunks, &one) && get(&chunks, &one));
}

#[test]
fn full_segments_are_followed_by_new_ones_and_emptied_ones_deleted() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let all: Vec<_> = (0..40).map(|number| chunk(number, 8000)).collect();
    for chunk in &all {
        put(&chunks, chunk);
    }
    assert!(all.iter().all(|chunk| get(&chunks, chunk)));
    chunks.flush().unwrap();
    let n_segments = segments(home.path()).len();
    assert!(n_segments == 5, "{n_segments}");
    assert!(segments(home.path()).iter().all(|(_, len)| *len <= 64 << 10));

    let (gone, left) = all.split_at(20);
    chunks.remove(&gone.iter().map(|chunk| chunk.cid).collect::<Vec<_>>()).unwrap();
    assert!(gone.iter().all(|chunk| !get(&chunks, chunk)));
    assert!(left.iter().all(|chunk| get(&chunks, chunk)));
    assert_eq!(segments(home.path()).len(), 3);
    drop(chunks);
    let chunks = open(home.path());
    assert!(gone.iter().all(|chunk| !get(&chunks, chunk)));
    assert!(left.iter().all(|chunk| get(&chunks, chunk)));
    assert!(put(&chunks, &gone[0]) && get(&chunks, &gone[0]));
}

#[test]
fn chunks_become_durable_by_themselves_in_time_and_by_amount() {
    let home = tempfile::tempdir().unwrap();
    let soon = Settings { commit_after: Duration::from_millis(20), ..settings() };
    let chunks = open_with(home.path(), soon);
    let one = chunk(1, 1000);
    put(&chunks, &one);
    let deadline = Instant::now() + Duration::from_secs(20);
    while chunks.shared.indexed(&one.cid).unwrap().is_none() {
        assert!(Instant::now() < deadline, "never committed");
        std::thread::yield_now();
    }
    assert!(get(&open(crash(home.path()).path()), &one));
    drop(chunks);

    let chunks = open_with(home.path(), Settings { commit_bytes: 10_000, ..settings() });
    let (two, three) = (chunk(2, 8000), chunk(3, 8000));
    put(&chunks, &two);
    assert!(chunks.shared.indexed(&two.cid).unwrap().is_none());
    put(&chunks, &three);
    assert!(chunks.shared.indexed(&two.cid).unwrap().is_some());
    assert!(chunks.shared.indexed(&three.cid).unwrap().is_some());
}

#[test]
fn a_disk_below_its_mark_takes_no_chunk() {
    let home = tempfile::tempdir().unwrap();
    let tight = Settings { keep_free: 5000, free_bytes: |_| Ok(5500), ..settings() };
    let chunks = open_with(home.path(), tight);
    let (fits, not) = (chunk(1, 400), chunk(2, 600));
    let error = chunks.put(&not.cid, &not.bytes).unwrap_err();
    assert!(matches!(error, ChunkError::DiskFull { free: 5500, keep: 5000, .. }), "{error}");
    assert!(error.to_string().contains(home.path().to_str().unwrap()), "{error}");
    assert!(!get(&chunks, &not) && put(&chunks, &fits));
}

#[test]
fn many_threads_share_commits_and_lose_nothing() {
    let home = tempfile::tempdir().unwrap();
    let often = Settings { commit_bytes: 100_000, segment_bytes: 1 << 20, ..settings() };
    let chunks = open_with(home.path(), often);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let chunks = &chunks;
            scope.spawn(move || {
                for number in 0..100 {
                    // Every chunk is put by two threads.
                    let chunk = chunk(number + (thread % 2) * 1000, 3000);
                    put(chunks, &chunk);
                    assert!(get(chunks, &chunk));
                    if number % 25 == 24 {
                        chunks.flush().unwrap();
                        assert!(chunks.shared.indexed(&chunk.cid).unwrap().is_some());
                    }
                }
            });
        }
    });
    let begun = chunks.shared.lock().begun;
    assert!(begun < 40, "{begun} commits for 16 flushes and 600 kB");
    let total: u64 = segments(home.path()).iter().map(|(_, len)| len).sum();
    assert_eq!(total, 200 * (HEADER + 3000 + SEAL_OVERHEAD as u64));
    let crashed = crash(home.path());
    let chunks = open(crashed.path());
    let all: HashSet<_> =
        (0..100).chain(1000..1100).map(|number| chunk(number, 3000).cid).collect();
    assert!(all.iter().all(|cid| chunks.get(cid).unwrap().is_some()));
}

/// Runs this test again in a mount namespace whose `/mnt` is a disk of 12 MB, and returns there.
fn on_a_small_disk(test: &str) -> bool {
    if std::env::var_os("MESHFARM_SMALL_DISK").is_some() {
        return true;
    }
    let script = "mount -t tmpfs -o size=12m none /mnt && exec \"$0\" \"$@\"";
    let program = std::env::current_exe().unwrap();
    let done = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script])
        .arg(program)
        .args(["--exact", test, "--nocapture"])
        .env("MESHFARM_SMALL_DISK", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout) + String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    false
}

#[test]
fn a_disk_that_is_really_full_is_said_and_loses_nothing() {
    if !on_a_small_disk("chunks::tests::a_disk_that_is_really_full_is_said_and_loses_nothing") {
        return;
    }
    let home = Path::new("/mnt");
    let ballast = home.join("ballast");
    fs::write(&ballast, vec![1; 4 << 20]).unwrap();
    let settings = Settings { segment_bytes: 64 << 20, ..settings() };
    let chunks = open_with(home, settings);
    let first = chunk(0, 500_000);
    put(&chunks, &first);
    chunks.flush().unwrap();
    let full = (1..100).find_map(|number| {
        let chunk = chunk(number, 500_000);
        chunks.put(&chunk.cid, &chunk.bytes).err()
    });
    assert!(matches!(full, Some(ChunkError::DiskFull { .. })), "{full:?}");
    let refused = (0..10_000).find_map(|number| {
        let mut batch = Batch::new();
        batch.put(Family::Job, format!("{number}"), vec![1; 5000]);
        chunks.shared.store.commit(batch).err()
    });
    assert!(matches!(refused, Some(StoreError::NoSpace { .. })), "{refused:?}");
    assert!(get(&chunks, &first));
    drop(chunks);
    fs::remove_file(ballast).unwrap();
    let chunks = open_with(home, settings);
    assert!(get(&chunks, &first));
}
