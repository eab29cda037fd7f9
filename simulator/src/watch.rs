//! The observer: everything that is seen goes through the invariants, into the story of the run, and to whoever listens.

use meshfarm_protocol::id::Millis;

use crate::check::{Broken, Checks};
use crate::plan::Plan;
use crate::seen::{Seen, What};
use crate::story::Story;

/// Who wants to hear of everything.
pub(crate) type Listener<'a> = &'a mut dyn FnMut(&Seen);

/// An observer of all sites.
pub(crate) struct Watch<'a> {
    pub(crate) checks: Checks,
    pub(crate) story: Story,
    broken: Option<Broken>,
    listener: Option<Listener<'a>>,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({:?})", self.broken)
    }
}

impl<'a> Watch<'a> {
    pub(crate) fn new(plan: &Plan, listener: Option<Listener<'a>>) -> Self {
        Self { checks: Checks::new(plan), story: Story::new(plan), broken: None, listener }
    }

    pub(crate) fn see(&mut self, at: Millis, site: usize, what: What) {
        let seen = Seen { at, site, what };
        if self.broken.is_none() {
            self.broken = self.checks.see(&seen);
        }
        self.story.see(&seen);
        if let Some(listener) = &mut self.listener {
            listener(&seen);
        }
    }

    pub(crate) const fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    pub(crate) fn broken(&self) -> Option<&Broken> {
        self.broken.as_ref()
    }

    pub(crate) fn all_ended(&self, n: usize) -> Option<Millis> {
        self.checks.results.all_ended(n)
    }

    /// Which jobs have not ended, for people.
    pub(crate) fn unfinished(&self) -> String {
        let open: Vec<_> =
            self.checks.results.phases().filter(|(_, phase)| phase.is_none()).collect();
        let first: Vec<_> = open.iter().take(5).map(|(number, _)| number.to_string()).collect();
        if first.is_empty() {
            return "a job was never acknowledged".to_owned();
        }
        format!("{} jobs have not ended in their time, such as {}", open.len(), first.join(", "))
    }
}
