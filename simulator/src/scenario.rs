//! The scenario file that people write: strict TOML with units, groups of sites and distributions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use meshfarm_protocol::job::Place;

use crate::expand;
use crate::plan::{Away, Expect, JobsEnd, Lie, Nat, Plan, SCHEMA, faults_of};
use crate::units::{Count, Dist, Fixed, Rate, Size, Span, Thousandths};

/// A longer file is not read: an expanded one of 100,000 sites has some 30 MB.
const MAX_BYTES: u64 = 256 << 20;

/// What is simulated, as a person has written it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    pub(crate) schema: u32,
    pub(crate) name: String,
    pub(crate) purpose: String,
    #[serde(default = "one")]
    pub(crate) seed: u64,
    pub(crate) duration: Fixed<Span>,
    #[serde(default)]
    pub(crate) level: Level,
    #[serde(default)]
    pub(crate) net: Net,
    #[serde(default)]
    pub(crate) defaults: Defaults,
    pub(crate) site: Vec<Group>,
    #[serde(default)]
    pub(crate) workload: Vec<Workload>,
    #[serde(default)]
    pub(crate) fault: Vec<Fault>,
    pub(crate) heal: Option<Heal>,
    #[serde(default)]
    pub(crate) expect: Expected,
    /// Where files that it names are looked for.
    #[serde(skip)]
    pub(crate) folder: PathBuf,
}

/// How true to life a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    #[default]
    Model,
    World,
    Lab,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Net {
    /// Each site with work knows so many others; all of them when it is not given.
    pub(crate) view: Option<usize>,
    /// Sites that cannot reach each other go through an open one.
    pub(crate) relay: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Defaults {
    pub(crate) link: Link,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Link {
    pub(crate) up: Option<Dist<Rate>>,
    pub(crate) down: Option<Dist<Rate>>,
    pub(crate) latency: Option<Dist<Span>>,
    pub(crate) jitter: Option<Dist<Span>>,
    /// Share of segments that are lost.
    pub(crate) loss: Option<f64>,
}

/// Sites that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) count: Option<u32>,
    pub(crate) slots: Dist<Count>,
    pub(crate) speed: Option<Dist<Thousandths>>,
    #[serde(default)]
    pub(crate) link: Link,
    #[serde(default)]
    pub(crate) nat: Nat,
    #[serde(default = "yes")]
    pub(crate) lending: bool,
    /// Share of tries that fail there.
    #[serde(default)]
    pub(crate) fail: f64,
    /// Amounts that jobs can ask for, such as licences.
    #[serde(default)]
    pub(crate) has: BTreeMap<String, u64>,
    /// Hours of the day: `18:00-07:00`, each site shifted by up to `~30m`.
    pub(crate) available: Option<String>,
    #[serde(default)]
    pub(crate) away: Away,
    pub(crate) grace: Option<Fixed<Span>>,
    pub(crate) churn: Option<Churn>,
    /// They are further machines of this site.
    pub(crate) host_of: Option<String>,
}

/// Machines that come and go.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Churn {
    pub(crate) up: Dist<Span>,
    pub(crate) down: Dist<Span>,
}

/// Jobs that are submitted.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Workload {
    /// A site or a group of sites.
    pub(crate) from: String,
    /// One job, at this moment.
    pub(crate) at: Option<Dist<Span>>,
    /// So many jobs over some time.
    pub(crate) arrive: Option<Arrive>,
    /// The jobs of a recorded workload.
    pub(crate) trace: Option<Trace>,
    pub(crate) frames: Option<Dist<Count>>,
    /// Frames of each step, where there are several.
    pub(crate) steps: Option<Vec<u32>>,
    pub(crate) frame_time: Option<FrameTime>,
    pub(crate) scene: Option<Dist<Size>>,
    /// Share of a scene that the tenant's other scenes have too.
    #[serde(default)]
    pub(crate) shared: f64,
    pub(crate) output: Option<Dist<Size>>,
    pub(crate) tenant: Option<String>,
    #[serde(rename = "where", default)]
    pub(crate) place: Option<Place>,
    #[serde(default = "middle")]
    pub(crate) priority: u8,
    #[serde(default = "retries")]
    pub(crate) retries: u32,
    #[serde(default)]
    pub(crate) environments: bool,
    /// Share of tries that fail wherever they run.
    #[serde(default)]
    pub(crate) fail: f64,
    /// Share of placements that fail once because the folder cannot be written.
    #[serde(default)]
    pub(crate) unwritable: f64,
    #[serde(default)]
    pub(crate) needs: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Arrive {
    /// So many jobs...
    pub(crate) rate: f64,
    /// ...in so much time, each at a moment of its own.
    pub(crate) per: Fixed<Span>,
    pub(crate) from: Option<Fixed<Span>>,
    pub(crate) until: Option<Fixed<Span>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trace {
    pub(crate) file: PathBuf,
    /// Times of the trace are multiplied with it.
    #[serde(default = "unscaled")]
    pub(crate) scale_time: f64,
    pub(crate) first: Option<usize>,
    pub(crate) jobs: Option<usize>,
    #[serde(default = "many")]
    pub(crate) max_frames: u32,
}

/// How long frames run: one distribution, or a median for each job around which its frames lie.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FrameTime {
    pub(crate) median: Dist<Span>,
    /// Deviation of the logarithm between jobs.
    #[serde(default)]
    pub(crate) shot_sigma: f64,
    /// Deviation of the logarithm within a job.
    #[serde(default)]
    pub(crate) frame_sigma: f64,
    pub(crate) max: Option<Fixed<Span>>,
}

/// Something that goes wrong, as people write it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Fault {
    #[serde(rename = "do")]
    pub(crate) kind: Kind,
    pub(crate) at: Option<Dist<Span>>,
    pub(crate) every: Option<Fixed<Span>>,
    pub(crate) from: Option<Fixed<Span>>,
    pub(crate) to: Option<Fixed<Span>>,
    #[serde(rename = "for")]
    pub(crate) lasts: Option<Dist<Span>>,
    /// How often, each time drawn anew.
    #[serde(default = "once")]
    pub(crate) times: u32,
    /// Names of sites or groups.
    #[serde(default)]
    pub(crate) sites: Vec<String>,
    /// The other end of lines.
    #[serde(default)]
    pub(crate) others: Vec<String>,
    /// Only so many of `sites`, drawn anew each time.
    pub(crate) pick: Option<usize>,
    /// Only this share of `sites`, drawn anew each time.
    pub(crate) fraction: Option<f64>,
    /// How bad: percent of the rate, or share of cases.
    pub(crate) rate: Option<f64>,
    /// By how much: of a clock, of jitter, of a disk.
    pub(crate) by: Option<Dist<Span>>,
    #[serde(rename = "as")]
    pub(crate) lie: Option<Lie>,
    /// How often a flapping line goes up and down.
    pub(crate) period: Option<Fixed<Span>>,
}

/// Every kind of fault that people can write. Some become several of [`crate::plan::Trouble`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Partition,
    OneWay,
    Isolate,
    Clog,
    SwizzleClog,
    Flap,
    SlowLink,
    JitterStorm,
    LoseMessages,
    DuplicateMessages,
    ClockSkew,
    ClockStep,
    Pause,
    Crash,
    CrashAtKillPoint,
    CrashGroup,
    DiskFull,
    DiskSlow,
    Byzantine,
    LicenceLoss,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Heal {
    pub(crate) at: Fixed<Span>,
    /// This share of the sites that have no jobs stays dead.
    #[serde(default)]
    pub(crate) dead: f64,
}

/// What must come out, as people write it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expected {
    jobs: JobsEnd,
    complete_by: Option<Fixed<Span>>,
    makespan_over_bound: Option<f64>,
    bytes_over_min: Option<f64>,
    fairness_jain: Option<f64>,
    refusals_at_most: Option<f64>,
    lost_work_at_most: Option<f64>,
    sometimes: Vec<String>,
}

impl Expected {
    pub(crate) fn explicit(&self) -> Expect {
        Expect {
            jobs: self.jobs,
            complete_by_ms: self.complete_by.map(|span| span.0),
            makespan_over_bound: self.makespan_over_bound,
            bytes_over_min: self.bytes_over_min,
            fairness_jain: self.fairness_jain,
            refusals_at_most: self.refusals_at_most,
            lost_work_at_most: self.lost_work_at_most,
            sometimes: self.sometimes.clone(),
        }
    }
}

const fn one() -> u64 {
    1
}

const fn yes() -> bool {
    true
}

const fn middle() -> u8 {
    50
}

const fn retries() -> u32 {
    5
}

const fn once() -> u32 {
    1
}

const fn unscaled() -> f64 {
    1.0
}

const fn many() -> u32 {
    1000
}

/// Why nothing was simulated.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("{0}: {1}")]
    Unreadable(PathBuf, std::io::Error),
    /// A key is missing, unknown or of the wrong kind.
    #[error("{0}: {1}")]
    Malformed(PathBuf, String),
    /// It is well formed, and cannot be.
    #[error("{0}: {1}")]
    Impossible(PathBuf, String),
}

/// A scenario file as it was read: written by a person, or expanded before.
#[derive(Clone, Debug)]
pub enum Source {
    /// Written by a person: each seed draws another plan of it.
    Scenario(Box<Scenario>),
    /// Expanded: a seed changes only what is left to chance.
    Plan(Box<Plan>),
}

impl Source {
    /// Read a scenario's file.
    ///
    /// # Errors
    /// When it cannot be read or understood: the error names the line and what would be right.
    pub fn read(path: &Path) -> Result<Self, ScenarioError> {
        let unreadable = |error| ScenarioError::Unreadable(path.to_owned(), error);
        let length = std::fs::metadata(path).map_err(unreadable)?.len();
        if length > MAX_BYTES {
            let said = format!("{length} bytes are too many for a scenario");
            return Err(ScenarioError::Malformed(path.to_owned(), said));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::parse(&text, path)
    }

    /// The scenario that a text describes; `path` is what errors name, and beside it its traces are looked for.
    ///
    /// # Errors
    /// As [`Source::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ScenarioError> {
        let malformed =
            |error: toml::de::Error| ScenarioError::Malformed(path.to_owned(), explained(&error));
        if text.lines().any(|line| line.starts_with("expanded = ")) {
            let plan: Plan = toml::from_str(text).map_err(malformed)?;
            return match faults_of(&plan) {
                Some(wrong) => Err(ScenarioError::Impossible(path.to_owned(), wrong)),
                None => Ok(Self::Plan(Box::new(plan))),
            };
        }
        let mut scenario: Scenario = toml::from_str(text).map_err(malformed)?;
        scenario.folder = path.parent().unwrap_or_else(|| Path::new("")).to_owned();
        let wrong = if scenario.schema != SCHEMA {
            Some(format!("schema {} is not known: this program reads {SCHEMA}", scenario.schema))
        } else if scenario.level != Level::Model {
            Some(format!("level {:?} is not there yet: only model is", scenario.level))
        } else {
            None
        };
        match wrong {
            Some(wrong) => Err(ScenarioError::Impossible(path.to_owned(), wrong)),
            None => Ok(Self::Scenario(Box::new(scenario))),
        }
    }

    /// The scenario's name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Scenario(scenario) => &scenario.name,
            Self::Plan(plan) => &plan.name,
        }
    }

    /// What it shows, in one sentence.
    #[must_use]
    pub fn purpose(&self) -> &str {
        match self {
            Self::Scenario(scenario) => &scenario.purpose,
            Self::Plan(plan) => &plan.purpose,
        }
    }

    /// The plan that a seed draws; none is the file's own.
    ///
    /// # Errors
    /// When names do not fit, or a job can run nowhere.
    pub fn plan(&self, seed: Option<u64>) -> Result<Plan, ScenarioError> {
        let path = PathBuf::from(self.name());
        let plan = match self {
            Self::Scenario(scenario) => {
                let seed = seed.unwrap_or(scenario.seed);
                expand::plan(scenario, seed)
                    .map_err(|wrong| ScenarioError::Impossible(path.clone(), wrong))?
            }
            Self::Plan(plan) => {
                let mut plan = (**plan).clone();
                plan.seed = seed.unwrap_or(plan.seed);
                plan
            }
        };
        match faults_of(&plan) {
            Some(wrong) => Err(ScenarioError::Impossible(path, wrong)),
            None => Ok(plan),
        }
    }
}

/// What a TOML error says, with the known name that is nearest to an unknown one.
fn explained(error: &toml::de::Error) -> String {
    let said = error.to_string();
    let said = said.trim_end();
    let mut names = said.split('`').skip(1).step_by(2);
    let unknown = names.next().filter(|_| said.contains("unknown "));
    let nearest = unknown.and_then(|unknown| {
        let far = |name: &&str| distance(unknown, name);
        names.min_by_key(far).filter(|name| distance(unknown, name) <= 3)
    });
    nearest.map_or_else(|| said.to_owned(), |name| format!("{said}\nDid you mean `{name}`?"))
}

/// How many letters must be put in, left out or changed to make one word of the other.
fn distance(one: &str, other: &str) -> usize {
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (n, a) in one.chars().enumerate() {
        let mut left_above = std::mem::replace(&mut row[0], n + 1);
        for (m, b) in other.iter().enumerate() {
            let change = left_above + usize::from(a != *b);
            left_above = row[m + 1];
            row[m + 1] = change.min(row[m] + 1).min(left_above + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_what_was_meant() {
        let text = "schema = 1\nname = \"x\"\npurpose = \"y\"\nduration = \"1h\"\n\n[[site]]\nname = \"a\"\nslotz = 4\n";
        let said = Source::parse(text, Path::new("x.toml")).unwrap_err().to_string();
        assert!(said.contains("line 8"), "{said}");
        assert!(said.contains("Did you mean `slots`?"), "{said}");
    }
}
