//! Those who have no good certificate: they are answered nothing, hear nothing and are not heard.

use libp2p::futures::StreamExt;
use libp2p::gossipsub;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::{NetworkBehaviour, SwarmEvent};
use libp2p::{StreamProtocol, Swarm};
use meshfarm_protocol::message::{CONTROL_PROTOCOL, Hello, WIRE_VERSION};
use meshfarm_protocol::receipt::Price;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::peer::peer_of;
use super::*;

/// A node that does not keep to the rules: plain gossipsub, and requests of its own choice.
#[derive(NetworkBehaviour)]
struct Rude {
    control: request_response::Behaviour<codec::ControlCodec>,
    gossip: gossipsub::Behaviour,
}

pub(super) struct Intruder {
    swarm: Swarm<Rude>,
    heard: usize,
    closed: bool,
    /// Questions that it leaves open.
    asked: Vec<request_response::ResponseChannel<Answer>>,
}

fn topic() -> gossipsub::IdentTopic {
    gossip::topic(root().mesh())
}

impl Intruder {
    pub(super) async fn into(target: &Node, as_key: u8) -> Self {
        let key = key(as_key);
        let config = gossip::config(root().mesh());
        let anonymous = gossipsub::MessageAuthenticity::Anonymous;
        let mut gossip = gossipsub::Behaviour::new(anonymous, config).unwrap();
        gossip.subscribe(&topic()).unwrap();
        let control = request_response::Behaviour::with_codec(
            codec::ControlCodec::new(Arc::default()),
            [(StreamProtocol::new(CONTROL_PROTOCOL), ProtocolSupport::Full)],
            request_response::Config::default().with_request_timeout(DEADLINE),
        );
        let peer = peer::keypair(&key).public().to_peer_id();
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(Duration::from_secs(60));
        let carried = transport::transport(&key).unwrap();
        let mut swarm = Swarm::new(carried, Rude { control, gossip }, peer, config);
        swarm.dial(target.address().await).unwrap();
        let mut intruder = Self { swarm, heard: 0, closed: false, asked: Vec::new() };
        while !intruder.swarm.is_connected(&peer_of(&target.site()).unwrap()) {
            within("a connection", intruder.step()).await;
        }
        intruder
    }

    /// One event; the answer, if it is one. What is asked of it is not answered.
    async fn step(&mut self) -> Option<Answer> {
        match self.swarm.select_next_some().await {
            SwarmEvent::Behaviour(RudeEvent::Control(request_response::Event::Message {
                message: request_response::Message::Response { response, .. },
                ..
            })) => Some(response),
            SwarmEvent::Behaviour(RudeEvent::Control(request_response::Event::Message {
                message: request_response::Message::Request { channel, .. },
                ..
            })) => {
                self.asked.push(channel);
                None
            }
            SwarmEvent::Behaviour(RudeEvent::Gossip(gossipsub::Event::Message { .. })) => {
                self.heard += 1;
                None
            }
            SwarmEvent::ConnectionClosed { .. } => {
                self.closed = true;
                None
            }
            _ => None,
        }
    }

    pub(super) async fn ask(&mut self, target: &Node, request: Request) -> Answer {
        let to = peer_of(&target.site()).unwrap();
        self.swarm.behaviour_mut().control.send_request(&to, request);
        within("an answer", async {
            loop {
                if let Some(answer) = self.step().await {
                    return answer;
                }
            }
        })
        .await
    }
}

pub(super) fn shown(certificate: Certificate) -> Request {
    Request::Hello(Hello {
        versions: (WIRE_VERSION, WIRE_VERSION),
        certificates: vec![certificate],
    })
}

pub(super) fn refused(answer: Answer) -> String {
    match answer {
        Answer::Refused(why) => why,
        other => panic!("not refused: {other:?}"),
    }
}

/// A profile of `of`, gossiped under a good certificate.
fn profile(of: &SigningKey, sequence: u64) -> SignedProfile {
    let profile = Profile {
        version: PROFILE_VERSION,
        site: of.site(),
        name: format!("site {}", of.site().short()),
        sequence,
        issued: SystemClock.now(),
        ttl: Millis::seconds(90),
        hosts: Vec::new(),
        free: 1,
        lending: true,
        passes_on: false,
        sealing_key: SealingKey([1; 32]),
        addresses: Vec::new(),
        price: Price::default(),
    };
    SignedProfile::sign(&profile, certificate(&root(), of, FOREVER), of)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_is_answered_nothing_and_then_cut() {
    let mut target = member(1, TCP).await;
    let mut intruder = Intruder::into(&target, 66).await;
    for request in [log_part(1), Request::Core(close(1))] {
        let why = refused(intruder.ask(&target, request).await);
        assert!(why.contains("certificate"), "{why}");
    }
    within("the cut", async {
        while !intruder.closed {
            intruder.step().await;
        }
    })
    .await;
    assert_eq!(target.net.counters().peers_cut.load(Ordering::Relaxed), 1);
    while let Ok(event) = target.events.try_recv() {
        assert!(matches!(event, Event::Listening(_)), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_expired_and_foreign_certificates_are_refused_with_the_reason() {
    let target = member(1, TCP).await;
    let mut intruder = Intruder::into(&target, 66).await;
    let me = key(66);
    let mut body = certificate(&root(), &me, FOREVER).open().unwrap();
    let cases = [
        (certificate(&root(), &me, Millis(1)), "expired"),
        (certificate(&key(201), &me, FOREVER), "mesh of this site"),
        (certificate(&root(), &key(2), FOREVER), "another site"),
        (Certificate::sign(&body, &key(201)), "not signed"),
    ];
    for (shown_one, words) in cases {
        let why = refused(intruder.ask(&target, shown(shown_one)).await);
        assert!(why.contains(words), "{why}");
    }
    body.name = "bad/name".into();
    refused(intruder.ask(&target, shown(Certificate::sign(&body, &root()))).await);
    assert!(target.net.peers().await.is_empty());
    let good = shown(certificate(&root(), &me, FOREVER));
    assert!(matches!(intruder.ask(&target, good).await, Answer::Hello(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_gossip_and_a_stranger_neither_hears_nor_is_heard() {
    let (mut a, mut b) = pair(TCP).await;
    let mut intruder = Intruder::into(&a, 66).await;
    let mesh = root().mesh();
    let sequence = AtomicU64::new(1);
    let (sender, of) = (a.net.clone(), a.key.clone());
    let gossip_again = || async {
        let next = sequence.fetch_add(1, Ordering::Relaxed);
        sender.publish(mesh, profile(&of, next)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let is_of = |site: SiteId| {
        move |event: Event| match event {
            Event::Profile { profile, .. } if profile.site == site => Some(profile),
            _ => None,
        }
    };
    // Sent until the neighbours know each other's topics; heard once it is.
    let heard = {
        let hearing = b.event("gossip", is_of(a.site()));
        tokio::pin!(hearing);
        loop {
            tokio::select! {
                heard = &mut hearing => break heard,
                () = gossip_again() => {}
                _ = intruder.step() => {}
            }
        }
    };
    assert_eq!(heard.site, a.site());
    // Long enough for heartbeats to graft an intruder that was let in, and every round is new gossip. What it
    // sends is a member's real profile, which would be believed if it were heard.
    for round in 1..=4 {
        gossip_again().await;
        let listening = async {
            loop {
                intruder.step().await;
            }
        };
        let _elapsed = tokio::time::timeout(Duration::from_millis(1100), listening).await;
        let data = meshfarm_protocol::codec::encode(&profile(&key(77), round));
        let sent = intruder.swarm.behaviour_mut().gossip.publish(topic(), data);
        assert!(sent.is_err(), "somebody told the intruder what it listens to");
    }
    assert_eq!(intruder.heard, 0);
    let stolen = |event: &Event| matches!(event, Event::Profile { profile, .. } if profile.site == key(77).site());
    while let Ok(event) = a.events.try_recv() {
        assert!(!stolen(&event), "{event:?}");
    }
    while let Ok(event) = b.events.try_recv() {
        assert!(!stolen(&event), "{event:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_profile_is_passed_on_to_members_that_are_not_connected_to_its_site() {
    let (a, mut b) = pair(TCP).await;
    let mut c = member(3, TCP).await;
    c.call(&b).await;
    c.up(&b).await;
    b.up(&c).await;
    let site = a.site();
    let hearing = c.event("gossip", |event| match event {
        Event::Profile { profile, .. } if profile.site == site => Some(profile.free),
        _ => None,
    });
    tokio::pin!(hearing);
    for sequence in 1.. {
        a.net.publish(root().mesh(), profile(&a.key, sequence)).await;
        // A site is heard once a second.
        let pause = tokio::time::sleep(Duration::from_millis(1100));
        tokio::select! {
            free = &mut hearing => {
                assert_eq!(free, 1);
                break;
            }
            () = pause => {}
        }
    }
    assert_eq!(a.net.peers().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_certificate_expires_is_cut() {
    let mut a = member(1, TCP).await;
    let b = stranger(2, TCP);
    let soon = SystemClock.now().plus(Millis::seconds(2));
    let short = certificate(&root(), &b.key, soon);
    b.net.add_mesh(root().mesh(), short).await;
    a.call(&b).await;
    a.up(&b).await;
    a.down(b.site()).await;
    assert!(SystemClock.now() >= soon);
    assert_eq!(a.net.counters().peers_cut.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_bytes_on_the_ports_leave_the_node_working() {
    let listen: Vec<Multiaddr> = [TCP, QUIC].map(|text| text.parse().unwrap()).to_vec();
    let mut a = start_at(1, &listen).unwrap();
    let own = certificate(&root(), &a.key, FOREVER);
    a.net.add_mesh(root().mesh(), own).await;
    let net = &a.net;
    until("both ports", || async move { net.listen_addresses().await.len() == 2 }).await;
    let ports: HashMap<bool, u16> = net
        .listen_addresses()
        .await
        .iter()
        .map(|address| {
            let text = address.to_string();
            let port = text.split('/').nth(4).unwrap().parse().unwrap();
            (peer::is_tcp(address), port)
        })
        .collect();
    let noise: Vec<u8> =
        (0..20_000_u32).map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[1]).collect();
    let udp = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for n in 0..40_usize {
        let mut tcp = tokio::net::TcpStream::connect(("127.0.0.1", ports[&true])).await.unwrap();
        let _closed = tcp.write_all(&noise[n * 100..n * 100 + 5000]).await;
        let datagram = &noise[n * 50..n * 50 + 1200];
        udp.send_to(datagram, ("127.0.0.1", ports[&false])).await.unwrap();
        if n % 8 == 0 {
            let mut rest = Vec::new();
            let _reset = within("the end of it", tcp.read_to_end(&mut rest)).await;
        }
    }
    let mut b = member(2, TCP).await;
    b.call(&a).await;
    b.up(&a).await;
    a.up(&b).await;
}
