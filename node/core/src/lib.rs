//! What one site decides: a pure state machine with one door in and one door out.
//!
//! [`Site::handle`] takes a moment and an [`Input`] and pushes [`Output`]s in the order in which they
//! must be performed. The daemon, the simulator and the tests drive the same code. There is no clock,
//! no input or output, no entropy but a seed, and nothing here can fail: bad news is an input.
#![forbid(unsafe_code)]
#![warn(clippy::wildcard_enum_match_arm)]

mod borrow;
mod capacity;
mod deadline;
mod door;
mod event;
mod experience;
mod explain;
mod fair;
mod hosts;
mod index;
mod job;
mod jobs;
mod ledger;
mod lend;
mod lent;
mod licences;
mod membership;
pub mod opening;
mod operate;
mod outsource;
mod place;
mod purse;
mod queue;
pub mod rate;
mod reasons;
mod record;
mod relay;
mod reserve;
mod second;
mod seek;
mod site;
mod sites;
mod step;
mod telling;
pub mod transfer;
mod view;

pub use deadline::{DeadlineState, DeadlineView, Warned};
pub use door::{
    Ask, CollectError, Content, Ended, Event, Hold, Input, Landed, Output, PrepareError, Ready,
    Reply, Request, Session, TaskRef, Tasks,
};
pub use explain::{Explained, ExplainedSite, ExplainedStep, ExplainedTask};
pub use index::Index;
pub use job::{JobPhase, Task};
pub use ledger::{
    ChainId, ChainRecord, ChargeRecord, EntryRecord, LedgerView, Misdeed, MisdeedRecord, PairView,
    Pricing, Refusal, SideView, TallyRecord, month_of,
};
pub use operate::{Operation, SiteOperation};
pub use record::{
    BorrowedRecord, Change, EvidenceRecord, FinishedRecord, HostMode, HostRecord, Intake,
    InviteRecord, JobRecord, Key, LentRecord, Record, RelayRecord, SiteRecord, Steering,
};
pub use site::{Config, Site};
pub use view::{
    HostLease, HostState, HostView, JobView, LeaseView, Queue, SiteView, SlotsView, StepView,
    TaskView, Why,
};
