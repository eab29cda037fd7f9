//! Files that are taken again: what is remembered of them, what is believed, what is forgotten.

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use meshfarm_protocol::id::TenantId;
use meshfarm_protocol::manifest::{Body, Entry, Reader, RootLink};
use meshfarm_protocol::seal::{COMPRESSED, Sealer};

use super::source::Found;
use super::*;
use crate::chunks::Settings;
use crate::content::tests::lay_out;
use crate::content::tree::Files;
use crate::store::Family;

const LIMITS: Limits = Limits::granting(1 << 40);
const DAY: u64 = 86_400_000;

/// An hour after everything here was written.
fn later() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap() + 3_600_000
}

struct Site {
    folder: tempfile::TempDir,
    store: Arc<Store>,
    chunks: Chunks,
    secret: TenantSecret,
    created: u64,
    compress: bool,
}

impl Site {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(Store::open(&folder.path().join("records")).unwrap());
        let quiet = Settings::new(|_| Ok(u64::MAX), crate::sys::punch_hole, || Millis(7000));
        let settings = Settings { keep_free: 0, ..quiet };
        let chunks =
            Chunks::open(&folder.path().join("segments"), store.clone(), settings).unwrap();
        let secret = TenantSecret::new(TenantId([1; 16]), 1, [1; 32]);
        Self { folder, store, chunks, secret, created: later(), compress: false }
    }

    fn ingest(&self) -> Ingest<'_> {
        let (chunks, secret, created) = (&self.chunks, &self.secret, Millis(self.created));
        Ingest { chunks, secret, cutting: Cutting::ByContent, created, limits: LIMITS }
    }

    fn take(&self, files: &[&Path]) -> RootLink {
        let savings = Savings { records: Some(&self.store), compress: self.compress };
        let inputs = files.iter().map(|file| Input {
            path: format!("r0/{}", file.file_name().unwrap().to_str().unwrap()),
            source: Source::File((*file).to_owned()),
        });
        let on_progress = |_| ControlFlow::Continue(());
        self.ingest().run_saving(savings, inputs.collect(), on_progress).unwrap().link
    }

    fn entries(&self, link: &RootLink) -> Vec<Entry> {
        let fetch = |cid: &_| Ok::<_, ContentError>(self.chunks.get(cid)?.unwrap());
        let mut reader = Reader::new(link, LIMITS, fetch).unwrap();
        let mut entries = Vec::new();
        while let Some(file) = reader.next_file().unwrap() {
            while let (Body::Chunks(_), Some(entry)) = (&file.body, reader.next_entry().unwrap()) {
                entries.push(entry);
            }
        }
        entries
    }

    /// The files of a manifest, as they are written.
    fn contents(&self, link: &RootLink) -> Vec<Vec<u8>> {
        let into = tempfile::tempdir().unwrap();
        let files = Files { chunks: &self.chunks, link: link.clone(), limits: LIMITS };
        let paths = files.paths().unwrap();
        lay_out(files, &into.path().join("x")).unwrap();
        paths.iter().map(|path| fs::read(into.path().join("x").join(path)).unwrap()).collect()
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn n_records(&self) -> usize {
        let mut n = 0;
        let count = |_: &[u8], _: &[u8]| {
            n += 1;
            ControlFlow::Continue(())
        };
        self.store.scan(Family::Stat, &[], count).unwrap();
        n
    }
}

fn stamp(path: &Path) -> Stamp {
    Found::of(&fs::metadata(path).unwrap()).stamp.unwrap()
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(step).flatten().take(len).collect()
}

#[test]
fn a_file_that_did_not_change_is_not_read_again_and_one_that_did_is() {
    let site = Site::new();
    for len in [5_000, 5_000_000] {
        let (one, other) = (noise(1, len), noise(2, len));
        let (a, b) = (site.file("a", &one), site.file("b", &other));
        let of_b = site.entries(&site.take(&[&b]));
        site.take(&[&a]);
        // What is remembered of the one file is replaced by the chunks of the other: whoever reads the
        // file would notice.
        let ingest = site.ingest();
        let memory = Memory::new(&site.store, &ingest);
        let mut draft = memory.draft();
        draft.file(&stamp(&a), &of_b).unwrap();
        draft.write().unwrap();
        assert!(site.contents(&site.take(&[&a])) == [other], "it was read");

        fs::File::options().append(true).open(&a).unwrap().set_modified(UNIX_EPOCH).unwrap();
        assert!(site.contents(&site.take(&[&a])) == [one], "it was not read");
    }
}

#[test]
fn bytes_that_were_sealed_before_are_not_sealed_again() {
    let site = Site::new();
    let (one, other) = (noise(1, 60_000), noise(2, 60_000));
    let (a, b) = (site.file("a", &one), site.file("b", &other));
    let of_b = site.entries(&site.take(&[&b])).remove(0);
    let ingest = site.ingest();
    let memory = Memory::new(&site.store, &ingest);
    let sealer = Sealer::new(site.secret.chunks());
    let mut draft = memory.draft();
    draft.chunk(&memory.chunk_name(sealer.key(&one).key()), &of_b).unwrap();
    draft.write().unwrap();
    assert!(site.contents(&site.take(&[&a])) == [other], "it was sealed");
}

#[test]
fn a_file_that_was_changed_a_moment_ago_is_not_trusted() {
    let mut site = Site::new();
    let a = site.file("a", &noise(1, 50_000));
    let known = |site: &Site| {
        let ingest = site.ingest();
        Memory::new(&site.store, &ingest).file(&stamp(&a)).unwrap().is_some()
    };
    site.created -= 3_600_000;
    site.take(&[&a]);
    assert!(!known(&site));
    site.created += 3_600_000;
    site.take(&[&a]);
    assert!(known(&site));
}

#[test]
fn a_list_that_names_a_lost_chunk_is_not_used() {
    let site = Site::new();
    let contents = noise(1, 3_000_000);
    let a = site.file("a", &contents);
    let link = site.take(&[&a]);
    let lost = site.entries(&link).remove(2);
    site.chunks.remove(&[lost.cid]).unwrap();
    assert!(!site.chunks.has(&lost.cid).unwrap());
    let again = site.take(&[&a]);
    assert_eq!(again, link);
    assert!(site.contents(&again) == [contents]);
}

#[test]
fn another_tenant_epoch_or_way_of_cutting_finds_nothing() {
    let mut site = Site::new();
    let a = site.file("a", &noise(1, 50_000));
    site.take(&[&a]);
    let known =
        |ingest: &Ingest<'_>| Memory::new(&site.store, ingest).file(&stamp(&a)).unwrap().is_some();
    assert!(known(&site.ingest()));
    assert!(!known(&Ingest { cutting: Cutting::Fixed, ..site.ingest() }));
    for secret in [
        TenantSecret::new(TenantId([1; 16]), 2, [1; 32]),
        TenantSecret::new(TenantId([2; 16]), 1, [2; 32]),
    ] {
        assert!(!known(&Ingest { secret: &secret, ..site.ingest() }));
    }
    site.secret = TenantSecret::new(TenantId([1; 16]), 2, [1; 32]);
    site.take(&[&a]);
}

#[test]
fn a_thief_of_the_records_reads_no_key_address_or_number_in_them() {
    let site = Site::new();
    let a = site.file("a", &noise(1, 3_000_000));
    let entries = site.entries(&site.take(&[&a]));
    let stamp = stamp(&a);
    let mut needles = vec![stamp.ino.to_be_bytes().to_vec(), stamp.ino.to_le_bytes().to_vec()];
    for entry in &entries {
        needles.extend([entry.cid.0[..8].to_vec(), entry.key.0[..8].to_vec()]);
    }
    let mut n = 0;
    let look = |key: &[u8], value: &[u8]| {
        n += 1;
        for bytes in [key, value] {
            let holds = |needle: &Vec<u8>| bytes.windows(8).any(|window| window == needle);
            assert!(!needles.iter().any(holds), "a record tells");
        }
        ControlFlow::Continue(())
    };
    site.store.scan(Family::Stat, &[], look).unwrap();
    assert!(n > entries.len(), "{n} records");
}

#[test]
fn what_is_not_seen_for_long_is_forgotten_and_what_is_in_use_is_not() {
    let mut site = Site::new();
    let (a, b) = (site.file("a", &noise(1, 50_000)), site.file("b", &noise(2, 50_000)));
    site.take(&[&a, &b]);
    assert_eq!(site.n_records(), 5);
    for _ in 0..5 {
        site.created += 8 * DAY;
        site.take(&[&a]);
    }
    // Only the file that was seen, and when it was looked. Its chunk was not asked for.
    let ingest = site.ingest();
    let memory = Memory::new(&site.store, &ingest);
    assert!(memory.file(&stamp(&a)).unwrap().is_some());
    assert!(memory.file(&stamp(&b)).unwrap().is_none());
    assert_eq!(site.n_records(), 2);
}

#[test]
fn a_long_list_stands_in_several_records() {
    let site = Site::new();
    let one = site.entries(&site.take(&[&site.file("a", &noise(1, 2_000))])).remove(0);
    let entries = vec![one; 20_000];
    let stamp = Stamp { size: 40_000_000, ..stamp(&site.file("huge", b"")) };
    let ingest = site.ingest();
    let memory = Memory::new(&site.store, &ingest);
    let mut draft = memory.draft();
    draft.file(&stamp, &entries).unwrap();
    draft.write().unwrap();
    let mut longest = 0;
    let look = |_: &[u8], value: &[u8]| {
        longest = longest.max(value.len());
        ControlFlow::Continue(())
    };
    site.store.scan(Family::Stat, b"f", look).unwrap();
    assert!((500_000..1 << 20).contains(&longest), "{longest}");
    assert!(memory.file(&stamp).unwrap().unwrap().what == entries);
    let shorter = Stamp { size: 39_998_000, ..stamp };
    assert!(memory.file(&shorter).unwrap().is_none());
}

#[test]
fn what_compresses_is_stored_short_and_written_as_it_was() {
    let site = Site::new();
    let text: Vec<u8> = (0..200_000).flat_map(|n| format!("v {n} 0.5\n").into_bytes()).collect();
    let (scene, image) = (site.file("a.usda", &text), site.file("b.exr", &noise(1, 3_000_000)));
    let small = site.file("c.json", &text[..5_000]);
    let sealed = |site: &Site, entries: &[Entry]| -> usize {
        entries.iter().map(|entry| site.chunks.get(&entry.cid).unwrap().unwrap().len()).sum()
    };
    let plain = site.entries(&site.take(&[&scene]));
    assert!(plain.iter().all(|entry| entry.flags == 0) && sealed(&site, &plain) > text.len());

    let mut site = Site::new();
    site.compress = true;
    let link = site.take(&[&scene, &image, &small]);
    let contents = [text.clone(), fs::read(&image).unwrap(), text[..5_000].to_vec()];
    assert!(site.contents(&link) == contents);
    let entries = site.entries(&link);
    let packed: Vec<_> =
        entries.iter().filter(|entry| entry.flags == COMPRESSED).cloned().collect();
    let len: u64 = packed.iter().map(|entry| u64::from(entry.len)).sum();
    assert_eq!(len, text.len() as u64 + 5_000);
    assert!(sealed(&site, &packed) * 2 < text.len(), "{}", sealed(&site, &packed));
}

#[test]
fn more_than_is_allowed_is_refused_before_it_is_read() {
    let site = Site::new();
    let a = site.file("a", &noise(1, 50_000));
    let ingest = Ingest { limits: Limits::granting(49_999), ..site.ingest() };
    let inputs = vec![Input { path: "r0/a".into(), source: Source::File(a) }];
    let error = ingest.run(inputs, |progress| panic!("{progress:?} though refused")).unwrap_err();
    assert!(matches!(error, ContentError::Manifest(_)), "{error}");
}
