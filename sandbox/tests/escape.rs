//! Each test tries one forbidden act from inside a jail and looks at what came of it outside.

use std::{fs, io::Read, path::Path};

use meshfarm_sandbox::{Jail, Spec, launch};

const LAUNCHER: &str = env!("CARGO_BIN_EXE_meshfarm-sandbox");
const PROBE: &str = env!("CARGO_BIN_EXE_meshfarm-sandbox-probe");

#[test]
fn smoke() {
    let room = tempfile::tempdir().unwrap();
    fs::create_dir(room.path().join("work")).unwrap();
    let mut spec = Spec::new(PROBE, room.path().join("work"));
    spec.base = Some(room.path().into());
    spec.args = vec!["list".into(), "/".into()];
    let t = std::time::Instant::now();
    let mut jail: Jail = launch(Path::new(LAUNCHER), &spec).unwrap();
    eprintln!("launch {:?}", t.elapsed());
    let mut out = String::new();
    jail.stdout.take().unwrap().read_to_string(&mut out).unwrap();
    let mut err = String::new();
    jail.stderr.take().unwrap().read_to_string(&mut err).unwrap();
    let exit = jail.wait().unwrap();
    eprintln!("all {:?}", t.elapsed());
    eprintln!("{out} {err} {exit:?}");
    eprintln!("{:#?}", jail.report);
}
