//! Recorded workloads: Standard Workload Format and CSV become jobs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use crate::expand::as_planned;
use crate::plan::PlanJob;
use crate::scenario::{Trace, Workload};
use crate::units::round;

/// A longer line is not part of a workload.
const MAX_LINE: u64 = 4096;

/// More jobs than this are not read.
const MAX_JOBS: usize = 1_000_000;

/// A job of a recorded workload.
#[derive(Clone, Debug, PartialEq)]
pub struct Recorded {
    /// When it was submitted, in seconds from the beginning.
    pub at_s: f64,
    /// How long it ran, in seconds.
    pub run_s: f64,
    /// On how many processors: as many frames are made of it.
    pub procs: u32,
    /// Whose it was.
    pub user: String,
}

/// Read a recorded workload: `.csv` with a header, everything else as SWF.
///
/// # Errors
/// When it cannot be read: names the line and what is wrong with it.
pub fn read(path: &Path) -> Result<Vec<Recorded>, String> {
    let named = |what: &dyn std::fmt::Display| format!("{}: {what}", path.display());
    let file = std::fs::File::open(path).map_err(|error| named(&error))?;
    let mut lines = BufReader::new(file);
    let csv = path.extension().is_some_and(|kind| kind == "csv");
    let (mut jobs, mut columns) = (Vec::new(), None);
    for n in 1.. {
        let mut line = Vec::new();
        let read = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line);
        if read.map_err(|error| named(&error))? == 0 {
            break;
        }
        if line.len() as u64 >= MAX_LINE {
            return Err(named(&format!("line {n} is longer than {MAX_LINE} bytes")));
        }
        let line =
            String::from_utf8(line).map_err(|_not_text| named(&format!("line {n} is no text")))?;
        let line = line.trim();
        if line.is_empty() || line.starts_with(';') || line.starts_with('#') {
            continue;
        }
        let wrong = |what: &str| named(&format!("line {n}: {what}"));
        let job = match (csv, &columns) {
            (false, _) => swf(line).map_err(|what| wrong(&what))?,
            (true, None) => {
                columns = Some(header(line).map_err(|what| wrong(&what))?);
                None
            }
            (true, Some(columns)) => Some(row(line, columns).map_err(|what| wrong(&what))?),
        };
        jobs.extend(job);
        if jobs.len() > MAX_JOBS {
            return Err(named(&format!("more than {MAX_JOBS} jobs")));
        }
    }
    if jobs.is_empty() {
        return Err(named(&"there is no job in it"));
    }
    jobs.sort_by(|a, b| a.at_s.total_cmp(&b.at_s));
    Ok(jobs)
}

/// One line of the Standard Workload Format: 18 fields. A job that never ran is none.
fn swf(line: &str) -> Result<Option<Recorded>, String> {
    let fields: Result<Vec<f64>, _> = line.split_whitespace().map(str::parse).collect();
    let fields =
        fields.map_err(|_no_number| "a field is no number; SWF has 18 of them".to_owned())?;
    if fields.len() < 12 {
        return Err(format!("{} fields, where SWF has 18", fields.len()));
    }
    let (at_s, run_s, procs, user) = (fields[1], fields[3], fields[4], fields[11]);
    if run_s <= 0.0 || procs < 1.0 || at_s < 0.0 {
        return Ok(None);
    }
    let procs =
        u32::try_from(round(procs)).map_err(|_too_many| "too many processors".to_owned())?;
    Ok(Some(Recorded { at_s, run_s, procs, user: format!("user-{user}") }))
}

/// Where the columns stand that we need: `submit`, `run`, `frames`, `user`.
fn header(line: &str) -> Result<[usize; 4], String> {
    let names: Vec<&str> = line.split(',').map(str::trim).collect();
    let at = |name: &str| {
        let found = names.iter().position(|known| known.eq_ignore_ascii_case(name));
        found.ok_or_else(|| {
            format!("there is no column `{name}`: submit, run, frames and user are needed")
        })
    };
    Ok([at("submit")?, at("run")?, at("frames")?, at("user")?])
}

fn row(line: &str, columns: &[usize; 4]) -> Result<Recorded, String> {
    let cells: Vec<&str> = line.split(',').map(str::trim).collect();
    let cell =
        |n: usize| cells.get(columns[n]).copied().ok_or_else(|| "a column is missing".to_owned());
    let number = |n: usize| {
        let text = cell(n)?;
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
        number.ok_or_else(|| format!("{text:?} is no number of seconds or frames"))
    };
    let procs =
        u32::try_from(round(number(2)?)).map_err(|_too_many| "too many frames".to_owned())?;
    Ok(Recorded {
        at_s: number(0)?,
        run_s: number(1)?,
        procs: procs.max(1),
        user: cell(3)?.to_owned(),
    })
}

/// Jobs of a plan that a trace gives: users are tenants, each at one of the sites, processors are frames.
pub(crate) fn jobs(
    workload: &Workload,
    trace: &Trace,
    folder: &Path,
    from: &[String],
) -> Result<Vec<PlanJob>, String> {
    if trace.scale_time.is_nan() || trace.scale_time <= 0.0 {
        return Err("scale_time is greater than 0".to_owned());
    }
    let recorded = read(&folder.join(&trace.file))?;
    let recorded =
        recorded.iter().skip(trace.first.unwrap_or(0)).take(trace.jobs.unwrap_or(MAX_JOBS));
    let mut homes: BTreeMap<&str, usize> = BTreeMap::new();
    let mut first = None;
    let mut jobs = Vec::new();
    for recorded in recorded {
        let next = homes.len() % from.len();
        let home = *homes.entry(&recorded.user).or_insert(next);
        let first = *first.get_or_insert(recorded.at_s);
        let at_ms = round((recorded.at_s - first) * trace.scale_time * 1000.0);
        let frame = round(recorded.run_s * trace.scale_time * 1000.0).max(1);
        let n_frames = recorded.procs.min(trace.max_frames).max(1);
        let steps = vec![vec![frame; n_frames as usize]];
        let planned = as_planned(workload, &from[home])?;
        let key = (crate::streams::number_of(&recorded.user), at_ms);
        let draw = |dist: &Option<crate::units::Dist<crate::units::Size>>| {
            dist.as_ref().map_or(0, |dist| dist.draw(crate::streams::Streams::new(0), "trace", key))
        };
        let (bytes, output_bytes) = (draw(&workload.scene), draw(&workload.output));
        let tenant = recorded.user.clone();
        jobs.push(PlanJob { at_ms, tenant, steps, bytes, output_bytes, ..planned });
    }
    Ok(jobs)
}

/// A part of a recorded workload as CSV, such as a scenario can name.
#[must_use]
pub fn as_csv(jobs: &[Recorded], note: &str) -> String {
    let mut text = String::new();
    note.lines().for_each(|line| {
        let _ = writeln!(text, "# {line}");
    });
    text.push_str("submit,run,frames,user\n");
    let first = jobs.first().map_or(0.0, |job| job.at_s);
    for job in jobs {
        let _ = writeln!(text, "{},{},{},{}", job.at_s - first, job.run_s, job.procs, job.user);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_swf_is_a_job_and_one_that_never_ran_is_none() {
        let line = "1 100 5 60 4 -1 -1 4 120 -1 1 7 1 -1 1 -1 -1 -1";
        let job = swf(line).unwrap().unwrap();
        assert_eq!((job.at_s, job.run_s, job.procs, job.user.as_str()), (100.0, 60.0, 4, "user-7"));
        assert_eq!(swf("1 100 5 -1 4 -1 -1 4 120 -1 5 7 1 -1 1 -1 -1 -1").unwrap(), None);
        assert!(swf("1 2 3").is_err() && swf("a b").is_err());
    }

    #[test]
    fn csv_comes_back_as_it_was_written() {
        let jobs = vec![
            Recorded { at_s: 5.0, run_s: 60.0, procs: 3, user: "ann".into() },
            Recorded { at_s: 9.0, run_s: 30.0, procs: 1, user: "bob".into() },
        ];
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.csv");
        std::fs::write(&path, as_csv(&jobs, "a note")).unwrap();
        let read = read(&path).unwrap();
        assert_eq!(read[1], Recorded { at_s: 4.0, ..jobs[1].clone() });
        std::fs::write(&path, "submit,run\n1,2\n").unwrap();
        assert!(super::read(&path).unwrap_err().contains("line 1"));
    }
}
