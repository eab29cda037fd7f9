//! The rules of paths: what is accepted is safe to create beneath a folder, and both ends accept the same.
#![no_main]

use std::collections::HashMap;
use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use meshfarm_protocol::id::{ChunkId, Millis, TenantId};
use meshfarm_protocol::manifest::build::Builder;
use meshfarm_protocol::manifest::path::{MAX_DEPTH, MAX_NAME, MAX_PATH, check_path, sort_key};
use meshfarm_protocol::manifest::{Body, File, Limits, Reader};
use meshfarm_protocol::seal::TenantSecret;

fuzz_target!(|text: &str| {
    let mut paths: Vec<&str> = text.split('\n').collect();
    for path in &paths {
        if check_path(path).is_ok() {
            plain(path);
        } else {
            assert!(
                !path.chars().all(|c| c.is_ascii_lowercase())
                    || path.is_empty()
                    || path.len() > MAX_NAME
            );
        }
    }
    paths.sort_by_key(|path| sort_key(path));
    both_ends(&paths);
    paths.reverse();
    both_ends(&paths);
});

fn plain(path: &str) {
    assert!(path.len() <= MAX_PATH && !path.chars().any(char::is_control), "{path:?}");
    let parts: Vec<_> = Path::new(path).components().collect();
    assert!(parts.iter().all(|part| matches!(part, Component::Normal(_))), "{path:?}");
    assert_eq!(parts.len(), path.split('/').count(), "{path:?}");
    assert!(parts.len() <= MAX_DEPTH);
    assert!(path.split('/').all(|name| name.len() <= MAX_NAME));
}

/// What a submitter's builder takes, a lender's reader takes too, and gives back.
fn both_ends(paths: &[&str]) {
    let secret = TenantSecret::new(TenantId([5; 16]), 7, [6; 32]);
    let limits = Limits::granting(1 << 20);
    let mut builder = Builder::new(&secret, Millis(0), limits);
    let mut taken = Vec::new();
    for path in paths {
        let file = File {
            path: (*path).to_owned(),
            size: 1,
            executable: false,
            modified: Millis(0),
            body: Body::Inline(vec![1]),
        };
        match builder.add(file, &[]) {
            Ok(()) => taken.push((*path).to_owned()),
            Err(error) => {
                let text = error.to_string();
                assert!(!text.chars().any(char::is_control), "{text:?} would fool a terminal");
                // It cannot be finished after that.
                return;
            }
        }
    }
    let Ok((built, nodes)) = builder.finish() else {
        return;
    };
    let store: HashMap<ChunkId, Vec<u8>> =
        nodes.into_iter().map(|node| (node.cid, node.bytes)).collect();
    let fetch = |cid: &ChunkId| store.get(cid).cloned().ok_or(std::fmt::Error);
    let mut reader = Reader::new(&built.link, limits, fetch).expect("the builder kept the limits");
    for path in taken {
        let file = reader.next_file().expect("the builder knows the rules").expect("it was added");
        assert_eq!(file.path, path);
    }
    assert!(reader.next_file().expect("the builder knows the rules").is_none());
}
