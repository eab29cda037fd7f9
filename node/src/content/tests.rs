//! Trees that travel: taken, planned, fetched, written and landed.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::io::Write;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meshfarm_protocol::id::{Millis, TenantId};
use meshfarm_protocol::manifest::build::Built;
use meshfarm_protocol::manifest::{Limits, RootLink};
use meshfarm_protocol::seal::TenantSecret;

use super::ingest::{Cutting, Ingest, Input, Progress, Source};
use super::plan::Plan;
use super::tree::{Files, Written};
use super::*;
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
        on_progress: impl FnMut(Progress) -> ControlFlow<()>,
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

    /// Fetches from another site until nothing is missing or `max` chunks came. Returns how many.
    fn fetch(&self, from: &Self, link: &RootLink, max: usize) -> usize {
        let mut plan = Plan::new(link.clone(), LIMITS);
        let mut asked = HashSet::new();
        loop {
            let wanted = plan.next(&self.chunks, 7.min(max - asked.len())).unwrap();
            if wanted.is_empty() {
                assert!(plan.is_done() || asked.len() == max);
                return asked.len();
            }
            for cid in wanted {
                assert!(asked.insert(cid), "asked twice");
                let bytes = from.chunks.get(&cid).unwrap().expect("the source has all of it");
                assert!(self.chunks.put(&cid, &bytes).unwrap());
                plan.stored(&cid);
            }
        }
    }
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
    let written = lender.files(&built.link).materialise(&into, None).unwrap();
    assert_eq!(written, Written { files: 9, bytes: built.bytes });
    for (path, contents) in &scene {
        assert!(fs::read(into.join(path)).unwrap() == *contents, "{path}");
    }
    assert_eq!(fs::metadata(&into).unwrap().permissions().mode() & 0o777, 0o700);
    let again = lender.files(&built.link).materialise(&into, None).unwrap_err();
    assert!(matches!(again, ContentError::Target { .. }), "nothing is replaced: {again}");

    let only = target.path().join("only");
    let written = lender.files(&built.link).materialise(&only, Some("r1")).unwrap();
    assert_eq!(written.files, 2);
    assert!(only.join("r1/cache/two.vdb").exists() && !only.join("r0").exists());
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
    site.files(&built.link).materialise(&into, None).unwrap();
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
    assert_eq!(plan.next(&to.chunks, 10).unwrap().len(), 2, "the tops of both trees");
    assert_eq!(plan.root().unwrap().n_files, 9);
}

#[test]
fn what_little_content_unpacks_to_is_known_before_anything_is_written() {
    let site = Site::new();
    let same = noise(7, 300_000);
    let files = ["r0/a", "r0/b", "r0/c"].map(|path| bytes(path, same.clone()));
    let built = site.ingest(files.to_vec()).unwrap();
    assert_eq!(site.files(&built.link).bytes().unwrap(), 900_000);
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
fn a_source_that_changes_or_vanishes_while_it_is_read_is_named() {
    let (site, folder) = (Site::new(), tempfile::tempdir().unwrap());
    let (first, second) = (folder.path().join("a.vdb"), folder.path().join("b.vdb"));
    let contents = noise(1, 9_000_000);
    for act in ["grow", "shrink", "touch", "vanish"] {
        fs::write(&first, &contents).unwrap();
        fs::write(&second, &contents).unwrap();
        let inputs = vec![file("r0/a", &first), file("r0/b", &second)];
        let mut done = false;
        let error = site
            .ingest_watched(inputs, |progress| {
                if !done && progress.bytes_done > 0 {
                    done = true;
                    let open = || fs::File::options().append(true).open(&first).unwrap();
                    match act {
                        "grow" => open().write_all(b"more").unwrap(),
                        "shrink" => open().set_len(5_000_000).unwrap(),
                        "touch" => open().set_modified(std::time::UNIX_EPOCH).unwrap(),
                        _ => fs::remove_file(&second).unwrap(),
                    }
                }
                ControlFlow::Continue(())
            })
            .unwrap_err();
        let named = if act == "vanish" { &second } else { &first };
        assert!(error.to_string().contains(named.to_str().unwrap()), "{act}: {error}");
        assert_eq!(matches!(error, ContentError::Changed { .. }), act != "vanish", "{act}");
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
    let error = to.files(&built.link).materialise(&target.path().join("a"), None).unwrap_err();
    assert!(matches!(error, ContentError::Missing(_)), "{error}");
    assert_eq!(to.fetch(&from, &built.link, usize::MAX), 1);
    to.files(&built.link).materialise(&target.path().join("b"), None).unwrap();
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
    let written = site.files(&built.link).materialise(&target.path().join("into"), None).unwrap();
    let all = start.elapsed();
    println!("60,000 files: taken in {taken:?}, written in {:?}", all - taken);
    assert_eq!(written, Written { files: 60_000, bytes: 6_060_000 });
    assert!(all < Duration::from_secs(60), "{all:?}");
    let name = "r0/199/059999.txt";
    assert_eq!(fs::read(target.path().join("into").join(name)).unwrap(), noise(59_999, 101));
}
