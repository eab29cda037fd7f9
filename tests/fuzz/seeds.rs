//! Writes the first seeds of each target from the golden bytes of the wire and from builders: `tests/fuzz.sh seeds`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use meshfarm_protocol::id::TaskNo;
use meshfarm_protocol::message::WIRE_VERSION;
use meshfarm_protocol::session::{
    self, FromRunner, Outcome, OutputPath, OutputRoot, PathRule, Start, ToRunner,
};
use meshfarm_sandbox::{Access, Mount, Relocation, Spec, WindowsRule};

/// Which door of the target `wire` reads which golden values, by the beginning of their names.
const DOORS: [(u8, &str); 15] = [
    (0, "request"),
    (1, "answer"),
    (2, "signed-profile"),
    (3, "profile"),
    (4, "certificate"),
    (5, "envelope"),
    (6, "lease-secrets"),
    (7, "chunk-key"),
    (8, "manifest-link"),
    (9, "lane-hello"),
    (10, "piece"),
    (11, "ticket-text"),
    (13, "chunk-sealed"),
    (16, "lane-pass"),
    (17, "lane-ask"),
];

fn main() -> io::Result<()> {
    let here = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let corpora = here.join("corpus");
    let golden = golden(&here.join("../../protocol/tests/golden").join(WIRE_VERSION.to_string()))?;
    for (name, bytes) in &golden {
        for (door, _) in DOORS.iter().filter(|(_, prefix)| name.starts_with(prefix)) {
            put(&corpora, "wire", name, &[&[*door], bytes.as_slice()].concat())?;
        }
        if name == "lease-secrets" {
            put(&corpora, "wire", "sealed-lease-secrets", &[&[14], bytes.as_slice()].concat())?;
        }
        if name == "job-file" {
            put(&corpora, "session", name, &[&[2], bytes.as_slice()].concat())?;
        }
    }
    for (n, line) in lines().into_iter().enumerate() {
        put(&corpora, "session", &format!("line-{n}"), &line)?;
    }
    put(
        &corpora,
        "session",
        "table",
        &[&[6], b"/home/a/show/../tex/wood.png".as_slice(), &[0], table()?.as_slice()].concat(),
    )?;
    let policy = serde_json::to_vec(&policy())?;
    put(&corpora, "session", "policy", &[&[5], policy.as_slice()].concat())?;
    let file = include_bytes!("../../sandbox/policies/command.toml").as_slice();
    put(&corpora, "session", "policy-file", &[&[8], file].concat())?;
    for (n, path) in paths().into_iter().enumerate() {
        put(&corpora, "paths", &format!("paths-{n}"), path.as_bytes())?;
    }
    for (n, tar) in archives()?.into_iter().enumerate() {
        // The first four bytes choose that the archive is taken as it is.
        put(&corpora, "archive", &format!("tar-{n}"), &[&[0; 4], tar.as_slice()].concat())?;
    }
    Ok(())
}

fn put(corpora: &Path, target: &str, name: &str, bytes: &[u8]) -> io::Result<()> {
    let folder = corpora.join(target);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join(name), bytes)
}

fn golden(folder: &Path) -> io::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let text: String = fs::read_to_string(&path)?.split_whitespace().collect();
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(io::Error::other)?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        found.insert(name, bytes);
    }
    Ok(found)
}

/// One line of each kind, behind the door that reads it.
fn lines() -> Vec<Vec<u8>> {
    let output = || OutputPath { root: "r1".into(), path: "a/b.png".into() };
    let from = [
        FromRunner::Ready { version: 1 },
        FromRunner::TaskStarted { task: TaskNo(3) },
        FromRunner::Log { task: Some(TaskNo(3)), lines: vec!["a\nb".into(), "\u{e9}".into()] },
        FromRunner::Progress { task: None, permille: Some(500), status: Some("half".into()) },
        FromRunner::Outputs { task: TaskNo(3), files: vec![output()] },
        FromRunner::TaskEnded {
            task: TaskNo(3),
            outcome: Outcome::Failed { exit_code: Some(-9), message: "killed".into() },
            outputs: vec![output()],
        },
        FromRunner::Ended { error: Some("gone".into()) },
    ];
    let start = Start {
        version: 1,
        job_file: "/job.json".into(),
        session_dir: "/work".into(),
        step: meshfarm_protocol::id::StepNo(0),
        path_mapping: vec![PathRule {
            format: meshfarm_protocol::job::PathFormat::Windows,
            source: r"S:\show".into(),
            destination: "/mnt/r1".into(),
        }],
        outputs: vec![OutputRoot { id: "r1".into(), path: "/mnt/r1".into() }],
        log_bytes: 1000,
    };
    let to = [
        ToRunner::Start(start),
        ToRunner::Run { task: TaskNo(1) },
        ToRunner::Cancel,
        ToRunner::Finish,
    ];
    let refused = br#"{"Refused":{"step":"mount","subject":"/home","errno":2,"text":"absent"}}"#;
    let len = u32::try_from(refused.len()).unwrap_or_default().to_le_bytes();
    let layout = br#"{"roots":[{"id":"r0","source":"S:\\show","format":"windows","access":"in"}]}"#;
    let mut lines: Vec<Vec<u8>> = vec![
        [&[3], len.as_slice(), refused].concat(),
        [&[4], refused.as_slice()].concat(),
        [&[7], layout.as_slice()].concat(),
    ];
    lines.extend(from.iter().flat_map(session::to_line).map(|line| [&[0], &line[..]].concat()));
    lines.extend(to.iter().flat_map(session::to_line).map(|line| [&[1], &line[..]].concat()));
    lines
}

/// A table of one rule without an index.
fn table() -> io::Result<Vec<u8>> {
    Relocation {
        pairs: vec![("/home/a/show".into(), "/srv/show".into()), ("/mnt".into(), "/srv/x".into())],
        reverse: true,
        watched: vec!["/home/a/show".into()],
        records: Some("/session/notes".into()),
    }
    .table()
}

fn policy() -> Spec {
    let mut policy = Spec::new("/opt/render", "/srv/work");
    policy.mounts.push(Mount {
        host: "/srv/show".into(),
        at: "/mnt/r1".into(),
        access: Access::Read,
        exec: false,
    });
    policy.windows.push(WindowsRule {
        source: r"S:\show".into(),
        at: "/mnt/r1".into(),
        case_insensitive: true,
    });
    policy
}

fn paths() -> Vec<String> {
    vec![
        "r0/a\nr0/a/b\nr0/A\nr1/\u{e9}\nr1/e\u{301}".into(),
        "../a\n/a\na//b\na/./b\na/../b\n\u{7}".into(),
        "a/".repeat(65) + "a",
        "n".repeat(256) + "\n" + &"p/".repeat(600),
        "r0/\u{df}\nr0/SS\nr0/\u{130}\nr0/i\u{307}".into(),
    ]
}

fn archives() -> io::Result<Vec<Vec<u8>>> {
    let mut made = Vec::new();
    for kind in [tar::EntryType::Regular, tar::EntryType::Symlink, tar::EntryType::Directory] {
        let mut archive = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(4);
        header.set_mode(0o4755);
        archive.append_data(&mut header, "b/template.yaml", &b"name"[..])?;
        let mut header = tar::Header::new_gnu();
        header.set_size(4);
        archive.append_data(&mut header, "n/".repeat(60) + "file", &b"deep"[..])?;
        archive.append_pax_extensions([("path", b"other".as_slice()), ("size", b"4")])?;
        made.push(archive.into_inner()?);
    }
    Ok(made)
}
