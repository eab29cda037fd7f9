//! Tar archives of job bundles: whatever stands in one, nothing is written outside of the folder that it goes to.
#![no_main]

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use tar::{Builder, EntryType, Header};

#[path = "../../../node/src/archive.rs"]
#[allow(dead_code, unreachable_pub, reason = "the node uses all of it")]
mod archive;
#[path = "../../../node/src/beneath.rs"]
#[allow(dead_code, unreachable_pub, reason = "the node uses all of it")]
mod beneath;

#[derive(Arbitrary, Debug)]
enum Plan {
    /// The archive as it is.
    Raw(Vec<u8>),
    /// Whole entries, and one byte that is changed afterwards.
    Entries(Vec<EntryPlan>, Option<(u16, u8)>),
}

#[derive(Arbitrary, Debug)]
struct EntryPlan {
    name: NamePlan,
    kind: u8,
    mode: u32,
    link: Option<String>,
    contents: Vec<u8>,
    /// Another size than the contents have.
    size: Option<u64>,
    /// What an extended header before it says.
    said: Vec<(SaidPlan, String)>,
}

#[derive(Arbitrary, Debug)]
enum NamePlan {
    Any(String),
    Long(String, u8),
    Up(u8, String),
    Absolute(String),
    Below(u8, u8),
}

#[derive(Arbitrary, Debug)]
enum SaidPlan {
    Path,
    LinkPath,
    Size,
    Any(String),
}

fuzz_target!(|plan: Plan| {
    let bytes = match plan {
        Plan::Raw(bytes) => bytes,
        Plan::Entries(entries, spoiled) => written(entries, spoiled),
    };
    let memory = Path::new("/dev/shm");
    let base = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let scratch = tempfile::tempdir_in(base).expect("a temporary folder can be made");
    let top = scratch.path();
    let into = top.join("a/b/into");
    fs::create_dir_all(&into).expect("a folder can be made");
    for canary in ["canary", "a/canary", "a/b/canary"] {
        fs::write(top.join(canary), canary).expect("a file can be written");
    }
    let bundle = top.join("bundle.tar");
    fs::write(&bundle, &bytes).expect("a file can be written");
    if let Err(error) = archive::unpack(&bundle, &into) {
        assert!(!error.to_string().is_empty());
    }
    for (folder, names) in [
        ("", &["a", "bundle.tar", "canary"][..]),
        ("a", &["b", "canary"]),
        ("a/b", &["canary", "into"]),
    ] {
        assert_eq!(listed(&top.join(folder)), names, "something was written outside");
    }
    for canary in ["canary", "a/canary", "a/b/canary"] {
        let there = fs::read(top.join(canary)).expect("the canary is alive");
        assert_eq!(there, canary.as_bytes());
    }
    let mut left = bytes.len() as u64;
    plain(&into, 0, &mut left);
});

fn listed(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("it is there");
    let mut names: Vec<_> = entries
        .map(|entry| entry.expect("it is there").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// Only plain files and folders, without special modes, and no more bytes than came.
fn plain(folder: &Path, depth: usize, left: &mut u64) {
    assert!(depth <= 64, "{folder:?} is too deep");
    for name in listed(folder) {
        assert!(!name.chars().any(char::is_control), "{name:?}");
        let path = folder.join(&name);
        let about = fs::symlink_metadata(&path).expect("it is there");
        assert!(about.is_file() || about.is_dir(), "{path:?}");
        assert_eq!(about.mode() & 0o7000, 0, "{path:?}");
        assert!(about.is_dir() || about.mode() & 0o111 == 0, "{path:?}");
        if about.is_dir() {
            plain(&path, depth + 1, left);
        } else {
            *left = left.checked_sub(about.len()).expect("more was written than came");
        }
    }
}

fn written(entries: Vec<EntryPlan>, spoiled: Option<(u16, u8)>) -> Vec<u8> {
    let mut tar = Builder::new(Vec::new());
    for entry in entries.into_iter().take(20) {
        if !entry.said.is_empty() {
            append(&mut tar, b"said", EntryType::XHeader, &said(&entry.said));
        }
        let name = name(&entry.name);
        if name.len() > 100 {
            append(&mut tar, b"long", EntryType::GNULongName, &name);
        }
        let mut header = Header::new_gnu();
        put(&mut header.as_old_mut().name, &name);
        header.set_entry_type(kind(entry.kind));
        header.set_mode(entry.mode);
        if let Some(link) = &entry.link {
            put(&mut header.as_old_mut().linkname, link.as_bytes());
        }
        header.set_size(entry.size.unwrap_or(entry.contents.len() as u64));
        header.set_cksum();
        tar.append(&header, entry.contents.as_slice()).expect("memory can be written");
    }
    let mut bytes = tar.into_inner().expect("memory can be written");
    if let Some((at, value)) = spoiled {
        let len = bytes.len();
        if let Some(byte) = bytes.get_mut(usize::from(at) % len.max(1)) {
            *byte = value;
        }
    }
    bytes
}

fn append(tar: &mut Builder<Vec<u8>>, name: &[u8], kind: EntryType, contents: &[u8]) {
    let mut header = Header::new_gnu();
    put(&mut header.as_old_mut().name, name);
    header.set_entry_type(kind);
    header.set_size(contents.len() as u64);
    header.set_cksum();
    tar.append(&header, contents).expect("memory can be written");
}

fn put(field: &mut [u8; 100], text: &[u8]) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text[..len]);
}

fn name(plan: &NamePlan) -> Vec<u8> {
    match plan {
        NamePlan::Any(name) => name.clone().into_bytes(),
        NamePlan::Long(name, times) => name.repeat(usize::from(*times)).into_bytes(),
        NamePlan::Up(times, name) => {
            [&b"../".repeat(usize::from(*times))[..], name.as_bytes()].concat()
        }
        NamePlan::Absolute(name) => format!("/dev/shm/{name}").into_bytes(),
        NamePlan::Below(folder, file) => format!("{}/{}", folder % 4, file % 4).into_bytes(),
    }
}

fn kind(byte: u8) -> EntryType {
    const KINDS: &[u8] = b"00000555123467SLKxgVMN";
    EntryType::new(KINDS.get(usize::from(byte) % 32).copied().unwrap_or(byte))
}

fn said(records: &[(SaidPlan, String)]) -> Vec<u8> {
    let mut text = String::new();
    for (key, value) in records.iter().take(8) {
        let key = match key {
            SaidPlan::Path => "path",
            SaidPlan::LinkPath => "linkpath",
            SaidPlan::Size => "size",
            SaidPlan::Any(key) => key,
        };
        let rest = key.len() + value.len() + 3;
        let mut len = rest + 1;
        while rest + len.to_string().len() != len {
            len = rest + len.to_string().len();
        }
        let _memory = writeln!(text, "{len} {key}={value}");
    }
    text.into_bytes()
}
