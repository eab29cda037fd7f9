//! The demo's job on three sites against the same frames without a mesh, and how soon a job's first process runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use crate::node;
use crate::sites::{Mesh, Plan, Site, folder};
use crate::table::{Row, Table, percentile};

/// The animation that `tests/demo.sh` renders too.
const ANIMATION: &str = "camera2";
const N_FRAMES: u32 = 30;
const WIDTH: u32 = 800;
const HEIGHT: u32 = 600;

/// Where Debian puts POV-Ray's examples, and where others do.
const EXAMPLES: [&str; 2] =
    ["/usr/share/doc/povray/examples/animations", "/usr/share/povray/examples/animations"];

/// Lenders with one slot each.
const LENDERS: [&str; 2] = ["lyon", "kyoto"];

/// Rounds of one rendering through the mesh and one without it.
const ROUNDS: u32 = 3;

/// Submissions whose first process is timed.
const SUBMISSIONS: usize = 20;

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let [lyon, kyoto] = LENDERS;
    let mesh = Mesh::of(&[("oslo", 0), (lyon, 1), (kyoto, 1)])?;
    makespan(table, &mesh)?;
    let oslo = &mesh[0];
    let other =
        first_process(oslo, (&mesh.folder().join("quick"), &[]), SUBMISSIONS, || mesh.wait_idle())?;
    table.add(Row::alone("demo.first.other.p50", percentile(&other, 50), "ms"));
    let row = Row::alone("demo.first.other.p95", percentile(&other, 95), "ms");
    table.add(row.at_most(500.0));
    let sites: Vec<_> = mesh.iter().collect();
    node::rest(table, &sites, ["demo.rest.memory", "demo.rest.cpu"])?;
    drop(mesh);
    let folder = folder()?;
    let mut bergen = Site::init(folder.path(), Plan::new("bergen", 1))?;
    bergen.start()?;
    let own = first_process(&bergen, (&folder.path().join("quick"), &[]), SUBMISSIONS, || Ok(()))?;
    table.add(Row::alone("demo.first.own.p50", percentile(&own, 50), "ms"));
    let row = Row::alone("demo.first.own.p95", percentile(&own, 95), "ms");
    table.add(row.at_most(100.0));
    Ok(())
}

/// Renders through the mesh and without it in turns, so that whatever else the machine does meets both.
fn makespan(table: &mut Table, mesh: &Mesh) -> Result<()> {
    let show = mesh.folder().join("show");
    let settings = artist_folder(&show)?;
    let mut pairs = Vec::new();
    for round in 0..ROUNDS {
        let through = show.join(format!("mesh{round}"));
        let without = show.join(format!("native{round}"));
        let mut times = [0.0; 2];
        // The order changes from round to round: the first one may find colder caches.
        for turn in [round % 2, 1 - round % 2] {
            let began = Instant::now();
            if turn == 0 {
                submit_animation(&mesh[0], &settings, &through)?;
            } else {
                render_natively(&settings, &without)?;
            }
            times[turn as usize] = began.elapsed().as_secs_f64();
        }
        for folder in [&through, &without] {
            let n = n_frames_in(folder)?;
            ensure!(n == N_FRAMES as usize, "{} frames in {}", n, folder.display());
        }
        pairs.push((times[0], times[1]));
    }
    table.add(Row::ratio("demo.makespan", "s", &pairs).at_most(1.05));
    Ok(())
}

/// The animation in a folder of the artist; returns its settings file.
fn artist_folder(show: &Path) -> Result<PathBuf> {
    let mut examples = EXAMPLES.iter().map(|folder| Path::new(folder).join(ANIMATION));
    let from = examples
        .find(|folder| folder.is_dir())
        .context("POV-Ray's examples are missing: apt-get install povray povray-examples")?;
    fs::create_dir_all(show)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        fs::copy(entry.path(), show.join(entry.file_name()))?;
    }
    Ok(show.join(ANIMATION).with_extension("ini"))
}

fn submit_animation(oslo: &Site, settings: &Path, output: &Path) -> Result<()> {
    fs::create_dir_all(output)?;
    let (settings, output) = (utf8(settings)?, utf8(output)?);
    let frames = format!("1-{N_FRAMES}");
    let size = format!("{WIDTH}x{HEIGHT}");
    oslo.run(&[
        "--quiet",
        "submit",
        settings,
        "--frames",
        &frames,
        "--resolution",
        &size,
        "--output",
        output,
        "--watch",
    ])?;
    Ok(())
}

/// The lower bound: one process for each frame as the built-in bundle starts it, as many at once as the
/// lenders have slots.
fn render_natively(settings: &Path, output: &Path) -> Result<()> {
    fs::create_dir_all(output)?;
    let next = AtomicU32::new(1);
    let slot = || -> Result<()> {
        loop {
            let frame = next.fetch_add(1, Ordering::Relaxed);
            if frame > N_FRAMES {
                return Ok(());
            }
            render_frame(settings, output, frame)?;
        }
    };
    thread::scope(|scope| {
        let slots: Vec<_> = LENDERS.iter().map(|_| scope.spawn(slot)).collect();
        for slot in slots {
            slot.join().ok().context("rendering panicked")??;
        }
        Ok(())
    })
}

fn render_frame(settings: &Path, output: &Path, frame: u32) -> Result<()> {
    let scene = settings.with_extension("pov");
    let folder = settings.parent().context("a file lies in a folder")?;
    let mut command = Command::new("povray");
    command
        .arg(settings)
        .arg(format!("+I{}", scene.display()))
        .arg(format!("+L{}", folder.display()))
        .arg(format!("+O{}/{ANIMATION}.png", output.display()))
        .args(["+FN", "-D", "-P", "-GA", "+WT1"])
        .args([format!("+W{WIDTH}"), format!("+H{HEIGHT}")])
        .args([format!("+SF{frame}"), format!("+EF{frame}")]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let ended = command.status().context("povray is missing: apt-get install povray")?;
    ensure!(ended.success(), "{command:?} ended with {ended}");
    Ok(())
}

fn n_frames_in(folder: &Path) -> Result<usize> {
    let mut n = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let is_frame = entry.path().extension().is_some_and(|kind| kind == "png");
        n += usize::from(is_frame && entry.metadata()?.len() > 0);
    }
    Ok(n)
}

/// Milliseconds from starting `meshfarm submit` until the job's own `date` has run, one for each submission.
/// What lies between the first process and `date` counts too: the shell of the bundle.
pub(crate) fn first_process(
    site: &Site,
    (folder, flags): (&Path, &[&str]),
    submissions: usize,
    wait_idle: impl Fn() -> Result<()>,
) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for n in 0..submissions {
        let output = folder.join(n.to_string());
        fs::create_dir_all(&output)?;
        wait_idle()?;
        let began = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
        let words = ["--quiet", "submit", "bundle:command", "-p", "Command=date +%s.%N > began"];
        let words = [&words[..], &["--output", utf8(&output)?, "--watch"], flags].concat();
        site.run(&words)?;
        let ran: f64 = fs::read_to_string(output.join("began"))?.trim().parse()?;
        times.push(1000.0 * (ran - began));
    }
    Ok(times)
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().context("our paths are ASCII")
}
