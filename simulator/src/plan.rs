//! An expanded scenario: every site, job and fault by itself, with numbers. Nothing in it is drawn any more.
//!
//! What is left to chance is a matter of single messages and tries (jitter, loss, failing), each drawn by the
//! seed from what it is for, so that to remove a site, a job or a fault changes nothing else.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::StepNo;
use meshfarm_protocol::job::Place;

/// The layout of scenario files and of expanded ones.
pub(crate) const SCHEMA: u32 = 1;

/// How long what never ends lasts.
pub(crate) const FOREVER: u64 = 1 << 50;

/// An expanded scenario.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Marks an expanded file, and its layout.
    pub expanded: u32,
    /// The scenario's name.
    pub name: String,
    /// What it shows, in one sentence.
    pub purpose: String,
    /// What drew it, and draws what is left to chance.
    pub seed: u64,
    pub(crate) duration_ms: u64,
    pub(crate) heal_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) view: Option<usize>,
    #[serde(default)]
    pub(crate) relay: bool,
    pub(crate) expect: Expect,
    pub(crate) site: Vec<PlanSite>,
    pub(crate) job: Vec<PlanJob>,
    #[serde(default)]
    pub(crate) fault: Vec<PlanFault>,
}

impl Plan {
    /// How many sites it has.
    #[must_use]
    pub fn n_sites(&self) -> usize {
        self.site.len()
    }

    /// How many jobs it has.
    #[must_use]
    pub fn n_jobs(&self) -> usize {
        self.job.len()
    }

    /// How many frames its jobs have.
    #[must_use]
    pub fn n_frames(&self) -> u64 {
        self.job.iter().map(PlanJob::n_tasks).sum()
    }

    /// How many faults it has.
    #[must_use]
    pub fn n_faults(&self) -> usize {
        self.fault.len()
    }
}

/// What must come out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Expect {
    pub(crate) jobs: JobsEnd,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) complete_by_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) makespan_over_bound: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) bytes_over_min: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) fairness_jain: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) refusals_at_most: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) lost_work_at_most: Option<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(crate) sometimes: Vec<String>,
}

/// How jobs end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum JobsEnd {
    /// Every one is done.
    #[default]
    Done,
    /// Every one has failed.
    Failed,
    /// Every one ends in some way.
    Ended,
}

/// From where a site can be connected to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Nat {
    /// From everywhere.
    #[default]
    Open,
    /// From everywhere, once it has spoken to anybody.
    FullCone,
    /// From whom it has spoken to.
    Restricted,
    /// From the very port that it has spoken to.
    PortRestricted,
    /// Every line has a port of its own.
    Symmetric,
    /// It calls others only.
    Firewalled,
}

/// What a site does outside of its hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Away {
    /// It lends nothing.
    #[default]
    Closed,
    /// Its machine is off.
    Off,
}

/// One site.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct PlanSite {
    pub(crate) name: String,
    pub(crate) group: String,
    pub(crate) slots: u32,
    /// Thousandths of the reference core.
    pub(crate) speed: u32,
    /// Bytes a second that it can send.
    pub(crate) up: u64,
    /// Bytes a second that it can receive.
    pub(crate) down: u64,
    /// Its part of a line's latency, one way.
    pub(crate) latency_ms: u64,
    /// Up to so much more for each message.
    pub(crate) jitter_ms: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) loss_ppm: u32,
    pub(crate) nat: Nat,
    pub(crate) lending: bool,
    #[serde(skip_serializing_if = "is_zero")]
    pub(crate) fail_ppm: u32,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) amounts: BTreeMap<String, u64>,
    /// Minutes of the day at which it begins and ends to lend.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) hours: Option<[u64; 2]>,
    pub(crate) away: Away,
    #[serde(skip_serializing_if = "is_nothing")]
    pub(crate) grace_ms: u64,
    /// The site that it is a further machine of, when it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) host_of: Option<String>,
}

impl PlanSite {
    /// Whether it belongs to this site: it is it, or a host of it.
    pub(crate) fn is_of(&self, home: &str) -> bool {
        self.name == home || self.host_of.as_deref() == Some(home)
    }

    /// Whether a job may run there, as far as its place and what it needs say.
    pub(crate) fn may_run(&self, job: &PlanJob) -> bool {
        let home = self.is_of(&job.site);
        let lends = self.lending && self.host_of.is_none();
        let allowed = match &job.place {
            Place::Local => home,
            Place::Remote => !home && lends,
            Place::Auto => home || lends,
            Place::Site(name) => self.name == *name && lends,
        };
        let has =
            |(name, need): (&String, &u64)| self.amounts.get(name).is_some_and(|have| have >= need);
        allowed && job.needs.iter().all(has)
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_zero(value: &u32) -> bool {
    *value == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_nothing(value: &u64) -> bool {
    *value == 0
}

/// One job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanJob {
    /// Its number when the scenario was expanded: its draws go by it, whatever is removed later.
    pub(crate) id: u32,
    pub(crate) site: String,
    pub(crate) at_ms: u64,
    pub(crate) tenant: String,
    pub(crate) place: Place,
    pub(crate) priority: u8,
    pub(crate) retries: u32,
    #[serde(default)]
    pub(crate) environments: bool,
    pub(crate) bytes: u64,
    /// Of these, a lender that has content of the same tenant has so many percent already.
    #[serde(default)]
    pub(crate) shared_percent: u64,
    pub(crate) output_bytes: u64,
    #[serde(default)]
    pub(crate) fail_ppm: u32,
    #[serde(default)]
    pub(crate) unwritable_ppm: u32,
    #[serde(default)]
    pub(crate) needs: BTreeMap<String, u64>,
    /// How long each task of each step runs on the reference core. A step needs the one before.
    pub(crate) steps: Vec<Vec<u64>>,
}

impl PlanJob {
    /// How long its tasks run on the reference core, all together.
    pub(crate) fn work_ms(&self) -> u64 {
        self.steps.iter().flatten().sum()
    }

    pub(crate) fn n_tasks(&self) -> u64 {
        self.steps.iter().map(|step| step.len() as u64).sum()
    }

    /// How long a task runs on the reference core.
    pub(crate) fn frame_ms(&self, step: StepNo, task: u32) -> u64 {
        let step = self.steps.get(step.0 as usize);
        step.and_then(|step| step.get(task as usize)).copied().unwrap_or(1)
    }
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PlanFault {
    pub(crate) at_ms: u64,
    /// How long it lasts.
    pub(crate) for_ms: u64,
    /// To whom it happens.
    pub(crate) sites: Vec<String>,
    /// The other end of lines; empty is everybody else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) others: Vec<String>,
    #[serde(rename = "do")]
    pub(crate) what: Trouble,
}

/// What goes wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind", deny_unknown_fields)]
pub(crate) enum Trouble {
    /// Lines are cut: what is sent vanishes, and nobody is told.
    Cut {
        /// Only what `sites` send to `others` vanishes.
        one_way: bool,
    },
    /// What `sites` send to `others` stands still, and arrives when it is over.
    Clog,
    /// Content travels at so many percent of its rate.
    Slow {
        /// Of the usual rate.
        percent: u64,
    },
    /// Every message takes up to so much longer.
    Jitter {
        /// At most.
        ms: u64,
    },
    /// Messages are lost with their connection.
    Drop {
        /// In so many of a million.
        ppm: u32,
    },
    /// Messages arrive twice.
    Duplicate {
        /// In so many of a million.
        ppm: u32,
    },
    /// The clock is ahead by so much.
    Clock {
        /// At the end it is right again.
        ahead_ms: u64,
    },
    /// The node stands still; what it gets waits. Its jails go on.
    Pause,
    /// The node dies between two inputs.
    Crash,
    /// The node dies between two outputs of one input: what was not made durable before is lost.
    KillPoint {
        /// After so many further outputs.
        outputs: u64,
    },
    /// Nothing more can be stored.
    DiskFull,
    /// What is made durable takes so long; a crash loses what is on its way, with all that relies on it.
    DiskSlow {
        /// For each input.
        ms: u64,
    },
    /// The site lies.
    Lie {
        /// How.
        how: Lie,
        /// In so many of a million cases.
        ppm: u32,
    },
    /// The machine's licences are gone.
    Licences,
}

/// How a site lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Lie {
    /// Frames have wrong pixels: nobody can see that by a hash.
    WrongPixels,
    /// Frames are black, and come at once.
    BlackFrames,
    /// Outputs are not what was announced: hashes show it.
    Corrupt,
    /// Every task fails at once.
    FailAtOnce,
    /// It says that all its slots are free and ten times as fast as they are.
    Boast,
}

impl Trouble {
    /// What people call it.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Cut { one_way: false } => "cut",
            Self::Cut { one_way: true } => "one-way cut",
            Self::Clog => "clog",
            Self::Slow { .. } => "slow line",
            Self::Jitter { .. } => "jitter",
            Self::Drop { .. } => "lost messages",
            Self::Duplicate { .. } => "doubled messages",
            Self::Clock { .. } => "clock ahead",
            Self::Pause => "paused node",
            Self::Crash => "crash",
            Self::KillPoint { .. } => "crash between outputs",
            Self::DiskFull => "disk full",
            Self::DiskSlow { .. } => "slow disk",
            Self::Lie { .. } => "lying site",
            Self::Licences => "licences gone",
        }
    }
}

/// What is wrong with a plan: found before anything runs.
pub(crate) fn faults_of(plan: &Plan) -> Option<String> {
    let names: std::collections::BTreeSet<&str> =
        plan.site.iter().map(|site| site.name.as_str()).collect();
    if names.len() != plan.site.len() {
        return Some("two sites have the same name".to_owned());
    }
    let in_faults = plan.fault.iter().flat_map(|fault| fault.sites.iter().chain(&fault.others));
    let heads = plan.site.iter().filter_map(|site| site.host_of.as_ref());
    let mut named = plan.job.iter().map(|job| &job.site).chain(in_faults).chain(heads);
    if let Some(missing) = named.find(|name| !names.contains(name.as_str())) {
        return Some(format!("there is no site {missing}"));
    }
    if !plan.job.is_sorted_by(|a, b| a.id < b.id) {
        return Some("jobs are not in the order of their ids".to_owned());
    }
    let rest = plan.job.iter().find_map(|job| {
        if job.steps.is_empty() || job.steps.iter().any(Vec::is_empty) {
            return Some(format!("job {} has a step without frames", job.id));
        }
        let can = |site: &PlanSite| site.slots > 0 && site.may_run(job);
        (!plan.site.iter().any(can) && plan.expect.jobs != JobsEnd::Failed).then(|| {
            format!(
                "job {} of {} cannot run anywhere: no site that it allows has what it needs",
                job.id, job.site
            )
        })
    });
    if rest.is_some() {
        return rest;
    }
    let ends = |fault: &&PlanFault| fault.for_ms < FOREVER;
    let mut ending = plan.fault.iter().filter(ends);
    if ending.any(|fault| fault.at_ms.saturating_add(fault.for_ms) > plan.heal_ms) {
        return Some("a fault lasts beyond the moment at which all is healed".to_owned());
    }
    let unknown = plan.expect.sometimes.iter().find(|state| !crate::outcome::is_state(state));
    if let Some(state) = unknown {
        return Some(format!(
            "sometimes: there is no state {state}: `meshfarm-sim list` names them"
        ));
    }
    (plan.heal_ms > plan.duration_ms).then(|| "it heals after its end".to_owned())
}
