//! Manifests that come back as they went in, and hostile ones that do not.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::build::{Builder, Built};
use super::path::{BadPath, MAX_DEPTH, check_all, check_path, sort_key};
use super::rows::FileRow;
use super::*;
use crate::seal::{SealedChunk, TenantSecret, seal_chunk};

const LIMITS: Limits = Limits::granting(1 << 40);

#[derive(Debug, thiserror::Error)]
#[error("not stored")]
struct Absent;

type Store = HashMap<ChunkId, Vec<u8>>;

fn secret() -> TenantSecret {
    TenantSecret::new(TenantId([1; 16]), 7, [2; 32])
}

fn entry(number: u64, len: u32) -> Entry {
    let hash = seal::content_hash(&number.to_le_bytes());
    Entry { cid: ChunkId(hash), key: ChunkKey(hash), len, flags: 0 }
}

/// A file whose contents are a function of its size, in chunks of 4000 bytes.
fn file(path: &str, size: u64) -> (File, Vec<Entry>) {
    let entries: Vec<_> = match size {
        0..INLINE_BELOW => Vec::new(),
        _ => (0..size.div_ceil(4000))
            .map(|i| entry(size + (i << 40), u32::try_from((size - i * 4000).min(4000)).unwrap()))
            .collect(),
    };
    let body = match size {
        0..INLINE_BELOW => Body::Inline(vec![7; usize::try_from(size).unwrap()]),
        _ => Body::Chunks(entries.len() as u64),
    };
    let executable = size % 2 == 1;
    (File { path: path.to_owned(), size, executable, modified: Millis(size), body }, entries)
}

fn build(files: &[(File, Vec<Entry>)]) -> Result<(Built, Store), ManifestError> {
    let mut builder = Builder::new(&secret(), Millis(5), LIMITS);
    let mut store = Store::new();
    let mut keep = |chunks: Vec<SealedChunk>| {
        store.extend(chunks.into_iter().map(|chunk| (chunk.cid, chunk.bytes)));
    };
    for (file, entries) in files {
        builder.add(file.clone(), entries)?;
        keep(builder.take_nodes());
    }
    let (built, nodes) = builder.finish()?;
    keep(nodes);
    Ok((built, store))
}

type Files = Vec<(File, Vec<Entry>)>;

fn read(link: &RootLink, limits: Limits, store: &Store) -> Result<Files, ReadError<Absent>> {
    let fetch = |cid: &ChunkId| store.get(cid).cloned().ok_or(Absent);
    let mut reader = Reader::new(link, limits, fetch)?;
    let mut files = Files::new();
    while let Some(file) = reader.next_file()? {
        let mut entries = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            entries.push(entry);
        }
        files.push((file, entries));
    }
    Ok(files)
}

fn refusal(link: &RootLink, store: &Store) -> String {
    refusal_within(LIMITS, link, store)
}

fn refusal_within(limits: Limits, link: &RootLink, store: &Store) -> String {
    match read(link, limits, store) {
        Err(ReadError::Manifest(error)) => error.to_string(),
        other => panic!("not refused: {other:?}"),
    }
}

fn many(n: u64) -> Files {
    (0..n).map(|i| file(&format!("r0/{:03}/{i:06}.exr", i / 100), (i * 37) % 50_000)).collect()
}

proptest! {
    #[test]
    fn every_tree_reads_back_as_it_was_built(
        tree in prop::collection::btree_map("r[0-3](/[a-zA-Z0-9é ]{1,8}){1,3}\\.x", 0_u64..30_000, 0..60),
    ) {
        let mut files: Files = tree.iter().map(|(path, size)| file(path, *size)).collect();
        files.sort_by_key(|(file, _)| sort_key(&file.path));
        files.dedup_by_key(|(file, _)| sort_key(&file.path));
        let (built, store) = build(&files).unwrap();
        prop_assert_eq!(built.bytes, files.iter().map(|(file, _)| file.size).sum::<u64>());
        prop_assert_eq!(built.n_files, files.len() as u64);
        prop_assert_eq!(read(&built.link, LIMITS, &store).unwrap(), files);
    }

    #[test]
    fn a_flipped_bit_in_any_node_is_refused(node in any::<prop::sample::Index>(), bit in any::<u16>()) {
        let (built, mut store) = build(&many(300)).unwrap();
        let mut cids: Vec<_> = store.keys().copied().collect();
        cids.sort();
        let bytes = store.get_mut(node.get(&cids)).unwrap();
        let bit = usize::from(bit) % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert!(refusal(&built.link, &store).contains("does not open"));
    }

    #[test]
    fn plain_bytes_of_any_kind_never_panic(plain in prop::collection::vec(any::<u8>(), 0..300)) {
        let (link, store) = sealed_root(&plain);
        prop_assert!(read(&link, LIMITS, &store).is_err());
        let top = link_to(&seal_chunk(&secret().nodes(), &plain), 1, 1).node(Tree::Files, None);
        prop_assert!(top.open(&store[&top.cid]).is_err());
    }
}

#[test]
fn a_large_tree_reads_back_and_a_small_edit_changes_few_nodes() {
    let files = many(20_000);
    let (built, store) = build(&files).unwrap();
    assert!(read(&built.link, LIMITS, &store).unwrap() == files);
    assert!(store.len() > 250, "{}", store.len());

    let mut edited = files;
    edited[9_000] = file("r0/090/009000.exr", 44_444);
    edited.remove(4_000);
    let (rebuilt, newer) = build(&edited).unwrap();
    assert!(read(&rebuilt.link, LIMITS, &newer).unwrap() == edited);
    let fresh: Vec<_> = newer.iter().filter(|(cid, _)| !store.contains_key(*cid)).collect();
    let bytes: usize = fresh.iter().map(|(_, bytes)| bytes.len()).sum();
    let all: usize = newer.values().map(Vec::len).sum();
    assert!(fresh.len() <= 9 && bytes * 20 < all, "{} nodes, {bytes} of {all}", fresh.len());
}

/// 100,000 files of one chunk each, in folders of a hundred; `edited` files have other contents.
fn shot(edited: impl Fn(u64) -> bool) -> Files {
    let size = |i: u64| 2_000 + (i * 37) % 1_000 + if edited(i) { 1_000_000 } else { 0 };
    let rows = (0..100_000).map(|i| {
        let (mut row, _) = file(&format!("r0/shot/{:03}/{i:06}.exr", i / 100), 1_024);
        (row.size, row.body) = (size(i), Body::Chunks(1));
        let entries = vec![entry(i + (size(i) << 20), u32::try_from(size(i)).unwrap())];
        (row, entries)
    });
    rows.collect()
}

/// Bytes of the nodes of `newer` that `older` does not have, and of all its nodes.
fn fresh(older: &Store, newer: &Store) -> (usize, usize) {
    let bytes = |new_only: bool| {
        let nodes = newer.iter().filter(|(cid, _)| !new_only || !older.contains_key(*cid));
        nodes.map(|(_, bytes)| bytes.len()).sum()
    };
    (bytes(true), bytes(false))
}

#[test]
fn a_slightly_changed_shot_shares_almost_all_nodes() {
    let (_, older) = build(&shot(|_| false)).unwrap();
    // One in a hundred files: a sequence that was written anew, then ten folders far from each other.
    for (edited, percent) in [(40_000..41_000, 3), (0..100_000, 8)] {
        let every = edited.end - edited.start;
        let is_edited = |i| edited.contains(&i) && (every == 1_000 || (i / 100) % 100 == 7);
        let (_, newer) = build(&shot(is_edited)).unwrap();
        let (new, all) = fresh(&older, &newer);
        println!("1 % of 100,000 files changed: {new} of {all} bytes of nodes are new");
        assert!(all > 10_000_000 && new * 100 < all * percent, "{new} of {all}");
    }
    let (_, newer) = build(&shot(|i| i == 55_555)).unwrap();
    let (new, all) = fresh(&older, &newer);
    println!("one file changed: {new} of {all}");
    assert!(new * 100 < all, "{new} of {all}");
}

#[test]
fn an_insertion_at_the_front_shifts_nothing_beyond_its_neighbours() {
    let files = shot(|_| false);
    let (_, older) = build(&files).unwrap();
    let first = file("r0/a/first.blend", 12_345);
    let (built, newer) = build(&[&[first], &files[..]].concat()).unwrap();
    assert_eq!(built.n_files, 100_001);
    let (new, all) = fresh(&older, &newer);
    println!("a file inserted at the front: {new} of {all} bytes of nodes are new");
    assert!(new * 100 < all * 2, "{new} of {all}");
}

#[test]
fn no_node_is_longer_than_a_chunk_may_be() {
    let files: Files = (0..5_000_u64)
        .map(|i| file(&format!("r0/{i:06}-{}.x", "long/".repeat(60)), 1023))
        .collect();
    let (built, store) = build(&files).unwrap();
    assert_eq!(read(&built.link, LIMITS, &store).unwrap().len(), 5_000);
    let longest = store.values().map(Vec::len).max().unwrap();
    assert!(longest < 600 << 10, "{longest}");
}

#[test]
fn an_empty_tree_is_a_manifest_too() {
    let (built, store) = build(&[]).unwrap();
    assert_eq!(read(&built.link, LIMITS, &store).unwrap(), []);
}

#[test]
fn paths_that_could_leave_a_folder_are_refused() {
    let deep = vec!["a"; MAX_DEPTH + 1].join("/");
    let (long, name) = ("a/".repeat(512) + "b", "a".repeat(256));
    for path in ["", "/etc", "a//b", "a/", ".", "a/../b", "..", "a/./b", "a\0b", "a\nb", "\u{9b}"] {
        assert!(check_path(path).is_err(), "{path:?}");
    }
    for path in [&deep, &long, &name] {
        assert!(check_path(path).is_err(), "{path:?}");
    }
    for (path, rule) in [
        (&*deep, BadPath::TooDeep),
        (&*long, BadPath::TooLong),
        (&*name, BadPath::TooLong),
        ("/etc", BadPath::Empty),
        ("r0/..", BadPath::Dots),
        ("r0/a\tb", BadPath::Control),
        ("r0/a\u{7f}", BadPath::Control),
        ("r0/a\u{202e}gnp.exe", BadPath::Control),
        ("r0/a\u{2028}b", BadPath::Control),
        ("r0/gro\u{308}\u{df}e", BadPath::Decomposed),
        ("r0/\u{212b}", BadPath::Decomposed),
    ] {
        assert_eq!(check_path(path), Err(rule), "{path:?}");
    }
    let hangul = "r0/\u{d55c}\u{ae00}";
    for path in
        ["a", "r0/tex/wood.png", "r0/.hidden", "r0/...", "r0/größe 1.exr", hangul, &deep[2..]]
    {
        assert_eq!(check_path(path), Ok(()), "{path:?}");
    }
}

#[test]
fn names_that_collide_are_refused_when_building_and_when_reading() {
    for (one, other, why) in [
        ("r0/a", "r0/a", "differ only in case"),
        ("r0/Wood.png", "r0/wood.png", "differ only in case"),
        ("r0/ÉTÉ", "r0/été", "differ only in case"),
        ("r0/STRASSE", "r0/Straße", "differ only in case"),
        ("r0/ΛΟΓΟΣ", "r0/λογος", "differ only in case"),
        ("r0/λογος", "r0/λογοσ", "differ only in case"),
        ("r0/\u{1e9e}", "r0/ss", "differ only in case"),
        ("r0/\u{212a}elvin", "r0/kelvin", "refused"),
        ("r0/a", "r0/a/b", "which is a file"),
        ("r0/A", "r0/a/b", "which is a file"),
        ("r0/b", "r0/a", "out of order"),
        ("r0/a", "../a", "refused"),
    ] {
        let files = [file(one, 1), file(other, 1)];
        assert!(build(&files).unwrap_err().to_string().contains(why), "{one} {other}");
        let rows = files.map(|(file, _)| FileRow::from(file)).into();
        let top = node(&NodeRow { l: 0, f: Some(rows), e: None, k: None });
        let (link, store) = forged(top, (2, 2), (0, 0), &empty_leaf());
        assert!(refusal(&link, &store).contains(why), "{one} {other}");
    }
}

#[test]
fn what_lies_between_a_folder_and_its_contents_in_plain_order_hides_no_conflict() {
    let mut paths = ["r0/a", "r0/a-b", "r0/a/b"];
    paths.sort_by_key(|path| sort_key(path));
    assert_eq!(paths, ["r0/a", "r0/a/b", "r0/a-b"]);
}

#[test]
fn the_path_that_will_be_refused_is_found_before_anything_is_built() {
    assert!(check_all(["r0/a", "r0/b"].into_iter()).is_ok());
    let (place, error) = check_all(["r0/a", "r0/b", "r0/B"].into_iter()).unwrap_err();
    assert_eq!(place, 2);
    assert!(error.to_string().contains("\"r0/B\" and \"r0/b\""), "{error}");
    let (place, error) = check_all(["r0/a\nb"].into_iter()).unwrap_err();
    assert_eq!(place, 0);
    assert!(error.to_string().contains(r"r0/a\nb"), "{error}");
    let small = Limits { files: 2, ..Limits::granting(10) };
    assert!(small.check(2, 10).is_ok());
    assert!(small.check(3, 10).is_err() && small.check(2, 11).is_err());
}

fn node(row: &NodeRow) -> SealedChunk {
    seal_chunk(&secret().nodes(), &codec::encode(row))
}

fn leaf(entries: Vec<Entry>) -> NodeRow {
    NodeRow { l: 0, f: None, e: Some(entries), k: None }
}

fn empty_leaf() -> SealedChunk {
    node(&leaf(Vec::new()))
}

fn link_to(chunk: &SealedChunk, count: u64, bytes: u64) -> Link {
    Link { cid: chunk.cid, key: chunk.key.clone(), count, bytes }
}

fn sealed_root(plain: &[u8]) -> (RootLink, Store) {
    let root = seal_chunk(&secret().nodes(), plain);
    let link = RootLink { cid: root.cid, key: root.key.clone() };
    (link, Store::from([(root.cid, root.bytes)]))
}

/// A root over two hand-made tops, with counts and bytes to lie about.
fn forged(
    files: SealedChunk,
    (n, bytes): (u64, u64),
    (chunks, chunk_bytes): (u64, u64),
    tree: &SealedChunk,
) -> (RootLink, Store) {
    let row = RootRow {
        v: 1,
        tenant: TenantId([1; 16]),
        epoch: 1,
        files: link_to(&files, n, bytes),
        tree: link_to(tree, chunks, chunk_bytes),
        n,
        bytes,
        created: 0,
    };
    let (link, mut store) = sealed_root(&codec::encode(&row));
    store.insert(files.cid, files.bytes);
    store.insert(tree.cid, tree.bytes.clone());
    (link, store)
}

fn one_file(row: FileRow) -> SealedChunk {
    node(&NodeRow { l: 0, f: Some(vec![row]), e: None, k: None })
}

fn row(s: u64, cn: u64, inline: Option<usize>) -> FileRow {
    FileRow { p: "r0/a".into(), s, m: 0, t: 0, cn, inline: inline.map(|len| vec![0; len]) }
}

#[test]
fn sums_that_lie_are_refused() {
    let chunk = node(&leaf(vec![entry(1, 2000)]));
    let with_chunk = |s, cn, files, chunks| {
        let (link, store) = forged(one_file(row(s, cn, None)), files, chunks, &chunk);
        (link, store)
    };
    let (link, store) = with_chunk(2000, 1, (1, 2000), (1, 2000));
    assert_eq!(read(&link, LIMITS, &store).unwrap().len(), 1);
    for ((s, cn), files, chunks, why) in [
        ((3000, 1), (1, 3000), (1, 2000), "longer than its chunks"),
        ((1999, 1), (1, 1999), (1, 1999), "a node's sums differ"),
        ((1500, 1), (1, 1500), (1, 2000), "the root's sums differ"),
        ((2000, 2), (1, 2000), (1, 2000), "more chunks than there are"),
        ((2000, 1), (2, 2000), (1, 2000), "a node's sums differ"),
        ((2000, 1), (1, 9000), (1, 2000), "a node's sums differ"),
        ((2000, 0), (1, 2000), (1, 2000), "its chunks cannot have"),
        ((5, 1), (1, 5), (0, 0), "its chunks cannot have"),
        ((2000, u64::MAX), (1, 2000), (1, 2000), "its chunks cannot have"),
    ] {
        let (link, store) = with_chunk(s, cn, files, chunks);
        let said = refusal(&link, &store);
        assert!(said.contains(why), "{said}, not {why}");
    }
    for (s, cn, len) in [(5, 0, 6), (1024, 0, 1024), (5, 1, 5)] {
        let files = one_file(row(s, cn, Some(len)));
        let (link, store) = forged(files, (1, s), (0, 0), &empty_leaf());
        assert!(refusal(&link, &store).contains("an inline file"), "{s} {cn} {len}");
    }
    let (link, store) = forged(chunk.clone(), (1, 2000), (1, 2000), &chunk);
    assert!(refusal(&link, &store).contains("another kind"));
}

#[test]
fn chunks_that_belong_to_no_file_are_refused() {
    let files = node(&NodeRow {
        l: 0,
        f: Some(vec![FileRow { p: "r0/b".into(), ..row(5, 0, Some(5)) }, row(2000, 1, None)]),
        e: None,
        k: None,
    });
    let (mut link, mut store) =
        forged(files, (2, 2005), (1, 2000), &node(&leaf(vec![entry(1, 2000)])));
    assert!(refusal(&link, &store).contains("out of order"));
    let files = one_file(row(1023, 0, Some(1023)));
    let tree = node(&leaf(vec![entry(1, 1000)]));
    (link, store) = forged(files, (1, 1023), (1, 1000), &tree);
    assert!(refusal(&link, &store).contains("belong to no file"));
}

#[test]
fn chunks_of_impossible_shape_are_refused() {
    let too_long = u32::try_from(MAX_PLAIN + 1).unwrap();
    for wrong in [entry(1, 0), entry(1, too_long), Entry { flags: 2, ..entry(1, 2000) }] {
        let bytes = u64::from(wrong.len).max(2000);
        let tree = node(&leaf(vec![wrong.clone()]));
        let files = one_file(row(bytes, 1, None));
        let (link, store) = forged(files, (1, bytes), (1, wrong.len.into()), &tree);
        assert!(refusal(&link, &store).contains("a length or a flag"), "{wrong:?}");
    }
}

#[test]
fn inner_nodes_cannot_loop_hide_levels_or_be_empty() {
    let bottom = node(&leaf(vec![entry(1, 2000)]));
    let inner = |l, links: Vec<Link>| node(&NodeRow { l, f: None, e: None, k: Some(links) });
    let tower = |height: u8, step: u8| {
        let mut top = bottom.clone();
        let mut store = Store::from([(top.cid, top.bytes.clone())]);
        for level in 1..=height {
            top = inner(level * step, vec![link_to(&top, 1, 2000)]);
            store.insert(top.cid, top.bytes.clone());
        }
        let (link, mut all) = forged(one_file(row(2000, 1, None)), (1, 2000), (1, 2000), &top);
        all.extend(store);
        (link, all)
    };
    let (link, store) = tower(8, 1);
    assert_eq!(read(&link, LIMITS, &store).unwrap().len(), 1);
    let (link, store) = tower(9, 1);
    assert!(refusal(&link, &store).contains("another level"));
    let (link, store) = tower(2, 2);
    assert!(refusal(&link, &store).contains("another level"));

    let hollow = inner(1, vec![link_to(&bottom, 1, 2000), link_to(&empty_leaf(), 0, 0)]);
    for (top, count, why) in
        [(inner(1, Vec::new()), 0, "is empty"), (hollow, 1, "links to nothing")]
    {
        let files = one_file(row(2000, 1, None));
        let (link, store) = forged(files, (1, 2000), (count, 2000 * count), &top);
        assert!(refusal(&link, &store).contains(why));
    }
    let huge = |chunk: &SealedChunk| link_to(chunk, u64::MAX, u64::MAX);
    let top = inner(1, vec![huge(&bottom), huge(&bottom)]);
    let (link, store) = forged(one_file(row(2000, 1, None)), (1, 2000), (1, 2000), &top);
    assert!(refusal(&link, &store).contains("sums differ"));
}

#[test]
fn a_reader_accepts_no_more_than_it_granted() {
    let (built, store) = build(&many(300)).unwrap();
    let own: usize = store.values().map(Vec::len).sum();
    let exact = Limits {
        files: built.n_files,
        entries: built.n_chunks,
        manifest_bytes: own as u64,
        bytes: built.bytes,
    };
    assert_eq!(read(&built.link, exact, &store).unwrap().len(), 300);
    for (limits, why) in [
        (Limits { files: exact.files - 1, ..exact }, "files where"),
        (Limits { entries: exact.entries - 1, ..exact }, "chunks where"),
        (Limits { manifest_bytes: exact.manifest_bytes - 1, ..exact }, "of its own where"),
        (Limits { bytes: exact.bytes - 1, ..exact }, "bytes of files where"),
    ] {
        let said = refusal_within(limits, &built.link, &store);
        assert!(said.contains(why), "{said}, not {why}");
    }
}

#[test]
fn a_builder_refuses_what_readers_would() {
    let small = Limits { files: 2, entries: 3, manifest_bytes: 64 << 20, bytes: 10_000 };
    let refused = |files: &[(File, Vec<Entry>)]| {
        let mut builder = Builder::new(&secret(), Millis(0), small);
        files.iter().find_map(|(file, entries)| builder.add(file.clone(), entries).err())
    };
    assert!(refused(&[file("r0/a", 1), file("r0/b", 9_000)]).is_none());
    for files in [
        &[file("r0/a", 1), file("r0/b", 1), file("r0/c", 1)][..],
        &[file("r0/a", 9_000), file("r0/b", 1_025)],
        &[file("r0/a", 4_000), file("r0/b", 6_001)],
    ] {
        assert!(matches!(refused(files), Some(ManifestError::Limit { .. })));
    }
}

#[test]
fn newer_versions_and_unknown_keys_are_refused_by_name() {
    let (_, store) = build(&[]).unwrap();
    assert!(!store.is_empty());
    let newer = codec::encode(&HashMap::from([("v", 2), ("zstd", 1)]));
    let (link, store) = sealed_root(&newer);
    assert!(refusal(&link, &store).contains("version 2"));

    #[derive(Serialize)]
    struct Extra {
        l: u8,
        e: Vec<Entry>,
        x: u8,
    }
    let bytes = codec::encode(&Extra { l: 0, e: Vec::new(), x: 0 });
    let tree = seal_chunk(&secret().nodes(), &bytes);
    let (link, store) = forged(one_file(row(5, 0, Some(5))), (1, 5), (0, 0), &tree);
    assert!(refusal(&link, &store).contains("malformed"));
}

#[test]
fn two_tenants_share_no_node_of_the_same_tree() {
    let files = many(50);
    let (_, ours) = build(&files).unwrap();
    let stranger = TenantSecret::new(TenantId([9; 16]), 7, [9; 32]);
    let mut builder = Builder::new(&stranger, Millis(5), LIMITS);
    for (file, entries) in &files {
        builder.add(file.clone(), entries).unwrap();
    }
    let (_, nodes) = builder.finish().unwrap();
    let theirs: HashSet<_> = nodes.iter().map(|chunk| chunk.cid).collect();
    assert!(!theirs.is_empty() && ours.keys().all(|cid| !theirs.contains(cid)));
}
