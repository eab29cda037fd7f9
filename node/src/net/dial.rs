//! Whom to call and when: addresses of members and of bootstrap nodes, with patience that grows.

use std::collections::{BTreeMap, BTreeSet};

use libp2p::PeerId;
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::swarm::ConnectionId;
use meshfarm_protocol::id::Millis;
use rand_chacha::ChaCha8Rng;
use rand_core::Rng;

use super::peer::{is_tcp, split};

/// Addresses remembered for one peer; the newest replace the oldest.
const MAX_ADDRESSES: usize = 8;

/// The shortest wait after a failure, doubled by each one that follows.
const FIRST_WAIT: Millis = Millis(250);

/// The longest wait between two attempts.
const LONGEST_WAIT: Millis = Millis::seconds(60);

/// Attempts that are under way at one moment.
const MAX_DIALLING: usize = 16;

/// After so many failures in a row a peer that nobody configured is forgotten.
const MAX_FAILURES: u32 = 12;

/// One attempt to reach somebody.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Attempt {
    /// What to report back about.
    pub(crate) target: Target,
    /// Addresses to try at once.
    pub(crate) addresses: Vec<Multiaddr>,
}

/// Who is called.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// A peer that is known by its key.
    Peer(PeerId),
    /// Whoever answers at an address.
    Whoever(Multiaddr),
}

/// Everybody worth calling.
#[derive(Debug)]
pub(crate) struct Book {
    me: PeerId,
    max: usize,
    rng: ChaCha8Rng,
    entries: BTreeMap<Target, Entry>,
    connected: BTreeSet<PeerId>,
}

#[derive(Debug)]
struct Entry {
    /// In the order heard, newest last.
    addresses: Vec<Multiaddr>,
    /// Configured by a person, so never forgotten.
    lasting: bool,
    failures: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    /// To be called at this time.
    Waiting { at: Millis, stage: Stage },
    /// Being called.
    Dialling { id: ConnectionId, stage: Stage },
    /// Connected to this peer.
    Connected(PeerId),
}

/// Bulk data flows better over TCP, so it is tried alone first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Tcp,
    Rest,
}

impl Book {
    /// An empty book of at most `max` peers that nobody configured. `me` is never called.
    pub(crate) fn new(me: PeerId, max: usize, rng: ChaCha8Rng) -> Self {
        Self { me, max, rng, entries: BTreeMap::new(), connected: BTreeSet::new() }
    }

    /// Keeps a configured address for ever and calls it now.
    pub(crate) fn add_bootstrap(&mut self, address: &Multiaddr, now: Millis) {
        let (peer, plain) = split(address);
        let target = peer.map_or_else(|| Target::Whoever(plain.clone()), Target::Peer);
        if peer == Some(self.me) {
            return;
        }
        let state = self.state_of(peer, now);
        let entry = self.entries.entry(target);
        let entry = entry.or_insert_with(|| Entry::new(state));
        entry.lasting = true;
        entry.add(plain);
    }

    /// Remembers where `peer` may be reached, and calls it soon unless it is connected.
    pub(crate) fn remember(&mut self, peer: PeerId, addresses: &[Multiaddr], now: Millis) {
        if peer == self.me || addresses.is_empty() {
            return;
        }
        let target = Target::Peer(peer);
        if !self.entries.contains_key(&target) && !self.make_room() {
            return;
        }
        let state = self.state_of(Some(peer), now);
        let entry = self.entries.entry(target);
        let entry = entry.or_insert_with(|| Entry::new(state));
        for address in addresses {
            let (named, plain) = split(address);
            if named.is_none_or(|named| named == peer) {
                entry.add(plain);
            }
        }
        if entry.addresses.is_empty() {
            self.entries.remove(&Target::Peer(peer));
        }
    }

    /// Where else to call a peer that is connected: TCP first, or QUIC first when it is `far` away.
    pub(crate) fn direct_addresses(&self, peer: &PeerId, far: bool) -> Vec<Multiaddr> {
        let Some(entry) = self.entries.get(&Target::Peer(*peer)) else {
            return Vec::new();
        };
        let relayed = |address: &Multiaddr| address.iter().any(|p| p == Protocol::P2pCircuit);
        let direct = entry.addresses.iter().filter(|address| !relayed(address));
        let (tcp, rest): (Vec<_>, Vec<_>) = direct.cloned().partition(is_tcp);
        let (first, second) = if far { (rest, tcp) } else { (tcp, rest) };
        if first.is_empty() { second } else { first }
    }

    /// Calls `peer` at once if it is known and neither connected nor being called.
    pub(crate) fn hurry(&mut self, peer: &PeerId, now: Millis) {
        if let Some(entry) = self.entries.get_mut(&Target::Peer(*peer))
            && let State::Waiting { at, .. } = &mut entry.state
            // A peer that keeps failing is not called more often because somebody keeps asking for it.
            && entry.failures < 3
        {
            *at = now;
        }
    }

    /// Who is to be called now, at most as many as may be under way.
    pub(crate) fn due(&mut self, now: Millis) -> Vec<Attempt> {
        let under_way = self
            .entries
            .values()
            .filter(|entry| matches!(entry.state, State::Dialling { .. }))
            .count();
        self.entries
            .iter()
            .filter_map(|(target, entry)| match entry.state {
                State::Waiting { at, stage } if at <= now => {
                    Some(Attempt { target: target.clone(), addresses: entry.at_stage(stage) })
                }
                State::Waiting { .. } | State::Dialling { .. } | State::Connected(_) => None,
            })
            .take(MAX_DIALLING.saturating_sub(under_way))
            .collect()
    }

    /// When somebody will be due; none while too many calls are under way.
    pub(crate) fn wake_at(&self) -> Option<Millis> {
        let under_way = |entry: &&Entry| matches!(entry.state, State::Dialling { .. });
        if self.entries.values().filter(under_way).count() >= MAX_DIALLING {
            return None;
        }
        self.entries
            .values()
            .filter_map(|entry| match entry.state {
                State::Waiting { at, .. } => Some(at),
                State::Dialling { .. } | State::Connected(_) => None,
            })
            .min()
    }

    /// The attempt at `target` has begun as connection `id`.
    pub(crate) fn on_dialling(&mut self, target: &Target, id: ConnectionId) {
        if let Some(entry) = self.entries.get_mut(target)
            && let State::Waiting { stage, .. } = entry.state
        {
            entry.state = State::Dialling { id, stage };
        }
    }

    /// Attempt `id` has failed; the addresses that were kept back are next, or a pause.
    pub(crate) fn on_failed(&mut self, id: ConnectionId, now: Millis) {
        if let Some(target) = self.dialled_as(id) {
            self.fail(&target, now);
        }
    }

    /// Connection `id` to `peer` has opened, whoever began it.
    pub(crate) fn on_connected(&mut self, id: ConnectionId, peer: PeerId) {
        if let Some(target @ Target::Whoever(_)) = self.dialled_as(id) {
            if peer == self.me {
                self.entries.remove(&target);
                return;
            }
            self.set(&target, State::Connected(peer));
        }
        // A call under way to the same peer ends by itself, as needless or as one connection more.
        self.set(&Target::Peer(peer), State::Connected(peer));
        self.connected.insert(peer);
    }

    /// `peer` has proved to be a member: what failed before is forgiven.
    pub(crate) fn on_proved(&mut self, peer: &PeerId) {
        for entry in self.entries.values_mut() {
            if matches!(&entry.state, State::Connected(other) if other == peer) {
                entry.failures = 0;
            }
        }
    }

    /// The last connection to `peer` is gone: a member is called again at once, others after their pause.
    pub(crate) fn on_lost(&mut self, peer: &PeerId, now: Millis) {
        self.connected.remove(peer);
        let lost: Vec<Target> = self
            .entries
            .iter()
            .filter(|(_, entry)| matches!(&entry.state, State::Connected(other) if other == peer))
            .map(|(target, _)| target.clone())
            .collect();
        for target in lost {
            self.fail(&target, now);
        }
    }

    fn state_of(&self, peer: Option<PeerId>, now: Millis) -> State {
        match peer {
            Some(peer) if self.connected.contains(&peer) => State::Connected(peer),
            _ => State::Waiting { at: now, stage: Stage::Tcp },
        }
    }

    fn set(&mut self, target: &Target, state: State) {
        if let Some(entry) = self.entries.get_mut(target) {
            entry.state = state;
        }
    }

    fn dialled_as(&self, wanted: ConnectionId) -> Option<Target> {
        let found = self
            .entries
            .iter()
            .find(|(_, entry)| matches!(entry.state, State::Dialling { id, .. } if id == wanted));
        found.map(|(target, _)| target.clone())
    }

    fn fail(&mut self, target: &Target, now: Millis) {
        let jitter = self.rng.next_u64();
        let Some(entry) = self.entries.get_mut(target) else {
            return;
        };
        let tcp_only = match entry.state {
            State::Dialling { stage, .. } | State::Waiting { stage, .. } => stage == Stage::Tcp,
            State::Connected(_) => false,
        };
        if tcp_only && entry.has_both() {
            let stage = Stage::Rest;
            entry.state = State::Waiting { at: now, stage };
            return;
        }
        let wait = match entry.failures {
            // Only a loss can come after no failure at all; a first failure waits.
            0 if matches!(entry.state, State::Connected(_)) => Millis(50),
            failures => FIRST_WAIT.times(1 << failures.min(16)).min(LONGEST_WAIT),
        };
        entry.failures = entry.failures.saturating_add(1);
        if entry.failures > MAX_FAILURES && !entry.lasting {
            self.entries.remove(target);
            return;
        }
        // Half to one and a half times the wait, so that nodes that lost each other do not call in step.
        let at = now.plus(Millis(wait.0 / 2 + jitter % (wait.0 + 1)));
        let stage = Stage::Tcp;
        entry.state = State::Waiting { at, stage };
    }

    /// Makes room for one more peer; not when everybody in the book is connected or configured.
    fn make_room(&mut self) -> bool {
        let others = self.entries.iter().filter(|(_, entry)| !entry.lasting);
        if others.clone().count() < self.max {
            return true;
        }
        let worst = others
            .filter(|(_, entry)| matches!(entry.state, State::Waiting { .. }))
            .max_by_key(|(_, entry)| entry.failures)
            .map(|(target, _)| target.clone());
        worst.is_some_and(|target| self.entries.remove(&target).is_some())
    }
}

impl Entry {
    fn new(state: State) -> Self {
        Self { addresses: Vec::new(), lasting: false, failures: 0, state }
    }

    fn add(&mut self, address: Multiaddr) {
        self.addresses.retain(|known| *known != address);
        if self.addresses.len() >= MAX_ADDRESSES {
            self.addresses.remove(0);
        }
        self.addresses.push(address);
    }

    fn has_both(&self) -> bool {
        let tcp = self.addresses.iter().filter(|address| is_tcp(address));
        (1..self.addresses.len()).contains(&tcp.count())
    }

    fn at_stage(&self, stage: Stage) -> Vec<Multiaddr> {
        let both = self.has_both();
        self.addresses
            .iter()
            .rev()
            .filter(|address| !both || is_tcp(address) == (stage == Stage::Tcp))
            .cloned()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use meshfarm_protocol::seal::SigningKey;
    use rand_core::SeedableRng;

    use super::*;
    use crate::net::peer::peer_of;

    fn peer(byte: u8) -> PeerId {
        peer_of(&SigningKey::from_seed(&[byte; 32]).site()).unwrap()
    }

    fn book(max: usize) -> Book {
        Book::new(peer(0), max, ChaCha8Rng::from_seed([1; 32]))
    }

    fn addresses(book: &Book, byte: u8) -> usize {
        let entry = book.entries.get(&Target::Peer(peer(byte)));
        entry.map_or(0, |entry| entry.addresses.len())
    }

    fn at(text: &str) -> Multiaddr {
        text.parse().unwrap()
    }

    fn id(n: usize) -> ConnectionId {
        ConnectionId::new_unchecked(n)
    }

    #[test]
    fn tcp_is_tried_first_and_quic_when_it_fails() {
        let mut book = book(10);
        let (tcp, quic) = (at("/ip4/1.1.1.1/tcp/1"), at("/ip4/1.1.1.1/udp/1/quic-v1"));
        book.remember(peer(1), &[tcp.clone(), quic.clone()], Millis(0));
        let target = Target::Peer(peer(1));
        let addresses = |book: &mut Book, now| match book.due(now).pop() {
            Some(attempt) => attempt.addresses,
            None => Vec::new(),
        };
        assert_eq!(addresses(&mut book, Millis(0)), [tcp]);
        book.on_dialling(&target, id(1));
        assert!(addresses(&mut book, Millis(0)).is_empty());
        book.on_failed(id(1), Millis(5));
        assert_eq!(addresses(&mut book, Millis(5)), [quic]);
    }

    #[test]
    fn patience_grows_and_a_member_that_is_lost_is_called_at_once() {
        let mut book = book(10);
        book.remember(peer(1), &[at("/ip4/1.1.1.1/tcp/1")], Millis(0));
        let target = Target::Peer(peer(1));
        let mut now = Millis(0);
        let mut waits = Vec::new();
        for n in 0..9 {
            book.on_dialling(&target, id(n));
            book.on_failed(id(n), now);
            let next = book.wake_at().unwrap();
            waits.push(next.since(now).0);
            now = next;
        }
        assert!(waits[0] <= 400 && waits[8] >= 30_000, "{waits:?}");
        assert!(waits.iter().all(|wait| *wait <= 90_000), "{waits:?}");
        book.on_connected(id(99), peer(1));
        assert_eq!(book.wake_at(), None);
        book.on_proved(&peer(1));
        book.on_lost(&peer(1), now);
        assert!(book.wake_at().unwrap().since(now) <= Millis(100));
    }

    #[test]
    fn the_book_is_bounded_and_keeps_what_a_person_configured() {
        let mut book = book(2);
        book.add_bootstrap(&at("/ip4/9.9.9.9/tcp/1"), Millis(0));
        for n in 1..20 {
            book.remember(peer(n), &[at("/ip4/1.1.1.1/tcp/1")], Millis(0));
        }
        assert_eq!(book.entries.len(), 3);
        let many: Vec<_> = (1..50).map(|n| at(&format!("/ip4/1.1.1.1/tcp/{n}"))).collect();
        book.remember(peer(1), &many, Millis(0));
        assert!(addresses(&book, 1) <= MAX_ADDRESSES);
        book.remember(peer(0), &many, Millis(0));
        assert_eq!(addresses(&book, 0), 0);
        let bootstrap = Target::Whoever(at("/ip4/9.9.9.9/tcp/1"));
        for n in 0..100 {
            book.on_dialling(&bootstrap, id(n));
            book.on_failed(id(n), Millis(0));
        }
        assert!(book.entries.contains_key(&bootstrap));
    }

    #[test]
    fn whoever_answers_at_a_configured_address_counts_as_connected() {
        let mut book = book(2);
        let address = at("/ip4/9.9.9.9/tcp/1");
        book.add_bootstrap(&address, Millis(0));
        book.on_dialling(&Target::Whoever(address.clone()), id(1));
        book.on_connected(id(1), peer(5));
        assert_eq!(book.wake_at(), None);
        book.on_lost(&peer(5), Millis(10));
        assert!(book.wake_at().is_some());
    }
}
