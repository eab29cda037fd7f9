//! Control requests both ways: greetings, what members and strangers ask, and messages that wait to be sent.

use std::collections::{HashMap, VecDeque};
use std::io;

use libp2p::PeerId;
use libp2p::gossipsub::PublishError;
use libp2p::request_response::{self, OutboundFailure, OutboundRequestId, ResponseChannel};
use libp2p::swarm::ConnectionId;
use meshfarm_protocol::codec;
use meshfarm_protocol::id::{MeshId, Millis, SiteId};
use meshfarm_protocol::membership::Certificate;
use meshfarm_protocol::message::{Answer, Hello, Join, Message, Request, SignedProfile};
use tokio::sync::oneshot;

use super::membership::Standing;
use super::peer::peer_of;
use super::swarm::Task;
use super::{Command, Counters, Event, NetError, count, for_people};

/// Messages that wait for one peer.
const MAX_QUEUED: usize = 1024;

/// Messages to one peer that are under way at one moment.
const WINDOW: usize = 32;

/// Requests of other nodes that are being answered at one moment.
const MAX_ANSWERING: usize = 2048;

/// The daemon has this long to answer a member.
const ANSWER_WITHIN: Millis = Millis::seconds(15);

/// Strangers that may ask to join at once, and then one a second.
const JOINS: u64 = 10;

/// What stands for a profile in our own words when it is too long.
type Reply = oneshot::Sender<Result<Answer, NetError>>;

/// Requests that are under way.
#[derive(Debug)]
pub(super) struct Requests {
    waiting: HashMap<OutboundRequestId, Waiting>,
    outgoing: HashMap<PeerId, Outgoing>,
    /// Joins that may be asked now, in thousandths.
    joins: u64,
    refilled: Millis,
}

/// Who waits for an answer.
#[derive(Debug)]
enum Waiting {
    /// We do, to know whether the peer accepts us.
    Hello(Option<ConnectionId>),
    /// A caller of the handle.
    Caller(SiteId, Reply),
    /// Nobody; it makes room for the next message.
    Message,
}

/// Messages for one peer.
#[derive(Debug, Default)]
struct Outgoing {
    queued: VecDeque<Message>,
    under_way: usize,
}

impl Requests {
    /// Nothing is under way at `now`.
    pub(super) fn new(now: Millis) -> Self {
        Self {
            waiting: HashMap::new(),
            outgoing: HashMap::new(),
            joins: JOINS * 1000,
            refilled: now,
        }
    }

    /// The last connection to `peer` is gone, and with it what waited for it.
    pub(super) fn on_lost(&mut self, peer: &PeerId, counters: &Counters) {
        if let Some(lost) = self.outgoing.remove(peer) {
            lost.queued.iter().for_each(|_| count(&counters.messages_dropped));
        }
    }

    fn may_join(&mut self, now: Millis) -> bool {
        let fresh = now.since(self.refilled).0;
        self.joins = self.joins.saturating_add(fresh).min(JOINS * 1000);
        self.refilled = now;
        let left = self.joins.checked_sub(1000);
        self.joins = left.unwrap_or(self.joins);
        left.is_some()
    }
}

impl Task {
    /// Does what the handle was asked for.
    pub(super) fn on_command(&mut self, command: Command) {
        match command {
            Command::Request(site, request, reply) => match self.member(&site) {
                Some(peer) => self.ask(peer, site, request, reply),
                None => {
                    let _gone = reply.send(Err(NetError::NotConnected(site)));
                }
            },
            Command::Join(site, join, reply) => self.ask_to_join(site, join, reply),
            Command::Send(site, message) => self.send(site, *message),
            Command::Publish(mesh, profile) => self.publish(mesh, &profile),
            Command::Lane(site, opened) => match self.member(&site) {
                Some(peer) => self.swarm.behaviour_mut().lanes.open(peer, opened),
                None => {
                    let _gone = opened.send(Err(io::ErrorKind::NotConnected.into()));
                }
            },
            Command::Widen(site, n, reply) => match self.member(&site) {
                Some(peer) => self.widen(peer, n, reply),
                None => {
                    let _gone = reply.send(Err("it is not connected".into()));
                }
            },
            Command::Dial(addresses) => {
                let now = self.clock.now();
                for address in &addresses {
                    self.book.add_bootstrap(address, now);
                }
            }
            Command::Connect(site, address, reply) => match peer_of(&site) {
                Some(peer) => self.connect(peer, address, reply),
                None => {
                    let _gone = reply.send(Err("that is no site's key".into()));
                }
            },
            Command::AddMesh(mesh, certificate) => self.add_mesh(mesh, *certificate),
            Command::Remember(site, addresses) => {
                if let Some(peer) = peer_of(&site) {
                    self.book.remember(peer, &addresses, self.clock.now());
                }
            }
            Command::Peers(reply) => {
                let mut up: Vec<_> =
                    self.members.peers().filter_map(|(_, peer)| Self::up(peer)).collect();
                up.sort_unstable_by_key(|peer| peer.site);
                let _gone = reply.send(up);
            }
            Command::Listening(reply) => {
                let _gone = reply.send(self.listening());
            }
            // The loop takes this one itself.
            Command::Shutdown(_) => {}
        }
    }

    /// The peer of `site`, if both accept each other.
    fn member(&self, site: &SiteId) -> Option<PeerId> {
        let peer = peer_of(site)?;
        let known = self.members.peer(&peer)?;
        known.is_member().then_some(peer)
    }

    fn ask(&mut self, peer: PeerId, site: SiteId, request: Request, reply: Reply) {
        let id = self.request(&peer, request);
        self.requests.waiting.insert(id, Waiting::Caller(site, reply));
    }

    fn request(&mut self, peer: &PeerId, request: Request) -> OutboundRequestId {
        self.swarm.behaviour_mut().control.send_request(peer, request)
    }

    fn ask_to_join(&mut self, site: SiteId, join: Join, reply: Reply) {
        let connected = peer_of(&site).filter(|peer| self.members.peer(peer).is_some());
        match connected {
            Some(peer) => {
                self.members.on_joining(&peer, self.clock.now());
                self.ask(peer, site, Request::Join(join), reply);
            }
            None => {
                let _gone = reply.send(Err(NetError::NotConnected(site)));
            }
        }
    }

    fn send(&mut self, site: SiteId, message: Message) {
        let peer = peer_of(&site);
        let connected = peer.filter(|peer| {
            let leaving =
                |peer: &super::membership::Peer| matches!(peer.standing, Standing::Leaving { .. });
            self.members.peer(peer).is_some_and(|peer| !leaving(peer))
        });
        let Some(connected) = connected else {
            count(&self.counters.messages_dropped);
            tracing::debug!(to = %site.short(), "message dropped: not connected");
            if let Some(peer) = peer {
                self.book.hurry(&peer, self.clock.now());
            }
            return;
        };
        let outgoing = self.requests.outgoing.entry(connected).or_default();
        if outgoing.queued.len() >= MAX_QUEUED {
            count(&self.counters.messages_dropped);
            tracing::warn!(to = %site.short(), "message dropped: too many wait for a slow site");
            return;
        }
        outgoing.queued.push_back(message);
        self.pump(&connected);
    }

    /// Sends what waits for `peer`, as far as may be under way.
    fn pump(&mut self, peer: &PeerId) {
        if !self.members.peer(peer).is_some_and(|peer| peer.is_member()) {
            return;
        }
        while let Some(outgoing) = self.requests.outgoing.get_mut(peer)
            && outgoing.under_way < WINDOW
            && let Some(message) = outgoing.queued.pop_front()
        {
            outgoing.under_way += 1;
            let id = self.request(peer, Request::Core(message));
            self.requests.waiting.insert(id, Waiting::Message);
        }
    }

    fn publish(&mut self, mesh: MeshId, profile: &SignedProfile) {
        let data = codec::encode(profile);
        match self.swarm.behaviour_mut().gossip.publish(mesh, data) {
            Ok(()) => {}
            Err(PublishError::AllQueuesFull(n)) => {
                tracing::warn!(peers = n, "profile not gossiped: every neighbour is slow");
            }
            Err(error) => tracing::error!(%error, "profile not gossiped"),
        }
    }

    fn add_mesh(&mut self, mesh: MeshId, certificate: Certificate) {
        if self.members.add_mesh(mesh, certificate) {
            self.swarm.behaviour_mut().gossip.add_mesh(mesh);
            self.reopen_all();
            return;
        }
        let peers: Vec<PeerId> = self.members.peers().map(|(peer, _)| *peer).collect();
        for peer in peers {
            self.greet(peer, None);
        }
    }

    /// Shows our certificates to `peer`; `fresh` is the connection that has just opened.
    pub(super) fn greet(&mut self, peer: PeerId, fresh: Option<ConnectionId>) {
        let hello = self.members.hello();
        let id = self.request(&peer, Request::Hello(hello));
        self.requests.waiting.insert(id, Waiting::Hello(fresh));
    }

    /// Something happened to a request, ours or another's.
    pub(super) fn on_control(&mut self, event: request_response::Event<Request, Answer>) {
        match event {
            request_response::Event::Message {
                peer,
                message: request_response::Message::Request { request, channel, .. },
                ..
            } => self.on_request(peer, request, channel),
            request_response::Event::Message {
                peer,
                message: request_response::Message::Response { request_id, response },
                ..
            } => self.on_answer(peer, request_id, response),
            request_response::Event::OutboundFailure { peer, request_id, error, .. } => {
                self.on_unanswered(peer, request_id, &error)
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, %error, "a request was not answered");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    fn on_request(&mut self, peer: PeerId, request: Request, channel: ResponseChannel<Answer>) {
        let now = self.clock.now();
        if !self.members.may_ask(&peer, now) {
            self.refuse(channel, "too many requests; wait a moment");
            return;
        }
        if self.answering.len() >= MAX_ANSWERING {
            self.refuse(channel, "this node is too busy; wait a moment");
            return;
        }
        match request {
            Request::Hello(hello) => {
                let answer = match self.on_hello(&peer, &hello, now) {
                    Ok(()) => Answer::Hello(self.members.hello()),
                    Err(why) => Answer::Refused(why),
                };
                self.answer(channel, answer);
            }
            Request::Join(join) => self.on_join(&peer, join, channel, now),
            request @ (Request::Core(_) | Request::Log(_)) => {
                let known = self.members.peer(&peer);
                let proved = known.filter(|peer| !peer.standing.memberships().is_empty());
                let Some(from) = proved.map(|peer| peer.site) else {
                    self.refuse(channel, "show a certificate of a mesh of this site first");
                    return;
                };
                // Whoever asks has accepted us: its answer to our greeting was overtaken.
                self.on_accepted(&peer);
                let (answer, answered) = oneshot::channel();
                self.answer_later(channel, answered, now);
                self.tell(Event::Asked { from, request, answer });
            }
        }
    }

    fn on_join(
        &mut self,
        peer: &PeerId,
        join: Join,
        channel: ResponseChannel<Answer>,
        now: Millis,
    ) {
        let Some(site) = self.members.peer(peer).map(|peer| peer.site) else {
            return;
        };
        if !self.requests.may_join(now) {
            self.refuse(channel, "too many sites want to join; try again in a minute");
            return;
        }
        self.members.on_joining(peer, now);
        let (answer, answered) = oneshot::channel();
        self.answer_later(channel, answered, now);
        self.tell(Event::JoinAsked { peer: site, join, answer });
    }

    fn answer_later(
        &mut self,
        channel: ResponseChannel<Answer>,
        answered: oneshot::Receiver<Answer>,
        now: Millis,
    ) {
        let limit = self.clock.wait_until(now.plus(ANSWER_WITHIN));
        self.answering.push(Box::pin(async move {
            let answer = tokio::select! {
                biased;
                answer = answered => answer.ok(),
                () = limit => None,
            };
            let nobody = || Answer::Refused("this node could not answer now".into());
            (channel, answer.unwrap_or_else(nobody))
        }));
    }

    fn refuse(&mut self, channel: ResponseChannel<Answer>, why: &str) {
        count(&self.counters.requests_refused);
        self.answer(channel, Answer::Refused(why.into()));
    }

    /// Sends an answer. When nobody waits for it any more, it is moot.
    pub(super) fn answer(&mut self, channel: ResponseChannel<Answer>, answer: Answer) {
        let control = &mut self.swarm.behaviour_mut().control;
        let _too_late = control.send_response(channel, answer);
    }

    /// `peer` has shown its certificates.
    fn on_hello(&mut self, peer: &PeerId, hello: &Hello, now: Millis) -> Result<(), String> {
        self.members.on_hello(peer, hello, now)?;
        if let Some(known) = self.members.peer(peer) {
            let gossip = &mut self.swarm.behaviour_mut().gossip;
            for membership in known.standing.memberships() {
                gossip.admit(peer, membership.mesh);
            }
        }
        self.book.on_proved(peer);
        Ok(())
    }

    /// `peer` has accepted our certificates.
    fn on_accepted(&mut self, peer: &PeerId) {
        if !self.members.on_accepted(peer) {
            return;
        }
        if let Some(up) = self.members.peer(peer).and_then(Self::up) {
            self.tell(Event::PeerUp(up));
        }
        self.pump(peer);
    }

    fn on_answer(&mut self, peer: PeerId, id: OutboundRequestId, answer: Answer) {
        match self.requests.waiting.remove(&id) {
            Some(Waiting::Hello(connection)) => self.on_greeted(&peer, connection, answer),
            Some(Waiting::Caller(_, reply)) => {
                let _gone = reply.send(Ok(answer));
            }
            Some(Waiting::Message) => {
                if let Answer::Refused(why) = answer {
                    count(&self.counters.messages_failed);
                    let why = for_people(&why);
                    tracing::warn!(%peer, why, "a message was refused");
                }
                self.on_room(&peer);
            }
            None => {}
        }
    }

    /// `peer` has answered our greeting, which was sent when `connection` opened.
    fn on_greeted(&mut self, peer: &PeerId, connection: Option<ConnectionId>, answer: Answer) {
        let now = self.clock.now();
        let hello = match answer {
            Answer::Hello(hello) => hello,
            Answer::Refused(why) => {
                let why = for_people(&why);
                tracing::info!(%peer, why, "a node does not accept this site");
                return;
            }
            Answer::Joined(_) | Answer::Heard | Answer::LogHave(_) => {
                tracing::debug!(%peer, "a greeting was answered by something else");
                return;
            }
        };
        if let Err(why) = self.on_hello(peer, &hello, now) {
            tracing::info!(%peer, why, "a node's certificates are not accepted");
            return;
        }
        self.on_accepted(peer);
        let meshes: Vec<MeshId> = self.members.peer(peer).map_or_else(Vec::new, |known| {
            let of = known.standing.memberships().iter();
            of.map(|membership| membership.mesh).collect()
        });
        if let Some(connection) = connection {
            for mesh in meshes {
                let gossip = &mut self.swarm.behaviour_mut().gossip;
                gossip.open(peer, mesh, connection);
            }
        }
    }

    fn on_unanswered(&mut self, peer: PeerId, id: OutboundRequestId, error: &OutboundFailure) {
        match self.requests.waiting.remove(&id) {
            Some(Waiting::Hello(Some(connection))) => {
                // Without a greeting the connection is of no use; a new one begins from the start.
                tracing::debug!(%peer, %error, "a greeting was not answered");
                self.swarm.close_connection(connection);
            }
            Some(Waiting::Caller(site, reply)) => {
                let why = match error {
                    OutboundFailure::Timeout => NetError::Timeout(site),
                    OutboundFailure::DialFailure => NetError::NotConnected(site),
                    OutboundFailure::ConnectionClosed
                    | OutboundFailure::UnsupportedProtocols
                    | OutboundFailure::Io(_) => NetError::Lost { site, why: error.to_string() },
                };
                let _gone = reply.send(Err(why));
            }
            Some(Waiting::Message) => {
                count(&self.counters.messages_failed);
                tracing::debug!(%peer, %error, "a message was not received, or its receipt was lost");
                self.on_room(&peer);
            }
            Some(Waiting::Hello(None)) | None => {}
        }
    }

    /// A message to `peer` is done with: there is room for the next.
    fn on_room(&mut self, peer: &PeerId) {
        if let Some(outgoing) = self.requests.outgoing.get_mut(peer) {
            outgoing.under_way = outgoing.under_way.saturating_sub(1);
        }
        self.pump(peer);
    }
}
