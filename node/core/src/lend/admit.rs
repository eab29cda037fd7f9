//! What of our machine is left, and who gets it: admission.

use meshfarm_protocol::id::{LeaseId, MeshId, Millis, SiteId};
use meshfarm_protocol::lease::{Declined, Grant, Offer, RESERVATION};
use meshfarm_protocol::matching::fits;
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::{Amount, GPU, HostClass, Level, Requirement, VCPU};
use meshfarm_protocol::receipt::Terms;

use crate::capacity::{Budget, Capacity, Share};
use crate::lent::{Lent, State};

use super::{BUSY_PAUSE, LONG_PAUSE, Lend, MAX_LEASES, MAX_LEASES_OF_ALL};

impl Lend {
    /// What the machine offers to other sites.
    pub(crate) fn lent_host(&self) -> HostClass {
        let mut host = self.host.clone();
        host.amounts.retain(|name, _| !self.keeps(name));
        host
    }

    pub(crate) fn keeps(&self, amount: &str) -> bool {
        self.kept.iter().any(|kept| kept.eq_ignore_ascii_case(amount))
    }

    /// The machine offers something else. What was promised stays promised.
    pub(crate) fn set_host(&mut self, host: HostClass) {
        self.owe();
        self.capacity.set(&host);
        self.host = host;
    }

    /// What is promised now stays promised, whether or not the machine has it.
    pub(crate) fn owe(&mut self) {
        self.owed = self.held();
    }

    /// Everything that leases hold, ours of hosts too.
    pub(super) fn held(&self) -> Budget {
        let mut held = self.away.clone();
        for lent in self.leases.values() {
            match lent.held() {
                0 => {}
                n => held.give(&lent.share, n),
            }
        }
        held
    }

    /// Everything that nobody holds.
    pub(crate) fn left(&self) -> Budget {
        self.capacity.whole().less(&self.held())
    }

    /// What a session of such a step takes here.
    pub(crate) fn share(&self, requirement: &Requirement) -> Share {
        self.capacity.share(requirement)
    }

    /// How many sessions of this share an idle machine could hold.
    pub(crate) fn at_once(&self, share: &Share) -> u32 {
        self.capacity.whole().room(share)
    }

    /// How many sessions of another site's there is room for now, beside what is kept for our own.
    pub(super) fn spare(&self, share: &Share) -> u32 {
        let kept = self.reserved.as_ref().map_or(u32::MAX, |kept| kept.spare(share));
        self.left().room(share).min(kept)
    }

    /// Slots that a task of another site's which asks for nothing could have now.
    pub(crate) fn offered(&self) -> u32 {
        self.spare(&self.share(&Requirement::default()))
    }

    /// How many further tasks of our own a lease could begin with, when it has `under_way` already.
    pub(crate) fn room_in(&self, lease: LeaseId, under_way: usize) -> usize {
        self.leases.get(&lease).map_or(0, |lent| {
            let room = lent.slots.saturating_add(self.left().room(&lent.share)) as usize;
            room.saturating_sub(under_way)
        })
    }

    /// What the machine has to share out.
    pub(crate) const fn capacity(&self) -> &Capacity {
        &self.capacity
    }

    /// Slots that a task which asks for nothing could have now.
    pub(crate) fn free(&self) -> u32 {
        self.left().room(&self.share(&Requirement::default()))
    }

    pub(crate) fn on_offer(
        &mut self,
        (from, mesh): (SiteId, Option<MeshId>),
        offer: &Offer,
        now: Millis,
    ) -> Message {
        let lease = offer.lease;
        let decline = |reason, retry_after| Message::Decline { lease, reason, retry_after };
        if let Some(lent) = self.leases.get(&lease) {
            return match lent.state {
                State::Reserved { .. } if lent.borrower == from => self.grant(lease, lent),
                State::Reserved { .. }
                | State::Preparing { .. }
                | State::Active(_)
                | State::Away(_)
                | State::Ended => decline(Declined::Malformed, LONG_PAUSE),
            };
        }
        if offer.slots == 0 || offer.tasks == 0 {
            return decline(Declined::Malformed, LONG_PAUSE);
        }
        // A host lends to its head only, whose jobs are as its own.
        let stranger = self.head.is_some_and(|head| from != head && from != self.me);
        if stranger || (from != self.me && !self.lending) {
            return decline(Declined::Policy, LONG_PAUSE);
        }
        let own = from == self.me || self.head == Some(from);
        if self.full {
            return decline(Declined::Full, LONG_PAUSE);
        }
        // A machine that falls short of our own floor renders for nobody else, whatever they would put up with.
        let weak = !own && self.host.level < self.floor;
        let mut asked = offer.requirement.amounts.iter();
        let kept = !own && asked.any(|(name, need)| need.min > Amount(0) && self.keeps(name));
        let fits = !kept && fits(&offer.requirement, offer.isolation, &self.host);
        let share = self.share(&offer.requirement);
        if weak || !fits || self.at_once(&share) == 0 {
            return decline(Declined::Misfit, LONG_PAUSE);
        }
        let free = if own { self.left().room(&share) } else { self.spare(&share) };
        if free == 0 || (!own && self.has_too_many_of(from)) {
            return decline(Declined::Busy, BUSY_PAUSE);
        }
        let slots = free.min(offer.slots);
        let state = State::Reserved { until: now.plus(RESERVATION) };
        let isolation = self.isolation_for(offer.isolation);
        let promise = (slots, share, isolation);
        let mut lent = Lent::new((from, offer.tenant), promise, state, now);
        if !own {
            (lent.terms, lent.content) = (self.terms(&lent.share, mesh), offer.bytes);
        }
        let granted = self.grant(lease, &lent);
        self.leases.insert(lease, lent);
        granted
    }

    /// What a job gets that asks for `asked`: the stronger of that and our own floor, of which the machine may fall
    /// short. Not always the most that the machine reaches: a disk of its own costs every task some time.
    pub(super) fn isolation_for(&self, asked: Level) -> Level {
        asked.max(self.floor.min(self.host.level))
    }

    pub(crate) fn has_too_many_of(&self, borrower: SiteId) -> bool {
        let of_it = self.leases.values().filter(|l| l.borrower == borrower);
        self.leases.len() >= MAX_LEASES_OF_ALL || of_it.count() >= MAX_LEASES
    }

    /// What slots of this share cost another site.
    fn terms(&self, share: &Share, mesh: Option<MeshId>) -> Terms {
        let whole = Terms::default();
        let count = |amount: Amount| u32::try_from(amount.0).unwrap_or(u32::MAX);
        let cores = match self.capacity.amount(share, VCPU) {
            // A machine that does not say what it has: a slot is a processor.
            Amount(0) => whole.cores,
            amount => count(amount),
        };
        let cards = count(self.capacity.amount(share, GPU)) / 1000;
        Terms { mesh: mesh.unwrap_or(whole.mesh), price: self.price, cores, cards }
    }

    pub(super) fn grant(&self, lease: LeaseId, lent: &Lent) -> Message {
        let (slots, isolation, terms) = (lent.slots, lent.isolation, lent.terms);
        let sealing_key = self.sealing_key;
        let reserved = RESERVATION;
        Message::Grant(Grant { lease, slots, reserved, sealing_key, isolation, terms })
    }
}
