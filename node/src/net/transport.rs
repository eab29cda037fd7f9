//! The real transport: TCP with Noise and Yamux, QUIC beside it, names looked up in the DNS.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{OrTransport, upgrade::Version};
use libp2p::identity::Keypair;
use libp2p::multiaddr::{Multiaddr, Protocol};
use libp2p::{PeerId, Transport, dns, noise, quic, tcp, yamux};
use meshfarm_protocol::seal::SigningKey;
use tokio::net::TcpSocket;

use super::clock::BoxedTransport;
use super::peer::keypair;

/// How long a connection may take until both ends are authenticated.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// A QUIC connection that hears nothing for so long is gone; two keep-alives fit in between.
const QUIC_IDLE_MILLIS: u32 = 30_000;

/// Why there is no transport. Nothing was opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot prepare encryption for the site's key")]
pub struct TransportError(#[source] noise::Error);

/// The transport of the node that holds `key`. It needs a running tokio runtime.
///
/// # Errors
/// When the key cannot sign the handshake's own key.
pub fn transport(key: &SigningKey) -> Result<BoxedTransport, TransportError> {
    let key = keypair(key);
    let named = dns::tokio::Transport::system(plain(&key)?);
    // Without a resolver configuration names cannot be looked up, but addresses still work.
    match named {
        Ok(named) => Ok(named.boxed()),
        Err(error) => {
            tracing::warn!(%error, "no name resolution: addresses with names will not be reached");
            plain(&key)
        }
    }
}

fn plain(key: &Keypair) -> Result<BoxedTransport, TransportError> {
    let noise = noise::Config::new(key).map_err(TransportError)?;
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(noise)
        .multiplex(yamux::Config::default())
        .timeout(HANDSHAKE);
    let mut config = quic::Config::new(key);
    config.handshake_timeout = HANDSHAKE;
    config.max_idle_timeout = QUIC_IDLE_MILLIS;
    let quic = quic::tokio::Transport::new(config);
    Ok(OrTransport::new(quic, tcp)
        .map(|either, _| match either {
            futures::future::Either::Left((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
            futures::future::Either::Right((peer, muxer)) => (peer, StreamMuxerBox::new(muxer)),
        })
        .map(|out: (PeerId, StreamMuxerBox), _| out)
        .boxed())
}

/// Whether nobody listens at `address` yet.
///
/// libp2p shares its ports for reuse, so a second node of the same user would silently get half of the first
/// one's connections; an exclusive attempt finds out.
///
/// # Errors
/// What the system says when the port cannot be had.
pub fn is_free(address: &Multiaddr) -> io::Result<()> {
    let mut parts = address.iter();
    let ip = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    match parts.next() {
        Some(Protocol::Tcp(port)) if port != 0 => {
            let address = SocketAddr::new(ip, port);
            let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
            // Bound and not listened at: a member that calls us meanwhile would keep the port busy.
            socket.set_reuseaddr(true)?;
            socket.bind(address)
        }
        Some(Protocol::Udp(port)) if port != 0 => {
            UdpSocket::bind(SocketAddr::new(ip, port)).map(drop)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_port_in_use_is_found_out_and_port_zero_is_always_free() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (tcp, udp) =
            ((tcp.local_addr().unwrap().port(), tcp), (udp.local_addr().unwrap().port(), udp));
        let busy = |text: String| is_free(&text.parse().unwrap()).is_err();
        assert!(busy(format!("/ip4/127.0.0.1/tcp/{}", tcp.0)));
        assert!(busy(format!("/ip4/127.0.0.1/udp/{}/quic-v1", udp.0)));
        assert!(!busy("/ip4/127.0.0.1/tcp/0".into()));
        drop((tcp, udp));
    }
}
