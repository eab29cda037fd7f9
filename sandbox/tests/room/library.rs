//! The preload library as the tests use it.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// The preload library, built once by a cargo of its own: it has another profile than the tests.
pub(crate) fn preload() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        if let Some(path) = env::var_os("MESHFARM_PRELOAD") {
            return PathBuf::from(path);
        }
        let target = Path::new(env!("CARGO_BIN_EXE_meshfarm-sandbox")).ancestors().nth(2).unwrap();
        let done = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--profile", "preload", "-p", "meshfarm-preload"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("CARGO_TARGET_DIR", target)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        target.join("preload/libmeshfarm_preload.so")
    };
    BUILT.get_or_init(build).clone()
}

/// The names of a shared object's dynamic symbols, as `readelf` prints them: (defined, name).
pub(crate) fn symbols(library: &Path) -> Vec<(bool, String)> {
    let done =
        Command::new("readelf").args(["--dyn-syms", "--wide"]).arg(library).output().unwrap();
    assert!(
        done.status.success(),
        "{}: {}",
        library.display(),
        String::from_utf8_lossy(&done.stderr)
    );
    String::from_utf8(done.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let name = fields.get(7)?.split('@').next()?;
            fields.first()?.trim_end_matches(':').parse::<u32>().ok()?;
            Some((*fields.get(6)? != "UND", name.to_owned()))
        })
        .collect()
}
