//! What goes over the local API: requests, answers and problems, shared by the node and its command line.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use meshfarm_core::HostMode;
use meshfarm_protocol::id::{JobId, MeshId, Millis, SiteId};
use meshfarm_protocol::job::{Order, Place};
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::receipt::Money;

use crate::job_bundle::Deadline;

mod ledger;
mod store;

pub use ledger::{By, Dispute, LedgerLine, Side, Statement, StatementAsk, StatementRow};
pub use store::{
    Collect, StoreCollected, StoreStat, StoreVerified, TenantBytes, Verify, VerifyLine,
};

/// Why a request was refused, in the shape of RFC 9457. Nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{}", self.text())]
pub struct Problem {
    /// Names the kind of problem: a short word behind `urn:meshfarm:`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What is wrong, without the particulars.
    pub title: String,
    /// Status code of HTTP: 400 to 499 is the caller's to mend, 500 and above the node's.
    pub status: u16,
    /// What is wrong here: names the file, element, flag or thing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

impl Problem {
    fn new(kind: &str, status: u16, title: &str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:meshfarm:{kind}"),
            title: title.to_owned(),
            status,
            detail: Some(detail.into()),
            help: None,
        }
    }

    /// What was sent or named is wrong: `detail` says which part.
    #[must_use]
    pub fn bad_input(detail: impl Into<String>) -> Self {
        Self::new("bad-input", 400, "bad input", detail)
    }

    /// There is no such thing.
    #[must_use]
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new("not-found", 404, "not found", detail)
    }

    /// It is understood, and as things stand it cannot be done.
    #[must_use]
    pub fn refused(detail: impl Into<String>) -> Self {
        Self::new("refused", 409, "refused", detail)
    }

    /// The node is going down.
    #[must_use]
    pub fn stopping() -> Self {
        Self::new("stopping", 503, "the node is stopping", "nothing was changed")
    }

    /// Something of the node is broken; the chain of causes goes into the detail.
    #[must_use]
    pub fn broken(error: &dyn std::error::Error) -> Self {
        Self::new("broken", 500, "the node could not do it", causes(error))
    }

    /// The same problem with a word on what to do.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The particulars, or the title where there are none.
    #[must_use]
    pub fn text(&self) -> &str {
        self.detail.as_deref().unwrap_or(&self.title)
    }
}

/// An error and everything that caused it, in one line.
#[must_use]
pub fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

/// A job to be rendered, as a person asks for it. Paths are absolute or relative to `folder`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Submit {
    /// A bundle folder, a template, a `.tar` of a bundle, a scene file, or `bundle:NAME` for a built-in one.
    pub source: String,
    /// The folder that the person works in.
    pub folder: PathBuf,
    /// Who submits: the user's name on this machine.
    pub user: String,
    /// Job parameters, in the order given.
    #[serde(default)]
    pub parameters: Vec<(String, String)>,
    /// Frames such as `1-20` or `1,5,9-12`.
    #[serde(default)]
    pub frames: Option<String>,
    /// Width and height in pixels.
    #[serde(default)]
    pub resolution: Option<(u32, u32)>,
    /// Folder that the frames go to.
    #[serde(default)]
    pub output: Option<PathBuf>,
    /// Further files and folders that travel.
    #[serde(default)]
    pub inputs: Vec<PathBuf>,
    /// `local`, `auto`, `remote` or a site's name. None: what the bundle or the site says.
    #[serde(default, rename = "where")]
    pub place: Option<String>,
    /// 0 to 100; 100 is most urgent.
    #[serde(default)]
    pub priority: Option<u8>,
    /// How often a failed task is tried again.
    #[serde(default)]
    pub retries: Option<u32>,
    /// A task is stopped after this long.
    #[serde(default)]
    pub timeout: Option<Millis>,
    /// A task is stopped when its log has said nothing for so long.
    #[serde(default)]
    pub silence: Option<Millis>,
    /// When the job shall be done: `2h` from its submission, or a moment such as `2026-11-30 18:00`.
    #[serde(default)]
    pub deadline: Option<Deadline>,
    /// Through how many further sites a site may pass its tasks on.
    #[serde(default)]
    pub hops: Option<u8>,
    /// In which order tasks start.
    #[serde(default)]
    pub order: Option<Order>,
    /// Sites that ask more for an hour of a processor get none of its tasks.
    #[serde(default)]
    pub max_price: Option<Money>,
    /// What it may owe other sites.
    #[serde(default)]
    pub budget: Option<Money>,
    /// Whether nothing starts before the job is released.
    #[serde(default)]
    pub hold: bool,
    /// Files of environment templates that stand around the job, the outermost first.
    #[serde(default)]
    pub environments: Vec<PathBuf>,
    /// Path mapping rules of its own: `file://FILE` or JSON.
    #[serde(default)]
    pub path_mapping: Option<String>,
    /// `NAME=VALUE`, `file://FILE` or a JSON object, each; behind `parameters`, later ones win.
    #[serde(default)]
    pub arguments: Vec<String>,
    /// The job stops when more of its tasks than this have failed for good.
    #[serde(default)]
    pub max_failed_tasks: Option<u32>,
}

/// How far a submission is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done.
    pub phase: Phase,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, once that is known.
    pub total: Option<u64>,
}

/// What a submission is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Reading the bundle and finding its files.
    Loading,
    /// Cutting, hashing and encrypting the files that travel.
    Hashing,
    /// Looking at stored chunks.
    Verifying,
}

/// One line of the answer to a submission; the last is not a progress line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SubmitLine {
    /// It goes on.
    Progress(Progress),
    /// The job is on disk and queued.
    Submitted(Submitted),
    /// Nothing was queued.
    Problem(Problem),
}

/// A job that was accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    /// Its id.
    pub job: JobId,
    /// Its name.
    pub name: String,
    /// How many tasks it has.
    pub tasks: u32,
    /// Files that travel.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Where its tasks may run.
    #[serde(rename = "where")]
    pub place: Place,
    /// Folders that its outputs go to.
    pub outputs: Vec<PathBuf>,
    /// Whether nothing starts before it is released.
    pub held: bool,
    /// What is odd and did not hinder.
    pub warnings: Vec<String>,
}

/// What a submission would be.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DryRun {
    /// The job's name.
    pub name: String,
    /// Where its tasks may run.
    #[serde(rename = "where")]
    pub place: Place,
    /// Its steps.
    pub steps: Vec<StepPlan>,
    /// Files that would travel.
    pub files: Vec<FilePlan>,
    /// Folders that outputs would go to.
    pub outputs: Vec<PathBuf>,
    /// Which sites would match.
    pub sites: Vec<SitePlan>,
    /// What is odd and would not hinder.
    pub warnings: Vec<String>,
}

/// A step of a job that was not submitted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepPlan {
    /// Its name.
    pub name: String,
    /// The labels of its tasks.
    pub tasks: Vec<String>,
    /// What it asks of a host, one line each.
    pub requires: Vec<String>,
}

/// A file that would travel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FilePlan {
    /// Where it is.
    pub path: PathBuf,
    /// Its bytes.
    pub bytes: u64,
}

/// Whether a site could take a job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SitePlan {
    /// The site's name.
    pub site: String,
    /// What stands in the way, one line each; empty when nothing does.
    pub blocks: Vec<String>,
}

/// A piece of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPart {
    /// The bytes from the offset that was asked for; empty when there is nothing more now.
    pub bytes: Vec<u8>,
    /// Whether nothing will be added any more.
    pub ended: bool,
}

/// How many tasks an operation has changed; 1 where it is about a whole job or the site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// So many.
    pub tasks: u32,
}

/// Asks for a backup of the home.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Backup {
    /// The file to write, absolute; it must not exist.
    pub file: PathBuf,
}

/// A backup that was written, or restored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackedUp {
    /// The file.
    pub file: PathBuf,
    /// Records in it.
    pub records: u64,
    /// Chunks of content in it.
    pub chunks: u64,
}

/// Whether a host shall take tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetHost {
    /// How it shall be.
    pub mode: HostMode,
}

/// Founds a mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeshCreate {
    /// Its name.
    pub name: String,
}

/// A mesh that the site belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshView {
    /// Its id.
    pub mesh: MeshId,
    /// Its name.
    pub name: String,
    /// The name that the site has there.
    pub site_name: String,
    /// What the site may do there.
    pub role: Role,
    /// When its certificate ends.
    pub expires: Millis,
    /// Whether the site holds the root key.
    pub founder: bool,
}

/// Asks for a ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invite {
    /// Name or beginning of the id of the mesh. None: the only one that the site founded.
    #[serde(default)]
    pub mesh: Option<String>,
    /// What the invited may do.
    pub role: Role,
    /// How many sites may use the ticket.
    pub uses: u32,
    /// How long it counts.
    pub expires_in: Millis,
}

/// A ticket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invited {
    /// Its text. Whoever has it can join.
    pub ticket: String,
    /// The mesh's name.
    pub mesh_name: String,
    /// What the invited may do.
    pub role: Role,
    /// How many sites may use it.
    pub uses: u32,
    /// From when on it is worthless.
    pub expires: Millis,
}

/// Uses a ticket.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Join {
    /// Its text.
    pub ticket: String,
    /// The name to have in the mesh. None: the site's own.
    #[serde(default)]
    pub name: Option<String>,
}

impl std::fmt::Debug for Join {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The ticket is a secret; a log line must not let its reader join.
        f.debug_struct("Join").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Bytes that were moved since the node started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transfers {
    /// By job; jobs that moved nothing are left out.
    pub jobs: Vec<JobBytes>,
    /// By site.
    pub sites: Vec<SiteBytes>,
}

/// Bytes moved for a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobBytes {
    /// The job.
    pub job: JobId,
    /// Bytes sent to lenders.
    pub sent: u64,
    /// Bytes that lenders want of it, sent or not, once that is known.
    pub wanted: Option<u64>,
    /// Bytes of outputs received.
    pub received: u64,
    /// Bytes per second on their way out now.
    pub sending: u64,
    /// Bytes per second on their way in now.
    pub receiving: u64,
    /// Seconds until everything that is wanted was sent, at this speed.
    pub seconds_left: Option<u64>,
    /// The same for each lender.
    pub peers: Vec<SiteBytes>,
}

/// Bytes moved between us and a site.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SiteBytes {
    /// Who.
    pub site: SiteId,
    /// Its name.
    pub name: String,
    /// Bytes sent to it.
    pub sent: u64,
    /// Bytes received from it.
    pub received: u64,
    /// Bytes per second on their way out now.
    pub sending: u64,
    /// Bytes per second on their way in now.
    pub receiving: u64,
    /// About how many bytes it still lacks, as it said last.
    pub left: u64,
    /// Bytes with which we asked it for chunks.
    pub asked: u64,
    /// Times that we asked it while nothing else was under way: each costs the time there and back.
    pub trips: u64,
}

/// Where the outputs of a job go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outputs {
    /// The folders that the job named.
    pub folders: Vec<PathBuf>,
}

/// The node itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// The site.
    pub site: SiteId,
    /// Its name.
    pub name: String,
    /// Its home.
    pub home: PathBuf,
    /// Number of the process.
    pub pid: u32,
    /// Addresses that it listens on, as multiaddresses.
    pub listen: Vec<String>,
    /// When it started, in milliseconds since 1970.
    pub started: Millis,
    /// Resident memory in bytes.
    pub resident: u64,
}

/// What a machine is fit for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Examination {
    /// Every check, the essential ones first.
    pub checks: Vec<Check>,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// How it stands.
    pub state: CheckState,
    /// What was found.
    pub found: String,
    /// What would make it better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
}

/// How a thing stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CheckState {
    /// As it should be.
    Good,
    /// It works, and could be better.
    Weak,
    /// A node or its lending does not work like this.
    Broken,
}

/// Renderers by name, with the version found.
pub type Software = BTreeMap<String, String>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_has_the_shape_of_rfc_9457() {
        let problem = Problem::bad_input("--frames 5-: no range").with_help("write 1-20");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "type": "urn:meshfarm:bad-input",
                "title": "bad input",
                "status": 400,
                "detail": "--frames 5-: no range",
                "help": "write 1-20",
            })
        );
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }

    #[test]
    fn a_ticket_is_not_printed_for_debugging() {
        let join = Join { ticket: "meshfarm1secret".into(), name: None };
        assert!(!format!("{join:?}").contains("secret"));
    }

    #[test]
    fn unknown_fields_of_a_submission_are_refused() {
        let text = r#"{"source":"a.pov","folder":"/","user":"ada","frame":"1"}"#;
        let error = serde_json::from_str::<Submit>(text).unwrap_err();
        assert!(error.to_string().contains("unknown field `frame`"), "{error}");
    }
}
