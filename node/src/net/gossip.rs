//! Gossip that reaches members only: one gossipsub for each mesh, behind a gate on every connection.
//!
//! gossipsub trusts whoever connects: it announces its topics at once, believes any subscription and grafts
//! any peer that asks. So each mesh has a gossipsub with a protocol name of its own, and on each connection
//! that protocol does not exist until the other end has shown that it belongs to that mesh. The receiving
//! direction opens when we have verified the peer; the sending direction opens when the peer has said that it
//! verified us, because a stream that it would still refuse makes gossipsub give up on the connection.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use libp2p::PeerId;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::DeniedUpgrade;
use libp2p::core::{Endpoint, Multiaddr};
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, MessageId, TopicHash};
use libp2p::swarm::derive_prelude::Either;
use libp2p::swarm::handler::{ConnectionEvent, multi::MultiHandler};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId,
    FromSwarm, NetworkBehaviour, NotifyHandler, SubstreamProtocol, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm, behaviour::ConnectionEstablished,
};
use meshfarm_protocol::id::MeshId;
use meshfarm_protocol::profile::MAX_PROFILE_BYTES;
use meshfarm_protocol::seal;

/// A profile, its certificate and signature, and what gossipsub puts around them.
pub(crate) const MAX_GOSSIP_BYTES: usize = MAX_PROFILE_BYTES + 8 * 1024;

/// A gossip connection queues at most so many messages for a slow peer.
const QUEUE: usize = 512;

/// How long a message that was seen is remembered.
const REMEMBER: Duration = Duration::from_secs(120);

type Inner = gossipsub::Behaviour;
type InnerHandler = THandler<Inner>;

/// A message that waits for its verdict.
#[derive(Debug)]
pub(crate) struct Gossiped {
    /// The mesh whose members exchange it.
    pub(crate) mesh: MeshId,
    /// Who passed it on.
    pub(crate) from: PeerId,
    /// Its name, for the verdict.
    pub(crate) id: MessageId,
    /// What was gossiped.
    pub(crate) data: Vec<u8>,
}

/// One gossipsub for each mesh.
#[derive(Default)]
pub(crate) struct Gossip {
    meshes: BTreeMap<MeshId, Mesh>,
    waker: Option<Waker>,
}

struct Mesh {
    inner: Inner,
    topic: TopicHash,
    peers: HashMap<PeerId, PeerGates>,
}

/// One peer as the gossipsub of one mesh knows it.
#[derive(Default)]
struct PeerGates {
    receive: Arc<AtomicBool>,
    connections: Vec<ConnectionId>,
    /// Connections whose sending direction shall open and whose handler was not told yet.
    opening: Vec<ConnectionId>,
}

impl Gossip {
    /// Gossips in `mesh` from the next connection on.
    pub(crate) fn add_mesh(&mut self, mesh: MeshId) {
        if self.meshes.contains_key(&mesh) {
            return;
        }
        let mut inner =
            gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Anonymous, config(mesh))
                .expect("anonymous gossip without checked signatures is a valid choice");
        let topic = topic(mesh);
        inner.subscribe(&topic).expect("no filter forbids the topic");
        let fresh = Mesh { inner, topic: topic.hash(), peers: HashMap::new() };
        self.meshes.insert(mesh, fresh);
        self.wake();
    }

    /// `peer` has proved that it belongs to `mesh`: its gossip is heard.
    pub(crate) fn admit(&mut self, peer: &PeerId, mesh: MeshId) {
        if let Some(gates) = self.gates(peer, mesh) {
            gates.receive.store(true, Ordering::Release);
        }
    }

    /// `peer` has accepted our certificates on `connection`: gossip is sent to it there.
    pub(crate) fn open(&mut self, peer: &PeerId, mesh: MeshId, connection: ConnectionId) {
        if let Some(gates) = self.gates(peer, mesh)
            && gates.receive.load(Ordering::Acquire)
            && gates.connections.contains(&connection)
        {
            gates.opening.push(connection);
            self.wake();
        }
    }

    /// `peer` counts as a stranger again. Its connections are closed by the caller.
    pub(crate) fn expel(&mut self, peer: &PeerId) {
        for mesh in self.meshes.values_mut() {
            if let Some(gates) = mesh.peers.get(peer) {
                gates.receive.store(false, Ordering::Release);
            }
        }
    }

    /// Sends `data` to the members of `mesh`.
    ///
    /// Having nobody to send it to is no failure: whoever comes later gets the next one.
    pub(crate) fn publish(
        &mut self,
        mesh: MeshId,
        data: Vec<u8>,
    ) -> Result<(), gossipsub::PublishError> {
        let Some(of) = self.meshes.get_mut(&mesh) else {
            return Ok(());
        };
        match of.inner.publish(of.topic.clone(), data) {
            Ok(_)
            | Err(
                gossipsub::PublishError::NoPeersSubscribedToTopic
                | gossipsub::PublishError::Duplicate,
            ) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Passes a message on, drops it, or drops it and blames who sent it.
    pub(crate) fn judge(&mut self, message: &Gossiped, verdict: MessageAcceptance) {
        if let Some(mesh) = self.meshes.get_mut(&message.mesh) {
            mesh.inner.report_message_validation_result(&message.id, &message.from, verdict);
        }
    }

    fn gates(&mut self, peer: &PeerId, mesh: MeshId) -> Option<&mut PeerGates> {
        self.meshes.get_mut(&mesh)?.peers.get_mut(peer)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn handlers(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        mut make: impl FnMut(&mut Inner) -> Result<InnerHandler, ConnectionDenied>,
    ) -> Result<MultiHandler<MeshId, Gated>, ConnectionDenied> {
        let mut handlers = Vec::with_capacity(self.meshes.len());
        for (id, mesh) in &mut self.meshes {
            let gates = mesh.peers.entry(peer).or_default();
            gates.connections.push(connection);
            let gated = Gated {
                inner: make(&mut mesh.inner)?,
                receive: Arc::clone(&gates.receive),
                send: Sending::Shut(None),
            };
            handlers.push((*id, gated));
        }
        MultiHandler::try_from_iter(handlers)
            .map_err(|same| ConnectionDenied::new(same.to_string()))
    }

    fn on_established(&mut self, event: &ConnectionEstablished<'_>) {
        for mesh in self.meshes.values_mut() {
            let Some(gates) = mesh.peers.get(&event.peer_id) else {
                continue;
            };
            if gates.connections.contains(&event.connection_id) {
                // This gossipsub may be younger than other connections of the peer, and knows its own only.
                let event = ConnectionEstablished {
                    other_established: gates.connections.len() - 1,
                    ..*event
                };
                mesh.inner.on_swarm_event(FromSwarm::ConnectionEstablished(event));
            }
        }
    }

    fn on_closed(&mut self, event: &ConnectionClosed<'_>) {
        for mesh in self.meshes.values_mut() {
            let Some(gates) = mesh.peers.get_mut(&event.peer_id) else {
                continue;
            };
            let before = gates.connections.len();
            gates.connections.retain(|id| *id != event.connection_id);
            gates.opening.retain(|id| *id != event.connection_id);
            let left = gates.connections.len();
            if left == 0 {
                mesh.peers.remove(&event.peer_id);
            }
            if left < before {
                let event = ConnectionClosed { remaining_established: left, ..*event };
                mesh.inner.on_swarm_event(FromSwarm::ConnectionClosed(event));
            }
        }
    }

    fn next_opening(&mut self) -> Option<ToSwarm<Gossiped, THandlerInEvent<Self>>> {
        self.meshes.iter_mut().find_map(|(id, mesh)| {
            mesh.peers.iter_mut().find_map(|(peer, gates)| {
                let connection = gates.opening.pop()?;
                Some(ToSwarm::NotifyHandler {
                    peer_id: *peer,
                    handler: NotifyHandler::One(connection),
                    event: (*id, ToGated::Open),
                })
            })
        })
    }
}

/// What the members of `mesh` listen to.
pub(super) fn topic(mesh: MeshId) -> IdentTopic {
    IdentTopic::new(format!("profiles/{mesh}"))
}

/// gossipsub's settings for one mesh.
pub(super) fn config(mesh: MeshId) -> gossipsub::Config {
    gossipsub::ConfigBuilder::default()
        .protocol_id_prefix(format!("/meshfarm/gossip/{mesh}"))
        .validation_mode(gossipsub::ValidationMode::Anonymous)
        .validate_messages()
        // Anonymous messages have neither source nor number: their contents are their name. Short names
        // leave room for many in one announcement.
        .message_id_fn(|message| MessageId::from(seal::content_hash(&message.data)[..16].to_vec()))
        .max_transmit_size(MAX_GOSSIP_BYTES)
        .connection_handler_queue_len(QUEUE)
        .duplicate_cache_time(REMEMBER)
        .flood_publish(false)
        .build()
        .expect("these settings agree with each other")
}

impl NetworkBehaviour for Gossip {
    type ConnectionHandler = MultiHandler<MeshId, Gated>;
    type ToSwarm = Gossiped;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handlers(peer, connection, |inner| {
            inner.handle_established_inbound_connection(connection, peer, local, remote)
        })
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handlers(peer, connection, |inner| {
            inner.handle_established_outbound_connection(connection, peer, remote, role, port)
        })
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(&event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(&event),
            // gossipsub uses the rest only to score addresses, which is off.
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        (mesh, event): THandlerOutEvent<Self>,
    ) {
        if let Some(of) = self.meshes.get_mut(&mesh)
            && of.peers.contains_key(&peer)
        {
            of.inner.on_connection_handler_event(peer, connection, event);
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        self.waker = Some(cx.waker().clone());
        if let Some(opening) = self.next_opening() {
            return Poll::Ready(opening);
        }
        for (id, mesh) in &mut self.meshes {
            while let Poll::Ready(event) = mesh.inner.poll(cx) {
                if let Some(event) = translate(*id, event) {
                    return Poll::Ready(event);
                }
            }
        }
        Poll::Pending
    }
}

/// What the swarm learns of an event of one mesh's gossipsub; none when that is nothing.
fn translate(
    mesh: MeshId,
    event: ToSwarm<gossipsub::Event, THandlerInEvent<Inner>>,
) -> Option<ToSwarm<Gossiped, (MeshId, ToGated)>> {
    match event {
        ToSwarm::GenerateEvent(gossipsub::Event::Message {
            propagation_source,
            message_id,
            message,
        }) => Some(ToSwarm::GenerateEvent(Gossiped {
            mesh,
            from: propagation_source,
            id: message_id,
            data: message.data,
        })),
        ToSwarm::NotifyHandler { peer_id, handler, event } => {
            Some(ToSwarm::NotifyHandler { peer_id, handler, event: (mesh, ToGated::Inner(event)) })
        }
        // Peers that gossipsub would like to dial are strangers' hints, and the rest is for statistics.
        _ => None,
    }
}

/// What the behaviour tells the handler of one connection and mesh.
#[derive(Debug)]
pub(crate) enum ToGated {
    /// The peer accepts our gossip from now on.
    Open,
    /// gossipsub's own.
    Inner(THandlerInEvent<Inner>),
}

/// gossipsub's handler on one connection, deaf and mute until its gates open.
pub(crate) struct Gated {
    inner: InnerHandler,
    receive: Arc<AtomicBool>,
    send: Sending,
}

type Outbound = SubstreamProtocol<<InnerHandler as ConnectionHandler>::OutboundProtocol>;

/// The sending direction of a gate.
enum Sending {
    /// No stream may be opened; one that gossipsub asked for waits here.
    Shut(Option<Outbound>),
    /// Streams may be opened, first the one that waited.
    Open(Option<Outbound>),
}

impl Gated {
    fn poll_inner(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<
        ConnectionHandlerEvent<
            <Self as ConnectionHandler>::OutboundProtocol,
            (),
            <Self as ConnectionHandler>::ToBehaviour,
        >,
    > {
        if let Sending::Open(waiting) = &mut self.send
            && let Some(protocol) = waiting.take()
        {
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol });
        }
        loop {
            match (self.inner.poll(cx), &mut self.send) {
                (
                    Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest { protocol }),
                    Sending::Shut(waiting),
                ) => *waiting = Some(protocol),
                (event, _) => return event,
            }
        }
    }
}

impl ConnectionHandler for Gated {
    type FromBehaviour = ToGated;
    type ToBehaviour = <InnerHandler as ConnectionHandler>::ToBehaviour;
    type InboundProtocol = <InnerHandler as ConnectionHandler>::InboundProtocol;
    type OutboundProtocol = <InnerHandler as ConnectionHandler>::OutboundProtocol;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        if self.receive.load(Ordering::Acquire) {
            self.inner.listen_protocol()
        } else {
            SubstreamProtocol::new(Either::Right(DeniedUpgrade), ())
        }
    }

    fn connection_keep_alive(&self) -> bool {
        // Members stay connected; strangers are cut by the idle timeout at the latest.
        matches!(self.send, Sending::Open(_)) || self.inner.connection_keep_alive()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, (), Self::ToBehaviour>> {
        if self.receive.load(Ordering::Acquire) { self.poll_inner(cx) } else { Poll::Pending }
    }

    fn on_behaviour_event(&mut self, event: ToGated) {
        match event {
            ToGated::Open => {
                let (Sending::Shut(waiting) | Sending::Open(waiting)) = &mut self.send;
                self.send = Sending::Open(waiting.take());
            }
            ToGated::Inner(event) => self.inner.on_behaviour_event(event),
        }
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol>,
    ) {
        self.inner.on_connection_event(event);
    }
}
