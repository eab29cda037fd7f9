//! Rows of results: for people as a table that grows, for programs as one JSON line each.

use std::borrow::Cow;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

/// What a row is called: room, part and quantity.
pub(crate) type Name = Cow<'static, str>;

/// What is wanted of a row: of its ratio where there is one, else of its value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Target {
    AtMost(f64),
    AtLeast(f64),
}

/// One result.
#[derive(Debug)]
pub(crate) struct Row {
    /// Room and quantity, such as `node.start`.
    pub(crate) name: Name,
    /// The median of several runs, unless the name says another. None: it was not measured, as the note says.
    pub(crate) value: Option<f64>,
    pub(crate) unit: &'static str,
    /// What it is compared with, measured in the same run, in the same unit.
    pub(crate) against: Option<f64>,
    /// The median of value over comparison, run by run.
    pub(crate) ratio: Option<f64>,
    pub(crate) target: Option<Target>,
    /// What a reader must know to judge the row.
    pub(crate) note: Option<String>,
}

impl Row {
    /// A value that stands for itself.
    pub(crate) fn alone(name: impl Into<Name>, value: f64, unit: &'static str) -> Self {
        let name = name.into();
        let value = Some(value);
        Self { name, value, unit, against: None, ratio: None, target: None, note: None }
    }

    /// Two quantities of the same runs.
    pub(crate) fn ratio(name: impl Into<Name>, unit: &'static str, pairs: &[(f64, f64)]) -> Self {
        let ours: Vec<_> = pairs.iter().map(|(ours, _)| *ours).collect();
        let theirs: Vec<_> = pairs.iter().map(|(_, theirs)| *theirs).collect();
        let ratios: Vec<_> = pairs.iter().map(|(ours, theirs)| ours / theirs).collect();
        Self {
            against: Some(percentile(&theirs, 50)),
            ratio: Some(percentile(&ratios, 50)),
            ..Self::alone(name, percentile(&ours, 50), unit)
        }
    }

    /// What could not be measured here, and why. A target of it is not met, and not missed either.
    pub(crate) fn missing(name: impl Into<Name>, why: impl Into<String>) -> Self {
        let why = why.into();
        let note = Some(format!("not measured: {}", why.lines().next().unwrap_or_default()));
        Self { value: None, note, ..Self::alone(name, 0.0, "") }
    }

    /// The same with the most that is wanted.
    pub(crate) fn at_most(self, target: f64) -> Self {
        Self { target: Some(Target::AtMost(target)), ..self }
    }

    /// The same with the least that is wanted.
    pub(crate) fn at_least(self, target: f64) -> Self {
        Self { target: Some(Target::AtLeast(target)), ..self }
    }

    /// The same with a word to the reader.
    pub(crate) fn note(self, note: impl Into<String>) -> Self {
        Self { note: Some(note.into()), ..self }
    }

    fn met(&self) -> Option<bool> {
        // A figure that is no number meets nothing.
        let figure = self.ratio.or(self.value)?;
        self.target.map(|target| match target {
            Target::AtMost(most) => figure <= most,
            Target::AtLeast(least) => figure >= least,
        })
    }

    fn target_text(&self) -> Option<String> {
        let unit = if self.ratio.is_some() { "x" } else { self.unit };
        self.target.map(|target| match target {
            Target::AtMost(most) => format!("<= {most} {unit}"),
            Target::AtLeast(least) => format!(">= {least} {unit}"),
        })
    }
}

/// The value below which `percent` of all values lie, by nearest rank. `values` is not empty.
pub(crate) fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted[rank - 1]
}

/// What sizes are multiplied with, in thousandths. Targets are for the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scale(u64);

impl Scale {
    pub(crate) const WHOLE: Self = Self(1000);

    /// The scale of a number such as 0.1; none when it is no sensible one.
    pub(crate) fn new(factor: f64) -> Option<Self> {
        #[expect(clippy::cast_possible_truncation, reason = "it is from 1 to 10,000")]
        (0.001..=10.0).contains(&factor).then(|| Self((factor * 1000.0).round() as u64))
    }

    /// So much of `n`.
    pub(crate) fn of(self, n: u64) -> u64 {
        n * self.0 / 1000
    }

    fn factor(self) -> f64 {
        self.0 as f64 / 1000.0
    }
}

/// The results so far.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Row>,
    began: Instant,
    scale: Scale,
}

impl Table {
    /// What sizes are to be multiplied with.
    pub(crate) fn scale(&self) -> Scale {
        self.scale
    }

    /// Says on what machine this is, and how busy others keep it.
    pub(crate) fn begin(scale: Scale) -> Self {
        println!("{}", machine());
        if scale != Scale::WHOLE {
            let factor = scale.factor();
            println!("sizes are multiplied with {factor}: no target is met or missed by that");
        }
        println!(
            "{:<34} {:>12} {:>10} {:>7}  {:<14} met",
            "name", "value", "against", "ratio", "target"
        );
        Self { rows: Vec::new(), began: Instant::now(), scale }
    }

    pub(crate) fn add(&mut self, row: Row) {
        let number = |n: Option<f64>| n.map_or_else(|| "-".to_owned(), short);
        let met = match self.met(&row) {
            Some(true) => "yes",
            Some(false) => "NO",
            None => "-",
        };
        let note = row.note.as_ref().map_or_else(String::new, |note| format!("  ({note})"));
        println!(
            "{:<34} {:>12} {:>10} {:>7}  {:<14} {met}{note}",
            row.name,
            row.value.map_or_else(|| "-".to_owned(), |n| format!("{} {}", short(n), row.unit)),
            number(row.against),
            number(row.ratio),
            row.target_text().unwrap_or_else(|| "-".to_owned()),
        );
        self.rows.push(row);
    }

    fn met(&self, row: &Row) -> Option<bool> {
        row.met().filter(|_| self.scale == Scale::WHOLE)
    }

    /// One JSON line for each row.
    pub(crate) fn end(self) {
        println!("took {:.0} s; {}", self.began.elapsed().as_secs_f64(), load());
        for row in &self.rows {
            let line = json!({
                "name": row.name,
                "value": row.value,
                "unit": row.unit,
                "against": row.against,
                "ratio": row.ratio,
                "target": row.target_text(),
                "met": self.met(row),
                "note": row.note,
                "scale": self.scale.factor(),
            });
            println!("{line}");
        }
    }
}

/// Three digits that matter.
fn short(n: f64) -> String {
    match n.abs() {
        0.0..10.0 => format!("{n:.2}"),
        10.0..100.0 => format!("{n:.1}"),
        _ => format!("{n:.0}"),
    }
}

fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib: u64 =
        memory.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(0);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!(
        "{model}, {cores} cores, {} GiB, Linux {}; {}; others use {:.0} % of the machine",
        kib >> 20,
        kernel.trim(),
        load(),
        100.0 * busy()
    )
}

fn load() -> String {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let three: Vec<_> = load.split(' ').take(3).collect();
    format!("load {}", three.join(" "))
}

/// The share of all processor time that is in use, over a second in which we do nothing.
fn busy() -> f64 {
    let before = ticks();
    thread::sleep(Duration::from_secs(1));
    let after = ticks();
    let (idle, all) = (after.0 - before.0, after.1 - before.1);
    1.0 - idle / all.max(1.0)
}

/// Idle and total processor time since the machine was started, in ticks.
fn ticks() -> (f64, f64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = stat.lines().next().unwrap_or_default();
    let fields: Vec<f64> =
        first.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    (fields.iter().skip(3).take(2).sum(), fields.iter().sum())
}
