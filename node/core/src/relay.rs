//! Leases that run on another machine: a host of ours, or another site to which work is passed on.
//!
//! A relay is a pair: the lease that we gave, and the one that the machine gave us for it. To its borrower we are the
//! lender, to the machine we are the borrower; neither hears of the other. The content is fetched here first, as
//! ciphertext, and results are made durable here before either side is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meshfarm_protocol::id::{AttemptId, ChunkId, JobId, LeaseId, Millis, SiteId, TenantId};
use meshfarm_protocol::lease::{
    Assignment, Declined, Done, LENDER_GRACE, MAX_ATTEMPTS, Offer, Outputs, RESERVATION, Status,
    Want,
};
use meshfarm_protocol::message::Message;
use meshfarm_protocol::profile::Level;
use meshfarm_protocol::seal::SealingKey;

use crate::door::{CollectError, Event, Output, PrepareError};
use crate::jobs::put;
use crate::lend::{self, Taken};
use crate::lent::{Lent, State};
use crate::record::{Record, RelayRecord};
use crate::site::Site;

mod ask;
mod keep;

/// How long a machine is waited for that was asked for slots: several of them answer within the time that a borrower
/// waits for us.
const ANSWER: Millis = Millis::seconds(3);

/// So many machines are asked for one offer.
const MAX_ASKED: usize = 3;

/// When machines are asked again for a lease whose content is here and for which none had room.
const ASK_AGAIN: Millis = Millis::seconds(3);

/// How long a lease whose content is here waits for a machine with room, before it is given back.
const WAIT_FOR_ROOM: Millis = Millis::seconds(60);

/// How long reserved slots are counted on: a commit needs time to get there.
const RESERVED: Millis = Millis(RESERVATION.0 - 2000);

/// When outputs are asked for again whose machine could not be reached.
const FETCH_AGAIN: Millis = Millis::seconds(2);

/// When outputs are asked for again for which there was no room here.
const WRITE_AGAIN: Millis = Millis::seconds(10);

/// How long outputs are asked for that a connected machine does not hand out.
const REFUSED_GRACE: Millis = LENDER_GRACE.times(10);

/// So many attempts that have ended are remembered, because the last lines of a log often come after the result.
const MAX_ROUTES: usize = 4096;

/// A lease that runs on another machine.
#[derive(Clone, Debug)]
struct Relay {
    borrower: SiteId,
    tenant: TenantId,
    root: ChunkId,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    /// No machine has been given it.
    Seeking(Box<Seeking>),
    /// A machine has it.
    Held(Held),
}

/// A lease that looks for a machine.
#[derive(Clone, Debug)]
struct Seeking {
    /// What is asked of a machine.
    asks: Offer,
    content: Content,
    place: Place,
    /// Who has declined, or was silent, since the last pause.
    tried: BTreeSet<SiteId>,
}

/// How far the content is.
#[derive(Clone, Copy, Debug)]
enum Content {
    /// The borrower has not committed.
    Unasked,
    /// On its way here.
    Coming(JobId),
    /// Here, since when, and what the keys of outputs are sealed to.
    Here(JobId, Millis, SealingKey),
}

/// Where a lease shall run.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// Not known; machines are asked at this moment, once the content is here.
    Nowhere(Millis),
    /// A machine was asked and has not answered.
    Asked { to: SiteId, onward: LeaseId, until: Millis },
    /// A machine keeps slots for it until then.
    Reserved { there: There, sealing_key: SealingKey, until: Millis },
}

/// What a machine gave.
#[derive(Clone, Copy, Debug)]
struct There {
    /// The machine.
    to: SiteId,
    /// Its lease.
    onward: LeaseId,
    slots: u32,
    isolation: Level,
}

/// A lease that a machine has.
#[derive(Clone, Debug)]
struct Held {
    there: There,
    job: JobId,
    outputs_to: SealingKey,
    heard: Millis,
    version: u64,
    said: Millis,
    said_attempts: Vec<Assignment>,
    said_more: bool,
}

impl Held {
    fn new(there: There, (job, outputs_to): (JobId, SealingKey), now: Millis) -> Self {
        let (said, said_attempts, said_more) = (Millis(0), Vec::new(), true);
        // A node that restarts goes on above what it said before: less is said than in so many milliseconds.
        let (heard, version) = (now, now.0);
        Self { there, job, outputs_to, heard, version, said, said_attempts, said_more }
    }

    /// What is wanted, to be said now.
    fn say(&mut self, lent: &Lent, now: Millis) -> Want {
        self.version += 1;
        (self.said, self.said_more) = (now, wants_more(lent));
        self.said_attempts = wanted(lent);
        let (attempts, more) = (self.said_attempts.clone(), self.said_more);
        Want { lease: self.there.onward, version: self.version, attempts, more }
    }
}

fn wanted(lent: &Lent) -> Vec<Assignment> {
    lent.queue.iter().take(MAX_ATTEMPTS).copied().collect()
}

const fn wants_more(lent: &Lent) -> bool {
    lent.more && lent.is_live()
}

/// All leases that run on other machines, by the leases that we gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Relays {
    relays: BTreeMap<LeaseId, Relay>,
    /// Attempts that have ended: where, and for whom, the oldest first.
    ended: VecDeque<(AttemptId, SiteId, SiteId)>,
}

impl Relays {
    pub(crate) fn is_empty(&self) -> bool {
        self.relays.is_empty()
    }

    /// The lease that we gave for which `from` has this one.
    fn of(&self, onward: LeaseId, from: SiteId) -> Option<LeaseId> {
        let this = |relay: &Relay| relay.there() == Some((from, onward));
        self.relays.iter().find(|(_, relay)| this(relay)).map(|(lease, _)| *lease)
    }

    /// Whether `machine` may read the content under a lease that it gave us.
    pub(crate) fn serves(&self, machine: SiteId, onward: LeaseId) -> bool {
        self.held().any(|(_, held)| (held.there.to, held.there.onward) == (machine, onward))
    }

    fn seeking(&mut self, lease: LeaseId) -> Option<&mut Seeking> {
        match &mut self.relays.get_mut(&lease)?.stage {
            Stage::Seeking(seeking) => Some(seeking),
            Stage::Held(_) => None,
        }
    }

    fn held(&self) -> impl Iterator<Item = (LeaseId, &Held)> {
        self.relays.iter().filter_map(|(lease, relay)| match &relay.stage {
            Stage::Held(held) => Some((*lease, held)),
            Stage::Seeking(_) => None,
        })
    }

    /// Leases that run on this machine.
    pub(crate) fn at(&self, machine: SiteId) -> Vec<LeaseId> {
        let there = |relay: &Relay| relay.there().is_some_and(|(to, _)| to == machine);
        self.relays.iter().filter(|(_, relay)| there(relay)).map(|(lease, _)| *lease).collect()
    }

    /// The machine that has, or keeps slots for, a lease that we gave.
    pub(crate) fn machine_of(&self, lease: LeaseId) -> Option<SiteId> {
        Some(self.relays.get(&lease)?.given()?.to)
    }

    /// Slots that relays hold on a machine.
    pub(crate) fn slots_at(&self, machine: SiteId) -> u32 {
        let given = self.relays.values().filter_map(Relay::given);
        given.filter(|there| there.to == machine).map(|there| there.slots).sum()
    }

    pub(crate) fn restore(&mut self, record: &RelayRecord, whose: (SiteId, TenantId), now: Millis) {
        let (to, onward) = (record.lender, record.onward);
        let there = There { to, onward, slots: record.slots, isolation: record.isolation };
        let held = Held::new(there, (record.job, record.outputs_to), now);
        let ((borrower, tenant), root) = (whose, record.root);
        let relay = Relay { borrower, tenant, root, stage: Stage::Held(held) };
        self.relays.insert(record.lease, relay);
    }

    /// A machine is back: say at once what we want of it.
    pub(crate) fn on_peer_up(&mut self, site: SiteId) {
        for relay in self.relays.values_mut() {
            if let Stage::Held(held) = &mut relay.stage
                && held.there.to == site
            {
                held.said = Millis(0);
            }
        }
    }

    fn ended(&mut self, attempt: AttemptId, from: SiteId, borrower: SiteId) {
        self.ended.push_back((attempt, from, borrower));
        if self.ended.len() > MAX_ROUTES {
            self.ended.pop_front();
        }
    }
}

impl Relay {
    /// The machine that was asked or has it, and its lease.
    fn there(&self) -> Option<(SiteId, LeaseId)> {
        match &self.stage {
            Stage::Held(held) => Some((held.there.to, held.there.onward)),
            Stage::Seeking(seeking) => match seeking.place {
                Place::Asked { to, onward, .. } => Some((to, onward)),
                Place::Reserved { there, .. } => Some((there.to, there.onward)),
                Place::Nowhere(_) => None,
            },
        }
    }

    /// What a machine has given.
    fn given(&self) -> Option<There> {
        match &self.stage {
            Stage::Held(held) => Some(held.there),
            Stage::Seeking(seeking) => match seeking.place {
                Place::Reserved { there, .. } => Some(there),
                Place::Asked { .. } | Place::Nowhere(_) => None,
            },
        }
    }

    /// Whether its borrower still waits for our answer.
    fn is_asking(&self) -> bool {
        let Stage::Seeking(seeking) = &self.stage else {
            return false;
        };
        matches!((seeking.content, seeking.place), (Content::Unasked, Place::Asked { .. }))
    }
}

impl Site {
    /// Hear what is about a lease that runs elsewhere. What is about none of them comes back.
    pub(crate) fn hear_of_relays(
        &mut self,
        from: SiteId,
        message: Message,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Option<Message> {
        match message {
            Message::Offer(offer) if self.may_relay_for(from) => {
                self.on_foreign_offer(from, &offer, now, out);
                return None;
            }
            Message::Grant(grant) => match self.relays.of(grant.lease, from) {
                Some(lease) => self.on_granted_onward(lease, (from, &grant), now, out),
                None => return Some(Message::Grant(grant)),
            },
            Message::Decline { lease: onward, reason, retry_after } => {
                match self.relays.of(onward, from) {
                    Some(lease) => {
                        self.sites.declined(from, Some((reason, retry_after)), now);
                        self.asked_in_vain(lease, from, now, out);
                    }
                    None => return Some(Message::Decline { lease: onward, reason, retry_after }),
                }
            }
            Message::Status(status) => match self.relays.of(status.lease, from) {
                Some(lease) => self.on_status_onward(lease, &status, now, out),
                None => return Some(Message::Status(status)),
            },
            Message::Done(done) => match self.relays.of(done.lease, from) {
                Some(lease) => self.on_done_onward((lease, from), *done, now, out),
                None => return Some(Message::Done(done)),
            },
            Message::Commit(commit) => {
                let (lease, root) = (commit.want.lease, commit.root);
                self.committed(lease, from, (root, commit.envelope.address.job));
                return Some(Message::Commit(commit));
            }
            Message::Close { lease } => {
                let asking = |relay: &Relay| relay.borrower == from && relay.is_asking();
                if self.relays.relays.get(&lease).is_some_and(asking) {
                    self.end_relay(lease, out);
                }
                return Some(Message::Close { lease });
            }
            message @ (Message::Offer(_)
            | Message::Want(_)
            | Message::Accepted { .. }
            | Message::Receipt(_)
            | Message::Behind { .. }
            | Message::Source { .. }) => return Some(message),
        }
        None
    }

    /// The borrower has committed: its content is on its way here.
    fn committed(&mut self, lease: LeaseId, from: SiteId, (root, job): (ChunkId, JobId)) {
        let reserved =
            |lent: &Lent| lent.borrower == from && matches!(lent.state, State::Reserved { .. });
        if !self.lend.away(lease).is_some_and(reserved) {
            return;
        }
        if let Some(relay) = self.relays.relays.get_mut(&lease)
            && let Stage::Seeking(seeking) = &mut relay.stage
        {
            (relay.root, seeking.asks.root) = (root, root);
            seeking.content = Content::Coming(job);
        }
    }

    /// The content of a lease is here, or will not be.
    pub(crate) fn on_fetched(
        &mut self,
        lease: LeaseId,
        result: Result<SealingKey, PrepareError>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(relay) = self.relays.relays.get(&lease) else {
            return;
        };
        let site = relay.borrower;
        let Some(seeking) = self.relays.seeking(lease) else {
            return;
        };
        let Content::Coming(job) = seeking.content else {
            return;
        };
        match result {
            Ok(outputs_to) => {
                seeking.content = Content::Here(job, now, outputs_to);
                if let Place::Reserved { .. } = seeking.place {
                    self.hand_on(lease, now, out);
                } else {
                    seeking.place = Place::Nowhere(now);
                }
            }
            Err(error) => {
                if let PrepareError::Bad(what) = error {
                    out.push(Output::Tell(Event::Blame { site, what }));
                }
                self.lend.lose_away(lease, out);
            }
        }
    }

    /// The content is here and a machine keeps slots: it gets the keys and what is wanted. Durable from now on.
    fn hand_on(&mut self, lease: LeaseId, now: Millis, out: &mut Vec<Output>) {
        let (Some(relay), Some(lent)) = (self.relays.relays.get_mut(&lease), self.lend.away(lease))
        else {
            return;
        };
        let Stage::Seeking(seeking) = &relay.stage else {
            return;
        };
        let (Content::Here(job, _, outputs_to), Place::Reserved { there, sealing_key, .. }) =
            (seeking.content, seeking.place)
        else {
            return;
        };
        let root = relay.root;
        let mut held = Held::new(there, (job, outputs_to), now);
        let want = held.say(lent, now);
        let There { to, onward, slots, isolation } = there;
        let lender = to;
        let record = RelayRecord { lease, onward, lender, slots, isolation, job, root, outputs_to };
        put(out, Record::Relay(record));
        out.push(Output::HandOn { lease, to, sealing_key, job, root, want });
        relay.stage = Stage::Held(held);
    }

    fn on_status_onward(
        &mut self,
        lease: LeaseId,
        status: &Status,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(relay) = self.relays.relays.get_mut(&lease) else {
            return;
        };
        // Of slots that are only reserved there is nothing to say.
        if let Stage::Held(held) = &mut relay.stage {
            held.heard = now;
            self.lend.on_away(lease, status, out);
        }
    }

    fn on_done_onward(
        &mut self,
        (lease, from): (LeaseId, SiteId),
        done: Done,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let Some(relay) = self.relays.relays.get_mut(&lease) else {
            return;
        };
        let Stage::Held(held) = &mut relay.stage else {
            return;
        };
        held.heard = now;
        let (onward, attempt, borrower) = (done.lease, done.attempt, relay.borrower);
        self.relays.ended(attempt, from, borrower);
        if self.lend.take_in(lease, done, now, out) == Taken::Over {
            let message = Message::Accepted { lease: onward, attempt, counts: false };
            out.push(Output::Send { to: from, message });
        }
    }

    /// What a machine has made is here, or is not.
    pub(crate) fn on_taken_in(
        &mut self,
        (lease, attempt): (LeaseId, AttemptId),
        result: Result<Outputs, CollectError>,
        now: Millis,
        out: &mut Vec<Output>,
    ) {
        let made = result.as_ref().ok().map(|outputs| outputs.root);
        let there = self.relays.relays.get(&lease).and_then(Relay::there);
        let Some(coming) = self.lend.coming(lease, attempt) else {
            if made.is_some() && self.lend.away(lease).is_none() {
                out.push(Output::Forget { attempt, root: made });
            }
            return;
        };
        let result = match result {
            Ok(outputs) => Ok(outputs),
            Err(CollectError::Unwritable(_)) => {
                (coming.again, coming.unreachable) = (Some(now.plus(WRITE_AGAIN)), None);
                return;
            }
            Err(CollectError::Unreachable) => {
                let since = *coming.unreachable.get_or_insert(now);
                if now.since(since) < REFUSED_GRACE {
                    coming.again = Some(now.plus(FETCH_AGAIN));
                    return;
                }
                Err("the machine that rendered it does not hand out its outputs".to_owned())
            }
            Err(CollectError::Bad(what)) => {
                let reason = format!("its outputs were refused: {what}");
                if let Some((site, _)) = there {
                    self.sites.failed(site, now);
                    out.push(Output::Tell(Event::Blame { site, what }));
                }
                Err(reason)
            }
        };
        self.lend.taken_in((lease, attempt), result, now, out);
        if let Some((to, onward)) = there {
            out.push(Output::Send {
                to,
                message: Message::Accepted { lease: onward, attempt, counts: false },
            });
        }
    }

    /// The borrower to whom a log part of this attempt goes on that `from` has sent.
    #[must_use]
    pub fn log_goes_to(&self, from: SiteId, attempt: AttemptId) -> Option<SiteId> {
        let held = self.relays.held().filter(|(_, held)| held.there.to == from);
        let mut lents = held.filter_map(|(lease, _)| self.lend.away(lease));
        let runs = |lent: &Lent| {
            let mut queued = lent.queue.iter();
            queued.any(|q| q.attempt == attempt) || lent.coming.contains_key(&attempt)
        };
        lents.find(|lent| runs(lent)).map(|lent| lent.borrower).or_else(|| {
            let mut ended = self.relays.ended.iter().rev();
            let this = |(of, by, _): &&(_, _, _)| (*of, *by) == (attempt, from);
            ended.find(this).map(|(_, _, borrower)| *borrower)
        })
    }
}

/// What is said to an offer for which there is no room now.
fn busy(lease: LeaseId) -> Message {
    Message::Decline { lease, reason: Declined::Busy, retry_after: lend::BUSY_PAUSE }
}
