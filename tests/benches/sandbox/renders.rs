//! Whole renderings inside and outside, in pairs: one that only computes, and one that mostly opens and misses files.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use meshfarm_sandbox::Level;

use super::ours::{Room, SHOW, timed};
use crate::table::{Row, Table};

const POVRAY: &str = "/usr/bin/povray";
const BLENDER: &str = "/usr/bin/blender";

/// Pairs of one rendering inside and one outside.
const PAIRS: usize = 10;
/// Files that the scene of many files includes, and as many that it looks for in vain.
const INCLUDES: usize = 6000;

const COMPUTES: &str = "#version 3.7;
global_settings { assumed_gamma 1 }
camera { location <0,4,-9> look_at 0 }
light_source { <8,20,-20> rgb 1 area_light 2*x, 2*y, 6, 6 adaptive 1 }
plane { y, -1 pigment { checker rgb 1 rgb .3 } finish { reflection .2 } }
#declare I = 0;
#while (I < 120)
  sphere { <mod(I,12)-6, mod(I,5)*.4, div(I,12)-4>, .45
    pigment { granite scale .3 } finish { phong .8 reflection .15 } }
  #declare I = I + 1;
#end
";

const BLENDS: &str = "import bpy
bpy.ops.wm.read_factory_settings(use_empty=False)
s = bpy.context.scene
s.render.engine = 'CYCLES'
s.cycles.samples = 64
s.cycles.use_denoising = False
s.render.resolution_x, s.render.resolution_y, s.render.resolution_percentage = 320, 240, 100
s.render.filepath = 'OUT/frame.png'
bpy.ops.render.render(write_still=True)
";

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    if Path::new(POVRAY).exists() {
        computes(table)?;
        files(table)?;
    } else {
        table.add(Row::missing("sandbox.renders.povray", "povray is not installed"));
    }
    if Path::new(BLENDER).exists() {
        return blends(table);
    }
    table.add(Row::missing("sandbox.renders.blender", "blender is not installed"));
    Ok(())
}

/// Pairs of seconds inside and outside; `args` is given the folder as the program sees it.
fn pairs(
    room: &Room,
    program: &str,
    args: impl Fn(&str) -> Vec<String>,
) -> Result<Vec<(f64, f64)>> {
    let outside = room.show().to_str().context("a path of text")?.to_owned();
    let mut pairs = Vec::new();
    for n in 0..PAIRS {
        let inside = || -> Result<f64> {
            let args = args(SHOW);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Ok(room.jailed(&room.spec(program, &args, Level::S2))?.0)
        };
        let plain = || -> Result<f64> {
            Ok(timed(Command::new(program).args(args(&outside)).current_dir(&outside))?.0)
        };
        // Which goes first changes, so that neither always finds warm caches.
        pairs.push(if n % 2 == 0 {
            let ours = inside()?;
            (ours, plain()?)
        } else {
            let theirs = plain()?;
            (inside()?, theirs)
        });
    }
    Ok(pairs)
}

fn computes(table: &mut Table) -> Result<()> {
    let room = Room::new()?;
    fs::write(room.show().join("scene.pov"), COMPUTES)?;
    let args = |folder: &str| picture(folder, &["+W640", "+H480", "+A0.1", "+WT2"]);
    let row = Row::ratio("sandbox.renders.povray", "s", &pairs(&room, POVRAY, args)?);
    table.add(row.at_most(1.01));
    Ok(())
}

fn picture(folder: &str, more: &[&str]) -> Vec<String> {
    let mut args = vec![format!("+I{folder}/scene.pov"), format!("+O{folder}/frame.png")];
    args.extend(["-D", "-GA"].iter().chain(more).map(|arg| (*arg).to_owned()));
    args
}

fn files(table: &mut Table) -> Result<()> {
    let room = Room::new()?;
    let mut scene = "#version 3.7;\nglobal_settings { assumed_gamma 1 }\n".to_owned();
    fs::create_dir(room.show().join("inc"))?;
    for n in 0..INCLUDES {
        fs::write(room.show().join(format!("inc/{n}.inc")), format!("#declare V{n} = {n};\n"))?;
        writeln!(scene, "#include concat(Show, \"/inc/{n}.inc\")")?;
        writeln!(scene, "#if (file_exists(concat(Show, \"/tex/{n}.png\"))) #error \"there\" #end")?;
    }
    let scene_for = |folder: &str| format!("#declare Show = \"{folder}\";\n{scene}");
    fs::write(room.show().join("scene.pov"), scene_for("."))?;
    let args = |folder: &str| {
        let mut args = picture(folder, &["+W16", "+H12", "+WT2"]);
        // Relative names would be looked for in the working folder, which differs.
        args.push(format!("+L{folder}"));
        args
    };
    let row = Row::ratio("sandbox.renders.files", "s", &pairs(&room, POVRAY, args)?);
    table.add(row.at_most(1.08).note(format!("{INCLUDES} includes, as many looked for in vain")));
    for (name, command) in [("bubblewrap", room.bubblewrap()), ("proot", room.proot())] {
        let row = format!("sandbox.renders.files.{name}");
        if command.is_none() {
            table.add(Row::missing(row, format!("{name} is not installed")));
            continue;
        }
        let pairs = (0..PAIRS / 2).map(|_| {
            let around = if name == "proot" { room.proot() } else { room.bubblewrap() };
            let mut around = around.context("it was there a moment ago")?;
            let theirs = timed(around.arg(POVRAY).args(args(SHOW)))?.0;
            let args = args(SHOW);
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            Ok((room.jailed(&room.spec(POVRAY, &args, Level::S2))?.0, theirs))
        });
        match pairs.collect::<Result<Vec<_>>>() {
            Ok(pairs) => table.add(Row::ratio(row, "s", &pairs).note("ours over theirs")),
            // POV-Ray's own rules for files, which our jail replaces, may forbid what it is asked there.
            Err(error) => table.add(Row::missing(row, format!("{error:#}"))),
        }
    }
    Ok(())
}

fn blends(table: &mut Table) -> Result<()> {
    let room = Room::new()?;
    let outside = room.show().to_str().context("a path of text")?.to_owned();
    for (name, folder) in [("inside", SHOW), ("outside", &outside)] {
        fs::write(room.show().join(format!("{name}.py")), BLENDS.replace("OUT", folder))?;
    }
    let args = |folder: &str| {
        let script = if folder == SHOW { "inside" } else { "outside" };
        [
            "--background",
            "--factory-startup",
            "--threads",
            "2",
            "--python-exit-code",
            "3",
            "--python",
        ]
        .iter()
        .map(|arg| (*arg).to_owned())
        .chain([format!("{folder}/{script}.py")])
        .collect()
    };
    let row = Row::ratio("sandbox.renders.blender", "s", &pairs(&room, BLENDER, args)?);
    table.add(row.at_most(1.01));
    Ok(())
}
