//! What comes out of a jail, and what a job's paths do in it: JSON lines, the launcher's words, the table of paths.
#![no_main]

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Component, Path};

use libfuzzer_sys::fuzz_target;
use meshfarm_protocol::job::Layout;
use meshfarm_protocol::session::{self, FromRunner, JobFile, ToRunner};
use meshfarm_sandbox::{Policy, Spec};
use serde::Serialize;
use serde::de::DeserializeOwned;

#[path = "../../../sandbox/src/control.rs"]
#[allow(dead_code, reason = "the launcher uses all of it")]
mod control;
#[path = "../../../sandbox/preload/src/fold.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
mod fold;
#[path = "../../../sandbox/preload/src/format.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
mod format;
#[path = "../../../sandbox/preload/src/marks.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
mod marks;
#[path = "../../../sandbox/preload/src/posix.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
mod posix;
#[path = "../../../sandbox/preload/src/redirect.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
mod redirect;
#[path = "../../../sandbox/src/report.rs"]
#[allow(dead_code, unreachable_pub, reason = "the launcher uses all of it")]
mod report;
#[path = "../../../sandbox/preload/src/rules.rs"]
#[allow(dead_code, reason = "the library uses all of it")]
mod rules;
#[path = "../../../sandbox/src/sys.rs"]
#[allow(dead_code, unused_imports, reason = "the launcher uses all of it")]
mod sys;
mod exit {
    //! Where the launcher's own code looks for it.

    pub(crate) use meshfarm_sandbox::Exit;
}
pub(crate) use report::{Mechanism, Report, SandboxError, Step};

/// A message whose body is absent is not waited for in memory.
const LONGEST: usize = 64 * 1024;

fuzz_target!(|bytes: &[u8]| {
    let Some((door, bytes)) = bytes.split_first() else {
        return;
    };
    match door % 9 {
        0 => line::<FromRunner>(bytes),
        1 => line::<ToRunner>(bytes),
        2 => line::<JobFile>(bytes),
        3 => said(bytes),
        4 => note(bytes),
        5 => policy(bytes),
        6 => table(bytes),
        7 => layout(bytes),
        _ => policy_file(bytes),
    }
});

fn line<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
    let Ok(value) = session::from_line::<T>(bytes) else {
        return;
    };
    let ours = session::to_line(&value).expect("it was no longer than a line");
    let again: T = session::from_line(&ours).expect("what we write we can read");
    assert_eq!(session::to_line(&again).expect("it is as long as the last one"), ours);
}

/// The launcher's words to the node, as they come over the socket.
fn said(bytes: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("a pair of sockets");
    let sent = &bytes[..bytes.len().min(LONGEST)];
    theirs.write_all(sent).expect("the socket takes so much");
    drop(theirs);
    while let Ok((said, _descriptor)) = control::receive_with::<control::Said>(&ours) {
        if let control::Said::Refused(refusal) = said {
            assert!(!SandboxError::from(refusal).to_string().is_empty());
        }
    }
}

fn note(bytes: &[u8]) {
    if let Ok(control::Note::Refused(refusal)) = serde_json::from_slice(bytes) {
        assert!(!SandboxError::from(refusal).to_string().is_empty());
    }
}

/// A policy, whose paths and texts come from the job.
fn policy(bytes: &[u8]) {
    let Ok(policy) = serde_json::from_slice::<Spec>(bytes) else {
        return;
    };
    if policy.check().is_err() {
        return;
    }
    for mount in &policy.mounts {
        let mut parts = mount.at.components();
        assert_eq!(parts.next(), Some(Component::RootDir));
        assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{:?}", mount.at);
    }
    assert!(!policy.environment().keys().any(|name| name.starts_with("LD_")));
}

/// A policy as people write it.
fn policy_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Err(error) = Policy::parse(Path::new("show.toml"), text) {
        assert!(!error.to_string().is_empty());
    }
}

/// A table of paths and a path, both hostile: a zero byte ends the path, as in C.
fn table(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    let (path, table) = bytes.split_at(end);
    let Some(table) = rules::Table::new(table.get(1..).unwrap_or_default()) else {
        return;
    };
    let mut out = [0; redirect::PATH_MAX];
    if let redirect::Decision::Redirect(len) = redirect::redirect(&table, path, &mut out).decision {
        assert_eq!(out[len], 0);
    }
    for follow in [true, false] {
        let decision = posix::resolve(&table, path, follow, &Nowhere, &mut out);
        if let redirect::Decision::Redirect(len) = decision {
            assert_eq!(out[len], 0);
        }
    }
    if let Some(len) = posix::reverse(&table, path, &mut out) {
        assert_eq!(out[len], 0);
    }
}

/// A host where every odd name is a link to its own beginning.
struct Nowhere;

impl posix::Host for Nowhere {
    fn link(&self, path: &[u8], out: &mut [u8]) -> Result<usize, i32> {
        const EINVAL: i32 = 22;
        if path.len().is_multiple_of(2) || out.is_empty() {
            return Err(EINVAL);
        }
        let length = (path.len() / 2).min(out.len()).max(1);
        out[..length].copy_from_slice(&path[..length]);
        Ok(length)
    }

    fn enter(&self, _path: &[u8]) -> Result<(), i32> {
        Ok(())
    }
}

fn layout(bytes: &[u8]) {
    if let Ok(layout) = serde_json::from_slice::<Layout>(bytes)
        && layout.check().is_ok()
    {
        for rule in session::path_rules(&layout) {
            assert!(rule.destination.starts_with("/mnt/"));
        }
    }
}
