//! Every attack on the jail as it is installed: all of them are held.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
    sync::RwLock,
};

use ground::{is_root, others, programs, verdicts, verdicts_at};
use meshfarm_attacks::{Linkage, Outcome, Prepare, Programs, Surroundings, Verdict, attacks};
use meshfarm_sandbox::Level;

#[path = "ground/ground.rs"]
mod ground;

/// Where attacks succeed, they reach those of the other tests: they run alone.
static OTHERS: RwLock<()> = RwLock::new(());

fn all_hold(linkage: Linkage) {
    let _together = OTHERS.read();
    judge(&verdicts(linkage, Surroundings::Jail), Level::S2);
}

fn judge(verdicts: &[Verdict], level: Level) {
    let broken = others(verdicts, |outcome| !matches!(outcome, Outcome::Broke(_)));
    assert!(broken.is_empty(), "{} broke out:\n{}", broken.len(), broken.join("\n"));
    let skipped = others(verdicts, |outcome| !matches!(outcome, Outcome::Skipped(_)));
    let expected = verdicts.iter().filter(|v| {
        let laid_by_root = matches!(v.attack.prepare, Prepare::Device | Prepare::SetUserId);
        v.attack.promised > level || laid_by_root && !is_root()
    });
    let n_expected = expected.count();
    assert!(skipped.len() <= n_expected, "not run:\n{}", skipped.join("\n"));
    println!("{} held, {} not run", verdicts.len() - skipped.len(), skipped.len());
}

#[test]
fn every_attack_is_held() {
    all_hold(Linkage::Dynamic);
}

#[test]
fn every_attack_past_the_libraries_is_held() {
    all_hold(Linkage::Static);
}

#[test]
fn every_attack_is_held_where_the_job_has_a_disk_of_its_own() {
    if is_root() {
        let _together = OTHERS.read();
        let floor = Level::S3;
        judge(&verdicts_at(floor, programs(), Linkage::Dynamic, Surroundings::Jail), floor);
    }
}

/// What a machine without namespaces does not hold: a job reaches what its user owns and the kernel shows to all.
const BREAKS_AT_S1: &[&str] = &[
    "change-the-mode-of-a-file",
    "change-the-mode-of-an-input",
    "change-the-mode-of-an-input-through-the-drives-folder",
    "change-the-mode-of-an-open-input",
    "change-the-program-that-runs",
    "change-the-times-of-a-file",
    "change-the-times-of-an-input",
    "find-out-whether-a-file-is-there",
    "limit-a-process",
    "list-processes",
    "list-the-hosts-connections",
    "list-the-hosts-named-sockets",
    "move-a-process-to-one-processor",
    "open-a-device-among-the-inputs",
    "read-the-arguments-of-processes",
    "read-the-hosts-devices-and-settings",
    "read-the-label-of-a-file",
    "read-the-shared-memory-folder",
    "read-where-a-link-leads",
    "run-a-program-from-the-outputs-by-the-loader",
    "see-a-file-by-its-mere-name",
    "see-when-a-file-was-changed",
    "send-a-datagram-to-a-named-socket",
    "slow-a-process-down",
    "slow-a-users-processes-down",
    "take-an-abstract-name",
    "visit-a-named-socket",
    "watch-a-folder",
    "watch-from-many-places",
    "write-the-shared-memory-folder",
];

#[test]
fn what_does_not_hold_without_namespaces_is_known() {
    if !is_root() {
        return;
    }
    let _alone = OTHERS.write();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let launcher = folder.path().join("launcher");
    let weakened = programs().weakened.as_ref().unwrap().display().to_string();
    let script = format!("#!/bin/sh\nexec '{weakened}' namespaces\n");
    let write = "printf %s \"$2\" > \"$1\" && chmod 755 \"$1\"";
    let done = Command::new("sh").args(["-c", write, "sh"]).arg(&launcher).arg(script).status();
    assert!(done.unwrap().success());
    // Where the job's user can read it.
    let library = folder.path().join("libmeshfarm_preload.so");
    let copy = Command::new("cp").arg(programs().preload.as_ref().unwrap()).arg(&library).status();
    assert!(copy.unwrap().success());
    let programs = Programs { launcher, preload: Some(library), ..programs().clone() };
    // Past the library, which keeps no program from anything.
    let verdicts = verdicts_at(Level::S0, &programs, Linkage::Static, Surroundings::Jail);
    let broke: BTreeSet<&str> = verdicts
        .iter()
        .filter(|v| matches!(v.outcome, Outcome::Broke(_)))
        .map(|v| v.attack.name)
        .collect();
    let known: BTreeSet<&str> = BREAKS_AT_S1.iter().copied().collect();
    let news: Vec<_> = broke.difference(&known).collect();
    assert!(news.is_empty(), "these break too: {news:?}");
    // Another kernel may hold some of them, but not most.
    assert!(broke.len() > known.len() / 2, "{broke:?}");
}

#[test]
fn attacks_are_many_and_each_has_a_name_of_its_own() {
    let names: BTreeSet<&str> = attacks().iter().map(|attack| attack.name).collect();
    assert_eq!(names.len(), attacks().len());
    assert!(names.len() >= 110, "{}", names.len());
    assert!(attacks().iter().all(|attack| !attack.stopped_by.is_empty()));
}

#[test]
fn started_as_root_all_of_this_holds_for_an_ordinary_user_as_well() {
    if !is_root() {
        return;
    }
    let _together = OTHERS.read();
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &Path, name: &str| {
        let to = folder.path().join(name);
        // Not by us: a child that another thread starts meanwhile would hold it open for writing.
        assert!(Command::new("cp").arg(from).arg(&to).status().unwrap().success());
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
        to
    };
    copy(&programs().launcher, "launcher");
    copy(&programs().attacker, "attacker");
    copy(programs().static_attacker.as_ref().unwrap(), "static");
    copy(programs().preload.as_ref().unwrap(), "libmeshfarm_preload.so");
    let done = Command::new(copy(&env::current_exe().unwrap(), "tests"))
        .env("MESHFARM_ATTACKS_IN", folder.path())
        .env_remove("TMPDIR")
        .current_dir("/")
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("test result: ok"), "{said}");
}
