//! Renderers in the jail: POV-Ray's own scenes, and Blender's with all that they link and run, give the same pixels as outside.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::{fs, path::Path, process::Command};

use meshfarm_sandbox::{Access, Level, Profile, launch};
use room::{Room, is_root, launcher, mount, repeat_as_ordinary_user};

#[path = "room/room.rs"]
#[allow(dead_code, reason = "each test program uses its part of the room")]
mod room;

const BLENDER: &str = "/usr/bin/blender";

/// Makes `lib.blend` with a material that has an image texture, and `shot.blend` that links it; the ball's place is
/// driven by Python, and a text of the scene would run when it is loaded.
const MAKE: &str = r#"
import bpy, sys
show = sys.argv[sys.argv.index('--') + 1]
bpy.ops.wm.read_factory_settings(use_empty=True)
image = bpy.data.images.new('paint', 16, 16)
image.pixels = [v for n in range(256) for v in ((n % 16) / 15, (n // 16) / 15, 0.5, 1)]
image.filepath_raw = show + '/tex/paint.png'
image.file_format = 'PNG'
image.save()
image = bpy.data.images.load(show + '/tex/paint.png')
material = bpy.data.materials.new('Paint')
material.use_nodes = True
nodes = material.node_tree.nodes
texture = nodes.new('ShaderNodeTexImage')
texture.image = image
material.node_tree.links.new(texture.outputs[0], nodes['Principled BSDF'].inputs[0])
mesh = bpy.data.meshes.new('Ball')
ball = bpy.data.objects.new('Ball', mesh)
bpy.context.scene.collection.objects.link(ball)
import bmesh
shape = bmesh.new()
bmesh.ops.create_uvsphere(shape, u_segments=16, v_segments=8, radius=1, calc_uvs=True)
shape.to_mesh(mesh)
mesh.materials.append(material)
bpy.ops.wm.save_as_mainfile(filepath=show + '/lib.blend', relative_remap=False)
bpy.ops.wm.read_factory_settings(use_empty=True)
with bpy.data.libraries.load(show + '/lib.blend', link=True) as (there, here):
    here.objects = ['Ball']
scene = bpy.context.scene
holder = bpy.data.objects.new('Holder', None)
scene.collection.objects.link(holder)
holder.instance_type = 'COLLECTION'
balls = bpy.data.collections.new('Balls')
balls.objects.link(bpy.data.objects['Ball'])
holder.instance_collection = balls
driver = holder.driver_add('location', 0).driver
driver.type = 'SCRIPTED'
driver.expression = 'frame * 0.1'
camera = bpy.data.objects.new('Camera', bpy.data.cameras.new('Camera'))
camera.location = (0, 0, 6)
scene.collection.objects.link(camera)
scene.camera = camera
light = bpy.data.objects.new('Light', bpy.data.lights.new('Light', 'SUN'))
light.data.energy = 4
light.rotation_euler = (0.5, 0.3, 0)
scene.collection.objects.link(light)
text = bpy.data.texts.new('startup.py')
text.from_string("open('" + show + "/render/ran', 'w').write('ran')\n")
text.use_module = True
scene.render.engine = 'CYCLES'
scene.cycles.samples = 8
scene.cycles.use_denoising = False
scene.render.resolution_x, scene.render.resolution_y = 64, 48
scene.render.resolution_percentage = 100
bpy.ops.wm.save_as_mainfile(filepath=show + '/shot.blend', relative_remap=False)
"#;

/// A show whose path in the jail is its path on this machine, as it is where the artist works.
struct Studio {
    room: Room,
    show: String,
}

impl Studio {
    fn new() -> Self {
        let mut room = Room::new();
        room.spec.program = BLENDER.into();
        room.spec.profile = Profile::BlenderCpu;
        for folder in ["in/tex", "in/render"] {
            fs::create_dir_all(room.path(folder)).unwrap();
        }
        let show = room.text("in");
        room.spec.mounts = vec![
            mount(room.path("in"), &show, Access::Read),
            mount(room.path("out"), &format!("{show}/render"), Access::Write),
        ];
        fs::write(room.path("make.py"), MAKE).unwrap();
        let script = room.text("make.py");
        let made = Command::new(BLENDER)
            .args(["--background", "--factory-startup", "--python-exit-code", "3"])
            .args(["--python", &script, "--", &show])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        Self { room, show }
    }

    /// The command of the built-in bundle.
    fn render(&self, scripts: &str) -> Vec<String> {
        let scene = format!("{}/shot.blend", self.show);
        let output = format!("{}/render/frame_####", self.show);
        let before = ["--background", "--factory-startup", "-noaudio", scripts, "--threads", "2"];
        let after = ["--render-output", &output, "--render-format", "PNG", "--render-frame", "3"];
        before.iter().copied().chain([scene.as_str()]).chain(after).map(str::to_owned).collect()
    }

    fn inside(&self, scripts: &str) -> String {
        let args = self.render(scripts);
        let (said, exit) = self.room.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(exit.success(), "{said}");
        said
    }

    fn outside(&self, scripts: &str) {
        let done = Command::new(BLENDER).args(self.render(scripts)).output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stdout));
    }
}

fn pixels(picture: &Path) -> Vec<u8> {
    image::open(picture).unwrap().to_rgba8().into_raw()
}

/// Whether Blender is here; the project's own test command installs it where it can be had.
fn is_installed() -> bool {
    let there = Path::new(BLENDER).exists();
    if !there {
        eprintln!("{BLENDER} is not installed: nothing of it is tested");
    }
    there
}

/// Scenes that come with POV-Ray: many textures, media, height fields of functions, meshes and pictures.
/// (Radiosity with several threads differs from run to run, jail or not.)
const SCENES: [&str; 5] = [
    "advanced/chess2.pov",
    "advanced/abyss.pov",
    "advanced/biscuit.pov",
    "advanced/landscape.pov",
    "advanced/mediasky.pov",
];

#[test]
fn povrays_own_scenes_give_the_same_pixels_inside() {
    let homes = ["/usr/share/doc/povray/examples", "/usr/share/povray/examples"];
    let home = homes.iter().find(|home| Path::new(home).exists());
    let home = home.expect("the package povray-examples is not installed: tests/run.sh does it");
    let room = Room::new();
    let mut spec = room.spec.clone();
    spec.program = "/usr/bin/povray".into();
    spec.profile = Profile::Povray;
    for scene in SCENES {
        let folder = Path::new(home).join(scene).parent().unwrap().display().to_string();
        let picture = |out: &str| {
            let more = ["+W64", "+H48", "-D", "-GA", "+WT2"].map(str::to_owned);
            let named = [format!("+I{home}/{scene}"), format!("+L{folder}"), format!("+O{out}")];
            named.into_iter().chain(more).collect::<Vec<_>>()
        };
        let outside = room.text("base/outside.png");
        let done = Command::new("/usr/bin/povray").args(picture(&outside)).output().unwrap();
        assert!(done.status.success(), "{scene}: {}", String::from_utf8_lossy(&done.stderr));
        spec.args = picture(&format!("{}/render/inside.png", room::SHOW));
        let (said, exit) = room::finish(launch(&launcher(), &spec).unwrap());
        assert!(exit.success(), "{scene}: {said}");
        let same = pixels(Path::new(&outside)) == pixels(&room.path("out/inside.png"));
        assert!(same, "{scene}: other pixels inside than outside");
    }
}

#[test]
fn textures_linked_libraries_drivers_and_threads_give_the_same_picture_inside() {
    if !is_installed() {
        return;
    }
    let mut studio = Studio::new();
    studio.outside("--disable-autoexec");
    let expected = pixels(&studio.room.path("in/render/frame_0003.png"));
    // The ball is not black on black: it has the colours of its texture.
    assert!(expected.iter().filter(|v| **v > 60 && **v < 250).count() > 500);
    let levels = if is_root() { vec![Level::S2, Level::S3] } else { vec![Level::S2] };
    for level in levels {
        studio.room.spec.floor = level;
        let args = studio.render("--disable-autoexec");
        let mut jail = studio.room.start(&args.iter().map(String::as_str).collect::<Vec<_>>());
        let reached = jail.report.level;
        let out = format!("{}/render", studio.show);
        std::io::copy(&mut jail.stdout.take().unwrap(), &mut std::io::sink()).unwrap();
        assert!(jail.wait().unwrap().success());
        assert!(reached >= level);
        let folder = jail.written(Path::new(&out)).unwrap();
        let mut frame = Vec::new();
        let limits = meshfarm_sandbox::CollectLimits::default();
        meshfarm_sandbox::collect(&folder, limits, |path, mut file, _| {
            if path == Path::new("frame_0003.png") {
                std::io::Read::read_to_end(&mut file, &mut frame)?;
            }
            Ok(())
        })
        .unwrap();
        let found = image::load_from_memory(&frame).unwrap().to_rgba8().into_raw();
        assert!(found == expected, "{level}: other pixels inside than outside");
    }
}

#[test]
fn scripts_of_a_scene_run_only_when_the_job_says_so_and_then_in_the_jail() {
    if !is_installed() {
        return;
    }
    let studio = Studio::new();
    let ran = studio.room.path("out/ran");
    studio.inside("--disable-autoexec");
    assert!(!ran.exists());
    studio.inside("--enable-autoexec");
    assert_eq!(fs::read_to_string(&ran).unwrap(), "ran");
    // Nothing of it is in the folder that the artist keeps.
    assert!(!studio.room.path("in/render/ran").exists());
}

#[test]
fn started_as_root_all_of_this_holds_for_an_ordinary_user_as_well() {
    if is_root() {
        repeat_as_ordinary_user(&[]);
    }
}
