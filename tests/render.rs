//! One site renders its own jobs in the sandbox.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{Mesh, alone, finish, names_in, tasks, text, write};

/// A scene that moves, reads an include and takes a tenth of a second.
pub(crate) const SCENE: &str = r#"
#version 3.7;
global_settings { assumed_gamma 1.0 }
#include "colours/paint.inc"
camera { location <0, 2, -6> look_at <0, 0.5, 0> }
light_source { <4, 6, -5> rgb 1 }
plane { y, 0 pigment { checker rgb 0.2, rgb 0.9 } }
sphere { <2 * clock - 1, 1, 0>, 1 pigment { Paint } finish { phong 0.8 reflection 0.2 } }
"#;

/// What the scene includes.
pub(crate) const INCLUDE: &str = "#declare Paint = pigment { rgb <0.9, 0.3, 0.1> }\n";

/// Writes the scene with its include and gives its path.
pub(crate) fn write_scene(folder: &Path) -> std::path::PathBuf {
    let scene = folder.join("ball.pov");
    write(&scene, SCENE);
    write(&folder.join("colours/paint.inc"), INCLUDE);
    scene
}

/// The pixels of a picture.
#[track_caller]
pub(crate) fn pixels(path: &Path) -> image::RgbImage {
    let picture = image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    picture.into_rgb8()
}

/// Renders the frames of [`write_scene`] without meshfarm.
pub(crate) fn render_natively(scene: &Path, frames: u32, to: &Path) {
    fs::create_dir_all(to).expect("the folder is ours");
    let folder = scene.parent().expect("a file lies in a folder");
    let mut command = Command::new("povray");
    command.arg(format!("+I{}", scene.display())).arg(format!("+L{}", folder.display()));
    command.arg(format!("+O{}/ball.png", to.display()));
    command.args(["+FN", "-D", "-GA", "+W160", "+H120", "+Q9", "-A", "+KFI1"]);
    command.arg(format!("+KFF{frames}"));
    let ran = finish(&mut command);
    assert_eq!(ran.code, 0, "{ran:?}");
}

/// Every frame is there, once, and is what a renderer without meshfarm makes of the scene.
#[track_caller]
pub(crate) fn assert_frames(scene: &Path, frames: u32, out: &Path) {
    let native = tempfile::tempdir().expect("a temporary folder");
    render_natively(scene, frames, native.path());
    assert_eq!(names_in(out), names_in(native.path()));
    for name in names_in(out) {
        let (ours, theirs) = (pixels(&out.join(&name)), pixels(&native.path().join(&name)));
        assert!(ours == theirs, "{name} looks different");
        assert_eq!(ours.dimensions(), (160, 120));
    }
}

#[test]
fn a_site_renders_its_own_scene_in_the_sandbox_as_the_renderer_would_without_it() {
    let mesh = Mesh::of(vec![alone("oslo", 2)]);
    let scene = write_scene(&mesh.new_folder("shot"));
    let out = mesh.new_folder("frames");
    let oslo = &mesh[0];

    let (scene_text, out_text) = (scene.to_str().unwrap(), out.to_str().unwrap());
    let flags = [scene_text, "--frames", "1-4", "--resolution", "160x120", "--output", out_text];
    let job = oslo.submit(&flags);
    let done = oslo.wait_done(&job);

    assert_eq!(tasks(&done).len(), 4);
    assert!(tasks(&done).iter().all(|task| task["site"] == "oslo" && task["failures"] == 0));
    assert_frames(&scene, 4, &out);
    let log = oslo.run(&["logs", &job, "Frame=2"]);
    assert!(log.out.contains("Persistence of Vision"), "{log:?}");
    assert_eq!(oslo.api("/v1/slots")["free"], 2);
    assert_eq!(
        text(&oslo.json(&["job", &job, "--sheet", &format!("{out_text}.png")])["sheet"]),
        format!("{out_text}.png")
    );
    assert!(pixels(&out.with_extension("png")).width() > 160);
}
