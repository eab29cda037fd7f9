//! What we believe about other sites: their profiles, who is connected, who has been failing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meshfarm_protocol::id::{ChunkId, MeshId, Millis, SiteId};
use meshfarm_protocol::lease::Declined;
use meshfarm_protocol::matching::fits;
use meshfarm_protocol::membership::{Role, mesh_of_hosts};
use meshfarm_protocol::profile::{Level, Profile, Requirement};

use crate::door::{Event, Output};
use crate::experience::Experience;
use crate::index::Index;
use crate::record::EvidenceRecord;

/// More sites than this are not remembered; the one heard of longest ago makes room.
const MAX_SITES: usize = 2000;

/// From so many sites on they are found by the index: a look at fewer is as quick.
const LARGE: usize = 64;

/// A profile that claims to live longer than this is believed only so long.
const MAX_TTL: Millis = Millis::seconds(1800);

/// So many failures in a row, of any job, and a site is left alone for a while: a host that fails at once looks free all the time and would swallow the queue.
const FAILURES_IN_A_ROW: u32 = 4;

/// How long such a site is left alone; doubled with each further failure, up to 64 times.
const LEFT_ALONE: Millis = Millis::seconds(30);

/// A failure is forgotten after so long without another: what was wrong last week says nothing about today.
const FORGET_ONE: Millis = Millis::seconds(600);

/// So many roots are remembered of each site.
const MAX_WARM: usize = 16;

/// So many leases a site may lose in a restart and be asked again at once.
const FORGIVEN: u8 = 8;

/// How long we do not ask a site again that did not answer.
const NO_ANSWER: Millis = Millis::seconds(5);

/// Speed of the reference core, in the profile's unit.
const REFERENCE_SPEED: u32 = 1000;

/// How long what runs `reference` on the reference core takes at this speed.
pub(crate) fn at_speed(reference: Millis, speed: u32) -> Millis {
    Millis(reference.0.saturating_mul(u64::from(REFERENCE_SPEED)) / u64::from(speed.max(1)))
}

/// How long what has run `wall` at this speed takes on the reference core.
pub(crate) fn reference(wall: Millis, speed: u32) -> Millis {
    Millis(wall.0.saturating_mul(u64::from(speed.max(1))) / u64::from(REFERENCE_SPEED))
}

/// One other site.
#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) name: String,
    /// What its certificates let it do.
    pub(crate) role: Role,
    pub(crate) connected: bool,
    /// The meshes that we are both in, as of the last connection.
    pub(crate) meshes: BTreeSet<MeshId>,
    /// How many leases it may give back without a pause, because it has just come back.
    forgiven: u8,
    pub(crate) heard: Millis,
    pub(crate) profile: Option<Profile>,
    /// No offers before this moment.
    pub(crate) ask_after: Millis,
    pub(crate) declined: Option<Declined>,
    /// Roots of content that it has fetched lately, the newest last.
    pub(crate) warm: VecDeque<ChunkId>,
    failures: u32,
    failed_at: Millis,
    pub(crate) experience: Experience,
    /// It gets none of our tasks, because a person said so.
    pub(crate) shut: bool,
    /// It has sent wrong chunks.
    pub(crate) evidence: Option<EvidenceRecord>,
}

impl Known {
    /// Speed of its fastest slots, as its profile says.
    pub(crate) fn speed(&self) -> u32 {
        let hosts = self.profile.iter().flat_map(|profile| &profile.hosts);
        hosts.map(|host| host.speed).max().unwrap_or(REFERENCE_SPEED)
    }

    /// The mesh in whose unit `us` and this site, `them`, reckon: of those that both belong to the one with the least id,
    /// so that both choose the same. None when one is a host of the other.
    pub(crate) fn reckons_in(&self, us: SiteId, them: SiteId) -> Option<MeshId> {
        let of_hosts = [mesh_of_hosts(us), mesh_of_hosts(them)];
        self.meshes.iter().find(|mesh| !of_hosts.contains(mesh)).copied()
    }

    /// Whether its certificates let it lend.
    pub(crate) fn lends(&self) -> bool {
        self.role != Role::Submitter
    }

    /// Whether it is left alone now: it has failed everything lately, or refuses what its profile offers.
    /// A task that has failed elsewhere does not wait for such a site.
    pub(crate) fn shunned(&self, now: Millis) -> bool {
        let refuses = match self.declined {
            Some(Declined::Misfit | Declined::Policy | Declined::Malformed) => true,
            Some(Declined::Busy | Declined::Full) | None => false,
        };
        self.shut || self.ask_after > now && (refuses || self.failures >= FAILURES_IN_A_ROW)
    }

    /// How many tasks in a row have failed there, when they are so many that it is left alone for that.
    pub(crate) fn failing(&self) -> Option<u32> {
        (self.failures >= FAILURES_IN_A_ROW).then_some(self.failures)
    }
}

/// All other sites.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sites {
    sites: BTreeMap<SiteId, Known>,
    /// What they offer.
    index: Index,
    /// Of sites that have not been heard of since the start.
    evidence: BTreeMap<SiteId, EvidenceRecord>,
    /// Sites that get none of our tasks, known or not.
    shut: BTreeSet<SiteId>,
}

impl Sites {
    pub(crate) fn all(&self) -> impl Iterator<Item = (SiteId, &Known)> {
        self.sites.iter().map(|(site, known)| (*site, known))
    }

    /// How many there are.
    pub(crate) fn n(&self) -> usize {
        self.sites.len()
    }

    /// Whether any site could be asked for slots now.
    pub(crate) fn any_to_ask(&self, now: Millis) -> bool {
        self.sites.values().any(|known| {
            let offers = known.profile.as_ref().is_some_and(|p| p.lending && p.free > 0);
            known.connected && known.lends() && known.ask_after <= now && offers
        })
    }

    /// Sites that have a host which fits, connected or not.
    pub(crate) fn fitting<'a>(
        &'a self,
        need: &'a Requirement,
        floor: Level,
    ) -> Box<dyn Iterator<Item = (SiteId, &'a Known)> + 'a> {
        if self.sites.len() < LARGE {
            let fits = move |known: &Known| {
                let profile = known.profile.as_ref();
                profile.is_some_and(|p| p.hosts.iter().any(|host| fits(need, floor, host)))
            };
            return Box::new(self.all().filter(move |(_, known)| fits(known)));
        }
        let found = self.index.fitting(need, floor).into_iter();
        Box::new(found.filter_map(|site| Some((site, self.sites.get(&site)?))))
    }

    pub(crate) fn get(&self, site: SiteId) -> Option<&Known> {
        self.sites.get(&site)
    }

    pub(crate) fn name(&self, site: SiteId) -> String {
        self.sites.get(&site).map_or_else(|| site.short(), |known| known.name.clone())
    }

    pub(crate) fn is_connected(&self, site: SiteId) -> bool {
        self.sites.get(&site).is_some_and(|known| known.connected)
    }

    pub(crate) fn peer_up(
        &mut self,
        site: SiteId,
        (name, role, meshes): (String, Role, BTreeSet<MeshId>),
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let known = self.remember(site, name, now, out);
        (known.connected, known.role, known.meshes) = (true, role, meshes);
        known.forgiven = FORGIVEN;
        known.ask_after = Millis(0);
    }

    pub(crate) fn peer_down(&mut self, site: SiteId) {
        if let Some(known) = self.sites.get_mut(&site) {
            known.connected = false;
        }
    }

    /// Believe a profile if it is news.
    pub(crate) fn hear(&mut self, profile: Profile, now: Millis, out: &mut Vec<Output>) {
        let old = self.get(profile.site).and_then(|known| known.profile.as_ref());
        // A repeated profile is no sign of life.
        if old.is_some_and(|old| old.sequence >= profile.sequence) {
            return;
        }
        if old.is_none_or(|old| old.hosts != profile.hosts) {
            self.index.set(profile.site, &profile.hosts);
        }
        let known = self.remember(profile.site, profile.name.clone(), now, out);
        known.name.clone_from(&profile.name);
        known.profile = Some(profile);
    }

    fn remember(
        &mut self,
        site: SiteId,
        name: String,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> &mut Known {
        if !self.sites.contains_key(&site) && self.sites.len() >= MAX_SITES {
            let away = self.sites.iter().filter(|(_, known)| !known.connected);
            let oldest = away.min_by_key(|(_, known)| known.heard).map(|(site, _)| *site);
            let oldest = oldest.or_else(|| self.sites.keys().next().copied());
            if let Some(site) = oldest {
                self.sites.remove(&site);
                self.index.remove(site);
            }
        }
        let known = self.sites.entry(site).or_insert_with(|| {
            out.push(Output::Tell(Event::SiteFound { site, name: name.clone() }));
            Known {
                name,
                role: Role::Site,
                connected: false,
                meshes: BTreeSet::new(),
                forgiven: 0,
                heard: now,
                profile: None,
                ask_after: Millis(0),
                declined: None,
                warm: VecDeque::new(),
                failures: 0,
                failed_at: Millis(0),
                experience: Experience::default(),
                shut: self.shut.contains(&site),
                evidence: self.evidence.remove(&site),
            }
        });
        known.heard = now;
        known
    }

    /// A site has declined, or not answered: when we may ask again.
    pub(crate) fn declined(&mut self, site: SiteId, why: Option<(Declined, Millis)>, now: Millis) {
        if let Some(known) = self.sites.get_mut(&site) {
            let pause = why.map_or(NO_ANSWER, |(_, pause)| pause.min(Millis::seconds(60)));
            known.declined = why.map(|(reason, _)| reason);
            known.ask_after = known.ask_after.max(now.plus(pause));
        }
    }

    /// A site has given a lease back or was silent: it is not asked again at once. One that has just come back lost
    /// its leases in a restart, and goes on where it was.
    pub(crate) fn pause(&mut self, site: SiteId, now: Millis) {
        if let Some(known) = self.sites.get_mut(&site) {
            if let Some(left) = known.forgiven.checked_sub(1) {
                known.forgiven = left;
                return;
            }
            known.ask_after = known.ask_after.max(now.plus(NO_ANSWER));
        }
    }

    /// A site has granted slots: they are no longer free, whatever its last profile said.
    pub(crate) fn granted(&mut self, site: SiteId, slots: u32) {
        if let Some(known) = self.sites.get_mut(&site) {
            known.declined = None;
            if let Some(profile) = &mut known.profile {
                profile.free = profile.free.saturating_sub(slots);
            }
        }
    }

    /// We have given slots back: they are free again, whatever its last profile said. When that is wrong,
    /// because it said so already or somebody was faster, it declines.
    pub(crate) fn returned(&mut self, site: SiteId, slots: u32) {
        if let Some(profile) = self.sites.get_mut(&site).and_then(|known| known.profile.as_mut()) {
            let all = profile.hosts.iter().map(|host| host.count.saturating_mul(host.slots));
            let all = all.fold(0, u32::saturating_add);
            profile.free = profile.free.saturating_add(slots).min(all);
        }
    }

    pub(crate) fn is_shunned(&self, site: SiteId, now: Millis) -> bool {
        self.get(site).is_some_and(|known| known.shunned(now))
    }

    /// A site has fetched this content.
    pub(crate) fn has_content(&mut self, site: SiteId, root: ChunkId) {
        if let Some(known) = self.sites.get_mut(&site).filter(|known| !known.warm.contains(&root)) {
            known.warm.push_back(root);
            if known.warm.len() > MAX_WARM {
                known.warm.pop_front();
            }
        }
    }

    /// Content of so many bytes that it had to fetch was in place there after so long.
    pub(crate) fn content_came(&mut self, site: SiteId, bytes: u64, took: Millis) {
        if let Some(known) = self.sites.get_mut(&site) {
            known.experience.content_came(bytes, took);
        }
    }

    /// A task has ended well there, after so long; on the reference core it was expected to run `reference`, if we know.
    pub(crate) fn succeeded(&mut self, site: SiteId, wall: Millis, reference: Option<Millis>) {
        if let Some(known) = self.sites.get_mut(&site) {
            known.failures = 0;
            let speed = known.speed();
            if let Some(reference) = reference {
                known.experience.task_ran(at_speed(reference, speed), wall);
            }
        }
    }

    /// A task has failed there. A host that fails everything is left alone for a while.
    pub(crate) fn failed(&mut self, site: SiteId, now: Millis) {
        if let Some(known) = self.sites.get_mut(&site) {
            let forgotten = now.since(known.failed_at).0 / FORGET_ONE.0;
            let forgotten = u32::try_from(forgotten).unwrap_or(u32::MAX);
            known.failures = known.failures.saturating_sub(forgotten).saturating_add(1);
            known.failed_at = now;
            if let Some(extra) = known.failures.checked_sub(FAILURES_IN_A_ROW) {
                known.ask_after = now.plus(LEFT_ALONE.times(1 << extra.min(6)));
            }
        }
    }

    /// A site has sent wrong bytes. It is left alone for a while, and what it did is remembered.
    pub(crate) fn blamed(&mut self, mut evidence: EvidenceRecord, now: Millis) -> EvidenceRecord {
        let site = evidence.site;
        let known = self.sites.get_mut(&site).and_then(|known| known.evidence.take());
        let before = known.or_else(|| self.evidence.remove(&site));
        evidence.n = before.map_or(0, |before| before.n).saturating_add(1);
        match self.sites.get_mut(&site) {
            Some(known) => known.evidence = Some(evidence),
            None => drop(self.evidence.insert(site, evidence)),
        }
        for _ in 0..FAILURES_IN_A_ROW {
            self.failed(site, now);
        }
        evidence
    }

    /// What a site did before the restart.
    pub(crate) fn restore_evidence(&mut self, evidence: EvidenceRecord) {
        self.evidence.insert(evidence.site, evidence);
    }

    /// Send our tasks to every site but these.
    pub(crate) fn shut_off(&mut self, shut: BTreeSet<SiteId>) {
        for (site, known) in &mut self.sites {
            known.shut = shut.contains(site);
        }
        self.shut = shut;
    }

    /// Whether a site has sent wrong bytes.
    pub(crate) fn is_blamed(&self, site: SiteId) -> bool {
        let known = self.get(site).is_some_and(|known| known.evidence.is_some());
        known || self.evidence.contains_key(&site)
    }

    /// Forget profiles that have expired and sites that are gone.
    pub(crate) fn expire(&mut self, now: Millis, out: &mut Vec<Output>) {
        self.sites.retain(|site, known| {
            let ttl = known.profile.as_ref().map_or(MAX_TTL, |profile| profile.ttl.min(MAX_TTL));
            if known.connected || now.since(known.heard) < ttl {
                return true;
            }
            out.push(Output::Tell(Event::SiteLost { site: *site, name: known.name.clone() }));
            self.evidence.extend(known.evidence.map(|evidence| (*site, evidence)));
            self.index.remove(*site);
            false
        });
    }

    /// The next moment at which something expires or may be asked again.
    pub(crate) fn wake_at(&self, now: Millis) -> Option<Millis> {
        let moments = self.sites.values().flat_map(|known| {
            let ttl = known.profile.as_ref().map_or(MAX_TTL, |profile| profile.ttl.min(MAX_TTL));
            let expires = (!known.connected).then_some(known.heard.plus(ttl));
            [expires, Some(known.ask_after).filter(|after| *after > now)]
        });
        moments.flatten().min()
    }

    pub(crate) fn check(&self) {
        assert!(self.sites.len() <= MAX_SITES, "more sites than the bound");
        let known = |(_, known): &(SiteId, &Known)| {
            known.profile.as_ref().is_some_and(|profile| !profile.hosts.is_empty())
        };
        let known = self.all().filter(known).count();
        assert_eq!(known, self.index.n_sites(), "the index is of other sites");
    }
}
