//! What the tests of this package share: one tenant's folders on the host and a policy for them.

use std::{
    env, fs,
    io::Read,
    os::unix::{
        fs::{MetadataExt, PermissionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use meshfarm_sandbox::{Access, Exit, Jail, Mount, Spec, launch};

/// The artist's folder; the job's outputs lie in `render` beneath it.
pub(crate) const SHOW: &str = "/home/artist/show";
/// What must never be read.
pub(crate) const CANARY: &str = "canary-7f3a";

/// The launcher under test.
pub(crate) fn launcher() -> PathBuf {
    program("MESHFARM_SANDBOX", env!("CARGO_BIN_EXE_meshfarm-sandbox"))
}

/// The program that tries one act.
pub(crate) fn prober() -> PathBuf {
    program("MESHFARM_SANDBOX_PROBE", env!("CARGO_BIN_EXE_meshfarm-sandbox-probe"))
}

fn program(variable: &str, built: &str) -> PathBuf {
    env::var_os(variable).map_or_else(|| built.into(), PathBuf::from)
}

/// One tenant's folders on the host, another's beside them, and a policy for the first.
pub(crate) struct Room {
    folder: tempfile::TempDir,
    pub(crate) spec: Spec,
}

impl Room {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["work", "in", "in/render", "out", "other", "base"] {
            fs::create_dir(path(name)).unwrap();
        }
        fs::write(path("in/scene.txt"), "a scene").unwrap();
        fs::write(path("other/secret"), CANARY).unwrap();
        let mut spec = Spec::new(prober(), path("work"));
        spec.base = Some(path("base"));
        spec.mounts = vec![
            mount(path("out"), &format!("{SHOW}/render"), Access::Write),
            mount(path("in"), SHOW, Access::Read),
        ];
        Self { folder, spec }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    pub(crate) fn start(&self, args: &[&str]) -> Jail {
        let mut spec = self.spec.clone();
        spec.args = args.iter().map(|s| (*s).to_owned()).collect();
        launch(&launcher(), &spec).unwrap()
    }

    /// Run with these arguments; what it printed and how it ended.
    pub(crate) fn run(&self, args: &[&str]) -> (String, Exit) {
        finish(self.start(args))
    }

    pub(crate) fn try_act(&self, act: &[&str]) -> String {
        self.run(act).0
    }
}

pub(crate) fn mount(host: PathBuf, at: &str, access: Access) -> Mount {
    Mount { host, at: at.into(), access, exec: false }
}

/// Let the program end; what it printed and how it ended.
pub(crate) fn finish(mut jail: Jail) -> (String, Exit) {
    drop(jail.stdin.take());
    let mut complaining = jail.stderr.take().unwrap();
    let complaints = std::thread::spawn(move || {
        let mut text = Vec::new();
        complaining.read_to_end(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    });
    let mut said = Vec::new();
    jail.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    let exit = jail.wait().unwrap();
    (String::from_utf8_lossy(&said).into_owned() + &complaints.join().unwrap(), exit)
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// Copy a program for everybody to run. By a process of its own: while this one had it open for writing, another
/// thread could start a child, which would hold it open and make its start fail.
pub(crate) fn copy_program(from: &Path, to: PathBuf) -> PathBuf {
    assert!(Command::new("cp").arg(from).arg(&to).status().unwrap().success());
    fs::set_permissions(&to, fs::Permissions::from_mode(0o755)).unwrap();
    to
}

/// Run all tests of this program again as an ordinary user, who can reach copies of the programs.
pub(crate) fn repeat_as_ordinary_user(extra: &[(&str, PathBuf)]) {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = |from: &Path, name: &str| copy_program(from, folder.path().join(name));
    let mut again = Command::new(copy(&env::current_exe().unwrap(), "tests"));
    again
        .env("MESHFARM_SANDBOX", copy(&launcher(), "meshfarm-sandbox"))
        .env("MESHFARM_SANDBOX_PROBE", copy(&prober(), "meshfarm-sandbox-probe"));
    for (variable, file) in extra {
        again.env(variable, copy(file, variable));
    }
    let done = again.env_remove("TMPDIR").current_dir("/").uid(65534).gid(65534).output().unwrap();
    let said = String::from_utf8_lossy(&done.stdout);
    assert!(done.status.success(), "{said}\n{}", String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("test result: ok"), "{said}");
}
