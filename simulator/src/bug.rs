//! Defects on purpose: what a driver could do wrong, to prove that the observer sees it.

use meshfarm_core::{Change, Input, Landed, Output, Record, Task};
use meshfarm_protocol::id::AttemptId;
use meshfarm_protocol::message::Message;

/// A defect of every site's driver. No run has one unless it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Bug {
    /// Timers stop after eight seconds.
    NoTimers,
    /// That a result was accepted, or a lease closed, is never heard.
    DropAccepted,
    /// Content of leases that are over is kept.
    KeepContent,
    /// Finished outputs are not kept until they are fetched.
    LoseOutputs,
    /// What arrives is not compared with what was announced.
    SkipVerification,
    /// A crash takes a record that was durable.
    LoseRecords,
    /// A site believes that it has twice its slots.
    OverCommit,
    /// Where a job may run is forgotten at submission.
    IgnorePlace,
    /// Every message is sent forty times.
    Storm,
    /// Every session is started twice.
    StartTwice,
    /// What is sent goes before what it relies on is durable.
    SendFirst,
    /// A task that is done is recorded as done once more, by another try.
    SecondResult,
    /// A profile's sequence does not grow.
    StaleProfile,
    /// Outputs that could not be fetched count as placed.
    AcceptUnseen,
}

impl Bug {
    /// Every one.
    pub const ALL: [Self; 14] = [
        Self::NoTimers,
        Self::DropAccepted,
        Self::KeepContent,
        Self::LoseOutputs,
        Self::SkipVerification,
        Self::LoseRecords,
        Self::OverCommit,
        Self::IgnorePlace,
        Self::Storm,
        Self::StartTwice,
        Self::SendFirst,
        Self::SecondResult,
        Self::StaleProfile,
        Self::AcceptUnseen,
    ];

    /// What becomes of an input; none is lost.
    pub(crate) fn input(self, input: Input) -> Option<Input> {
        match (self, input) {
            (
                Self::DropAccepted,
                Input::Heard { message: Message::Accepted { .. } | Message::Close { .. }, .. },
            ) => None,
            (Self::AcceptUnseen, Input::Collected { attempt, result: Err(_) }) => {
                Some(Input::Collected { attempt, result: Ok(Landed::default()) })
            }
            (_, input) => Some(input),
        }
    }

    /// What becomes of the outputs of one input.
    pub(crate) fn outputs(self, out: &mut Vec<Output>) {
        match self {
            Self::StartTwice => {
                let starts: Vec<_> = out
                    .iter()
                    .filter(|output| matches!(output, Output::Start { .. }))
                    .cloned()
                    .collect();
                out.extend(starts);
            }
            Self::SendFirst => out.sort_by_key(|output| matches!(output, Output::Persist(_))),
            Self::SecondResult => {
                let again = out.iter().find_map(|output| match output {
                    Output::Persist(Change::Put(record)) => match &**record {
                        Record::Task(
                            at,
                            Task::Done { by, at: when, wall, isolation, cost, .. },
                        ) => {
                            let (attempt, by, at_task) = (AttemptId([9; 16]), *by, *at);
                            let (at, wall, isolation, cost) = (*when, *wall, *isolation, *cost);
                            let task = Task::Done { attempt, by, at, wall, isolation, cost };
                            Some(Change::Put(Box::new(Record::Task(at_task, task))))
                        }
                        _ => None,
                    },
                    _ => None,
                });
                out.extend(again.map(Output::Persist));
            }
            Self::StaleProfile => {
                for output in out {
                    if let Output::Publish(profile) = output {
                        profile.sequence = 1;
                    }
                }
            }
            _ => {}
        }
    }
}
