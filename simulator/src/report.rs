//! What a run found, for people and for programs.

use std::fmt;

use serde::Serialize;

/// Whether a run was as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict", content = "why")]
pub enum Verdict {
    /// As expected, and no invariant was broken.
    Pass,
    /// No invariant was broken, but an expectation was missed.
    Missed(String),
    /// An invariant was broken: this is a defect of the core.
    Broken(String),
}

impl Verdict {
    /// The exit status that says it.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Pass => 0,
            Self::Missed(_) => 1,
            Self::Broken(_) => 2,
        }
    }
}

/// What a run found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// The seed that repeats it.
    pub seed: u64,
    /// How it went.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// Hash over every event in its order: equal for equal seeds.
    pub audit: String,
    /// Virtual time at the end, in milliseconds.
    pub ended_ms: u64,
    /// Virtual time at which the last job had ended.
    pub makespan_ms: Option<u64>,
    /// Events of the heap.
    pub events: u64,
    /// Messages that sites sent to each other.
    pub messages: u64,
    /// Attempts that were started.
    pub started: u64,
    /// Results that were accepted.
    pub accepted: u64,
    /// Nodes that were killed.
    pub killed: u64,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = match &self.verdict {
            Verdict::Pass => "pass".to_owned(),
            Verdict::Missed(why) => format!("expectation missed: {why}"),
            Verdict::Broken(why) => format!("invariant broken: {why}"),
        };
        writeln!(f, "{} with seed {}: {said}", self.scenario, self.seed)?;
        let makespan = self.makespan_ms.map_or_else(
            || "not every job has ended".to_owned(),
            |ms| format!("jobs ended after {}.{:03} s", ms / 1000, ms % 1000),
        );
        writeln!(
            f,
            "  {makespan}; {} accepted of {} started, {} messages, {} events, {} killed",
            self.accepted, self.started, self.messages, self.events, self.killed
        )?;
        write!(f, "  audit {}", self.audit)
    }
}
