//! Trees that travel: taken, planned, fetched, written and landed.

mod hostile;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshfarm_core::transfer::{RUN, Run};
use meshfarm_protocol::id::{Millis, TenantId};
use meshfarm_protocol::manifest::build::Built;
use meshfarm_protocol::manifest::{Limits, RootLink};
use meshfarm_protocol::seal::TenantSecret;

use super::ingest::{Cutting, Ingest, Input, Progress, Source};
use super::plan::Plan;
use super::tree::{Files, Written};
use super::unpack::{Held, Late, Unpack};
use super::*;
use crate::arrivals::Arrivals;
use crate::chunks::{Chunks, Settings};
use crate::store::Store;

const LIMITS: Limits = Limits::granting(1 << 40);

struct Site {
    home: tempfile::TempDir,
    chunks: Chunks,
}

impl Site {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let chunks = Self::open(home.path());
        Self { home, chunks }
    }

    fn open(home: &Path) -> Chunks {
        let store = Arc::new(Store::open(&home.join("records")).unwrap());
        let settings = Settings {
            keep_free: 0,
            ..Settings::new(|_| Ok(u64::MAX), crate::sys::punch_hole, || Millis(7000))
        };
        Chunks::open(&home.join("segments"), store, settings).unwrap()
    }

    fn ingest(&self, inputs: Vec<Input>) -> Result<Built, ContentError> {
        self.ingest_watched(inputs, |_| ControlFlow::Continue(()))
    }

    fn ingest_watched(
        &self,
        inputs: Vec<Input>,
        on_progress: impl FnMut(Progress) -> ControlFlow<()> + Send,
    ) -> Result<Built, ContentError> {
        let secret = TenantSecret::new(TenantId([1; 16]), 1, [1; 32]);
        let cutting = Cutting::ByContent;
        let (chunks, created) = (&self.chunks, Millis(0));
        let ingest = Ingest { chunks, secret: &secret, cutting, created, limits: LIMITS };
        ingest.run(inputs, on_progress)
    }

    fn files(&self, link: &RootLink) -> Files<'_> {
        Files { chunks: &self.chunks, link: link.clone(), limits: LIMITS }
    }

    /// Fetches the nodes of a manifest.
    fn fetch_nodes(&self, from: &Self, link: &RootLink) {
        let mut plan = Plan::new(link.clone(), LIMITS);
        loop {
            let wanted = plan.next(&self.chunks, 100).unwrap();
            if wanted.is_empty() {
                return;
            }
            for cid in wanted {
                self.chunks.put(&cid, &from.chunks.get(&cid).unwrap().unwrap()).unwrap();
                plan.stored(&cid);
            }
        }
    }

    /// Lays out what is here.
    fn lay_out(&self, link: &RootLink, into: &Path) -> Result<Written, ContentError> {
        lay_out(self.files(link), into)
    }

    /// Fetches from another site until nothing is missing or `max` chunks came. Returns how many.
    fn fetch(&self, from: &Self, link: &RootLink, max: usize) -> usize {
        let mut plan = Plan::new(link.clone(), LIMITS);
        let mut asked = HashSet::new();
        let mut bring = |cid| {
            assert!(asked.insert(cid), "asked twice");
            let bytes = from.chunks.get(&cid).unwrap().expect("the source has all of it");
            assert!(self.chunks.put(&cid, &bytes).unwrap());
            asked.len()
        };
        let mut n = 0;
        while n < max {
            let wanted = plan.next(&self.chunks, 7.min(max - n)).unwrap();
            if wanted.is_empty() {
                break;
            }
            for cid in wanted {
                n = bring(cid);
                plan.stored(&cid);
            }
        }
        let Some(contents) = plan.contents() else {
            return n;
        };
        for run in 0..contents.n_runs() {
            let lacking = contents.lacking(&self.chunks, Run(run)).unwrap();
            for (cid, _) in lacking.into_iter().take(max - n) {
                n = bring(cid);
            }
        }
        n
    }
}

/// Lays out what is here of some files.
pub(super) fn lay_out(files: Files<'_>, into: &Path) -> Result<Written, ContentError> {
    let arrivals = Arrivals::default();
    arrivals.end();
    Unpack { files, arrivals: &arrivals, threads: 3 }.run(into, None)
}

/// Bytes that look random and differ for each seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn bytes(path: &str, bytes: Vec<u8>) -> Input {
    Input { path: path.to_owned(), source: Source::Bytes(bytes) }
}

fn file(path: &str, file: &Path) -> Input {
    Input { path: path.to_owned(), source: Source::File(file.to_owned()) }
}

fn scene() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("r0/shot.blend", noise(1, 3_500_000)),
        ("r0/empty", Vec::new()),
        ("r0/note.txt", b"one frame only".to_vec()),
        ("r0/tex/a/wood.png", noise(2, 300_000)),
        ("r0/tex/wood copy.png", noise(2, 300_000)),
        ("r0/tex/edge", noise(3, 1024)),
        ("r0/tex/below", noise(3, 1023)),
        ("r1/cache/one.vdb", noise(4, 1 << 20)),
        ("r1/cache/two.vdb", noise(5, (1 << 20) + 1)),
    ]
}

fn inputs(files: &[(&str, Vec<u8>)]) -> Vec<Input> {
    files.iter().map(|(path, contents)| bytes(path, contents.clone())).collect()
}

#[test]
fn a_tree_is_taken_fetched_elsewhere_and_written_as_it_was() {
    let (lender, borrower, target) = (Site::new(), Site::new(), tempfile::tempdir().unwrap());
    let scene = scene();
    let built = borrower.ingest(inputs(&scene)).unwrap();
    assert_eq!(built.n_files, 9);
    assert_eq!(built.bytes, scene.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
    lender.fetch(&borrower, &built.link, usize::MAX);

    let into = target.path().join("job");
    let written = lender.lay_out(&built.link, &into).unwrap();
    assert_eq!(written, Written { files: 9, bytes: built.bytes });
    for (path, contents) in &scene {
        assert!(fs::read(into.join(path)).unwrap() == *contents, "{path}");
    }
    assert_eq!(fs::metadata(&into).unwrap().permissions().mode() & 0o777, 0o700);
    let again = lender.lay_out(&built.link, &into).unwrap_err();
    assert!(matches!(again, ContentError::Target { .. }), "nothing is replaced: {again}");
}

/// Hands the missing chunks of a manifest over one by one, in an order of its own, and says so.
fn trickle(from: &Site, to: &Site, link: &RootLink, arrivals: &Arrivals) {
    let mut plan = Plan::new(link.clone(), LIMITS);
    assert!(plan.next(&to.chunks, 1000).unwrap().is_empty(), "the nodes are here");
    let contents = plan.contents().unwrap();
    let runs = (0..contents.n_runs()).map(Run);
    let wanted: Vec<_> = runs.flat_map(|run| contents.lacking(&to.chunks, run).unwrap()).collect();
    for (cid, _) in wanted.into_iter().rev() {
        to.chunks.put(&cid, &from.chunks.get(&cid).unwrap().unwrap()).unwrap();
        arrivals.some();
        std::thread::yield_now();
    }
    arrivals.end();
}

#[test]
fn a_tree_is_laid_out_while_its_chunks_arrive() {
    let (lender, borrower, target) = (Site::new(), Site::new(), tempfile::tempdir().unwrap());
    let mut scene = scene();
    scene.push(("r1/cache/huge.vdb", noise(6, 21_000_000)));
    let built = borrower.ingest(inputs(&scene)).unwrap();
    lender.fetch_nodes(&borrower, &built.link);
    let (into, arrivals) = (target.path().join("job"), Arrivals::default());
    let unpack = Unpack { files: lender.files(&built.link), arrivals: &arrivals, threads: 4 };

    let written = std::thread::scope(|scope| {
        let laid = scope.spawn(|| unpack.run(&into, None));
        trickle(&borrower, &lender, &built.link, &arrivals);
        laid.join().unwrap().unwrap()
    });

    assert_eq!(written, Written { files: 10, bytes: built.bytes });
    for (path, contents) in &scene {
        assert!(fs::read(into.join(path)).unwrap() == *contents, "{path}");
    }
}

#[test]
fn a_fetch_that_ends_too_early_ends_the_layout_and_wakes_every_thread() {
    let (lender, borrower, target) = (Site::new(), Site::new(), tempfile::tempdir().unwrap());
    let built = borrower.ingest(inputs(&scene())).unwrap();
    lender.fetch_nodes(&borrower, &built.link);
    let arrivals = Arrivals::default();
    let unpack = Unpack { files: lender.files(&built.link), arrivals: &arrivals, threads: 4 };
    let error = std::thread::scope(|scope| {
        let laid = scope.spawn(|| unpack.run(&target.path().join("job"), None));
        arrivals.some();
        arrivals.end();
        laid.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, ContentError::Missing(_)), "{error}");
}

#[test]
fn what_may_come_late_has_a_placeholder_until_it_is_whole() {
    let (lender, borrower, target) = (Site::new(), Site::new(), tempfile::tempdir().unwrap());
    let scene = scene();
    let built = borrower.ingest(inputs(&scene)).unwrap();
    lender.fetch_nodes(&borrower, &built.link);
    let names = borrower.files(&built.link).paths().unwrap();
    let late_name = "r1/cache/two.vdb";
    let which = [names.iter().position(|name| name == late_name).unwrap() as u64].into();
    let into = target.path().join("job");
    let arrivals = Arrivals::default();
    let (placed, seen) = (std::sync::Mutex::new(Vec::new()), std::sync::Mutex::new(None));
    let old = |late: &Path| {
        assert_eq!(fs::metadata(late).unwrap().len(), (1 << 20) + 1);
        placed.lock().unwrap().push(late.to_owned());
    };
    let enough = || {
        for (path, contents) in scene.iter().filter(|(path, _)| *path != late_name) {
            assert!(fs::read(into.join(path)).unwrap() == *contents, "{path}");
        }
        let about = fs::metadata(into.join(late_name)).unwrap();
        *seen.lock().unwrap() = Some((about.len(), about.ino()));
    };
    let aside = target.path().join("aside");
    let none = Held { which: &BTreeSet::new(), close: &|_, _| false, open: &|_, _| {} };
    let late = Late { which: &which, aside: &aside, placed: &old, enough: &enough, held: none };
    let unpack = Unpack { files: lender.files(&built.link), arrivals: &arrivals, threads: 2 };

    std::thread::scope(|scope| {
        let laid = scope.spawn(|| unpack.run(&into, Some(&late)));
        trickle(&borrower, &lender, &built.link, &arrivals);
        laid.join().unwrap().unwrap()
    });

    assert_eq!(*placed.lock().unwrap(), [into.join(late_name)]);
    let (len, ino) = seen.lock().unwrap().expect("it was said that enough is here");
    let about = fs::metadata(into.join(late_name)).unwrap();
    assert_eq!(len, about.len());
    assert_ne!(ino, about.ino(), "the placeholder is replaced, not written into");
    assert!(fs::read(into.join(late_name)).unwrap() == noise(5, (1 << 20) + 1));
    assert_eq!(fs::read_dir(&aside).unwrap().count(), 0);
}

#[test]
fn a_file_that_is_held_can_be_opened_when_it_is_whole_and_not_before() {
    let (lender, borrower, target) = (Site::new(), Site::new(), tempfile::tempdir().unwrap());
    let scene = scene();
    let built = borrower.ingest(inputs(&scene)).unwrap();
    lender.fetch(&borrower, &built.link, usize::MAX);
    let names = borrower.files(&built.link).paths().unwrap();
    let held_name = "r1/cache/two.vdb";
    let held = [names.iter().position(|name| name == held_name).unwrap() as u64].into();
    let (into, arrivals) = (target.path().join("job"), Arrivals::default());
    arrivals.end();
    let path = into.join(held_name);
    let (go_tx, go) = std::sync::mpsc::channel();
    let enough = || {
        for (path, contents) in scene.iter().filter(|(path, _)| *path != held_name) {
            assert!(fs::read(into.join(path)).unwrap() == *contents, "{path}");
        }
        let about = fs::metadata(&path).unwrap();
        assert_eq!((about.len(), about.blocks()), ((1 << 20) + 1, 0), "only its place is held");
        go_tx.send(()).unwrap();
    };
    let close = |file: &fs::File, at: &Path| {
        assert_eq!(at, path);
        crate::sys::keep_closed(file).is_ok()
    };
    let open = |file: &fs::File, _: &Path| crate::sys::let_open(file).unwrap();
    let held = Held { which: &held, close: &close, open: &open };
    let (which, aside) = (&BTreeSet::new(), &target.path().join("aside"));
    let late = Late { which, aside, placed: &|_| {}, enough: &enough, held };
    let unpack = Unpack { files: lender.files(&built.link), arrivals: &arrivals, threads: 2 };

    let read = std::thread::scope(|scope| {
        let path = &path;
        let reader = scope.spawn(move || {
            go.recv().unwrap();
            fs::read(path).unwrap()
        });
        let written = unpack.run(&into, Some(&late)).unwrap();
        assert_eq!(written, Written { files: 9, bytes: built.bytes });
        reader.join().unwrap()
    });

    assert!(read == noise(5, (1 << 20) + 1));
}

#[test]
fn dates_and_the_executable_bit_travel_and_no_other_mode_does() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    let (tool, data) = (folder.path().join("tool"), folder.path().join("data"));
    fs::write(&tool, noise(1, 5000)).unwrap();
    fs::write(&data, "data").unwrap();
    fs::set_permissions(&tool, fs::Permissions::from_mode(0o6755)).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o666)).unwrap();
    let date = std::time::UNIX_EPOCH + Duration::from_millis(1_234_567_890_123);
    fs::File::options().write(true).open(&data).unwrap().set_modified(date).unwrap();
    let built = site.ingest(vec![file("r0/tool", &tool), file("r0/data", &data)]).unwrap();
    let into = folder.path().join("into");
    site.lay_out(&built.link, &into).unwrap();
    let about = |name| fs::metadata(into.join("r0").join(name)).unwrap();
    assert_eq!(about("tool").permissions().mode() & 0o7700, 0o700);
    assert_eq!(about("data").permissions().mode() & 0o7700, 0o600);
    assert_eq!(about("data").modified().unwrap(), date);
}

#[test]
fn a_transfer_that_was_cut_goes_on_where_it_stopped() {
    let (from, to) = (Site::new(), Site::new());
    let built = from.ingest(inputs(&scene())).unwrap();
    let all = Site::new().fetch(&from, &built.link, usize::MAX);
    let half = to.fetch(&from, &built.link, all / 2);
    assert_eq!(half, all / 2);
    let Site { home, chunks } = to;
    drop(chunks);
    let to = Site { chunks: Site::open(home.path()), home };
    assert_eq!(to.fetch(&from, &built.link, usize::MAX), all - half);
    assert_eq!(to.fetch(&from, &built.link, usize::MAX), 0);
    assert!(to.home.path().join("segments").exists());
}

#[test]
fn a_plan_asks_again_for_what_did_not_arrive_and_for_nodes_before_chunks() {
    let (from, to) = (Site::new(), Site::new());
    let built = from.ingest(inputs(&scene())).unwrap();
    let mut plan = Plan::new(built.link.clone(), LIMITS);
    assert_eq!(plan.next(&to.chunks, 10).unwrap(), [built.link.cid]);
    assert!(plan.next(&to.chunks, 10).unwrap().is_empty() && !plan.is_done());
    assert_eq!(plan.n_asked(), 1);
    plan.retry(&built.link.cid);
    plan.retry(&built.link.cid);
    assert_eq!(plan.next(&to.chunks, 10).unwrap(), [built.link.cid]);
    let sealed = from.chunks.get(&built.link.cid).unwrap().unwrap();
    to.chunks.put(&built.link.cid, &sealed).unwrap();
    plan.stored(&built.link.cid);
    let tops = plan.next(&to.chunks, 10).unwrap();
    assert_eq!(tops.len(), 2, "the tops of both trees");
    plan.retry_all();
    let mut again = plan.next(&to.chunks, 10).unwrap();
    again.sort();
    assert_eq!(again, BTreeSet::from_iter(tops).into_iter().collect::<Vec<_>>());
    assert!(plan.contents().is_none(), "nodes are missing");
}

#[test]
fn the_runs_of_some_files_are_found_and_only_what_they_lack_is_listed() {
    let (from, to) = (Site::new(), Site::new());
    let files = inputs(&[("r0/a", noise(1, 9_000_000)), ("r0/b", noise(2, 30_000_000))]);
    let built = from.ingest(files).unwrap();
    let n_chunks = built.n_chunks;
    let all = Site::new().fetch(&from, &built.link, usize::MAX);
    let n_nodes = all - usize::try_from(n_chunks).unwrap();
    to.fetch(&from, &built.link, n_nodes + 2);
    let mut plan = Plan::new(built.link.clone(), LIMITS);
    assert!(plan.next(&from.chunks, 10).unwrap().is_empty(), "every node is here");
    let contents = plan.contents().unwrap();
    assert_eq!(contents.bytes(), 39_000_000);
    assert_eq!(u64::from(contents.n_runs()), n_chunks.div_ceil(RUN));
    let last = n_chunks - 1;
    let runs = contents.runs_of(&[last..last + 9, 0..1, 0..40, 7..7]);
    assert_eq!(runs, [contents.n_runs() - 1, 0, 1].map(Run));
    let lacking = |site: &Site, run| contents.lacking(&site.chunks, run).unwrap();
    assert!(lacking(&from, runs[0]).is_empty());
    let all: u64 = (0..contents.n_runs()).map(|run| lacking(&to, Run(run)).len() as u64).sum();
    assert_eq!(all, n_chunks - 2);
}

#[test]
fn what_little_content_unpacks_to_is_known_before_anything_is_written() {
    let site = Site::new();
    let same = noise(7, 300_000);
    let files = ["r0/a", "r0/b", "r0/c"].map(|path| bytes(path, same.clone()));
    let built = site.ingest(files.to_vec()).unwrap();
    assert_eq!(site.files(&built.link).head().unwrap().bytes, 900_000);
}

#[test]
fn a_manifest_beyond_the_grant_is_refused_after_its_root() {
    let (from, to) = (Site::new(), Site::new());
    let built = from.ingest(inputs(&scene())).unwrap();
    let sealed = from.chunks.get(&built.link.cid).unwrap().unwrap();
    to.chunks.put(&built.link.cid, &sealed).unwrap();
    let mut plan = Plan::new(built.link, Limits::granting(built.bytes - 1));
    let error = plan.next(&to.chunks, 10).unwrap_err();
    assert!(matches!(error, ContentError::Manifest(_)), "{error}");
}

#[test]
fn an_edit_in_the_middle_of_a_file_changes_few_chunks() {
    let (from, to) = (Site::new(), Site::new());
    let mut contents = noise(9, 12_000_000);
    let first = from.ingest(vec![bytes("r0/a", contents.clone())]).unwrap();
    let all = to.fetch(&from, &first.link, usize::MAX);
    let middle = contents.len() / 2;
    drop(contents.splice(middle..middle, *b"inserted"));
    let second = from.ingest(vec![bytes("r0/b/renamed", contents)]).unwrap();
    let fresh = to.fetch(&from, &second.link, usize::MAX);
    assert!(all > 25 && fresh <= 6, "{fresh} of {all}");
}

#[test]
fn a_source_that_is_absent_or_no_file_is_named() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    for path in [folder.path().join("absent.png"), folder.path().to_owned()] {
        let error = site.ingest(vec![file("r0/a", &path)]).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn a_source_that_changes_while_it_is_read_is_named() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    let path = folder.path().join("a.vdb");
    let contents = noise(1, 9_000_000);
    for act in ["grow", "shrink", "touch"] {
        fs::write(&path, &contents).unwrap();
        let mut done = false;
        let error = site
            .ingest_watched(vec![file("r0/a", &path)], |progress| {
                if !done && progress.bytes_done > 0 {
                    done = true;
                    let open = || fs::File::options().append(true).open(&path).unwrap();
                    match act {
                        "grow" => open().write_all(b"more").unwrap(),
                        "shrink" => open().set_len(5_000_000).unwrap(),
                        _ => open().set_modified(std::time::UNIX_EPOCH).unwrap(),
                    }
                }
                ControlFlow::Continue(())
            })
            .unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{act}: {error}");
        assert!(matches!(error, ContentError::Changed { .. }), "{act}: {error}");
    }
}

#[test]
fn a_source_that_vanishes_before_it_is_read_is_named() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    for len in [100, 5_000, 9_000_000] {
        let path = folder.path().join("a.vdb");
        fs::write(&path, noise(1, len)).unwrap();
        let error = site
            .ingest_watched(vec![file("r0/a", &path)], |progress| {
                assert_eq!(progress.bytes_done, 0, "it is gone before anything is read");
                fs::remove_file(&path).unwrap();
                ControlFlow::Continue(())
            })
            .unwrap_err();
        assert!(matches!(error, ContentError::Source { .. }), "{len}: {error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{len}: {error}");
    }
}

#[test]
fn taking_files_can_be_cancelled_and_tells_how_far_it_is() {
    let site = Site::new();
    let mut seen = Vec::new();
    let built = site
        .ingest_watched(inputs(&scene()), |progress| {
            seen.push(progress);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(seen.is_sorted_by_key(|progress| (progress.bytes_done, progress.files_done)));
    let last = seen.last().unwrap();
    assert_eq!((last.bytes_done, last.bytes_total), (built.bytes, built.bytes));
    assert_eq!((last.files_done, last.files_total), (9, 9));

    let stopped = site.ingest_watched(inputs(&scene()), |progress| {
        if progress.files_done == 4 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(ContentError::Cancelled)));
}

#[test]
fn paths_that_collide_are_refused_by_name() {
    let site = Site::new();
    let inputs = vec![bytes("r0/Wood.png", vec![1]), bytes("r0/wood.png", vec![2])];
    let error = site.ingest(inputs).unwrap_err().to_string();
    assert!(error.contains("r0/Wood.png") && error.contains("r0/wood.png"), "{error}");
}

#[test]
fn a_file_with_a_refused_name_is_named_before_anything_is_read() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    // None of them exists, so reading would fail otherwise.
    let absent = |name: &str| folder.path().join(name);
    let one = file("r0/tex/fine.png", &absent("fine.png"));
    for (path, rule) in [
        ("r0/tex/../../etc", ". or .."),
        ("r0/tex/a\nb", "control character"),
        ("r0/tex/\u{202e}gnp", "reverses text"),
        ("r0/gro\u{308}ße.png", "NFC"),
        ("r0/TEX/Fine.png", "differ only in case"),
        ("r0/tex/fine.png/x", "which is a file"),
    ] {
        let bad = file(path, &absent("bad.png"));
        let error = site.ingest(vec![bad, one.clone()]).unwrap_err();
        let ContentError::Refused { path: named, why } = &error else {
            panic!("{path:?}: {error}");
        };
        assert!(named.starts_with(folder.path()), "{path:?}: {error}");
        assert!(why.to_string().contains(rule), "{path:?}: {error}");
    }
}

#[test]
fn a_job_cannot_make_us_take_what_lies_outside_its_folder() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    let (out, secret) = (folder.path().join("out"), folder.path().join("secret"));
    fs::create_dir_all(out.join("sub")).unwrap();
    fs::write(&secret, "secret").unwrap();
    fs::write(out.join("sub/frame.png"), "frame").unwrap();
    symlink(&secret, out.join("link.png")).unwrap();
    symlink(folder.path(), out.join("up")).unwrap();
    let beneath = |path: &str| Input {
        path: "r0/x".to_owned(),
        source: Source::Beneath { folder: out.clone(), path: path.to_owned() },
    };
    for path in ["link.png", "up/secret", "../secret", "/secret", "sub"] {
        let error = site.ingest(vec![beneath(path)]).unwrap_err();
        assert!(matches!(error, ContentError::Source { .. }), "{path}: {error}");
    }
    assert_eq!(site.ingest(vec![beneath("sub/frame.png")]).unwrap().bytes, 5);
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn results_land_in_their_folders_and_equal_ones_are_left_alone() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    let frames = [
        ("out/f_0001.png", noise(1, 200_000)),
        ("out/f_0002.png", noise(2, 200_000)),
        ("out/logs/f.log", b"done".to_vec()),
        ("aux/z.exr", noise(3, 2_000_000)),
    ];
    let built = site.ingest(inputs(&frames)).unwrap();
    let (out, aux) = (folder.path().join("new/out"), folder.path().join("aux"));
    fs::create_dir(&aux).unwrap();
    fs::write(aux.join("z.exr"), noise(99, 2_000_000)).unwrap();
    let destinations = BTreeMap::from([("out".into(), out.clone()), ("aux".into(), aux.clone())]);

    let landed = site.files(&built.link).land(&destinations).unwrap();
    let paths: Vec<_> = landed.iter().map(|landed| landed.path.clone()).collect();
    let places = ["f_0001.png", "f_0002.png", "logs/f.log"].map(|name| out.join(name));
    assert_eq!(paths, [vec![aux.join("z.exr")], places.to_vec()].concat());
    assert!(landed.iter().all(|landed| landed.is_new));
    for (path, (_, contents)) in places.iter().zip(&frames) {
        assert!(fs::read(path).unwrap() == *contents);
    }
    assert!(fs::read(aux.join("z.exr")).unwrap() == frames[3].1);
    assert_eq!(names(&out), ["f_0001.png", "f_0002.png", "logs"]);

    let inode = |path: &Path| fs::metadata(path).unwrap().ino();
    let before = inode(&places[0]);
    fs::write(&places[1], noise(7, 200_000)).unwrap();
    let landed = site.files(&built.link).land(&destinations).unwrap();
    let fresh: Vec<_> = landed.iter().filter(|landed| landed.is_new).collect();
    assert_eq!(fresh.len(), 1);
    assert_eq!(fresh[0].path, places[1]);
    assert_eq!(inode(&places[0]), before);
    assert!(fs::read(&places[1]).unwrap() == frames[1].1);
}

#[test]
fn results_never_land_outside_their_folder() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    let (out, outside) = (folder.path().join("out"), folder.path().join("outside"));
    fs::create_dir_all(&out).unwrap();
    fs::create_dir_all(&outside).unwrap();
    symlink(&outside, out.join("sub")).unwrap();
    symlink(outside.join("file"), out.join("file")).unwrap();
    let land = |path: &str| {
        let built = site.ingest(vec![bytes(path, noise(1, 5000))]).unwrap();
        site.files(&built.link).land(&BTreeMap::from([("out".into(), out.clone())]))
    };
    let error = land("out/sub/evil").unwrap_err();
    assert!(error.to_string().contains("out/sub/evil"), "{error}");
    land("out/file").unwrap();
    assert!(fs::symlink_metadata(out.join("file")).unwrap().is_file());
    assert_eq!(names(&outside), [""; 0]);
}

#[test]
fn a_destination_that_cannot_be_written_is_named_and_nothing_is_left_there() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    let no_folder = folder.path().join("file");
    fs::write(&no_folder, "").unwrap();
    let built = site.ingest(vec![bytes("out/a", noise(1, 5000))]).unwrap();
    let land = |root: &str, to: &Path| {
        let destinations = BTreeMap::from([(root.to_owned(), to.to_owned())]);
        site.files(&built.link).land(&destinations).unwrap_err()
    };
    let error = land("out", &no_folder).to_string();
    assert!(error.contains(no_folder.to_str().unwrap()), "{error}");
    assert!(matches!(land("other", folder.path()), ContentError::NoPlace { .. }));
    fs::create_dir(folder.path().join("a")).unwrap();
    let error = land("out", folder.path()).to_string();
    assert!(error.contains(folder.path().join("a").to_str().unwrap()), "{error}");
    assert_eq!(names(folder.path()), ["a", "file"]);
}

#[test]
fn a_chunk_that_rotted_is_missed_and_a_new_plan_fetches_it() {
    let (from, to, target) = (Site::new(), Site::new(), tempfile::tempdir().unwrap());
    let built = from.ingest(inputs(&scene())).unwrap();
    to.fetch(&from, &built.link, usize::MAX);
    to.chunks.flush().unwrap();
    let segment = to.home.path().join("segments/00000000.seg");
    let mut rotten = fs::read(&segment).unwrap();
    let end = rotten.len() - 10_000;
    rotten[end] ^= 1;
    fs::write(&segment, rotten).unwrap();
    let error = to.lay_out(&built.link, &target.path().join("a")).unwrap_err();
    assert!(matches!(error, ContentError::Missing(_)), "{error}");
    assert_eq!(to.fetch(&from, &built.link, usize::MAX), 1);
    to.lay_out(&built.link, &target.path().join("b")).unwrap();
}

#[test]
fn sixty_thousand_tiny_files_take_seconds() {
    let (site, target) = (Site::new(), tempfile::tempdir().unwrap());
    let from = target.path().join("from");
    let mut inputs = Vec::new();
    for number in 0..60_000_u64 {
        let folder = from.join(format!("{:03}", number / 300));
        if number % 300 == 0 {
            fs::create_dir_all(&folder).unwrap();
        }
        let path = folder.join(format!("{number:06}.txt"));
        fs::write(&path, noise(number, 101)).unwrap();
        inputs.push(file(&format!("r0/{:03}/{number:06}.txt", number / 300), &path));
    }
    let start = Instant::now();
    let built = site.ingest(inputs).unwrap();
    let taken = start.elapsed();
    let written = site.lay_out(&built.link, &target.path().join("into")).unwrap();
    let all = start.elapsed();
    println!("60,000 files: taken in {taken:?}, written in {:?}", all - taken);
    assert_eq!(written, Written { files: 60_000, bytes: 6_060_000 });
    assert!(all < Duration::from_secs(60), "{all:?}");
    let name = "r0/199/059999.txt";
    assert_eq!(fs::read(target.path().join("into").join(name)).unwrap(), noise(59_999, 101));
}
