//! A step at work: its tasks, and indexes over them so that no decision walks through all.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{ChunkId, Millis, SiteId, TaskNo};
use meshfarm_protocol::job::{Order, StepSpec};

use crate::fair;
use crate::job::Task;

/// The content of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Inputs {
    /// Its predecessors are not done, or are done and nobody has begun to assemble it.
    NotYet,
    /// It is being assembled.
    Building,
    /// It is there.
    Ready { root: ChunkId, bytes: u64 },
}

/// How many tasks of a step stand how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) open: usize,
    pub(crate) done: usize,
    pub(crate) failed: usize,
    pub(crate) canceled: usize,
}

/// A step at work.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) inputs: Inputs,
    /// Cores that each task counts for, in thousandths.
    pub(crate) cores: u64,
    tasks: Vec<Task>,
    /// Task numbers in the order in which they start.
    order: Vec<TaskNo>,
    /// Of each task its place in that order.
    places: Vec<usize>,
    /// Open tasks that a person does not want started.
    held: BTreeSet<TaskNo>,
    /// Places of the tasks that wait, are not held and have never failed.
    fresh: BTreeSet<usize>,
    /// Places of the tasks that wait, are not held and have failed before.
    again: BTreeSet<usize>,
    /// When tasks that pause after a failure may start.
    pauses: BTreeSet<(Millis, usize)>,
    counts: Counts,
    /// Tasks that are canceled and of which a record says something.
    written: BTreeSet<TaskNo>,
    /// Sum and count of how long done tasks have run, or would have on the reference core.
    wall: (u64, u64),
}

impl Step {
    pub(crate) fn new(spec: &StepSpec, order: Order) -> Self {
        let order = start_order(spec.n_tasks(), order);
        let mut places = vec![0; order.len()];
        for (place, task) in order.iter().enumerate() {
            places[index(*task)] = place;
        }
        let n = order.len();
        Self {
            inputs: Inputs::NotYet,
            cores: fair::cores(spec),
            tasks: vec![Task::new(); n],
            order,
            places,
            held: BTreeSet::new(),
            fresh: (0..n).collect(),
            again: BTreeSet::new(),
            pauses: BTreeSet::new(),
            counts: Counts { open: n, ..Counts::default() },
            written: BTreeSet::new(),
            wall: (0, 0),
        }
    }

    pub(crate) fn tasks(&self) -> &[Task] {
        &self.tasks
    }

    pub(crate) const fn counts(&self) -> Counts {
        self.counts
    }

    pub(crate) fn is_done(&self) -> bool {
        self.counts.done == self.tasks.len()
    }

    /// Change how a task stands. Nothing happens when there is no such task.
    pub(crate) fn set(&mut self, task: TaskNo, state: Task) {
        let Some(slot) = self.tasks.get_mut(index(task)) else {
            return;
        };
        let old = std::mem::replace(slot, state.clone());
        self.strike(task, &old);
        match state {
            Task::Canceled => drop(self.written.insert(task)),
            Task::Waiting { .. }
            | Task::Leased { .. }
            | Task::Done { .. }
            | Task::Failed { .. } => {
                self.written.remove(&task);
            }
        }
        *self.counter(&old) -= 1;
        *self.counter(&state) += 1;
        if !is_open(&state) {
            self.held.remove(&task);
        }
        self.list(task, &state);
    }

    /// Do not start an open task, or let it start again. Returns whether that is a change.
    pub(crate) fn hold(&mut self, task: TaskNo, held: bool) -> bool {
        let Some(state) = self.tasks.get(index(task)).filter(|state| is_open(state)).cloned()
        else {
            return false;
        };
        if held == self.held.contains(&task) {
            return false;
        }
        self.strike(task, &state);
        if held {
            self.held.insert(task);
        } else {
            self.held.remove(&task);
        }
        self.list(task, &state);
        true
    }

    pub(crate) fn is_held(&self, task: TaskNo) -> bool {
        self.held.contains(&task)
    }

    pub(crate) fn n_held(&self) -> usize {
        self.held.len()
    }

    /// The held tasks: the first and the last of each run of them.
    pub(crate) fn held_ranges(&self) -> Vec<(TaskNo, TaskNo)> {
        let mut ranges: Vec<(TaskNo, TaskNo)> = Vec::new();
        for task in &self.held {
            match ranges.last_mut() {
                Some((_, last)) if last.0 + 1 == task.0 => *last = *task,
                Some(_) | None => ranges.push((*task, *task)),
            }
        }
        ranges
    }

    /// Take a task that waited so out of the indexes.
    fn strike(&mut self, task: TaskNo, old: &Task) {
        if let Task::Waiting { after, .. } = old {
            let place = self.places[index(task)];
            self.fresh.remove(&place);
            self.again.remove(&place);
            self.pauses.remove(&(*after, place));
        }
    }

    /// Put a task that waits into the indexes, unless it is held.
    fn list(&mut self, task: TaskNo, state: &Task) {
        if let Task::Waiting { failed_on, after, .. } = state
            && !self.held.contains(&task)
        {
            let place = self.places[index(task)];
            if failed_on.is_empty() && *after == Millis(0) {
                self.fresh.insert(place);
            } else {
                self.again.insert(place);
                self.pauses.insert((*after, place));
            }
        }
    }

    /// Cancel the tasks that wait, all of them or those between two. Nothing needs to be written for that: the job's
    /// record says it.
    pub(crate) fn cancel_waiting(&mut self, between: Option<(TaskNo, TaskNo)>) {
        let (from, to) = between.unwrap_or((TaskNo(0), TaskNo(u32::MAX)));
        let numbered = (0..).map(TaskNo).zip(&mut self.tasks);
        for (task, slot) in numbered.filter(|(task, _)| (from..=to).contains(task)) {
            if let Task::Waiting { .. } = slot {
                if *slot != Task::new() {
                    self.written.insert(task);
                }
                *slot = Task::Canceled;
                self.counts.open -= 1;
                self.counts.canceled += 1;
            }
        }
        let tasks = &self.tasks;
        self.held.retain(|task| tasks.get(index(*task)).is_some_and(is_open));
        let (tasks, order) = (&self.tasks, &self.order);
        let waits = |place: &usize| matches!(tasks[index(order[*place])], Task::Waiting { .. });
        self.fresh.retain(waits);
        self.again.retain(waits);
        self.pauses.retain(|(_, place)| waits(place));
    }

    /// Whether a record says something of a task that does not stand as new.
    pub(crate) fn has_record(&self, task: TaskNo) -> bool {
        match self.tasks.get(index(task)) {
            Some(Task::Canceled) => self.written.contains(&task),
            Some(state) => *state != Task::new(),
            None => false,
        }
    }

    /// Runs of canceled tasks, but those in `not`, which is in order.
    pub(crate) fn canceled(&self, not: impl Iterator<Item = TaskNo>) -> Vec<(TaskNo, TaskNo)> {
        let mut not = not.peekable();
        let mut runs: Vec<(TaskNo, TaskNo)> = Vec::new();
        for (task, state) in (0..).map(TaskNo).zip(&self.tasks) {
            while not.next_if(|no| *no < task).is_some() {}
            if *state != Task::Canceled || not.peek() == Some(&task) {
                continue;
            }
            match runs.last_mut() {
                Some((_, last)) if last.0 + 1 == task.0 => *last = task,
                Some(_) | None => runs.push((task, task)),
            }
        }
        runs
    }

    fn counter(&mut self, task: &Task) -> &mut usize {
        match task {
            Task::Waiting { .. } | Task::Leased { .. } => &mut self.counts.open,
            Task::Done { .. } => &mut self.counts.done,
            Task::Failed { .. } => &mut self.counts.failed,
            Task::Canceled => &mut self.counts.canceled,
        }
    }

    /// Tasks that could start now, in their order, with the sites where they failed.
    pub(crate) fn waiting(&self, now: Millis) -> impl Iterator<Item = (TaskNo, &[SiteId])> {
        let places = self.fresh.union(&self.again);
        places.filter_map(move |place| {
            let task = self.order[*place];
            Some((task, self.waits(task, now)?))
        })
    }

    /// How many tasks wait that have never failed and are not held.
    pub(crate) fn n_fresh(&self) -> usize {
        self.fresh.len()
    }

    /// Of the tasks that have failed and could start now: the sites where they failed.
    pub(crate) fn again(&self, now: Millis) -> impl Iterator<Item = &[SiteId]> {
        let places = self.again.iter();
        places.filter_map(move |place| self.waits(self.order[*place], now))
    }

    fn waits(&self, task: TaskNo, now: Millis) -> Option<&[SiteId]> {
        match self.tasks.get(index(task))? {
            Task::Waiting { failed_on, after, .. } if *after <= now => Some(failed_on),
            Task::Waiting { .. }
            | Task::Leased { .. }
            | Task::Done { .. }
            | Task::Failed { .. }
            | Task::Canceled => None,
        }
    }

    /// The next moment at which a task that pauses after a failure may start.
    pub(crate) fn wake_at(&self, now: Millis) -> Option<Millis> {
        let later = self.pauses.range((now.plus(Millis(1)), 0)..).next();
        later.map(|(after, _)| *after)
    }

    pub(crate) const fn learn(&mut self, reference: Millis) {
        self.wall = (self.wall.0.saturating_add(reference.0), self.wall.1 + 1);
    }

    /// How many done tasks that is known from.
    pub(crate) const fn n_learned(&self) -> u64 {
        self.wall.1
    }

    /// How long a task runs on the reference core: the mean of the done ones.
    pub(crate) fn task_time(&self) -> Option<Millis> {
        let (sum, n) = self.wall;
        sum.checked_div(n).map(Millis)
    }

    /// Panic if an index has lost track of the tasks.
    pub(crate) fn check(&self) {
        let mut counts = Counts::default();
        for ((n, task), place) in (0..).map(TaskNo).zip(&self.tasks).zip(&self.places) {
            let held = self.held.contains(&n);
            assert!(!held || is_open(task), "a task is held that is over");
            let waits = matches!(task, Task::Waiting { .. }) && !held;
            let indexed = self.fresh.contains(place) || self.again.contains(place);
            assert_eq!(waits, indexed, "a task would never start, or start twice");
            match task {
                Task::Waiting { .. } | Task::Leased { .. } => counts.open += 1,
                Task::Done { .. } => counts.done += 1,
                Task::Failed { .. } => counts.failed += 1,
                Task::Canceled => counts.canceled += 1,
            }
        }
        assert_eq!(counts, self.counts, "a step has lost count of its tasks");
        assert_eq!(self.again.len(), self.pauses.len(), "a pause is forgotten");
    }
}

/// Whether a task can still be done.
pub(crate) const fn is_open(task: &Task) -> bool {
    matches!(task, Task::Waiting { .. } | Task::Leased { .. })
}

const fn index(task: TaskNo) -> usize {
    task.0 as usize
}

/// Task numbers from zero to `n` in the order in which they start.
fn start_order(n: u32, order: Order) -> Vec<TaskNo> {
    let given = (0..n).map(TaskNo);
    match order {
        Order::Given => given.collect(),
        Order::FirstLastMiddle => {
            let mut early = vec![0, n.saturating_sub(1), n / 2];
            early.dedup();
            early.retain(|task| *task < n);
            let rest = given.filter(|task| !early.contains(&task.0));
            early.iter().copied().map(TaskNo).chain(rest).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_early_look_is_first_last_middle_and_every_task_once() {
        for n in 1..9 {
            let mut order = start_order(n, Order::FirstLastMiddle);
            assert_eq!(order[0], TaskNo(0));
            if n > 2 {
                assert_eq!(order[1..3], [TaskNo(n - 1), TaskNo(n / 2)]);
            }
            order.sort();
            assert_eq!(order, (0..n).map(TaskNo).collect::<Vec<_>>());
        }
    }
}
