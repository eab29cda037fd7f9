//! Whole renderings inside and outside, in pairs: one that only computes, and one that mostly opens and misses files.
//!
//! Each pair is compared by the clock, and by the processor time of all its processes, which also holds on a busy machine.
//! Pictures are small: all of it together takes some minutes.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use meshfarm_sandbox::Level;

use super::ours::{Room, SHOW, Took, timed};
use crate::table::{Row, Table};

const POVRAY: &str = "/usr/bin/povray";
const BLENDER: &str = "/usr/bin/blender";

/// Pairs of one rendering inside and one outside.
const PAIRS: usize = 8;
/// The same with proot, which needs several times as long.
const SLOW_PAIRS: usize = 3;
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
s.cycles.samples = 32
s.cycles.use_denoising = False
s.render.resolution_x, s.render.resolution_y, s.render.resolution_percentage = 200, 150, 100
s.render.filepath = 'OUT/out/frame.png'
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
    let why = "blender is not installed: apt-get install blender, some 635 MB";
    table.add(Row::missing("sandbox.renders.blender", why));
    Ok(())
}

/// What one rendering took inside and outside.
type Pair = (Took, Took);

/// Pairs inside and outside; `args` is given the folder as the program sees it.
fn pairs(room: &Room, program: &str, args: impl Fn(&str) -> Vec<String>) -> Result<Vec<Pair>> {
    let outside = room.show().to_str().context("a path of text")?.to_owned();
    let plain = || {
        let mut command = Command::new(program);
        command.args(args(&outside)).current_dir(&outside);
        Ok(timed(&mut command)?.0)
    };
    in_turn(|| inside(room, program, &args(SHOW)), plain, PAIRS)
}

fn inside(room: &Room, program: &str, args: &[String]) -> Result<Took> {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    Ok(room.jailed(&room.spec(program, &args, Level::S2))?.0)
}

/// Which goes first changes, so that neither always finds warm caches.
fn in_turn(
    ours: impl Fn() -> Result<Took>,
    theirs: impl Fn() -> Result<Took>,
    n: usize,
) -> Result<Vec<Pair>> {
    let pair = |n: usize| {
        if n.is_multiple_of(2) {
            let ours = ours()?;
            Ok((ours, theirs()?))
        } else {
            let theirs = theirs()?;
            Ok((ours()?, theirs))
        }
    };
    (0..n).map(pair).collect()
}

/// A row by the clock, and one by processor time.
fn rows(name: &str, pairs: &[Pair]) -> [Row; 2] {
    let by = |of: fn(&Took) -> f64| pairs.iter().map(|(a, b)| (of(a), of(b))).collect::<Vec<_>>();
    let cpu = Row::ratio(format!("{name}.cpu"), "s", &by(|took| took.cpu));
    [Row::ratio(name.to_owned(), "s", &by(|took| took.wall)), cpu]
}

fn computes(table: &mut Table) -> Result<()> {
    let room = Room::new()?;
    fs::write(room.show().join("scene.pov"), COMPUTES)?;
    let args = |folder: &str| picture(folder, &["+W320", "+H240", "+A0.1", "+WT2"]);
    for row in rows("sandbox.renders.povray", &pairs(&room, POVRAY, args)?) {
        table.add(row.at_most(1.01));
    }
    Ok(())
}

fn picture(folder: &str, more: &[&str]) -> Vec<String> {
    let mut args = vec![format!("+I{folder}/scene.pov"), format!("+O{folder}/out/frame.png")];
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
    let about = format!("{INCLUDES} includes, as many looked for in vain");
    for row in rows("sandbox.renders.files", &pairs(&room, POVRAY, args)?) {
        table.add(row.at_most(1.08).note(about.clone()));
    }
    for (name, n) in [("bubblewrap", PAIRS), ("proot", SLOW_PAIRS)] {
        let row = format!("sandbox.renders.files.{name}");
        let around = || if name == "proot" { room.proot() } else { room.bubblewrap() };
        if around().is_none() {
            table.add(Row::missing(row, format!("{name} is not installed")));
            continue;
        }
        let theirs = || {
            room.take_back()?;
            let mut around = around().context("it was there a moment ago")?;
            Ok(timed(around.arg(POVRAY).args(args(SHOW)))?.0)
        };
        let ours = || {
            room.take_back()?;
            inside(&room, POVRAY, &args(SHOW))
        };
        // bubblewrap does not wait for what it starts: nobody counts the processor time of that.
        let kinds = if name == "bubblewrap" { 1 } else { 2 };
        for row in rows(&row, &in_turn(ours, theirs, n)?).into_iter().take(kinds) {
            table.add(row.note("ours over theirs"));
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
    for row in rows("sandbox.renders.blender", &pairs(&room, BLENDER, args)?) {
        table.add(row.at_most(1.01));
    }
    Ok(())
}
