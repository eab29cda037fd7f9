//! Relays over time: what is overdue is given up, what has changed is said, what is due is fetched.

use std::collections::BTreeSet;

use meshfarm_protocol::id::{LeaseId, Millis, SiteId};
use meshfarm_protocol::lease::{MAX_ATTEMPTS, RENEW_EVERY};
use meshfarm_protocol::message::Message;

use crate::door::{Event, Output};
use crate::jobs::put_delete;
use crate::lent::{Lent, State};
use crate::record::Key;
use crate::site::Site;

use super::{ASK_AGAIN, Content, Place, Relay, Stage, There, WAIT_FOR_ROOM, wants_more};

impl Site {
    /// Leases that go on over a restart take nothing more when we lend no more.
    pub(crate) fn restored_relays(&mut self) {
        let (me, lending) = (self.config.me, self.lend.lending);
        if !self.relays.is_empty() && !lending {
            self.lend.drain(|site| site != me, &mut Vec::new());
        }
    }

    /// Give up what is overdue, say what has changed, fetch what is due.
    pub(crate) fn relay_upkeep(&mut self, now: Millis, out: &mut Vec<Output>) {
        let leases: Vec<_> = self.relays.relays.keys().copied().collect();
        for lease in leases {
            self.keep_relay(lease, now, out);
        }
    }

    fn keep_relay(&mut self, lease: LeaseId, now: Millis, out: &mut Vec<Output>) {
        let Some(relay) = self.relays.relays.get(&lease) else {
            return;
        };
        if relay.is_asking() {
            return self.keep_seeking(lease, now, out);
        }
        let over = |lent: &Lent| lent.state == State::Ended && lent.coming.is_empty();
        if self.lend.away(lease).is_none_or(over) {
            return self.end_relay(lease, out);
        }
        match &relay.stage {
            Stage::Seeking(_) => self.keep_seeking(lease, now, out),
            Stage::Held(held) => {
                let to = held.there.to;
                if now.since(held.heard) >= self.grace(to) {
                    let open = self.lend.away(lease).map_or(0, |lent| lent.queue.len());
                    let tasks = u32::try_from(open).unwrap_or(u32::MAX);
                    let reason = "the machine fell silent".to_owned();
                    out.push(Output::Tell(Event::LeaseLost { lease, lender: to, tasks, reason }));
                    self.sites.pause(to, now);
                    self.lend.lose_away(lease, out);
                    return self.end_relay(lease, out);
                }
                self.say_onward(lease, now, out);
                self.take_in_due(lease, now, out);
            }
        }
    }

    fn keep_seeking(&mut self, lease: LeaseId, now: Millis, out: &mut Vec<Output>) {
        let Some(seeking) = self.relays.seeking(lease) else {
            return;
        };
        match (seeking.place, seeking.content) {
            (Place::Asked { to, until, .. }, _) if until <= now => {
                self.sites.declined(to, None, now);
                self.asked_in_vain(lease, to, now, out);
            }
            (Place::Reserved { there, until, .. }, _) if until <= now => {
                // The content comes too slowly: nobody waits for it with idle slots.
                seeking.place = Place::Nowhere(now);
                self.return_slots(there, out);
            }
            (Place::Nowhere(at), Content::Here(_, since, _)) if at <= now => {
                if now.since(since) >= WAIT_FOR_ROOM {
                    self.lend.lose_away(lease, out);
                    return self.end_relay(lease, out);
                }
                seeking.tried.clear();
                if !self.ask_next(lease, now, out) {
                    self.no_room(lease, now);
                }
            }
            (Place::Asked { .. } | Place::Reserved { .. } | Place::Nowhere(_), _) => {}
        }
    }

    /// No machine has room now: they are asked again after a while.
    pub(super) fn no_room(&mut self, lease: LeaseId, now: Millis) {
        if let Some(seeking) = self.relays.seeking(lease) {
            seeking.place = Place::Nowhere(now.plus(ASK_AGAIN));
        }
    }

    /// Say what is wanted of the machine, when that has changed or is due again.
    fn say_onward(&mut self, lease: LeaseId, now: Millis, out: &mut Vec<Output>) {
        let (Some(relay), Some(lent)) = (self.relays.relays.get_mut(&lease), self.lend.away(lease))
        else {
            return;
        };
        let Stage::Held(held) = &mut relay.stage else {
            return;
        };
        // Since a restart the borrower has not said what it wants: what the machine has goes on.
        if lent.version == 0 && lent.is_live() {
            return;
        }
        let same = held.said_more == wants_more(lent)
            && held.said_attempts.iter().eq(lent.queue.iter().take(MAX_ATTEMPTS));
        if !same || now.since(held.said) >= RENEW_EVERY {
            let want = held.say(lent, now);
            out.push(Output::Send { to: held.there.to, message: Message::Want(want) });
        }
    }

    fn take_in_due(&mut self, lease: LeaseId, now: Millis, out: &mut Vec<Output>) {
        let (Some(relay), Some(lent)) = (self.relays.relays.get(&lease), self.lend.away(lease))
        else {
            return;
        };
        let Stage::Held(held) = &relay.stage else {
            return;
        };
        let (to, job) = ((relay.borrower, held.outputs_to), held.job);
        let from = (held.there.onward, held.there.to);
        let due = lent.coming.iter().filter(|(_, c)| c.again.is_some_and(|at| at <= now));
        let due: Vec<_> = due.map(|(attempt, c)| (*attempt, c.done.outputs.clone())).collect();
        for (attempt, outputs) in due {
            let (Some(outputs), Some(coming)) = (outputs, self.lend.coming(lease, attempt)) else {
                continue;
            };
            coming.again = None;
            out.push(Output::TakeIn { lease, attempt, to, job, from, outputs });
        }
    }

    /// A relay is over: its machine is told, and nothing of it is remembered.
    pub(super) fn end_relay(&mut self, lease: LeaseId, out: &mut Vec<Output>) {
        let Some(relay) = self.relays.relays.remove(&lease) else {
            return;
        };
        if let Stage::Held(_) = relay.stage {
            put_delete(out, Key::Relay(lease));
        }
        match (relay.given(), relay.there()) {
            (Some(there), _) => self.return_slots(there, out),
            (None, Some((to, onward))) => {
                out.push(Output::Send { to, message: Message::Close { lease: onward } });
            }
            (None, None) => {}
        }
    }

    /// We need the slots of a machine no more.
    fn return_slots(&mut self, there: There, out: &mut Vec<Output>) {
        self.sites.returned(there.to, there.slots);
        let message = Message::Close { lease: there.onward };
        out.push(Output::Send { to: there.to, message });
    }

    /// What runs for others on a host that is stopped goes on to its end; the rest goes back, or elsewhere.
    pub(crate) fn drain_relays(&mut self, host: SiteId, now: Millis, out: &mut Vec<Output>) {
        for lease in self.relays.at(host) {
            let place = self.relays.seeking(lease).map(|seeking| seeking.place);
            match place {
                None => self.lend.drain_away(lease, out),
                Some(Place::Reserved { there, .. }) => {
                    if let Some(seeking) = self.relays.seeking(lease) {
                        seeking.place = Place::Nowhere(now);
                    }
                    self.return_slots(there, out);
                }
                Some(Place::Asked { .. } | Place::Nowhere(_)) => {
                    self.asked_in_vain(lease, host, now, out);
                }
            }
        }
    }

    /// What runs for others on a host that was removed goes back.
    pub(crate) fn lose_relays(&mut self, host: SiteId, now: Millis, out: &mut Vec<Output>) {
        for lease in self.relays.at(host) {
            if self.relays.relays.get(&lease).is_some_and(Relay::is_asking) {
                self.asked_in_vain(lease, host, now, out);
            } else {
                self.lend.lose_away(lease, out);
                self.end_relay(lease, out);
            }
        }
    }

    /// When something of a relay is due.
    pub(crate) fn relays_wake_at(&self) -> Option<Millis> {
        let moments = self.relays.relays.iter().filter_map(|(lease, relay)| match &relay.stage {
            Stage::Seeking(seeking) => match (seeking.place, seeking.content) {
                (Place::Asked { until, .. } | Place::Reserved { until, .. }, _) => Some(until),
                (Place::Nowhere(at), Content::Here(..)) => Some(at),
                (Place::Nowhere(_), Content::Unasked | Content::Coming(_)) => None,
            },
            Stage::Held(held) => {
                let silent = held.heard.plus(self.grace(held.there.to));
                let lent = self.lend.away(*lease)?;
                let unknown = lent.version == 0 && lent.is_live();
                let renew = (!unknown).then(|| held.said.plus(RENEW_EVERY));
                let due = lent.coming.values().filter_map(|coming| coming.again);
                due.chain(renew).chain([silent]).min()
            }
        });
        moments.min()
    }

    /// Panic if a relay and its leases disagree.
    pub(crate) fn check_relays(&self) {
        let mut onward = BTreeSet::new();
        for (lease, relay) in &self.relays.relays {
            if let Some((to, lease)) = relay.there() {
                assert!(onward.insert(lease), "two leases run under one of another machine");
                assert_ne!(to, relay.borrower, "work goes back to where it came from");
                assert!(!self.hosts.is_removed(to), "a removed host has a relay");
            }
            match self.lend.away(*lease) {
                None => assert!(relay.is_asking(), "a relay is for no lease"),
                Some(lent) => {
                    assert!(!relay.is_asking(), "a lease was promised before there were slots");
                    assert_eq!(lent.borrower, relay.borrower, "a relay is for somebody else");
                    let committed = !matches!(lent.state, State::Reserved { .. });
                    let known = match &relay.stage {
                        Stage::Held(_) => true,
                        Stage::Seeking(seeking) => !matches!(seeking.content, Content::Unasked),
                    };
                    assert_eq!(committed, known, "a relay and its lease are not equally far");
                    if let Some(there) = relay.given() {
                        assert!(there.isolation >= lent.isolation, "weaker than was promised");
                    }
                }
            }
        }
        for (lease, lent) in self.lend.all().filter(|(_, lent)| lent.away) {
            let relay = self.relays.relays.get(&lease);
            assert!(relay.is_some() || !lent.is_live(), "a lease runs nowhere");
            let held = relay.is_some_and(|relay| matches!(relay.stage, Stage::Held(_)));
            assert!(held || (lent.coming.is_empty() && lent.started.is_empty()), "who runs it?");
        }
    }
}
