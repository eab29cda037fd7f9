//! Commands and flags of what people do to jobs and to their site while it runs.

use clap::{ArgAction, Args, Subcommand, ValueEnum};

use meshfarm_core::Queue;
use meshfarm_protocol::id::Millis;
use meshfarm_protocol::receipt::Money;

use super::{JobArg, TaskList, name, span, task_list};

/// What to do to a job, to tasks of it, or to the site.
#[derive(Debug, Subcommand)]
pub enum Operate {
    /// Stop a job, a step or some tasks for good
    #[command(after_help = "\
Examples:
  meshfarm cancel 3fa8
  meshfarm cancel 3fa8 --tasks 10-19

A job of which some tasks were canceled is done when the others are. Steps that need a canceled task do not \
run. `meshfarm retry` renders canceled tasks after all.")]
    Cancel(Selection),

    /// Do not start tasks of a job until they are released
    #[command(after_help = "\
Examples:
  meshfarm hold 3fa8
  meshfarm hold 3fa8 --tasks 3,5-7 --return

Tasks that run go on, unless --return takes them back at once. A hold survives a restart.")]
    Hold(Hold),

    /// Let held tasks start again
    #[command(after_help = "Examples:\n  meshfarm release 3fa8\n  meshfarm release 3fa8 --tasks 3")]
    Release(Selection),

    /// Render tasks of a job again: those that failed, all, or some
    #[command(after_help = "\
Examples:
  meshfarm retry 3fa8
  meshfarm retry 3fa8 --tasks 3,5-7
  meshfarm retry 3fa8 --step Render

Without a selection: what failed, and of a job that has ended also what was stopped with it. Task numbers are \
those of `meshfarm job`.")]
    Retry(Retry),

    /// Stop tasks that run; they run again, elsewhere where another site fits
    #[command(after_help = "\
Examples:
  meshfarm kill 3fa8 --tasks 12
  meshfarm kill 3fa8 --step Render --fail

A kill uses up no retry and says nothing against the site, unless --fail is given. A result that was on its \
way already is kept.")]
    Kill(Kill),

    /// Change how urgent a job is
    #[command(after_help = "Example:\n  meshfarm priority 3fa8 80")]
    Priority(Priority),

    /// Change what a job may owe other sites
    #[command(after_help = "\
Example:
  meshfarm budget 3fa8 25.50

A job that waits because its budget is reached goes on when it is raised. What it owes already stays owed.")]
    Budget(Budget),

    /// Send a job to other sites
    #[command(after_help = "\
Examples:
  meshfarm outsource 3fa8 --best
  meshfarm outsource 3fa8 --to lyon

What does not run yet leaves this site's slots, and other sites when one is named. A site that renders a job \
can read its scene.")]
    Outsource(Outsource),

    /// Bring home what other sites have of a job and have not finished
    #[command(after_help = "\
Example:
  meshfarm recall 3fa8

The job runs on this site only from now on. What was under way elsewhere begins anew and has not failed; \
outputs that are on their way home still come.")]
    Recall(JobArg),

    /// Take no more tasks of other sites, or send none to a site
    #[command(after_help = "\
Examples:
  meshfarm pause
  meshfarm pause --after return --grace 10m --own
  meshfarm pause --site lyon

What runs for other sites goes on to its end, or goes back to them after the grace. What waits goes back at \
once. A pause survives a restart and ends with `meshfarm resume`.")]
    Pause(Pause),

    /// Take tasks again, or send them to a site again
    #[command(after_help = "Examples:\n  meshfarm resume\n  meshfarm resume --site lyon")]
    Resume(Resume),
}

/// A job, or some of its tasks.
#[derive(Debug, Args)]
pub struct Selection {
    /// Which job
    #[command(flatten)]
    pub which: JobArg,
    /// Only tasks of this step
    #[arg(long, value_name = "NAME")]
    pub step: Option<String>,
    /// Only these tasks, by number as `meshfarm job` shows them, such as 3,5-7
    #[arg(long, value_name = "LIST", value_parser = task_list)]
    pub tasks: Option<TaskList>,
}

/// Flags of `hold`.
#[derive(Debug, Args)]
pub struct Hold {
    /// Which
    #[command(flatten)]
    pub selection: Selection,
    /// Take those back that run
    #[arg(long = "return", action = ArgAction::SetTrue)]
    pub give_back: bool,
}

/// Flags of `retry`.
#[derive(Debug, Args)]
pub struct Retry {
    /// Which
    #[command(flatten)]
    pub selection: Selection,
    /// Every task, also those that are done
    #[arg(long, action = ArgAction::SetTrue, conflicts_with_all = ["tasks", "step"])]
    pub all: bool,
    /// Those that failed: what happens when nothing is said
    #[arg(long, action = ArgAction::SetTrue, conflicts_with_all = ["all", "tasks", "step"])]
    pub failed: bool,
}

/// Flags of `kill`.
#[derive(Debug, Args)]
pub struct Kill {
    /// Which
    #[command(flatten)]
    pub selection: Selection,
    /// Count it as a failed try at the site
    #[arg(long, action = ArgAction::SetTrue)]
    pub fail: bool,
}

/// Flags of `priority`.
#[derive(Debug, Args)]
pub struct Priority {
    /// Which job
    #[command(flatten)]
    pub which: JobArg,
    /// 0 to 100; 100 is most urgent
    #[arg(value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    pub priority: u8,
}

/// Flags of `budget`.
#[derive(Debug, Args)]
pub struct Budget {
    /// Which job
    #[command(flatten)]
    pub which: JobArg,
    /// What it may owe in all, in the mesh's own unit
    #[arg(value_name = "AMOUNT")]
    pub amount: Money,
}

/// Flags of `outsource`.
#[derive(Debug, Args)]
pub struct Outsource {
    /// Which job
    #[command(flatten)]
    pub which: JobArg,
    /// The site of this name
    #[arg(long, value_name = "SITE", value_parser = name)]
    pub to: Option<String>,
    /// Whichever sites are best: what happens when none is named
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "to")]
    pub best: bool,
}

/// Flags of `pause`.
#[derive(Debug, Args)]
pub struct Pause {
    /// Whether what runs for others finishes or is returned to them
    #[arg(
        long,
        value_enum,
        value_name = "WHEN",
        default_value = "finish",
        conflicts_with = "site"
    )]
    pub after: After,
    /// Return it after this long, such as 10m [default: at once]
    #[arg(long, value_name = "TIME", value_parser = span, conflicts_with = "site")]
    pub grace: Option<Millis>,
    /// Start no tasks of this site's own jobs here either
    #[arg(long, action = ArgAction::SetTrue, conflicts_with = "site")]
    pub own: bool,
    /// Send no tasks to this site, and go on lending
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub site: Option<String>,
}

/// What becomes of what runs when a site is paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum After {
    /// It runs to its end
    Finish,
    /// It goes back to its borrower when the grace is over
    Return,
}

/// Flags of `resume`.
#[derive(Debug, Args)]
pub struct Resume {
    /// Send tasks to this site again
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub site: Option<String>,
}

/// Flags of `jobs`.
#[derive(Clone, Copy, Debug, Args)]
pub struct Jobs {
    /// Only jobs of this queue
    #[arg(long, value_enum, value_name = "QUEUE")]
    pub queue: Option<QueueName>,
}

/// A queue of jobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum QueueName {
    /// Nothing was started yet
    New,
    /// Tasks run here or have run; batches of other sites too
    Active,
    /// Another site has tasks
    Outsourced,
    /// Everything that is left is held
    Held,
    /// Over
    Done,
}

impl From<QueueName> for Queue {
    fn from(name: QueueName) -> Self {
        match name {
            QueueName::New => Self::New,
            QueueName::Active => Self::Active,
            QueueName::Outsourced => Self::Outsourced,
            QueueName::Held => Self::Held,
            QueueName::Done => Self::Done,
        }
    }
}
