//! Every attack on the jail as it is installed: all of them are held.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{
    collections::BTreeSet,
    env, fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Command,
};

use ground::{is_root, others, programs, verdicts};
use meshfarm_attacks::{Linkage, Outcome, Prepare, Surroundings, attacks};

#[path = "ground/ground.rs"]
mod ground;

fn all_hold(linkage: Linkage) {
    let verdicts = verdicts(linkage, Surroundings::Jail);
    let broken = others(&verdicts, |outcome| !matches!(outcome, Outcome::Broke(_)));
    assert!(broken.is_empty(), "{} broke out:\n{}", broken.len(), broken.join("\n"));
    let skipped = others(&verdicts, |outcome| !matches!(outcome, Outcome::Skipped(_)));
    let expected = verdicts.iter().filter(|v| {
        let laid_by_root = matches!(v.attack.prepare, Prepare::Device | Prepare::SetUserId);
        v.attack.promised > meshfarm_sandbox::Level::S2 || laid_by_root && !is_root()
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
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &Path, name: &str| {
        let to = folder.path().join(name);
        fs::copy(from, &to).unwrap();
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
