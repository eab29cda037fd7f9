//! A job as sites see it: steps, task counts, what each step asks for, and where its files belong.
//!
//! The template itself is Open Job Description and is parsed elsewhere: by the borrower when it is
//! submitted, and by the session runner inside the lender's jail. A lender's node reads only this.

use serde::{Deserialize, Serialize};

use crate::id::{Millis, StepNo, TenantId};
use crate::profile::{Level, Requirement};
use crate::receipt::Money;

/// More tasks than this in one job are refused at submission: labels and states are kept in memory.
pub const MAX_TASKS: u32 = 1_000_000;

/// More steps than this in one job are refused at submission.
pub const MAX_STEPS: usize = 256;

/// Everything that a borrower's node decides a job by. It stays on the borrower's site.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobSpec {
    /// The job's name, as its template gives it.
    pub name: String,
    /// Who submitted it: the user's name on the submitting machine.
    pub user: String,
    /// The group or project name it is charged to.
    pub project: String,
    /// The owner of its keys.
    pub tenant: TenantId,
    /// What Open Job Description does not speak of: place, priority, retries, isolation.
    pub policy: MeshPolicy,
    /// Its steps, in the template's order. Never empty.
    pub steps: Vec<StepSpec>,
    /// Where its files belong on the artist's disk.
    pub layout: Layout,
}

/// One step of a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepSpec {
    /// The step's name, unique in the job.
    pub name: String,
    /// What a host must offer to run its tasks.
    pub requirement: Requirement,
    /// One label for each task, in order (`Frame=12`); as many as there are tasks, at least one.
    pub labels: Vec<String>,
    /// Steps that must be done before this one starts.
    pub needs: Vec<StepNo>,
    /// Whether entering its session costs something (job or step environments), so that several
    /// tasks should share one session.
    pub environments: bool,
    /// How long tasks that share a session shall run together, where the template says so: the target of its chunks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<Millis>,
}

impl StepSpec {
    /// Whether several of its tasks should share one session.
    #[must_use]
    pub const fn shares_sessions(&self) -> bool {
        self.environments || self.session.is_some()
    }

    /// How many tasks the step has.
    #[must_use]
    pub fn n_tasks(&self) -> u32 {
        u32::try_from(self.labels.len()).unwrap_or(MAX_TASKS)
    }
}

/// The mesh policy of a job: flags of `submit`, or `mesh.toml` beside the template.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MeshPolicy {
    /// Where its tasks may run.
    #[serde(rename = "where")]
    pub place: Place,
    /// 0 to 100; 100 is most urgent.
    pub priority: u8,
    /// How often a failed task is tried again, on another host where there is one.
    pub retries: u32,
    /// The job stops when more of its tasks than this have failed for good. None: it never does.
    pub max_failed_tasks: Option<u32>,
    /// A task is stopped after this long. None: no limit.
    pub timeout: Option<Millis>,
    /// A task is stopped when its log has said nothing for so long. None: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub silence: Option<Millis>,
    /// When the job shall be done, in milliseconds since 1970. None: nobody minds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Millis>,
    /// The weakest isolation that another site may offer.
    pub isolation: Level,
    /// What kind of program runs, which decides what its jails allow. The default allows all that any kind needs.
    #[serde(skip_serializing_if = "JailProfile::is_usual")]
    pub profile: JailProfile,
    /// How many tasks are leased together at most. None: by the granted slots.
    pub batch: Option<u32>,
    /// In which order tasks start.
    pub order: Order,
    /// Whether its tasks wait until a person releases them.
    #[serde(skip_serializing_if = "is_false")]
    pub held: bool,
    /// Sites that ask more than this for an hour of a processor get none of its tasks. None: any price.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_price: Option<Money>,
    /// It owes other sites this much at most. None: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Money>,
    /// Through how many further sites a site that has its tasks may pass them on. 0: none but that site's own hosts.
    #[serde(skip_serializing_if = "is_zero")]
    pub hops: u8,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_false(value: &bool) -> bool {
    !*value
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
const fn is_zero(value: &u8) -> bool {
    *value == 0
}

impl Default for MeshPolicy {
    fn default() -> Self {
        Self {
            place: Place::Auto,
            priority: 50,
            retries: 2,
            max_failed_tasks: None,
            timeout: None,
            silence: None,
            deadline: None,
            isolation: Level::S2,
            profile: JailProfile::Command,
            batch: None,
            order: Order::Given,
            held: false,
            max_price: None,
            budget: None,
            hops: 0,
        }
    }
}

/// What kind of program a job runs: what its jails allow beyond reading, writing and running. The borrower names it,
/// and a lender that lets less gives that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JailProfile {
    /// POV-Ray: no sockets.
    Povray,
    /// Python and tools written in it: sockets within the jail.
    Python,
    /// Blender on processors: as Python, and memory policies.
    BlenderCpu,
    /// Blender with graphics cards. Cards come with the slots that have them, whatever the profile.
    BlenderGpu,
    /// Any command.
    #[default]
    Command,
}

impl JailProfile {
    /// The narrower of two: of equally narrow ones, this.
    #[must_use]
    pub fn narrower(self, most: Self) -> Self {
        if self.breadth() <= most.breadth() { self } else { most }
    }

    const fn breadth(self) -> u8 {
        match self {
            Self::Povray => 0,
            Self::Python => 1,
            Self::BlenderCpu | Self::BlenderGpu => 2,
            Self::Command => 3,
        }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands out references")]
    const fn is_usual(&self) -> bool {
        matches!(self, Self::Command)
    }
}

impl std::fmt::Display for JailProfile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Povray => "povray",
            Self::Python => "python",
            Self::BlenderCpu => "blender-cpu",
            Self::BlenderGpu => "blender-gpu",
            Self::Command => "command",
        })
    }
}

/// Where the tasks of a job may run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Only on the submitting site.
    Local,
    /// Wherever they finish first.
    Auto,
    /// Only on other sites.
    Remote,
    /// Only on the site of this name.
    Site(String),
}

/// In which order the tasks of a step start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As the template numbers them.
    Given,
    /// First, last, middle, then the rest: an early look at the whole range.
    FirstLastMiddle,
}

/// Where the files of a job belong on the artist's disk, root by root.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// The roots. No root lies beneath another, except that an output root may lie beneath an input root.
    pub roots: Vec<Root>,
}

impl Layout {
    /// Refuse a layout that no honest borrower sends.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.roots.len() > MAX_ROOTS {
            return Err(format!(
                "{} roots where at most {MAX_ROOTS} are allowed",
                self.roots.len()
            ));
        }
        for (n, root) in self.roots.iter().enumerate() {
            let mut id = root.id.chars();
            let plain = id.next().is_some_and(|c| c.is_ascii_lowercase())
                && id.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
                && root.id.len() <= 16;
            if !plain || self.roots[..n].iter().any(|other| other.id == root.id) {
                return Err(format!("{:?} cannot name a root", root.id));
            }
            let absolute = match root.format {
                PathFormat::Posix => root.source.starts_with('/'),
                PathFormat::Windows => !root.source.is_empty(),
            };
            let climbs = root.source.split(['/', '\\']).any(|part| part == "..");
            let control = root.source.chars().any(char::is_control);
            if !absolute || climbs || control || root.source.len() > MAX_PATH {
                return Err(format!("root {} is not at an absolute path", root.id));
            }
        }
        Ok(())
    }
}

/// A longer path is refused, in bytes.
const MAX_PATH: usize = 1024;

/// More roots than this are refused: each is a mount in the jail.
pub const MAX_ROOTS: usize = 64;

/// One folder of the artist's disk that a job reads from or writes to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Short name: the first component of this root's paths in a manifest. `[a-z][a-z0-9]{0,15}`.
    pub id: String,
    /// The folder as the artist named it: an absolute path in `format`.
    pub source: String,
    /// How `source` is written.
    pub format: PathFormat,
    /// What the job may do beneath it.
    pub access: Access,
}

/// How a path is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PathFormat {
    /// `/show/shot`
    Posix,
    /// `S:\show\shot` or `\\nas\show\shot`
    Windows,
}

/// What a job may do beneath a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read the files that were sent.
    In,
    /// Write; what it writes returns. Outputs of earlier steps are found there, and copies of the
    /// inputs that lie beneath it.
    Out,
}

/// What the jail needs to know of a step before its template is read inside: travels sealed to the lender.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionSpec {
    /// Where its files belong.
    pub layout: Layout,
    /// The step that is leased.
    pub step: StepNo,
    /// Whether several tasks share one session.
    pub environments: bool,
    /// A task is stopped after this long.
    pub timeout: Option<Millis>,
    /// A task is stopped when its log has said nothing for so long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub silence: Option<Millis>,
    /// What kind of program it runs.
    #[serde(default, skip_serializing_if = "JailProfile::is_usual")]
    pub profile: JailProfile,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lender_that_lets_less_gives_that() {
        use JailProfile::{BlenderCpu, BlenderGpu, Command, Povray, Python};
        for (asked, most, given) in [
            (Command, Command, Command),
            (Command, Python, Python),
            (Povray, Command, Povray),
            (Povray, Python, Povray),
            (Python, Povray, Povray),
            (BlenderGpu, BlenderCpu, BlenderGpu),
            (BlenderGpu, Python, Python),
        ] {
            assert_eq!(asked.narrower(most), given, "{asked} where {most} is let");
        }
    }

    #[test]
    fn a_layout_that_could_climb_or_confuse_is_refused() {
        let root = |id: &str, source: &str| Root {
            id: id.into(),
            source: source.into(),
            format: PathFormat::Posix,
            access: Access::In,
        };
        let layout = |roots: &[Root]| Layout { roots: roots.to_vec() };
        assert_eq!(layout(&[root("r0", "/show"), root("r1", "/out")]).check(), Ok(()));
        for (id, source) in
            [("", "/a"), ("..", "/a"), ("R0", "/a"), ("r0", "a"), ("r0", "/a/../b"), ("r0", "/a\0")]
        {
            assert!(layout(&[root(id, source)]).check().is_err(), "{id} {source}");
        }
        for source in ["/a\nb", "/\u{1b}[2J", "/\u{85}", &format!("/{}", "n".repeat(1024))] {
            assert!(layout(&[root("r0", source)]).check().is_err(), "{source:?}");
        }
        assert!(layout(&[root("r0", "/a"), root("r0", "/b")]).check().is_err());
        assert!(layout(&vec![root("r0", "/a"); MAX_ROOTS + 1]).check().is_err());
    }
}
