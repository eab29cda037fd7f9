//! Streams of bulk lanes: each is opened on the least used direct connection to a peer, never over a relay.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::io;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionHandler, ConnectionHandlerEvent, ConnectionId,
    FromSwarm, NetworkBehaviour, NotifyHandler, StreamUpgradeError, SubstreamProtocol, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{PeerId, Stream, StreamProtocol};
use tokio::sync::oneshot;

use super::lanes::PROTOCOL;

/// Streams of one connection that may wait for the swarm to look at them; more are dropped.
const MAX_INBOUND: usize = 16;

/// Streams that may be opening on one connection; more are refused.
const MAX_OPENING: usize = 32;

/// Where an opened stream goes.
pub(crate) type Opened = oneshot::Sender<io::Result<Stream>>;

/// A peer has opened a lane.
#[derive(Debug)]
pub(crate) struct Inbound {
    pub(crate) peer: PeerId,
    pub(crate) stream: Stream,
}

/// One connection.
#[derive(Debug)]
struct Connection {
    peer: PeerId,
    /// Relays carry control messages only.
    direct: bool,
    /// Streams that were opened on it so far.
    n_opened: u64,
}

/// Opens and accepts the streams of lanes.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    connections: HashMap<ConnectionId, Connection>,
    events: VecDeque<ToSwarm<Inbound, Open>>,
}

/// Tells a connection to open a stream.
#[derive(Debug)]
pub(crate) struct Open(Opened);

impl Streams {
    /// Opens a stream to `peer` on the direct connection that has carried the fewest. What comes of it is said to
    /// `opened`.
    pub(crate) fn open(&mut self, peer: PeerId, opened: Opened) {
        let direct = self.connections.iter_mut().filter(|(_, one)| one.peer == peer && one.direct);
        let Some((id, connection)) = direct.min_by_key(|(id, one)| (one.n_opened, **id)) else {
            let none = io::Error::new(io::ErrorKind::NotConnected, "there is no direct connection");
            let _gone = opened.send(Err(none));
            return;
        };
        connection.n_opened += 1;
        self.events.push_back(ToSwarm::NotifyHandler {
            peer_id: peer,
            handler: NotifyHandler::One(*id),
            event: Open(opened),
        });
    }

    /// How many direct connections there are to `peer`.
    pub(crate) fn n_direct(&self, peer: PeerId) -> usize {
        self.connections.values().filter(|one| one.peer == peer && one.direct).count()
    }

    fn add(&mut self, id: ConnectionId, peer: PeerId, addresses: [&Multiaddr; 2]) -> Lines {
        let relayed = |address: &&Multiaddr| address.iter().any(|p| p == Protocol::P2pCircuit);
        let direct = !addresses.iter().any(relayed);
        self.connections.insert(id, Connection { peer, direct, n_opened: 0 });
        Lines::default()
    }
}

impl NetworkBehaviour for Streams {
    type ConnectionHandler = Lines;
    type ToSwarm = Inbound;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.add(id, peer, [local, remote]))
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.add(id, peer, [address, address]))
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        if let FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. }) = event {
            self.connections.remove(&connection_id);
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _: ConnectionId,
        stream: THandlerOutEvent<Self>,
    ) {
        self.events.push_back(ToSwarm::GenerateEvent(Inbound { peer, stream }));
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        // Whoever pushes an event does so while the swarm is being driven, and the swarm polls on.
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}

/// The lanes of one connection.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    /// To be opened.
    asked: VecDeque<Opened>,
    /// Being opened. All are alike, so whichever is ready first goes to who has waited longest.
    opening: VecDeque<Opened>,
    inbound: VecDeque<Stream>,
}

type Upgrade = ReadyUpgrade<StreamProtocol>;

impl ConnectionHandler for Lines {
    type FromBehaviour = Open;
    type ToBehaviour = Stream;
    type InboundProtocol = Upgrade;
    type OutboundProtocol = Upgrade;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Upgrade> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Upgrade, (), Self::ToBehaviour>> {
        if let Some(stream) = self.inbound.pop_front() {
            return Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(stream));
        }
        if let Some(opened) = self.asked.pop_front() {
            self.opening.push_back(opened);
            return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                protocol: SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ()),
            });
        }
        Poll::Pending
    }

    fn on_behaviour_event(&mut self, Open(opened): Open) {
        if self.asked.len() + self.opening.len() < MAX_OPENING {
            self.asked.push_back(opened);
        } else {
            let busy = io::Error::new(io::ErrorKind::WouldBlock, "too many lanes are being opened");
            let _gone = opened.send(Err(busy));
        }
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Upgrade, Upgrade>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: stream,
                ..
            }) if self.inbound.len() < MAX_INBOUND => self.inbound.push_back(stream),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: stream,
                ..
            }) => {
                if let Some(opened) = self.opening.pop_front() {
                    let _gone = opened.send(Ok(stream));
                }
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                if let Some(opened) = self.opening.pop_front() {
                    let _gone = opened.send(Err(why(error)));
                }
            }
            // Failed streams of the other end, and news of protocols that are known already.
            _ => {}
        }
    }
}

fn why(error: StreamUpgradeError<Infallible>) -> io::Error {
    match error {
        StreamUpgradeError::Timeout => io::ErrorKind::TimedOut.into(),
        StreamUpgradeError::NegotiationFailed => {
            io::Error::new(io::ErrorKind::Unsupported, "the site speaks another version of lanes")
        }
        StreamUpgradeError::Io(error) => error,
        StreamUpgradeError::Apply(never) => match never {},
    }
}
