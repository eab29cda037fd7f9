//! The mesh policy of a submission: `deadline:*` values of exported bundles, `mesh.toml`, and flags.

use std::path::Path;

use meshfarm_protocol::id::Millis;
use meshfarm_protocol::job::{JailProfile, MeshPolicy, Order, Place};
use meshfarm_protocol::lease::MAX_HOPS;
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::receipt::Money;
use serde::{Deserialize, Serialize};

use super::deadline::Deadline;
use super::error::{BundleError, hint};

/// What `mesh.toml` or the flags of a submission say of the mesh policy. Not said is not changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicyChanges {
    /// `local`, `auto`, `remote`, or a site's name.
    #[serde(rename = "where")]
    pub place: Option<String>,
    /// 0 to 100; 100 is most urgent.
    pub priority: Option<u8>,
    /// How often a failed task is tried again.
    pub retries: Option<u32>,
    /// The job stops when more of its tasks than this have failed for good.
    pub max_failed_tasks: Option<u32>,
    /// A task is stopped after this long: seconds, or such as `90s`, `30m`, `2h`.
    pub timeout: Option<Duration>,
    /// A task is stopped when its log has said nothing for so long: written as `timeout` is.
    pub silence: Option<Duration>,
    /// When the job shall be done: written as `timeout` is, from its submission, or a moment such as `2026-11-30 18:00`.
    pub deadline: Option<Deadline>,
    /// The weakest isolation that another site may offer.
    pub isolation: Option<Level>,
    /// What kind of program runs: `povray`, `python`, `blender-cpu`, `blender-gpu` or `command`.
    pub profile: Option<JailProfile>,
    /// Through how many further sites a site may pass tasks on, 0 to 4.
    pub hops: Option<u8>,
    /// How many tasks are leased together at most.
    pub batch: Option<u32>,
    /// `given` or `first-last-middle`.
    pub order: Option<Order>,
    /// Whom the job is charged to.
    pub project: Option<String>,
    /// Sites that ask more for an hour of a processor get none of its tasks.
    pub max_price: Option<Money>,
    /// What it may owe other sites.
    pub budget: Option<Money>,
}

/// A span of time as people write it: seconds, or a number with `s`, `m`, `h` or `d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "String")]
pub struct Duration(pub Millis);

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum Written {
    Seconds(u64),
    Text(String),
}

impl TryFrom<Written> for Duration {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Seconds(n) => Ok(Self(Millis(n.saturating_mul(1000)))),
            Written::Text(text) => text.parse(),
        }
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> Self {
        format!("{}s", duration.0.0 / 1000)
    }
}

impl std::str::FromStr for Duration {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(end.unwrap_or(text.len()));
        let seconds = match unit.trim() {
            "" | "s" => Some(1),
            "m" => Some(60),
            "h" => Some(3600),
            "d" => Some(86400),
            _ => None,
        };
        let number = number.parse::<u64>().ok();
        match (number, seconds) {
            (Some(n), Some(unit)) => Ok(Self(Millis(n.saturating_mul(unit * 1000)))),
            _ => Err(format!("{text} is no time: write such as 90s, 30m or 2h")),
        }
    }
}

/// Keys of `mesh.toml` that the design has and this version cannot honour: better refused than ignored.
const NOT_HONOURED: [&str; 2] = ["network", "notify"];

/// Reads the text of a `mesh.toml`.
pub(super) fn read(path: &Path, text: &str) -> Result<PolicyChanges, BundleError> {
    let syntax = |error: toml::de::Error| BundleError::Syntax {
        path: path.to_owned(),
        problem: error.to_string(),
    };
    let table: toml::Table = toml::from_str(text).map_err(syntax)?;
    if let Some(key) = NOT_HONOURED.iter().find(|key| table.contains_key(**key)) {
        return Err(BundleError::Element {
            path: path.to_owned(),
            element: (*key).to_owned(),
            problem: "this version cannot honour it; remove the line to submit without it".into(),
        });
    }
    toml::from_str(text).map_err(syntax)
}

/// Puts `changes` into the `policy` of a job that is submitted `now`. `origin` is who says so.
pub(super) fn apply(
    policy: &mut MeshPolicy,
    changes: &PolicyChanges,
    (origin, now): (&str, Millis),
) -> Result<(), BundleError> {
    if let Some(deadline) = changes.deadline {
        let moment = deadline.moment(now).map_err(|problem| BundleError::Argument {
            argument: format!("{origin}: deadline {}", String::from(deadline)),
            problem,
        })?;
        policy.deadline = Some(moment);
    }
    if let Some(place) = &changes.place {
        policy.place = match place.as_str() {
            "local" => Place::Local,
            "auto" => Place::Auto,
            "remote" => Place::Remote,
            name => Place::Site(name.to_owned()),
        };
    }
    if let Some(priority) = changes.priority {
        if priority > 100 {
            return Err(BundleError::Argument {
                argument: format!("{origin}: priority {priority}"),
                problem: "priorities go from 0 to 100, 100 is most urgent".into(),
            });
        }
        policy.priority = priority;
    }
    if let Some(retries) = changes.retries {
        policy.retries = retries;
    }
    if changes.max_failed_tasks.is_some() {
        policy.max_failed_tasks = changes.max_failed_tasks;
    }
    if let Some(timeout) = changes.timeout {
        policy.timeout = Some(timeout.0);
    }
    if let Some(silence) = changes.silence {
        if silence.0 == Millis(0) {
            return Err(BundleError::Argument {
                argument: format!("{origin}: silence 0"),
                problem: "a task says nothing for at least a second; leave it out for no limit"
                    .into(),
            });
        }
        policy.silence = Some(silence.0);
    }
    if let Some(isolation) = changes.isolation {
        policy.isolation = isolation;
    }
    if let Some(profile) = changes.profile {
        policy.profile = profile;
    }
    if let Some(hops) = changes.hops {
        policy.hops = checked_hops(hops, origin)?;
    }
    if let Some(batch) = changes.batch {
        if batch == 0 {
            return Err(BundleError::Argument {
                argument: format!("{origin}: batch 0"),
                problem: "a batch has at least one task".into(),
            });
        }
        policy.batch = Some(batch);
    }
    if let Some(order) = changes.order {
        policy.order = order;
    }
    policy.max_price = changes.max_price.or(policy.max_price);
    policy.budget = changes.budget.or(policy.budget);
    Ok(())
}

fn checked_hops(hops: u8, origin: &str) -> Result<u8, BundleError> {
    if hops > MAX_HOPS {
        return Err(BundleError::Argument {
            argument: format!("{origin}: hops {hops}"),
            problem: format!("work is passed on at most {MAX_HOPS} times; 0 is never"),
        });
    }
    Ok(hops)
}

/// What the `deadline:*` values of a bundle ask for.
#[derive(Debug, Default)]
pub(super) struct Exported {
    /// What maps to the mesh policy.
    pub(super) changes: PolicyChanges,
    /// Whether the job waits until it is released.
    pub(super) held: bool,
    /// What has no counterpart here.
    pub(super) warnings: Vec<String>,
}

const EXPORTED: [&str; 4] = [
    "deadline:priority",
    "deadline:maxRetriesPerTask",
    "deadline:maxFailedTasksCount",
    "deadline:targetTaskRunStatus",
];

impl Exported {
    /// Takes in one value. `path` and `element` say where it stands.
    pub(super) fn take(
        &mut self,
        name: &str,
        value: &serde_json::Value,
        (path, element): (&Path, &str),
    ) -> Result<(), BundleError> {
        let wrong = |wanted: &str| BundleError::Element {
            path: path.to_owned(),
            element: element.to_owned(),
            problem: format!("{name} is {value}; {wanted} is wanted"),
        };
        let text = value.as_str().map(str::to_owned);
        let text = text.unwrap_or_else(|| value.to_string());
        let number = || text.trim().parse::<u32>();
        match name {
            "deadline:priority" => {
                let priority = number().ok().filter(|n| *n <= 100);
                let priority = priority.and_then(|n| u8::try_from(n).ok());
                let priority = priority.ok_or_else(|| wrong("a number from 0 to 100"))?;
                self.changes.priority = Some(priority);
            }
            "deadline:maxRetriesPerTask" => {
                let retries = number().map_err(|_no_number| wrong("a number"))?;
                self.changes.retries = Some(retries);
            }
            "deadline:maxFailedTasksCount" => {
                let most = number().map_err(|_no_number| wrong("a number"))?;
                self.changes.max_failed_tasks = Some(most);
            }
            "deadline:targetTaskRunStatus" => match text.as_str() {
                "READY" => self.held = false,
                "SUSPENDED" => self.held = true,
                _ => return Err(wrong("READY or SUSPENDED")),
            },
            other => self.warnings.push(format!(
                "{}: {other} has no counterpart here and is ignored; {}",
                path.display(),
                hint(other, &EXPORTED)
            )),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mesh_toml_says_what_it_wants_and_nothing_unknown() {
        let text = "where = 'lyon'\ndeadline = '2h'\npriority = 80\ntimeout = '2h'\nsilence = '10m'\norder = 'first-last-middle'\nisolation = 'S3'\nhops = 1\nbudget = 12.5\nmax_price = '0.05'\n";
        let changes = read(Path::new("mesh.toml"), text).unwrap();
        let mut policy = MeshPolicy::default();
        apply(&mut policy, &changes, ("mesh.toml", Millis(5))).unwrap();
        assert_eq!(policy.deadline, Some(Millis(7_200_005)));
        assert_eq!(policy.place, Place::Site("lyon".into()));
        assert_eq!((policy.priority, policy.timeout), (80, Some(Millis::seconds(7200))));
        assert_eq!(policy.silence, Some(Millis::seconds(600)));
        assert_eq!((policy.order, policy.isolation), (Order::FirstLastMiddle, Level::S3));
        assert_eq!((policy.budget, policy.max_price), (Some(Money(12_500)), Some(Money(50))));
        assert_eq!(policy.hops, 1);

        for (text, wanted) in [
            ("priorty = 1", "priorty"),
            ("\npriority = 'high'", "line 2"),
            ("timeout = '2 weeks'", "90s, 30m or 2h"),
            ("deadline = 'tomorrow'", "2026-11-30 18:00"),
            ("notify = 5", "cannot honour"),
            ("budget = 'much'", "9.80"),
        ] {
            let error = read(Path::new("mesh.toml"), text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
        let changes = PolicyChanges { priority: Some(101), ..PolicyChanges::default() };
        assert!(apply(&mut policy, &changes, ("mesh.toml", Millis(5))).is_err());
        let deadline = Some(Deadline::At(Millis(5)));
        let changes = PolicyChanges { deadline, ..PolicyChanges::default() };
        let error = apply(&mut policy, &changes, ("mesh.toml", Millis(5))).unwrap_err().to_string();
        assert!(error.contains("mesh.toml: deadline 1970") && error.contains("over"), "{error}");
        let changes = PolicyChanges { hops: Some(MAX_HOPS + 1), ..PolicyChanges::default() };
        assert!(apply(&mut policy, &changes, ("mesh.toml", Millis(5))).is_err());
    }

    #[test]
    fn values_for_another_farm_map_to_the_policy() {
        let place = (Path::new("parameter_values.yaml"), "parameterValues[0]");
        let mut exported = Exported::default();
        for (name, value) in [
            ("deadline:priority", serde_json::json!(70)),
            ("deadline:maxRetriesPerTask", serde_json::json!("5")),
            ("deadline:maxFailedTasksCount", serde_json::json!(20)),
            ("deadline:targetTaskRunStatus", serde_json::json!("SUSPENDED")),
            ("deadline:maxWorkerCount", serde_json::json!(-1)),
        ] {
            exported.take(name, &value, place).unwrap();
        }
        let changes = &exported.changes;
        assert_eq!(
            (changes.priority, changes.retries, changes.max_failed_tasks),
            (Some(70), Some(5), Some(20))
        );
        assert!(exported.held);
        assert_eq!(exported.warnings.len(), 1);
        let error = exported.take("deadline:priority", &serde_json::json!(500), place);
        assert!(error.unwrap_err().to_string().contains("from 0 to 100"));
    }
}
