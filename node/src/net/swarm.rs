//! The task that owns the swarm: one loop, in which finished local work goes before timers and the network.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use libp2p::core::ConnectedPoint;
use libp2p::gossipsub::MessageAcceptance;
use libp2p::request_response::ResponseChannel;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{PeerId, Stream, Swarm, TransportError, mdns, ping};
use meshfarm_protocol::id::Millis;
use meshfarm_protocol::message::Answer;
use meshfarm_protocol::seal::SigningKey;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::behaviour::{Behaviour, BehaviourEvent};
use super::clock::{Clock, Outside};
use super::dial::{Attempt, Book, Target};
use super::gossip::Gossiped;
use super::membership::{Connection, Members, Peer, Standing};
use super::peer::keypair;
use super::profiles::{Profiles, Verdict};
use super::requests::Requests;
use super::streams::Inbound;
use super::{
    Command, Counters, Event, Multiaddr, PeerUp, Settings, StartError, count, earlier, lanes,
};

/// Events that may wait before the network is no longer listened to.
const OUTBOX: usize = 512;

/// A connection that nothing uses is closed after this.
const IDLE: Duration = Duration::from_secs(120);

/// Sleep at most this long, so that a clock that was set is noticed.
const LONGEST_SLEEP: Millis = Millis::seconds(60);

/// How long farewells may take.
const FAREWELL: Millis = Millis(500);

/// How long to wait for the ports: QUIC lets the last packets drain before it lets go.
const PORTS: Millis = Millis::seconds(3);

/// A peer at least so far away is called over QUIC first when lanes want another connection: lost packets hold
/// back one stream there, not all of them.
const FAR: Duration = Duration::from_millis(30);

/// Lanes that this node serves at one moment.
const MAX_LANES: usize = 256;

/// Lanes that one peer may have.
const MAX_LANES_PER_PEER: usize = 8;

/// The ends of the task's channels, and what it counts.
pub(super) struct Ends {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) events: mpsc::Sender<Event>,
    pub(super) counters: Arc<Counters>,
}

/// An inbound request whose answer is being found.
pub(super) type Answering = BoxFuture<'static, (ResponseChannel<Answer>, Answer)>;

/// Owns the swarm and everything that is known about its peers.
pub(super) struct Task {
    pub(super) swarm: Swarm<Behaviour>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) members: Members,
    pub(super) book: Book,
    pub(super) requests: Requests,
    pub(super) answering: FuturesUnordered<Answering>,
    pub(super) counters: Arc<Counters>,
    profiles: Profiles,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<Event>,
    outbox: VecDeque<Event>,
    lanes: Arc<Semaphore>,
    lanes_of: HashMap<PeerId, Arc<Semaphore>>,
    /// The last round trip to each connected peer.
    rtts: HashMap<PeerId, Duration>,
    connecting: HashMap<ConnectionId, oneshot::Sender<Result<(), String>>>,
    is_free: fn(&Multiaddr) -> io::Result<()>,
}

impl Task {
    /// A task that listens already and has not called anybody yet.
    pub(super) fn new(
        key: &SigningKey,
        settings: &Settings,
        outside: Outside,
        ends: Ends,
    ) -> Result<Self, StartError> {
        let public = keypair(key).public();
        let peer = public.to_peer_id();
        let counters = Arc::clone(&ends.counters);
        let behaviour = Behaviour::new(public, settings.max_connections, settings.mdns, counters)
            .map_err(StartError::Mdns)?;
        let config =
            libp2p::swarm::Config::with_tokio_executor().with_idle_connection_timeout(IDLE);
        let mut swarm = Swarm::new(outside.transport, behaviour, peer, config);
        for address in &settings.listen {
            listen(&mut swarm, address, outside.is_free)?;
        }
        let now = outside.clock.now();
        let rng = ChaCha8Rng::from_seed(outside.seed);
        let mut book = Book::new(peer, settings.max_known, rng);
        for address in &settings.bootstrap {
            book.add_bootstrap(address, now);
        }
        Ok(Self {
            swarm,
            clock: outside.clock,
            members: Members::default(),
            book,
            requests: Requests::new(now),
            answering: FuturesUnordered::new(),
            counters: ends.counters,
            profiles: Profiles::new(key.site()),
            commands: ends.commands,
            events: ends.events,
            outbox: VecDeque::new(),
            lanes: Arc::new(Semaphore::new(MAX_LANES)),
            lanes_of: HashMap::new(),
            rtts: HashMap::new(),
            connecting: HashMap::new(),
            is_free: outside.is_free,
        })
    }

    /// Works until it is told to stop or nobody can tell it anything any more.
    pub(super) async fn run(mut self) {
        let events = self.events.clone();
        let mut wake = Millis(0);
        let mut timer = self.clock.wait_until(wake);
        let stopped = loop {
            let next = self.turn();
            if next != wake {
                wake = next;
                timer = self.clock.wait_until(wake);
            }
            tokio::select! {
                biased;
                room = events.reserve(), if !self.outbox.is_empty() => {
                    let Ok(room) = room else { break None };
                    if let Some(event) = self.outbox.pop_front() {
                        room.send(event);
                    }
                }
                Some((channel, answer)) = self.answering.next(), if !self.answering.is_empty() => {
                    self.answer(channel, answer);
                }
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(stopped)) => break Some(stopped),
                    Some(command) => self.on_command(command),
                    None => break None,
                },
                () = &mut timer => wake = Millis(0),
                event = self.swarm.select_next_some(), if self.outbox.len() < OUTBOX => {
                    self.on_swarm(event);
                }
            }
        };
        self.farewell().await;
        self.close().await;
        if let Some(stopped) = stopped {
            let _gone = stopped.send(());
        }
    }

    /// Does what is due, and says when something will be.
    fn turn(&mut self) -> Millis {
        let now = self.clock.now();
        for peer in self.members.take_overdue(now) {
            count(&self.counters.peers_cut);
            tracing::debug!(%peer, "cut: no good certificate, or an expired one");
            self.cut(&peer);
        }
        // Without a mesh there is nobody to stay connected to.
        if self.members.n_meshes() > 0 {
            for attempt in self.book.due(now) {
                self.call(attempt, now);
            }
        }
        let calls = (self.members.n_meshes() > 0).then(|| self.book.wake_at());
        earlier(self.members.wake_at(), calls.flatten())
            .unwrap_or(Millis(u64::MAX))
            .min(Millis(now.0 / LONGEST_SLEEP.0 * LONGEST_SLEEP.0).plus(LONGEST_SLEEP))
    }

    fn cut(&mut self, peer: &PeerId) {
        self.swarm.behaviour_mut().gossip.expel(peer);
        let _absent = self.swarm.disconnect_peer_id(*peer);
    }

    fn call(&mut self, attempt: Attempt, now: Millis) {
        let opts = match &attempt.target {
            Target::Peer(peer) => DialOpts::peer_id(*peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(attempt.addresses)
                .allocate_new_port()
                .build(),
            Target::Whoever(address) => {
                DialOpts::unknown_peer_id().address(address.clone()).allocate_new_port().build()
            }
        };
        let id = opts.connection_id();
        self.book.on_dialling(&attempt.target, id);
        if let Err(error) = self.swarm.dial(opts) {
            tracing::debug!(%error, target = ?attempt.target, "cannot call");
            self.book.on_failed(id, now);
        }
    }

    /// Connects for somebody who waits for it.
    pub(super) fn connect(
        &mut self,
        peer: PeerId,
        address: Multiaddr,
        reply: oneshot::Sender<Result<(), String>>,
    ) {
        if self.swarm.is_connected(&peer) {
            let _gone = reply.send(Ok(()));
            return;
        }
        let (named, address) = super::peer::split(&address);
        if named.is_some_and(|named| named != peer) {
            let _gone = reply.send(Err("the address names another node".into()));
            return;
        }
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(vec![address])
            .allocate_new_port()
            .build();
        self.dial_for(opts, reply);
    }

    /// Opens direct connections to `peer` until there are `n`, one at a time; `reply` hears when the first of
    /// those that were missing is there, or that there will be none.
    pub(super) fn widen(
        &mut self,
        peer: PeerId,
        n: usize,
        reply: oneshot::Sender<Result<(), String>>,
    ) {
        if self.swarm.behaviour().lanes.n_direct(peer) >= n {
            let _gone = reply.send(Ok(()));
            return;
        }
        let far = self.rtts.get(&peer).is_some_and(|rtt| *rtt >= FAR);
        let addresses = self.book.direct_addresses(&peer, far);
        if addresses.is_empty() {
            let _gone = reply.send(Err("it cannot be called".into()));
            return;
        }
        let opts = DialOpts::peer_id(peer)
            .condition(PeerCondition::Always)
            .addresses(addresses)
            .allocate_new_port()
            .build();
        self.dial_for(opts, reply);
    }

    fn dial_for(&mut self, opts: DialOpts, reply: oneshot::Sender<Result<(), String>>) {
        let id = opts.connection_id();
        match self.swarm.dial(opts) {
            Ok(()) => {
                self.connecting.retain(|_, waiting| !waiting.is_closed());
                self.connecting.insert(id, reply);
            }
            Err(error) => {
                let _gone = reply.send(Err(explain(&error)));
            }
        }
    }

    /// Where the node can be reached.
    pub(super) fn listening(&self) -> Vec<Multiaddr> {
        self.swarm.listeners().cloned().collect()
    }

    /// Tells the daemon, in order.
    pub(super) fn tell(&mut self, event: Event) {
        self.outbox.push_back(event);
    }

    /// What is told of `peer`, who is up.
    pub(super) fn up(peer: &Peer) -> Option<PeerUp> {
        let (Standing::Member(memberships), Some(any)) =
            (&peer.standing, peer.connections.values().next())
        else {
            return None;
        };
        let dialled = peer.connections.values().find(|one| one.dialled);
        let best = dialled.unwrap_or(any);
        Some(PeerUp {
            site: peer.site,
            memberships: memberships.clone(),
            address: best.address.clone(),
            dialled: best.dialled,
        })
    }

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::NewListenAddr { address, .. } => self.tell(Event::Listening(address)),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.on_connected(peer_id, connection_id, &endpoint)
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, .. } => {
                self.on_closed(&peer_id, connection_id)
            }
            SwarmEvent::OutgoingConnectionError { connection_id, error, .. } => {
                tracing::debug!(%error, "a call failed");
                self.book.on_failed(connection_id, self.clock.now());
                if let Some(reply) = self.connecting.remove(&connection_id) {
                    let _gone = reply.send(Err(explain(&error)));
                }
            }
            SwarmEvent::ListenerError { error, .. } => {
                tracing::warn!(%error, "a listener stumbled");
            }
            SwarmEvent::ListenerClosed { reason, .. } => {
                tracing::warn!(?reason, "a listener closed");
            }
            // Strangers' failures are theirs, and the rest is news of what is known already.
            _ => {}
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Control(event) => self.on_control(event),
            BehaviourEvent::Gossip(message) => self.on_gossip(&message),
            BehaviourEvent::Lanes(Inbound { peer, stream }) => self.on_lane(peer, stream),
            BehaviourEvent::Ping(ping::Event { peer, result: Ok(rtt), .. }) => {
                self.rtts.insert(peer, rtt);
            }
            BehaviourEvent::Ping(ping::Event {
                connection,
                result: Err(ping::Failure::Timeout),
                ..
            }) => {
                self.swarm.close_connection(connection);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                let now = self.clock.now();
                for (peer, address) in found {
                    self.book.remember(peer, &[address], now);
                }
            }
            BehaviourEvent::Ping(_)
            | BehaviourEvent::Mdns(mdns::Event::Expired(_))
            | BehaviourEvent::Identify(_) => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let connection = Connection {
            address: endpoint.get_remote_address().clone(),
            dialled: endpoint.is_dialer(),
        };
        let now = self.clock.now();
        self.book.on_connected(id, peer);
        if !self.members.on_connected(peer, id, connection, now) {
            self.swarm.close_connection(id);
            return;
        }
        if let Some(reply) = self.connecting.remove(&id) {
            let _gone = reply.send(Ok(()));
        }
        if self.members.n_meshes() > 0 {
            self.greet(peer, Some(id));
        }
    }

    fn on_closed(&mut self, peer: &PeerId, id: ConnectionId) {
        let Some(gone) = self.members.on_closed(peer, id) else {
            if !self.swarm.is_connected(peer) {
                self.book.on_lost(peer, self.clock.now());
            }
            return;
        };
        self.book.on_lost(peer, self.clock.now());
        self.requests.on_lost(peer, &self.counters);
        self.lanes_of.remove(peer);
        self.rtts.remove(peer);
        let was_up = match gone.standing {
            Standing::Member(_) => true,
            Standing::Leaving { was_member } => was_member,
            Standing::Stranger | Standing::Verified(_) => false,
        };
        if was_up {
            self.tell(Event::PeerDown { site: gone.site });
        }
    }

    fn on_gossip(&mut self, message: &Gossiped) {
        let now = self.clock.now();
        let verdict = match self.profiles.check(message.mesh, &message.data, now) {
            Verdict::Accept(profile) => {
                self.learn(&profile, now);
                self.tell(Event::Profile { mesh: message.mesh, profile });
                MessageAcceptance::Accept
            }
            Verdict::Keep(profile) => {
                self.learn(&profile, now);
                self.tell(Event::Profile { mesh: message.mesh, profile });
                MessageAcceptance::Ignore
            }
            Verdict::Ignore(why) => {
                count(&self.counters.gossip_ignored);
                tracing::trace!(why, "gossip ignored");
                MessageAcceptance::Ignore
            }
            Verdict::Reject(why) => {
                count(&self.counters.gossip_rejected);
                tracing::debug!(why, from = %message.from, "gossip rejected");
                MessageAcceptance::Reject
            }
        };
        self.swarm.behaviour_mut().gossip.judge(message, verdict);
    }

    /// Remembers where a member says that it listens.
    fn learn(&mut self, profile: &meshfarm_protocol::profile::Profile, now: Millis) {
        let addresses: Vec<Multiaddr> =
            profile.addresses.iter().take(8).filter_map(|text| text.parse().ok()).collect();
        if let Some(peer) = super::peer::peer_of(&profile.site) {
            self.book.remember(peer, &addresses, now);
        }
    }

    fn on_lane(&mut self, peer: PeerId, stream: Stream) {
        let member = self.members.peer(&peer);
        let proved = member.filter(|peer| !peer.standing.memberships().is_empty());
        let Some(from) = proved.map(|peer| peer.site) else {
            count(&self.counters.lanes_dropped);
            return;
        };
        let own = self
            .lanes_of
            .entry(peer)
            .or_insert_with(|| Arc::new(Semaphore::new(MAX_LANES_PER_PEER)));
        let permits =
            (Arc::clone(own).try_acquire_owned(), Arc::clone(&self.lanes).try_acquire_owned());
        let (Ok(own), Ok(all)) = permits else {
            count(&self.counters.lanes_dropped);
            return;
        };
        let (events, counters) = (self.events.clone(), Arc::clone(&self.counters));
        tokio::spawn(async move {
            match lanes::accept(stream, [own, all]).await {
                Ok((hello, stream)) => {
                    let lane = Event::Lane { from, hello, stream };
                    let _stopped = events.send(lane).await;
                }
                Err(error) => {
                    count(&counters.lanes_dropped);
                    tracing::debug!(%error, from = %from.short(), "no proper lane hello");
                }
            }
        });
    }

    /// Opens all connections anew: what is spoken on them was agreed without a mesh that came later.
    pub(super) fn reopen_all(&mut self) {
        for peer in self.members.take_all() {
            self.cut(&peer);
        }
    }

    /// Closes every connection, so that the other ends need not find out by themselves.
    async fn farewell(&mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _absent = self.swarm.disconnect_peer_id(peer);
        }
        let mut limit = self.clock.wait_until(self.clock.now().plus(FAREWELL));
        while self.swarm.connected_peers().next().is_some() {
            tokio::select! {
                biased;
                () = &mut limit => break,
                _ = self.swarm.select_next_some() => {}
            }
        }
    }
}

impl Task {
    /// Drops everything, and waits until others can listen where we did.
    async fn close(self) {
        let (clock, is_free) = (Arc::clone(&self.clock), self.is_free);
        let addresses = self.listening();
        drop(self);
        let limit = clock.now().plus(PORTS);
        while addresses.iter().any(|address| is_free(address).is_err()) && clock.now() < limit {
            clock.wait_until(clock.now().plus(Millis(10))).await;
        }
    }
}

fn listen(
    swarm: &mut Swarm<Behaviour>,
    address: &Multiaddr,
    is_free: fn(&Multiaddr) -> io::Result<()>,
) -> Result<(), StartError> {
    let failed = |source: io::Error| {
        let address = address.clone();
        if is_in_use(&source) {
            StartError::PortInUse { address, source }
        } else {
            StartError::Listen { address, source }
        }
    };
    is_free(address).map_err(failed)?;
    match swarm.listen_on(address.clone()) {
        Ok(_listener) => Ok(()),
        Err(TransportError::Other(source)) => Err(failed(source)),
        Err(TransportError::MultiaddrNotSupported(_)) => {
            let what = "neither /ip4/../tcp/.. nor /ip4/../udp/../quic-v1, nor the same with ip6";
            Err(failed(io::Error::new(io::ErrorKind::Unsupported, what)))
        }
    }
}

/// Whether an address is taken; libp2p wraps what the system said several times.
fn is_in_use(error: &io::Error) -> bool {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        let said = cause.downcast_ref::<io::Error>();
        if said.is_some_and(|said| said.kind() == io::ErrorKind::AddrInUse) {
            return true;
        }
        next = match said.and_then(io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        };
    }
    false
}

/// Why a call failed, in words for a person.
fn explain(error: &DialError) -> String {
    match error {
        DialError::WrongPeerId { .. } => "another node answers there".into(),
        DialError::LocalPeerId { .. } => "that is this node itself".into(),
        DialError::Transport(reasons) => match reasons.first() {
            Some((_, TransportError::Other(reason))) => innermost(reason),
            Some((_, TransportError::MultiaddrNotSupported(_))) => {
                "this kind of address is not supported".into()
            }
            None => "no address".into(),
        },
        DialError::Denied { cause } => innermost(cause),
        DialError::NoAddresses | DialError::DialPeerConditionFalse(_) | DialError::Aborted => {
            error.to_string()
        }
    }
}

/// The last of a chain of causes: the ones above it name libp2p's own parts.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
