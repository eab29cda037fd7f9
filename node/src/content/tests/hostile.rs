//! Manifests that no builder of ours would make, sealed as they should be: nothing leaves the folder.

use meshfarm_protocol::codec::encode;
use meshfarm_protocol::id::ChunkId;
use meshfarm_protocol::manifest::ManifestError;
use meshfarm_protocol::seal::{self, ChunkKey};
use serde::Serialize;

use super::*;

type Link = (ChunkId, ChunkKey, u64, u64);

#[derive(Serialize)]
struct FileRow<'a> {
    p: &'a str,
    s: u64,
    m: u8,
    t: u64,
    cn: u64,
    #[serde(rename = "in", skip_serializing_if = "Option::is_none")]
    inline: Option<Bytes<'a>>,
}

/// A byte string, where serde would write a list of numbers.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_bytes(self.0)
    }
}

#[derive(Serialize)]
struct Files0<'a> {
    l: u8,
    f: Vec<FileRow<'a>>,
}

#[derive(Serialize)]
struct Chunks0 {
    l: u8,
    e: Vec<(ChunkId, ChunkKey, u32, u8)>,
}

#[derive(Serialize)]
struct RootRow {
    v: u64,
    tenant: TenantId,
    epoch: u64,
    files: Link,
    tree: Link,
    n: u64,
    bytes: u64,
    created: u64,
}

fn inline<'a>(path: &'a str, contents: &'a [u8]) -> FileRow<'a> {
    let s = contents.len() as u64;
    FileRow { p: path, s, m: 0, t: 0, cn: 0, inline: Some(Bytes(contents)) }
}

impl Site {
    fn seal(&self, row: &impl Serialize) -> (ChunkId, ChunkKey) {
        let secret = TenantSecret::new(TenantId([1; 16]), 1, [1; 32]).nodes();
        let sealed = seal::seal_chunk(&secret, &encode(row));
        self.chunks.put(&sealed.cid, &sealed.bytes).unwrap();
        (sealed.cid, sealed.key)
    }

    /// A manifest whose sums agree, over rows that say what they like.
    fn forge(&self, f: Vec<FileRow<'_>>, e: Vec<(ChunkId, ChunkKey, u32, u8)>) -> RootLink {
        let (n, n_chunks) = (f.len() as u64, e.len() as u64);
        let bytes = f.iter().map(|row| row.s).sum();
        let chunked = e.iter().map(|entry| u64::from(entry.2)).sum();
        let files = self.seal(&Files0 { l: 0, f });
        let tree = self.seal(&Chunks0 { l: 0, e });
        let root = RootRow {
            v: 1,
            tenant: TenantId([1; 16]),
            epoch: 1,
            files: (files.0, files.1, n, bytes),
            tree: (tree.0, tree.1, n_chunks, chunked),
            n,
            bytes,
            created: 0,
        };
        let (cid, key) = self.seal(&root);
        RootLink { cid, key }
    }

    /// A chunk of a file.
    fn chunk(&self, contents: &[u8]) -> (ChunkId, ChunkKey) {
        let secret = TenantSecret::new(TenantId([1; 16]), 1, [1; 32]).chunks();
        let sealed = seal::seal_chunk(&secret, contents);
        self.chunks.put(&sealed.cid, &sealed.bytes).unwrap();
        (sealed.cid, sealed.key)
    }
}

/// A folder three levels down, with something precious beside it on each.
struct Room {
    top: tempfile::TempDir,
    into: PathBuf,
}

const PRECIOUS: [&str; 3] = ["precious", "a/precious", "a/b/precious"];

impl Room {
    fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let into = top.path().join("a/b/into");
        fs::create_dir_all(&into).unwrap();
        for path in PRECIOUS {
            fs::write(top.path().join(path), path).unwrap();
        }
        Self { top, into }
    }

    /// Nothing was changed outside of the folder.
    fn is_whole(&self) {
        for path in PRECIOUS {
            assert_eq!(fs::read_to_string(self.top.path().join(path)).unwrap(), path);
        }
        for (folder, there) in
            [("", ["a", "precious"]), ("a", ["b", "precious"]), ("a/b", ["into", "precious"])]
        {
            assert_eq!(names(&self.top.path().join(folder)), there);
        }
    }

    /// Only plain folders and files stand in the folder, without special modes.
    fn is_plain(&self) {
        let mut waiting = vec![self.into.clone()];
        while let Some(folder) = waiting.pop() {
            for name in names(&folder) {
                let path = folder.join(name);
                let about = fs::symlink_metadata(&path).unwrap();
                assert!(about.is_file() || about.is_dir(), "{path:?}");
                assert_eq!(about.mode() & 0o7000, 0, "{path:?}");
                if about.is_dir() {
                    waiting.push(path);
                }
            }
        }
    }
}

#[test]
fn a_path_that_leaves_its_folder_or_fools_a_terminal_is_refused_where_it_would_be_written() {
    let (site, room) = (Site::new(), Room::new());
    let deep = vec!["d"; 65].join("/");
    let long = format!("r0/{}", "n".repeat(256));
    let longer = format!("r0/{}x", "name/".repeat(210));
    for path in [
        "../precious",
        "../../precious",
        "r0/../../precious",
        "r0/..",
        "/precious",
        "/",
        "",
        "r0//x",
        "r0/",
        "r0/./x",
        ".",
        "r0/a\0b",
        "r0/\u{1b}[2Jx",
        "r0/a\nb",
        "r0/\u{85}",
        &deep,
        &long,
        &longer,
    ] {
        let link = site.forge(vec![inline(path, b"evil")], vec![]);
        let error = site.lay_out(&link, &room.into).unwrap_err();
        let refused = matches!(error, ContentError::Manifest(ManifestError::Path { .. }));
        assert!(refused, "{path:?}: {error}");
        assert!(!error.to_string().chars().any(char::is_control), "{path:?}");
        let out = BTreeMap::from([("r0".to_owned(), room.into.clone())]);
        let landed = site.files(&link).land(&out);
        assert!(matches!(landed, Err(ContentError::Manifest(ManifestError::Path { .. }))));
        assert!(names(&room.into).is_empty(), "{path:?}");
        room.is_whole();
    }
}

#[test]
fn an_absolute_path_to_something_that_exists_does_not_touch_it() {
    let (site, room) = (Site::new(), Room::new());
    let precious = room.top.path().join("precious");
    let link = site.forge(vec![inline(precious.to_str().unwrap(), b"evil")], vec![]);
    site.lay_out(&link, &room.into).unwrap_err();
    room.is_whole();
}

#[test]
fn names_that_are_one_name_on_some_disk_are_refused_by_the_receiver_too() {
    let (site, room) = (Site::new(), Room::new());
    for paths in [
        ["r0/A", "r0/a"],
        ["r0/same", "r0/same"],
        ["r0/\u{c9}t\u{e9}", "r0/\u{e9}t\u{e9}"],
        ["r0/file", "r0/file/below"],
        ["r0/FILE", "r0/file/below"],
        ["r0/b", "r0/a"],
    ] {
        let rows = paths.iter().map(|path| inline(path, b"x")).collect();
        let link = site.forge(rows, vec![]);
        let error = site.lay_out(&link, &room.into).unwrap_err();
        let ContentError::Manifest(
            ManifestError::SamePath { .. }
            | ManifestError::BelowFile { .. }
            | ManifestError::Unordered { .. },
        ) = error
        else {
            panic!("{paths:?}: {error}");
        };
        room.is_plain();
        room.is_whole();
        fs::remove_dir_all(&room.into).unwrap();
        fs::create_dir(&room.into).unwrap();
    }
}

#[test]
fn links_that_were_planted_in_the_folder_lead_nowhere() {
    let (site, room) = (Site::new(), Room::new());
    let chunk = site.chunk(&noise(3, 2000));
    let entry = vec![(chunk.0, chunk.1, 2000, 0)];
    let outside = room.top.path();
    symlink(outside, room.into.join("r0")).unwrap();
    symlink(outside.join("precious"), room.into.join("r1")).unwrap();
    symlink(outside.join("new"), room.into.join("r2")).unwrap();
    symlink("..", room.into.join("r3")).unwrap();
    for path in ["r0/precious", "r0/a/precious", "r1", "r2", "r3/precious", "r3/new"] {
        let row = FileRow { p: path, s: 2000, m: 1, t: 1, cn: 1, inline: None };
        for link in
            [site.forge(vec![inline(path, b"evil")], vec![]), site.forge(vec![row], entry.clone())]
        {
            let error = site.lay_out(&link, &room.into).unwrap_err();
            assert!(matches!(error, ContentError::Target { .. }), "{path}: {error}");
            room.is_whole();
        }
    }
}

#[test]
fn results_that_land_replace_a_planted_link_and_never_what_it_leads_to() {
    let (site, room) = (Site::new(), Room::new());
    let outside = room.top.path();
    symlink(outside.join("precious"), room.into.join("frame")).unwrap();
    symlink(outside, room.into.join("up")).unwrap();
    let out = BTreeMap::from([("r0".to_owned(), room.into.clone())]);
    let link = site.forge(vec![inline("r0/frame", b"frame")], vec![]);
    site.files(&link).land(&out).unwrap();
    assert_eq!(fs::read(room.into.join("frame")).unwrap(), b"frame");
    assert!(fs::symlink_metadata(room.into.join("frame")).unwrap().is_file());
    let link = site.forge(vec![inline("r0/up/precious", b"evil")], vec![]);
    site.files(&link).land(&out).unwrap_err();
    room.is_whole();
}

#[test]
fn lengths_modes_and_sums_that_lie_are_refused() {
    let (site, room) = (Site::new(), Room::new());
    let contents = noise(4, 2000);
    let (cid, key) = site.chunk(&contents);
    let row = |s, m, cn| FileRow { p: "r0/a", s, m, t: 0, cn, inline: None };
    let entry = |len| (cid, key.clone(), len, 0);
    for (rows, entries) in [
        // The chunk is longer or shorter than its entry says.
        (vec![row(1500, 0, 1)], vec![entry(1500)]),
        (vec![row(2500, 0, 1)], vec![entry(2500)]),
        // The file says that it has other chunks than it has.
        (vec![row(4000, 0, 2)], vec![entry(2000)]),
        (vec![row(2000, 0, 1)], vec![entry(2000), entry(2000)]),
        (vec![row(2000, 0, 0)], vec![entry(2000)]),
        (vec![row(0, 0, 0)], vec![]),
        // A mode that would be set-user-id elsewhere, a way to seal that there is not, an absurd length.
        (vec![row(2000, 4, 1)], vec![entry(2000)]),
        (vec![row(2000, 0, 1)], vec![(cid, key.clone(), 2000, 0x80)]),
        (vec![row(2_000_000, 0, 1)], vec![entry(2_000_000)]),
        (vec![row(u64::MAX, 0, 1)], vec![entry(u32::MAX)]),
        // A key that is another chunk's.
        (vec![row(2000, 0, 1)], vec![(cid, ChunkKey([7; 32]), 2000, 0)]),
    ] {
        let link = site.forge(rows, entries);
        let error = site.lay_out(&link, &room.into).unwrap_err();
        assert!(matches!(error, ContentError::Manifest(_)), "{error}");
        room.is_plain();
        room.is_whole();
        fs::remove_dir_all(&room.into).unwrap();
        fs::create_dir(&room.into).unwrap();
    }
}

#[test]
fn one_chunk_that_is_named_again_and_again_counts_each_time_against_the_grant() {
    let (site, room) = (Site::new(), Room::new());
    let contents = noise(5, 500_000);
    let (cid, key) = site.chunk(&contents);
    let entries = vec![(cid, key, 500_000, 0); 200];
    let row = FileRow { p: "r0/a", s: 100_000_000, m: 0, t: 0, cn: 200, inline: None };
    let link = site.forge(vec![row], entries);
    let files = |limits| Files { chunks: &site.chunks, link: link.clone(), limits };
    let granted = Limits::granting(99_999_999);
    for limits in
        [granted, Limits { entries: 199, ..LIMITS }, Limits { manifest_bytes: 9000, ..LIMITS }]
    {
        let error = lay_out(files(limits), &room.into).unwrap_err();
        assert!(matches!(error, ContentError::Manifest(ManifestError::Limit { .. })), "{error}");
        room.is_plain();
    }
    room.is_whole();
}
