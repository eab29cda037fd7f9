//! Floating licences: they are a site's and counted at its head, whichever of its machines uses them.
//!
//! A host is not asked whether it has them and is not told of them: it gets no more work that needs one than the head
//! counts free. A lease counts for every slot that it has, from the offer to its end.

use std::borrow::Cow;

use meshfarm_protocol::id::{JobId, SiteId, StepNo};
use meshfarm_protocol::profile::{HostClass, Requirement, is_licence};

use crate::borrow::{Borrowed, State};
use crate::capacity::{Budget, Share};
use crate::job::Job;
use crate::site::Site;

/// What a step asks of a host of ours: everything but the licences that this site, of which `own` is the head's machine,
/// counts itself.
pub(crate) fn of_host<'a>(asked: &'a Requirement, own: &HostClass) -> Cow<'a, Requirement> {
    let counted = |name: &String| {
        is_licence(name) && own.amounts.keys().any(|known| known.eq_ignore_ascii_case(name))
    };
    if !asked.amounts.keys().any(counted) {
        return Cow::Borrowed(asked);
    }
    let mut asked = asked.clone();
    asked.amounts.retain(|name, _| !counted(name));
    Cow::Owned(asked)
}

/// A host of ours with the licences of the site, of which `own` is the head's machine: what it can offer to a job.
pub(crate) fn with_ours(mut host: HostClass, own: &HostClass) -> HostClass {
    let ours = own.amounts.iter().filter(|(name, _)| is_licence(name));
    host.amounts.extend(ours.map(|(name, n)| (name.clone(), *n)));
    host
}

impl Site {
    /// The licences that a session of a step takes.
    pub(crate) fn licences(&self, job: JobId, step: StepNo) -> Share {
        let spec = self.jobs.get(job).and_then(|job| job.step_spec(step));
        let share = spec.map(|spec| self.lend.share(&spec.requirement)).unwrap_or_default();
        self.lend.capacity().licences(&share)
    }

    /// How many further sessions of a step there are licences for.
    pub(crate) fn licensed(&self, job: JobId, step: StepNo) -> u32 {
        self.lend.left().beside_slots(&self.licences(job, step))
    }

    /// The same where it matters: while we have no hosts, the room on our own machine says it.
    pub(crate) fn licensed_with_hosts(&self, job: JobId, step: StepNo) -> u32 {
        if self.hosts.is_empty() { u32::MAX } else { self.licensed(job, step) }
    }

    /// Licences that leases of our hosts hold: of each lease how many slots it has, and what each of them takes.
    pub(crate) fn at_hosts(&self) -> impl Iterator<Item = (&Borrowed, u32, Share)> {
        let any = self.lend.host().amounts.keys().any(|name| is_licence(name));
        let leases = self.borrow.all().filter(move |_| any);
        let leases = leases.filter(|(_, borrowed)| self.hosts.contains(borrowed.lender));
        leases.filter_map(|(_, borrowed)| {
            let share = self.licences(borrowed.job, borrowed.step);
            let slots = match &borrowed.state {
                State::Offered { slots, .. } => *slots,
                State::Held(held) => held.slots,
            };
            (share != Share::default()).then_some((borrowed, slots, share))
        })
    }

    /// Whether a host of ours has a licence that a step asks for, for a job that is less urgent.
    pub(crate) fn has_licence_of_less_urgent(
        &self,
        host: SiteId,
        (job, step): (&Job, StepNo),
    ) -> bool {
        let wanted = self.licences(job.record.job, step);
        self.at_hosts().any(|(borrowed, _, share)| {
            let of = self.jobs.get(borrowed.job);
            borrowed.lender == host
                && share.overlaps(&wanted)
                && of.is_some_and(|of| of.class() > job.class())
        })
    }

    /// Count what our hosts hold of the site's licences.
    pub(crate) fn count_licences(&mut self) {
        if !self.hosts.is_empty() {
            self.lend.away = self.held_away();
        }
    }

    fn held_away(&self) -> Budget {
        let mut away = Budget::default();
        self.at_hosts().for_each(|(_, slots, share)| away.take_in(&share, slots));
        away
    }

    /// Panic if our hosts hold licences that are not counted.
    pub(crate) fn check_licences(&self) {
        assert!(self.lend.away.covers(&self.held_away()), "a licence would be used twice");
    }
}
