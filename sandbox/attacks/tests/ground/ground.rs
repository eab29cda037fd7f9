//! What both tests stand on: the programs, built once, and the running of attacks with them.

use std::{
    env, fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use meshfarm_attacks::{Linkage, Options, Outcome, Programs, Surroundings, Verdict, run};
use meshfarm_sandbox::Level;

/// The folder of built programs, and the profile that they were built with.
fn built() -> (PathBuf, &'static str) {
    let folder = Path::new(env!("CARGO_BIN_EXE_meshfarm-attacker")).parent().unwrap();
    let profile = if folder.ends_with("debug") { "dev" } else { "release" };
    (folder.to_path_buf(), profile)
}

fn cargo(args: &[&str], variables: &[(&str, &str)]) {
    let done = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .arg("build")
        .args(args)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_TARGET_DIR", built().0.parent().unwrap())
        .envs(variables.iter().copied())
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

/// All programs. The launcher and the library belong to other packages, and the static attacker is
/// compiled in another way, so a cargo of their own builds them; for a repetition they are given.
pub(crate) fn programs() -> &'static Programs {
    static PROGRAMS: OnceLock<Programs> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(folder) = env::var_os("MESHFARM_ATTACKS_IN").map(PathBuf::from) {
            return Programs {
                launcher: folder.join("launcher"),
                attacker: folder.join("attacker"),
                static_attacker: Some(folder.join("static")),
                weakened: None,
                preload: Some(folder.join("libmeshfarm_preload.so")),
            };
        }
        let (folder, profile) = built();
        cargo(&["--profile", profile, "-p", "meshfarm-sandbox"], &[]);
        cargo(&["--profile", "preload", "-p", "meshfarm-preload"], &[]);
        let target = format!("{}-unknown-linux-gnu", env::consts::ARCH);
        let args = ["--profile", profile, "--bin", "meshfarm-attacker", "--target", &target];
        cargo(&args, &[("RUSTFLAGS", "-C target-feature=+crt-static")]);
        let above = folder.parent().unwrap();
        Programs {
            launcher: folder.join("meshfarm-sandbox"),
            attacker: env!("CARGO_BIN_EXE_meshfarm-attacker").into(),
            static_attacker: Some(
                above.join(target).join(folder.file_name().unwrap()).join("meshfarm-attacker"),
            ),
            weakened: Some(env!("CARGO_BIN_EXE_meshfarm-sandbox-weakened").into()),
            preload: Some(above.join("preload/libmeshfarm_preload.so")),
        }
    })
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Run every attack, or those that `MESHFARM_ATTACK` names a part of, at level S2.
pub(crate) fn verdicts(linkage: Linkage, surroundings: Surroundings) -> Vec<Verdict> {
    verdicts_at(Level::S2, programs(), linkage, surroundings)
}

/// The same at another level or with other programs.
pub(crate) fn verdicts_at(
    floor: Level,
    programs: &Programs,
    linkage: Linkage,
    surroundings: Surroundings,
) -> Vec<Verdict> {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let options = Options {
        floor,
        only: env::var("MESHFARM_ATTACK").ok(),
        linkage,
        surroundings,
        at_once: 4,
        folder: folder.path().to_path_buf(),
    };
    let verdicts = run(programs, &options, |verdict| {
        println!("{:?} {} {:?}", verdict.took, verdict.attack.name, verdict.outcome);
    });
    let left = fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 0, "a yard is left");
    verdicts
}

/// The attacks whose outcome is not this, one a line.
pub(crate) fn others(verdicts: &[Verdict], expected: fn(&Outcome) -> bool) -> Vec<String> {
    let wrong = verdicts.iter().filter(|v| !expected(&v.outcome));
    wrong.map(|v| format!("{}: {:?}", v.attack.name, v.outcome)).collect()
}
