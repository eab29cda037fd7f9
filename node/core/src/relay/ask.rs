//! Which machine another site's tasks go to that our own cannot take, and what of our hosts other sites see.

use std::collections::BTreeSet;

use rand_core::Rng;

use meshfarm_protocol::codec;
use meshfarm_protocol::id::{JobId, LeaseId, MeshId, Millis, SiteId, StepNo};
use meshfarm_protocol::lease::{Declined, Grant, MAX_HOPS, Offer};
use meshfarm_protocol::matching::fits;
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::{
    Amount, GPU, HostClass, MAX_PROFILE_BYTES, Profile, Requirement, VCPU, is_licence,
};
use meshfarm_protocol::receipt::{Price, Terms};

use crate::borrow::State;
use crate::door::Output;
use crate::lend;
use crate::place;
use crate::site::Site;
use crate::sites::Known;

use super::{ANSWER, Content, MAX_ASKED, Place, RESERVED, Relay, Seeking, Stage, There, busy};

/// Work of other sites is never more urgent to a host, or to a site to which we pass it on, than a usual job of ours.
const MAX_PRIORITY: u8 = 50;

/// More relays than this at a time are not begun.
const MAX_RELAYS: usize = 4096;

/// More offers than this of one borrower do not wait for an answer of other machines at a time.
const MAX_ASKING: usize = 64;

/// So many sites are looked at when work is passed on.
const SAMPLE: usize = 8;

/// Bytes of a profile that are left for all but its kinds of machines.
const REST_OF_PROFILE: usize = 8 * 1024;

impl Site {
    /// Whether offers of `from` may go on to other machines: it is another site, and we are no host.
    pub(super) fn may_relay_for(&self, from: SiteId) -> bool {
        self.config.head.is_none() && !self.owns(from)
    }

    /// Another site asks for slots: it gets our own, or those of another machine.
    pub(super) fn on_foreign_offer(
        &mut self,
        from: SiteId,
        offer: &Offer,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let lease = offer.lease;
        let mut message = match self.relays.relays.get(&lease).filter(|relay| relay.is_asking()) {
            // It will have an answer in a moment.
            Some(relay) if relay.borrower == from => return,
            Some(_) => lend::decline(lease, Declined::Malformed),
            None if self.goes_round(from, offer) => lend::decline(lease, Declined::Policy),
            None if self.ledger.withholds(from, now) => lend::decline(lease, Declined::Policy),
            None => self.lend.on_offer((from, self.mesh_with(from)), offer, now),
        };
        if let Message::Decline { reason: reason @ (Declined::Busy | Declined::Misfit), .. } =
            message
        {
            if self.begin_relay(from, offer, now, out) {
                return;
            }
            if reason == Declined::Misfit && self.a_host_fits(offer) {
                message = busy(lease);
            }
        }
        out.push(Output::Send { to: from, message });
    }

    /// The mesh in whose unit we reckon with a site.
    pub(crate) fn mesh_with(&self, site: SiteId) -> Option<MeshId> {
        self.sites.get(site)?.reckons_in(self.config.me, site)
    }

    /// What slots of another machine cost: a host's as our own, and what is passed on nothing, because nobody pays for it
    /// there. An even part of the machine's processors where the work asks for fewer.
    fn terms_away(&self, borrower: SiteId, to: SiteId, asked: &Requirement) -> Terms {
        let usual = Terms::default();
        let least = |name: &str| {
            let need = asked.amounts.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
            need.map_or(0, |(_, need)| need.min.0)
        };
        let profile = self.sites.get(to).and_then(|known| known.profile.as_ref());
        let class = profile.and_then(|profile| profile.hosts.first());
        let even = class.map_or(0, |class| {
            let all = class.amounts.get(VCPU).map_or(0, |amount| amount.0);
            all / u64::from(class.slots.max(1))
        });
        let cores = match least(VCPU).max(even) {
            // A machine that does not say what it has: a slot is a processor.
            0 => usual.cores,
            cores => u32::try_from(cores).unwrap_or(u32::MAX),
        };
        let cards = u32::try_from(least(GPU).div_ceil(1000)).unwrap_or(u32::MAX);
        let price = if self.hosts.contains(to) { self.lend.price } else { usual.price };
        Terms { mesh: self.mesh_with(borrower).unwrap_or(usual.mesh), price, cores, cards }
    }

    /// Whether work that we have passed on to a site comes back by way of another one.
    fn goes_round(&self, from: SiteId, offer: &Offer) -> bool {
        let same = |relay: &Relay| {
            let passed = relay.there().is_some_and(|(to, _)| !self.hosts.contains(to));
            let work = (relay.tenant, relay.root) == (offer.tenant, offer.root);
            passed && work && relay.borrower != from
        };
        self.relays.relays.values().any(same)
    }

    /// Ask another machine for slots. Returns false when there is none to ask.
    fn begin_relay(
        &mut self,
        from: SiteId,
        offer: &Offer,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> bool {
        let lease = offer.lease;
        let waiting = |relay: &&Relay| relay.borrower == from && relay.is_asking();
        let full = self.relays.relays.len() >= MAX_RELAYS
            || self.relays.relays.values().filter(waiting).count() >= MAX_ASKING
            || self.lend.has_too_many_of(from);
        // Our own work does not come home in this way.
        let ours = self.jobs.all().any(|job| job.spec.tenant == offer.tenant);
        if full || ours || !self.may_be_lent(offer) {
            return false;
        }
        let asks = Offer {
            isolation: offer.isolation.max(self.lend.floor),
            priority: offer.priority.min(MAX_PRIORITY),
            hops: offer.hops.min(MAX_HOPS),
            ..offer.clone()
        };
        let (content, place) = (Content::Unasked, Place::Nowhere(now));
        let seeking = Seeking { asks, content, place, tried: BTreeSet::new() };
        let stage = Stage::Seeking(Box::new(seeking));
        let relay = Relay { borrower: from, tenant: offer.tenant, root: offer.root, stage };
        self.relays.relays.insert(lease, relay);
        let asked = self.ask_next(lease, now, out);
        if !asked {
            self.relays.relays.remove(&lease);
        }
        asked
    }

    /// Whether it asks for nothing that only our own jobs may have, and for no floating licence: those are counted on
    /// our own machine only.
    fn may_be_lent(&self, offer: &Offer) -> bool {
        let asked = offer.requirement.amounts.iter().filter(|(_, need)| need.min > Amount(0));
        !asked.map(|(name, _)| name).any(|name| is_licence(name) || self.lend.keeps(name))
    }

    /// Whether a host of ours could take it, were a slot free there.
    fn a_host_fits(&self, offer: &Offer) -> bool {
        let level = offer.isolation.max(self.lend.floor);
        let fits = |class: &HostClass| fits(&offer.requirement, level, class);
        self.may_be_lent(offer) && self.lent_hosts().any(|(_, _, class)| fits(class))
    }

    /// Hosts of ours that take tasks, and what they have.
    fn lent_hosts(&self) -> impl Iterator<Item = (SiteId, &Known, &HostClass)> {
        let open = self.hosts.all().filter(|record| self.hosts.is_open(record.host));
        open.filter_map(|record| {
            let known = self.sites.get(record.host).filter(|known| known.connected)?;
            let profile = known.profile.as_ref().filter(|profile| profile.lending)?;
            Some((record.host, known, profile.hosts.first()?))
        })
    }

    /// Ask the next machine for slots. Returns false when there is none.
    pub(super) fn ask_next(&mut self, lease: LeaseId, now: Millis, out: &mut Vec<Output>) -> bool {
        let (onward, chance) = (LeaseId(self.random()), self.rng.next_u64());
        let Some(relay) = self.relays.relays.get(&lease) else {
            return false;
        };
        let Stage::Seeking(seeking) = &relay.stage else {
            return false;
        };
        if seeking.tried.len() >= MAX_ASKED {
            return false;
        }
        let found = self.best_host(seeking, now);
        let found = found.or_else(|| self.some_site(relay.borrower, seeking, chance, now));
        let Some((to, free)) = found else {
            return false;
        };
        let hops = if self.hosts.contains(to) { 0 } else { seeking.asks.hops.saturating_sub(1) };
        let slots = seeking.asks.slots.min(free);
        let offer = Offer { lease: onward, slots, hops, ..seeking.asks.clone() };
        if let Some(seeking) = self.relays.seeking(lease) {
            seeking.place = Place::Asked { to, onward, until: now.plus(ANSWER) };
        }
        out.push(Output::Send { to, message: Message::Offer(offer) });
        true
    }

    /// The host with the most free slots of those that fit.
    fn best_host(&self, seeking: &Seeking, now: Millis) -> Option<(SiteId, u32)> {
        let asks = &seeking.asks;
        let able = self.lent_hosts().filter(|(host, known, class)| {
            !seeking.tried.contains(host)
                && known.ask_after <= now
                && fits(&asks.requirement, asks.isolation, class)
        });
        let (free, host) = able.map(|(host, known, class)| (free_at(known, class), host)).max()?;
        (free > 0).then_some((host, free))
    }

    /// One of the sites with free slots, when the job and we ourselves let work be passed on.
    fn some_site(
        &self,
        borrower: SiteId,
        seeking: &Seeking,
        chance: u64,
        now: Millis,
    ) -> Option<(SiteId, u32)> {
        let asks = &seeking.asks;
        if asks.hops == 0 || !self.config.pass_on {
            return None;
        }
        // Nobody would settle what a further site asks for its slots.
        let gratis = |profile: &Profile| profile.price == Price::default();
        let lends = |profile: &Profile| profile.lending && profile.free > 0 && gratis(profile);
        // Nothing crosses from one mesh to another.
        let theirs = &self.sites.get(borrower)?.meshes;
        let able = self.sites.fitting(&asks.requirement, asks.isolation).filter(|(site, known)| {
            *site != borrower
                && !self.hosts.contains(*site)
                && !known.meshes.is_disjoint(theirs)
                && !seeking.tried.contains(site)
                && known.connected
                && known.lends()
                && known.profile.as_ref().is_some_and(lends)
                && known.ask_after <= now
                && !known.shunned(now)
                && known.evidence.is_none()
        });
        // Not the one that looks best: everybody goes there.
        let able: Vec<_> = able.take(SAMPLE).collect();
        let n = usize::try_from(chance % (able.len() as u64).max(1)).unwrap_or(0);
        let (site, known) = able.get(n)?;
        Some((*site, known.profile.as_ref()?.free))
    }

    /// A machine has declined, or was silent: the next one is asked.
    pub(super) fn asked_in_vain(
        &mut self,
        lease: LeaseId,
        from: SiteId,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(relay) = self.relays.relays.get(&lease) else {
            return;
        };
        let (borrower, asking) = (relay.borrower, relay.is_asking());
        let Some(seeking) = self.relays.seeking(lease) else {
            return;
        };
        let Place::Asked { .. } = seeking.place else {
            return;
        };
        seeking.tried.insert(from);
        seeking.place = Place::Nowhere(now);
        if self.ask_next(lease, now, out) {
            return;
        }
        if asking {
            self.relays.relays.remove(&lease);
            out.push(Output::Send { to: borrower, message: busy(lease) });
        } else {
            self.no_room(lease, now);
        }
    }

    /// A machine keeps slots for a lease: its borrower is promised them, or, when it has committed, they are taken.
    pub(super) fn on_granted_onward(
        &mut self,
        lease: LeaseId,
        (from, grant): (SiteId, &Grant),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(relay) = self.relays.relays.get(&lease) else {
            return;
        };
        let borrower = relay.borrower;
        let Some(seeking) = self.relays.seeking(lease) else {
            return;
        };
        let Place::Asked { onward, .. } = seeking.place else {
            return;
        };
        let (slots, isolation) = (grant.slots.min(seeking.asks.slots), grant.isolation);
        let dear = grant.terms.price != Price::default();
        if slots == 0 || isolation < seeking.asks.isolation || dear {
            // It promises less than its profile says, or asks more.
            out.push(Output::Send { to: from, message: Message::Close { lease: onward } });
            self.sites.declined(from, None, now);
            return self.asked_in_vain(lease, from, now, out);
        }
        let there = There { to: from, onward, slots, isolation };
        let (sealing_key, until) = (grant.sealing_key, now.plus(RESERVED));
        seeking.place = Place::Reserved { there, sealing_key, until };
        // Another machine, should it come to that, must keep the same promise.
        seeking.asks.isolation = isolation;
        let (content, asks) = (seeking.content, seeking.asks.clone());
        self.sites.granted(from, slots);
        match content {
            Content::Here(..) => self.hand_on(lease, now, out),
            Content::Coming(_) => {}
            Content::Unasked => {
                let message = if self.lend.lending && !self.lend.full {
                    let terms = self.terms_away(borrower, from, &asks.requirement);
                    let promise = (slots, isolation, terms);
                    self.lend.reserve_away((&asks, lease, borrower), promise, now)
                } else {
                    self.end_relay(lease, out);
                    lend::decline(lease, Declined::Policy)
                };
                out.push(Output::Send { to: borrower, message });
            }
        }
    }

    /// Tasks of our own wait that hosts could run which others have filled: those give the slots up as their tasks
    /// end, as many as are needed.
    pub(crate) fn make_way(
        &mut self,
        (id, step): (JobId, StepNo),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let mut needed = self.waiting(id, step, now);
        for (_, borrowed) in self.borrow.of_step(id, step) {
            if let State::Offered { slots, .. } = &borrowed.state {
                needed = needed.saturating_sub(*slots);
            }
        }
        for host in self.hosts.all().map(|record| record.host).collect::<Vec<_>>() {
            let leases = self.relays.at(host);
            if needed == 0 || leases.is_empty() || !self.is_full_for((id, step), host, now) {
                continue;
            }
            for lease in leases {
                let Some(lent) = self.lend.away(lease).filter(|_| needed > 0) else {
                    continue;
                };
                needed = needed.saturating_sub(lent.slots.max(1));
                if lent.is_live() && !lent.draining {
                    self.lend.drain_away(lease, out);
                }
            }
        }
    }

    /// Whether a host of ours could run waiting tasks of a step, were not every slot taken there.
    fn is_full_for(&self, (id, step): (JobId, StepNo), host: SiteId, now: Millis) -> bool {
        let Some(job) = self.jobs.get(id) else {
            return false;
        };
        let profile = self.sites.get(host).and_then(|known| known.profile.as_ref());
        let none = BTreeSet::new();
        let supply = self.supply(&none, (0, 0));
        profile.is_some_and(|profile| profile.free == 0)
            && place::host_fits((job, step), host, &supply, Millis(u64::MAX))
            && self.runs(job, step, host, now)
    }

    /// The kinds of machines that other sites may have slots of: our own and our hosts'.
    pub(crate) fn lent_classes(&self) -> Vec<HostClass> {
        let own = self.lend.lent_host();
        let mut classes: Vec<HostClass> = Vec::new();
        let mut add = |class: HostClass| match classes.iter_mut().find(|c| is_alike(c, &class)) {
            Some(known) => known.count = known.count.saturating_add(class.count),
            None => classes.push(class),
        };
        let hosts: Vec<_> = self.hosts_for_others().map(|(_, class)| class.clone()).collect();
        // A head without slots has nothing itself.
        if own.slots > 0 || hosts.is_empty() {
            add(own);
        }
        for mut class in hosts {
            class.amounts.retain(|name, _| !is_licence(name) && !self.lend.keeps(name));
            add(class);
        }
        let mut left = MAX_PROFILE_BYTES - REST_OF_PROFILE;
        classes.retain(|class| {
            let rest = left.checked_sub(codec::encode(class).len());
            left = rest.unwrap_or(left);
            rest.is_some()
        });
        classes
    }

    /// Slots of our hosts that a task of another site could have now.
    pub(crate) fn free_at_hosts(&self) -> u32 {
        let free = self.hosts_for_others().map(|(known, class)| free_at(known, class));
        free.fold(0, u32::saturating_add)
    }

    /// Hosts of ours that are as strong as we promise.
    fn hosts_for_others(&self) -> impl Iterator<Item = (&Known, &HostClass)> {
        let lends = self.config.head.is_none();
        let hosts = self.lent_hosts().map(|(_, known, class)| (known, class));
        hosts.filter(move |(_, class)| lends && class.level >= self.lend.floor)
    }
}

fn free_at(known: &Known, class: &HostClass) -> u32 {
    known.profile.as_ref().map_or(0, |profile| profile.free.min(class.slots))
}

/// Whether two kinds of machines differ in their number only.
fn is_alike(a: &HostClass, b: &HostClass) -> bool {
    HostClass { count: 0, ..a.clone() } == HostClass { count: 0, ..b.clone() }
}
