//! What is simulated: sites, links, jobs, faults and expectations, as a TOML file with strict keys.

use serde::Deserialize;

use meshfarm_protocol::id::Millis;
use meshfarm_protocol::job::Place;

/// A file that says what is simulated. Spans are pairs of the least and the most; each run draws between.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it shows, in a few words.
    pub name: String,
    /// The sites, in order.
    pub site: Vec<SiteEntry>,
    /// What every link between two sites is like.
    #[serde(default)]
    pub link: LinkEntry,
    /// What is submitted.
    pub job: Vec<JobEntry>,
    /// What goes wrong.
    #[serde(default)]
    pub fault: Vec<FaultEntry>,
    /// What must come out.
    pub expect: ExpectEntry,
}

/// One site, or several that are alike.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiteEntry {
    /// Its name; with `count`, followed by a number from 1.
    pub name: String,
    /// How many there are.
    pub count: Option<u32>,
    /// Sessions that it can run at a time.
    pub slots: u32,
    /// Speed of a slot in thousandths of the reference core.
    #[serde(default = "reference_speed")]
    pub speed: u32,
    /// Percent of the attempts that fail there.
    #[serde(default)]
    pub fail_percent: u32,
    /// Whether it takes tasks of other sites.
    #[serde(default = "yes")]
    pub lending: bool,
}

/// What links are like.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkEntry {
    /// One way, in milliseconds. A wide span reorders messages.
    pub latency_ms: [u64; 2],
    /// Percent of the messages that are lost.
    pub loss_percent: u32,
    /// Percent of the messages that arrive twice.
    pub duplicate_percent: u32,
    /// Bytes per millisecond of a transfer.
    pub rate: u64,
}

impl Default for LinkEntry {
    fn default() -> Self {
        Self { latency_ms: [5, 40], loss_percent: 0, duplicate_percent: 0, rate: 10_000 }
    }
}

/// One job.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobEntry {
    /// The site that submits it.
    pub site: String,
    /// When.
    pub at_s: u64,
    /// Tasks in each of its steps; each step needs the one before.
    pub frames: Vec<u32>,
    /// How long a task runs on the reference core.
    pub frame_ms: [u64; 2],
    /// Bytes of its content.
    #[serde(default)]
    pub bytes: u64,
    /// Bytes of each task's outputs.
    #[serde(default)]
    pub output_bytes: u64,
    /// Where its tasks may run.
    #[serde(default = "auto")]
    pub place: Place,
    /// 0 to 100.
    #[serde(default = "middle")]
    pub priority: u8,
    /// How often a failed task is tried again.
    #[serde(default = "retries")]
    pub retries: u32,
    /// Whether several tasks share a session.
    #[serde(default)]
    pub environments: bool,
    /// Percent of the attempts that fail wherever they run.
    #[serde(default)]
    pub fail_percent: u32,
    /// Percent of the placements that fail once because the folder cannot be written.
    #[serde(default)]
    pub unwritable_percent: u32,
}

/// One thing that goes wrong, once or several times.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultEntry {
    /// What.
    pub kind: FaultKind,
    /// The site that it happens to.
    pub site: String,
    /// The other end of a cut line; none cuts the site off from everybody.
    pub other: Option<String>,
    /// When it happens.
    pub at_s: [u64; 2],
    /// How long it lasts.
    pub for_s: [u64; 2],
    /// How often, each time drawn anew.
    #[serde(default = "once")]
    pub times: u32,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The node dies between two inputs.
    Kill,
    /// The node dies between two outputs of one input.
    KillPoint,
    /// A line is cut; both ends notice later.
    Cut,
}

/// What must come out.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpectEntry {
    /// How the jobs end.
    pub jobs: JobsEnd,
    /// How long after the last fault has healed, and the last job was submitted, every job has ended.
    pub within_s: u64,
}

/// How jobs end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobsEnd {
    /// Every one is done.
    Done,
    /// Every one has failed.
    Failed,
}

/// Why nothing was simulated.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// A key is missing, unknown or of the wrong kind.
    #[error("the scenario is not understood: {0}")]
    Malformed(#[from] toml::de::Error),
    /// A job or fault names a site that is not in the file.
    #[error("the scenario names the site {0}, which it does not describe")]
    NoSite(String),
    /// A span ends before it begins.
    #[error("the span {0} to {1} ends before it begins")]
    EmptySpan(u64, u64),
}

const fn reference_speed() -> u32 {
    1000
}

const fn yes() -> bool {
    true
}

const fn auto() -> Place {
    Place::Auto
}

const fn middle() -> u8 {
    50
}

const fn retries() -> u32 {
    2
}

const fn once() -> u32 {
    1
}

impl Scenario {
    /// The scenario that a file's text describes.
    ///
    /// # Errors
    /// When a key is unknown, a site is not described or a span is empty.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)?;
        let names = scenario.names();
        let faults = scenario
            .fault
            .iter()
            .flat_map(|fault| std::iter::once(&fault.site).chain(fault.other.as_ref()));
        let mut named = scenario.job.iter().map(|job| &job.site).chain(faults);
        if let Some(missing) = named.find(|name| !names.contains(name)) {
            return Err(ScenarioError::NoSite(missing.clone()));
        }
        let spans = scenario.fault.iter().flat_map(|fault| [fault.at_s, fault.for_s]);
        let jobs = scenario.job.iter().map(|job| job.frame_ms);
        let mut spans = spans.chain(jobs).chain([scenario.link.latency_ms]);
        match spans.find(|[low, high]| low > high) {
            Some([low, high]) => Err(ScenarioError::EmptySpan(low, high)),
            None => Ok(scenario),
        }
    }

    /// Every site by itself: its name and what it is like.
    pub(crate) fn sites(&self) -> impl Iterator<Item = (String, &SiteEntry)> {
        self.site.iter().flat_map(|entry| {
            let names: Vec<_> = match entry.count {
                None => vec![entry.name.clone()],
                Some(count) => (1..=count).map(|n| format!("{}{n}", entry.name)).collect(),
            };
            names.into_iter().map(move |name| (name, entry))
        })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.sites().map(|(name, _)| name).collect()
    }

    /// When nothing goes wrong any more and everything was submitted.
    pub(crate) fn calm(&self) -> Millis {
        let faults = self.fault.iter().map(|fault| fault.at_s[1] + fault.for_s[1]);
        let jobs = self.job.iter().map(|job| job.at_s);
        Millis::seconds(faults.chain(jobs).max().unwrap_or(0))
    }
}
