//! One file of noise: taking it in, and bringing it to another site, against a plain copy of the same bytes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::sites::Mesh;
use crate::table::{Row, Table, percentile};

/// Bytes of one file, which no chunk of another run equals.
const BYTES: u64 = 256 << 20;

const RUNS: u32 = 3;

/// Bytes in a megabyte, as transfers are spoken of.
const MEGA: f64 = 1e6;

pub(crate) fn measure(table: &mut Table) -> Result<()> {
    let mesh = Mesh::of(&[("oslo", 0), ("lyon", 1)])?;
    let (mut ingest, mut fetch) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let folder = mesh.folder().join(format!("run{run}"));
        fs::create_dir_all(&folder)?;
        let file = folder.join("texture.exr");
        io::copy(&mut File::open("/dev/urandom")?.take(BYTES), &mut File::create(&file)?)?;
        File::open(&file)?.sync_all()?;
        mesh.wait_idle()?;
        let copy = plain_copy(&file)?;
        let (taken, fetched) = send(&mesh, &file)?;
        let rate = |seconds: f64| BYTES as f64 / MEGA / seconds;
        ingest.push((rate(taken), rate(copy)));
        fetch.push((rate(fetched), rate(copy)));
        fs::remove_dir_all(&folder)?;
    }
    table.add(Row::ratio("content.ingest", "MB/s", &ingest));
    table.add(Row::ratio("content.fetch", "MB/s", &fetch));
    let together: Vec<_> =
        ingest.iter().zip(&fetch).map(|((a, _), (b, _))| 1.0 / (1.0 / a + 1.0 / b)).collect();
    table.add(Row::alone("content.send", percentile(&together, 50), "MB/s"));
    Ok(())
}

/// Seconds that a durable copy takes on the same disk.
fn plain_copy(file: &Path) -> Result<f64> {
    let copy = file.with_extension("copy");
    let began = Instant::now();
    fs::copy(file, &copy)?;
    File::open(&copy)?.sync_all()?;
    let took = began.elapsed().as_secs_f64();
    fs::remove_file(copy)?;
    Ok(took)
}

/// Seconds until `submit` has taken the file in, and from there until a process at the other site has it.
fn send(mesh: &Mesh, file: &Path) -> Result<(f64, f64)> {
    let output = file.with_extension("out");
    fs::create_dir_all(&output)?;
    let text = |path: &Path| path.to_str().context("our paths are ASCII").map(str::to_owned);
    let command = format!("Command=test -s {} && date +%s.%N > began", text(file)?);
    let began = Instant::now();
    let job = mesh[0].run(&[
        "--quiet",
        "submit",
        "bundle:command",
        "-p",
        &command,
        "--input",
        &text(file)?,
        "--output",
        &text(&output)?,
    ])?;
    let taken = began.elapsed().as_secs_f64();
    let submitted = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    mesh[0].run(&["--quiet", "watch", job.trim()])?;
    let ran: f64 = fs::read_to_string(output.join("began"))?.trim().parse()?;
    Ok((taken, ran - submitted))
}
