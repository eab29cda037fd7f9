//! Chunks that survive what was promised, and are fetched again where nothing was.

use std::collections::HashSet;
use std::fs::OpenOptions;

use meshfarm_protocol::id::TenantId;
use meshfarm_protocol::seal::{SEAL_OVERHEAD, SealedChunk, TenantSecret, seal_chunk};

use crate::store::Batch;
use crate::sys;

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
        punch: sys::punch_hole,
        now: || Millis(7000),
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
fn a_crash_before_the_first_flush_promises_nothing_and_loses_little() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let (lost, torn) = (chunk(1, 1000), chunk(2, 1000));
    put(&chunks, &lost);
    put(&chunks, &torn);
    let crashed = crash(home.path());
    let path = crashed.path().join("segments/00000000.seg");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(span(&lost) + 500).unwrap();
    let chunks = open(crashed.path());
    assert!(!get(&chunks, &lost) && !get(&chunks, &torn));
    assert_eq!(chunks.unread().unwrap(), [0]);
    assert_eq!(chunks.read_again(0, |_| ()).unwrap(), 1);
    assert!(get(&chunks, &lost) && !get(&chunks, &torn) && put(&chunks, &torn));
    chunks.flush().unwrap();
    let again = crash(crashed.path());
    let chunks = open(again.path());
    assert!(get(&chunks, &lost) && get(&chunks, &torn));
    assert!(chunks.unread().unwrap().is_empty());
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
    // Two that put the same chunk at the same moment both write it, and one of the writes is a gap.
    let once = 200 * (HEADER + 3000 + SEAL_OVERHEAD as u64);
    assert!((once..=2 * once).contains(&total), "{total} bytes for chunks of {once}");
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

fn cids(chunks: &[SealedChunk]) -> Vec<ChunkId> {
    chunks.iter().map(|chunk| chunk.cid).collect()
}

fn blocks(home: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let files = fs::read_dir(home.join("segments")).unwrap();
    files.map(|file| file.unwrap().metadata().unwrap().blocks() * 512).sum()
}

#[test]
fn the_room_of_removed_chunks_comes_back_at_once_and_their_neighbours_stay() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open_with(home.path(), Settings { segment_bytes: 1 << 30, ..settings() });
    let all: Vec<_> = (0..60).map(|number| chunk(number, 50_000)).collect();
    for chunk in &all {
        put(&chunks, chunk);
    }
    chunks.flush().unwrap();
    let before = blocks(home.path());
    let (gone, left) = all.split_at(40);
    let removed = chunks.remove(&cids(gone)).unwrap();
    assert_eq!((removed.chunks, removed.bytes), (40, gone.iter().map(span).sum()));
    let after = blocks(home.path());
    assert!(after + removed.bytes <= before + 8192, "{before} bytes, then {after}");
    assert!(left.iter().all(|chunk| get(&chunks, chunk)));
    assert!(gone.iter().all(|chunk| !get(&chunks, chunk)));
    assert!(put(&chunks, &gone[3]) && get(&chunks, &gone[3]));
}

#[test]
fn a_sparse_segment_is_emptied_into_the_newest_and_deleted() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let all: Vec<_> = (0..40).map(|number| chunk(number, 8000)).collect();
    for chunk in &all {
        put(&chunks, chunk);
    }
    chunks.flush().unwrap();
    // Of the first segment two of eight stay, of the second five.
    let gone: Vec<_> = (2..8).chain(9..12).map(|i| all[i].clone()).collect();
    let left: Vec<_> = all.iter().filter(|c| !cids(&gone).contains(&c.cid)).collect();
    chunks.remove(&cids(&gone)).unwrap();
    assert_eq!(segments(home.path()).len(), 5);
    let done = chunks.compact().unwrap();
    assert_eq!(done, compact::Compacted { segments: 1, moved: 2 * span(&all[0]) });
    assert!(!home.path().join("segments/00000000.seg").exists());
    assert!(left.iter().all(|chunk| get(&chunks, chunk)));
    assert_eq!(chunks.compact().unwrap(), compact::Compacted::default());
    let live: u64 = left.iter().map(|chunk| span(chunk)).sum();
    assert_eq!(chunks.count().unwrap().live, live);
    drop(chunks);
    let chunks = open(home.path());
    assert!(left.iter().all(|chunk| get(&chunks, chunk)));
    assert_eq!(chunks.count().unwrap().live, live);
}

#[test]
fn readers_of_chunks_that_move_never_fail() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let kept: Vec<_> = (0..10).map(|number| chunk(number * 8, 8000)).collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    for round in 0..2 {
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(std::sync::atomic::Ordering::SeqCst) {
                        for chunk in kept.iter().filter(|chunk| chunks.has(&chunk.cid).unwrap()) {
                            assert!(get(&chunks, chunk), "it was there and is not");
                        }
                    }
                });
            }
            for turn in 0..8 {
                // Each of those that stay comes between seven that go, and none of them is put twice.
                for number in 0..80 {
                    let stays = number % 8 == 0;
                    let number = if stays { number } else { 1000 * (turn + 1) + number };
                    put(&chunks, &chunk(number + 100_000 * round * u32::from(!stays), 8000));
                }
                chunks.flush().unwrap();
                let gone = (0..80)
                    .filter(|number| number % 8 != 0)
                    .map(|number| chunk(1000 * (turn + 1) + number + 100_000 * round, 8000).cid);
                chunks.remove(&gone.collect::<Vec<_>>()).unwrap();
                while chunks.compact().unwrap().segments > 0 {}
            }
            done.store(true, std::sync::atomic::Ordering::SeqCst);
        });
        done.store(false, std::sync::atomic::Ordering::SeqCst);
    }
    assert!(kept.iter().all(|chunk| get(&chunks, chunk)));
    assert!(segments(home.path()).len() <= 4, "{:?}", segments(home.path()));
}

#[test]
fn a_crash_at_any_step_of_a_compaction_loses_nothing() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let all: Vec<_> = (0..16).map(|number| chunk(number, 8000)).collect();
    for chunk in &all {
        put(&chunks, chunk);
    }
    chunks.flush().unwrap();
    chunks.remove(&cids(&all[2..8])).unwrap();
    let left: Vec<_> = all.iter().take(2).chain(&all[8..]).collect();
    let whole = |home: &Path| {
        let chunks = open(home);
        assert!(left.iter().all(|chunk| get(&chunks, chunk)));
        while chunks.compact().unwrap().segments > 0 {}
        assert!(left.iter().all(|chunk| get(&chunks, chunk)));
        let live: u64 = left.iter().map(|chunk| span(chunk)).sum();
        assert_eq!(chunks.count().unwrap().live, live);
    };
    // Copied, not committed.
    let (cid, place) = chunks.shared.places_in(&[0]).unwrap()[0].1[0];
    assert!(chunks.move_chunk(&cid, place).unwrap() > 0);
    whole(crash(home.path()).path());
    // The index points to the copies; the old segment is still there.
    let (cid, place) = chunks.shared.places_in(&[0]).unwrap()[0].1[1];
    assert!(chunks.move_chunk(&cid, place).unwrap() > 0);
    chunks.flush().unwrap();
    assert_eq!(chunks.shared.lock().extents[&0].live, 0);
    whole(crash(home.path()).path());
    // Gone from the index, its file not deleted.
    let old = fs::read(home.path().join("segments/00000000.seg")).unwrap();
    chunks.compact().unwrap();
    let crashed = crash(home.path());
    let path = crashed.path().join("segments/00000000.seg");
    assert!(!path.exists());
    fs::write(&path, old).unwrap();
    whole(crashed.path());
    assert!(!path.exists());
}

#[test]
fn a_chunk_that_is_removed_while_it_moves_stays_removed() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let all: Vec<_> = (0..16).map(|number| chunk(number, 8000)).collect();
    for chunk in &all {
        put(&chunks, chunk);
    }
    chunks.flush().unwrap();
    let (cid, place) = chunks.shared.places_in(&[0]).unwrap()[0].1[0];
    assert!(chunks.move_chunk(&cid, place).unwrap() > 0);
    chunks.remove(&[cid]).unwrap();
    chunks.flush().unwrap();
    assert!(!chunks.has(&cid).unwrap());
    let live: u64 = all.iter().filter(|chunk| chunk.cid != cid).map(span).sum();
    assert_eq!(chunks.count().unwrap().live, live);
}

#[test]
fn what_a_transfer_has_looked_at_is_not_collected() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let all: Vec<_> = (0..4).map(|number| chunk(number, 1000)).collect();
    for chunk in &all[..3] {
        put(&chunks, chunk);
    }
    let hold = chunks.hold();
    assert!(chunks.has(&all[0].cid).unwrap());
    assert!(get(&chunks, &all[1]));
    assert!(put(&chunks, &all[3]));
    let removed = chunks.collect(&cids(&all)).unwrap();
    assert_eq!(removed.chunks, 1);
    let here = |i: usize| chunks.shared.place(&all[i].cid).unwrap().is_some();
    assert_eq!([0, 1, 2, 3].map(here), [true, true, false, true]);
    drop(hold);
    assert_eq!(chunks.collect(&cids(&all)).unwrap().chunks, 3);
}

#[test]
fn a_lost_index_is_made_again_from_the_segments() {
    let home = tempfile::tempdir().unwrap();
    let chunks = open(home.path());
    let all: Vec<_> = (0..40).map(|number| chunk(number, 8000)).collect();
    for chunk in &all {
        put(&chunks, chunk);
    }
    chunks.flush().unwrap();
    chunks.remove(&cids(&all[3..6])).unwrap();
    drop(chunks);
    fs::remove_dir_all(home.path().join("records")).unwrap();
    let before = segments(home.path());
    let chunks = open(home.path());
    assert_eq!(segments(home.path()), before, "nothing is thrown away");
    assert_eq!(chunks.unread().unwrap().len(), before.len());
    assert_eq!(chunks.compact().unwrap(), compact::Compacted::default());
    // New chunks are stored meanwhile, and what is found is not stored twice.
    assert!(put(&chunks, &all[0]));
    for segment in chunks.unread().unwrap() {
        chunks.read_again(segment, |_| ()).unwrap();
    }
    for (i, chunk) in all.iter().enumerate() {
        assert_eq!(get(&chunks, chunk), !(3..6).contains(&i), "{i}");
    }
    drop(chunks);
    let chunks = open(home.path());
    assert!(chunks.unread().unwrap().is_empty());
    assert!(get(&chunks, &all[39]));
}

#[test]
fn places_from_before_chunks_had_a_time_are_read() {
    let place = Place { segment: 1, offset: 2, len: 3, born: 4 };
    assert_eq!(Place::from_bytes(&place.to_bytes()), Some(place));
    assert_eq!(Place::from_bytes(&place.to_bytes()[..12]), Some(Place { born: 0, ..place }));
    assert_eq!(Place::from_bytes(&place.to_bytes()[..13]), None);
    for unread in [false, true] {
        let extent = Extent { committed: 5, live: 6, unread };
        assert_eq!(Extent::from_bytes(&extent.to_bytes()), Some(extent));
    }
}

/// What may happen to a store.
#[derive(Clone, Debug)]
enum Act {
    Put(u8),
    Get(u8),
    Flush,
    Remove(Vec<u8>),
    Collect(Vec<u8>),
    Compact,
    Hold,
    LetGo,
    Crash,
    Rot(u8),
}

fn act() -> impl proptest::strategy::Strategy<Value = Act> {
    use proptest::prelude::*;
    let one = || 0..24_u8;
    let some = || prop::collection::vec(0..24_u8, 1..8);
    prop_oneof![
        6 => one().prop_map(Act::Put),
        4 => one().prop_map(Act::Get),
        3 => Just(Act::Flush),
        2 => some().prop_map(Act::Remove),
        3 => some().prop_map(Act::Collect),
        3 => Just(Act::Compact),
        1 => Just(Act::Hold),
        1 => Just(Act::LetGo),
        2 => Just(Act::Crash),
        1 => one().prop_map(Act::Rot),
    ]
}

/// A store beside what must be true of it.
struct Model {
    home: tempfile::TempDir,
    chunks: Option<Chunks>,
    hold: Option<Hold>,
    /// Chunks that were put and not removed since.
    here: HashSet<u8>,
    /// Those of them that no crash may take.
    durable: HashSet<u8>,
    /// Those that were looked at under the hold.
    held: HashSet<u8>,
    rotten: HashSet<u8>,
}

impl Model {
    fn chunks(&self) -> &Chunks {
        self.chunks.as_ref().unwrap()
    }

    fn all(numbers: &[u8]) -> Vec<ChunkId> {
        numbers.iter().map(|number| Self::chunk(*number).cid).collect()
    }

    fn chunk(number: u8) -> SealedChunk {
        chunk(number.into(), 700 + 311 * usize::from(number))
    }

    fn look(&mut self, number: u8) {
        if self.hold.is_some() {
            self.held.insert(number);
        }
    }

    fn gone(&mut self, number: u8) {
        self.here.remove(&number);
        self.durable.remove(&number);
        self.rotten.remove(&number);
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Put(number) => {
                let new = put(self.chunks(), &Self::chunk(number));
                assert_eq!(new, self.here.insert(number));
                self.look(number);
            }
            Act::Get(number) => {
                let whole = self.here.contains(&number) && !self.rotten.contains(&number);
                assert_eq!(get(self.chunks(), &Self::chunk(number)), whole, "{number}");
                self.look(number);
                if !whole {
                    self.gone(number);
                }
            }
            Act::Flush => {
                self.chunks().flush().unwrap();
                self.durable = self.here.clone();
            }
            Act::Remove(numbers) => {
                self.chunks().remove(&Self::all(&numbers)).unwrap();
                numbers.iter().for_each(|number| self.gone(*number));
                self.durable = self.here.clone();
            }
            Act::Collect(numbers) => {
                self.chunks().collect(&Self::all(&numbers)).unwrap();
                let held = self.held.clone();
                numbers.iter().filter(|n| !held.contains(n)).for_each(|n| self.gone(*n));
                self.durable = self.here.clone();
            }
            Act::Compact => {
                self.chunks().compact().unwrap();
                // It looks at what it moves, and forgets what is rotten.
                for number in self.rotten.clone() {
                    if !self.chunks().has(&Self::chunk(number).cid).unwrap() {
                        self.gone(number);
                    }
                    self.look(number);
                }
                self.durable = self.here.clone();
            }
            Act::Hold => self.hold = Some(self.hold.take().unwrap_or_else(|| self.chunks().hold())),
            Act::LetGo => {
                self.hold = None;
                self.held.clear();
            }
            Act::Crash => self.crash(),
            Act::Rot(number) => self.rot(number),
        }
    }

    fn crash(&mut self) {
        let crashed = crash(self.home.path());
        (self.hold, self.chunks) = (None, None);
        self.chunks = Some(open(crashed.path()));
        self.home = crashed;
        self.held.clear();
        for number in self.here.clone() {
            if !self.durable.contains(&number)
                && self.chunks().shared.place(&Self::chunk(number).cid).unwrap().is_none()
            {
                self.gone(number);
            }
        }
        // Without any commit before the crash nothing was promised; what is found again may come later.
        self.durable = self.here.clone();
    }

    /// A byte of a chunk on the disk is no longer what it was.
    fn rot(&mut self, number: u8) {
        let place = self.chunks().shared.place(&Self::chunk(number).cid).unwrap();
        let Some(place) = place.filter(|_| !self.rotten.contains(&number)) else { return };
        let path = self.chunks().shared.path(place.segment);
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let at = u64::from(place.offset) + HEADER + 9;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
        self.rotten.insert(number);
    }

    fn check(&self) {
        let live: u64 = self.here.iter().map(|number| span(&Self::chunk(*number))).sum();
        for number in 0..24 {
            let there = self.chunks().shared.place(&Self::chunk(number).cid).unwrap();
            assert_eq!(there.is_some(), self.here.contains(&number), "{number}");
        }
        if self.chunks().unread().unwrap().is_empty() {
            assert_eq!(self.chunks().count().unwrap().live, live);
        }
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 48, ..Default::default() })]
    #[test]
    fn nothing_durable_or_held_is_ever_lost_and_nothing_wrong_is_ever_returned(
        acts in proptest::collection::vec(act(), 1..60),
    ) {
        let home = tempfile::tempdir().unwrap();
        let small = Settings { segment_bytes: 16 << 10, ..settings() };
        let chunks = Some(open_with(home.path(), small));
        let mut model = Model {
            home,
            chunks,
            hold: None,
            here: HashSet::new(),
            durable: HashSet::new(),
            held: HashSet::new(),
            rotten: HashSet::new(),
        };
        for act in acts {
            model.act(act);
        }
        model.check();
    }
}
