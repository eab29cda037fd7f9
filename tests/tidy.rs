//! The architecture as tests: what stands where, and what stands nowhere.

use std::fs;
use std::path::{Path, PathBuf};

/// A package and the only rooms that may name it. Paths are prefixes from the root.
const ROOMS: [(&str, &[&str]); 15] = [
    ("libp2p", &["node/src/net"]),
    ("libp2p_stream", &["node/src/net"]),
    ("rocksdb", &["node/src/store.rs"]),
    ("tar", &["node/src/archive.rs"]),
    ("ciborium", &["protocol/src/codec.rs"]),
    ("blake3", &["protocol/src/seal"]),
    ("chacha20poly1305", &["protocol/src/seal"]),
    ("ed25519_dalek", &["protocol/src/seal.rs"]),
    ("x25519_dalek", &["protocol/src/seal.rs"]),
    ("openjd_model", &["node/src/job_bundle", "sandbox/session"]),
    ("openjd_sessions", &["sandbox/session"]),
    ("fastcdc", &["node/src/content"]),
    ("unicode_normalization", &["protocol/src/manifest"]),
    ("zstd", &["protocol/src/compress.rs"]),
    ("libc", &["sandbox", "node/src/sys.rs", "node/src/beneath.rs"]),
];

/// Where `unsafe` may stand.
const UNSAFE: [&str; 4] =
    ["sandbox/src/sys", "sandbox/preload", "sandbox/attacks/attacker", "node/src/sys.rs"];

/// The longest file, in lines, without its tests.
const MAX_LINES: usize = 600;

/// Names that say nothing.
const EMPTY_WORDS: [&str; 8] =
    ["util", "utils", "common", "helper", "helpers", "manager", "handler", "internal"];

/// Asked for when the test runs: a program that was compiled in another clone looks at this one.
fn root() -> PathBuf {
    let tests = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    tests.unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR"))).join("..")
}

/// Every Rust source of the workspace: path from the root, and text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    for folder in ["protocol", "node", "sandbox", "simulator", "tests"] {
        walk(&root().join(folder), &mut found);
    }
    assert!(found.len() > 40, "only {} sources were found", found.len());
    let named = found.into_iter().map(|path| {
        let name = path.strip_prefix(root()).expect("it was found beneath the root");
        let text = fs::read_to_string(&path).expect("a source can be read");
        (name.to_str().expect("our names are ASCII").to_owned(), text)
    });
    named.collect()
}

fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of ours can be listed") {
        let path = entry.expect("a folder of ours can be listed").path();
        if path.is_dir() && !path.ends_with("target") {
            walk(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// The text without comments and without what follows `#[cfg(test)]`.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn names(code: &str, package: &str) -> bool {
    code.match_indices(&format!("{package}::")).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
    })
}

fn is_test(name: &str) -> bool {
    name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("tests.rs")
}

#[test]
fn each_package_has_one_room() {
    let mut strays = Vec::new();
    for (name, text) in sources().iter().filter(|(name, _)| !is_test(name)) {
        for (package, rooms) in ROOMS {
            if names(&code(text), package) && !rooms.iter().any(|room| name.starts_with(room)) {
                strays.push(format!("{name} names {package}"));
            }
        }
    }
    assert!(strays.is_empty(), "{}", strays.join("\n"));
}

#[test]
fn the_core_has_no_clock_no_entropy_and_no_input_or_output() {
    let manifest = fs::read_to_string(root().join("node/core/Cargo.toml")).expect("it is there");
    let dependencies = manifest.split("[dev-dependencies]").next().unwrap_or_default();
    for package in ["tokio", "libp2p", "rocksdb", "getrandom", "reqwest", "axum"] {
        assert!(!dependencies.contains(package), "the core depends on {package}");
    }
    for (name, text) in sources().iter().filter(|(name, _)| name.starts_with("node/core/src")) {
        let code = code(text);
        for what in ["std::time", "std::fs", "std::net", "std::env", "std::thread", "async fn"] {
            assert!(!code.contains(what), "{name} uses {what}");
        }
    }
}

#[test]
fn unsafe_stands_in_named_places_only() {
    for (name, text) in sources() {
        let here = UNSAFE.iter().any(|place| name.starts_with(place)) || is_test(&name);
        let uses = code(&text).contains("unsafe {") || code(&text).contains("unsafe fn");
        assert!(here || !uses, "{name} is unsafe");
    }
}

#[test]
fn every_file_opens_with_a_sentence_and_none_is_long() {
    for (name, text) in sources() {
        let head = text.lines().find(|line| !line.starts_with("#!"));
        let head = head.unwrap_or_default();
        assert!(head.starts_with("//! "), "{name} does not say what lives there");
        assert!(!name.ends_with("mod.rs"), "{name}: modules are files of their own name");
        let lines = text.split("#[cfg(test)]").next().unwrap_or_default().lines().count();
        assert!(is_test(&name) || lines <= MAX_LINES, "{name} has {lines} lines");
    }
}

#[test]
fn names_say_something() {
    for (name, text) in sources() {
        let path = Path::new(&name);
        for part in path.iter().filter_map(|part| part.to_str()) {
            let stem = part.trim_end_matches(".rs");
            assert!(!EMPTY_WORDS.contains(&stem), "{name}: {stem} says nothing");
        }
        for word in [
            concat!("TO", "DO"),
            concat!("FIX", "ME"),
            concat!("todo", "!("),
            concat!("unimplemented", "!("),
        ] {
            assert!(name == "tests/tidy.rs" || !text.contains(word), "{name} has a {word}");
        }
    }
}

#[test]
fn every_select_is_biased() {
    let ours = |(name, _): &&(String, String)| name.starts_with("node/src") && !is_test(name);
    for (name, text) in sources().iter().filter(ours) {
        for (at, _) in text.match_indices("select! {") {
            let next = text[at + "select! {".len()..].trim_start();
            assert!(next.starts_with("biased;"), "{name} has a select! without order");
        }
    }
}
