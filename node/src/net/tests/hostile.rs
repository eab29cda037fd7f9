//! A member that does not keep to the rules: it costs bounded memory, is limited with a counted reason, and the
//! others are served meanwhile.

use std::io;

use libp2p::futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use libp2p::swarm::SwarmEvent;
use libp2p::{PeerId, Stream, StreamProtocol, Swarm};
use meshfarm_protocol::message::{CONTROL_PROTOCOL, Hello, MAX_CONTROL_BYTES, WIRE_VERSION};
use tokio::task::JoinHandle;

use super::super::peer::peer_of;
use super::*;

/// What all tests of this program together may take more than before. One of the attacks below, believed, takes
/// a hundred times as much.
const ROOM: u64 = 512 * 1024 * 1024;

/// What an honest member may wait for its answer while another misbehaves.
const SERVED: Duration = Duration::from_secs(10);

const CONTROL: StreamProtocol = StreamProtocol::new(CONTROL_PROTOCOL);

/// Speaks the control protocol byte by byte.
pub(super) struct Rogue {
    pub(super) streams: libp2p_stream::Control,
    pub(super) target: PeerId,
    pub(super) site: SiteId,
    /// Lanes that the target opens.
    pub(super) lanes: libp2p_stream::IncomingStreams,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Rogue {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

fn hello(key: &SigningKey) -> Hello {
    let certificates = vec![certificate(&root(), key, FOREVER)];
    Hello { versions: (WIRE_VERSION, WIRE_VERSION), certificates }
}

impl Rogue {
    /// Connected, and nothing said; asked who it is, it does not say.
    async fn stranger(target: &Node, byte: u8) -> Self {
        Self::connected(target, byte, false).await
    }

    async fn connected(target: &Node, byte: u8, proves: bool) -> Self {
        let key = key(byte);
        let behaviour = libp2p_stream::Behaviour::new();
        let mut streams = behaviour.new_control();
        let mut incoming = streams.accept(CONTROL).unwrap();
        let lanes = streams.accept(lanes::PROTOCOL).unwrap();
        let site = key.site();
        let config = libp2p::swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(Duration::from_secs(60));
        let peer = peer::keypair(&key).public().to_peer_id();
        let mut swarm = Swarm::new(transport::transport(&key).unwrap(), behaviour, peer, config);
        swarm.dial(target.address().await).unwrap();
        within("a connection", async {
            while !matches!(
                swarm.select_next_some().await,
                SwarmEvent::ConnectionEstablished { .. }
            ) {}
        })
        .await;
        let driving = tokio::spawn(async move {
            loop {
                let _event = swarm.select_next_some().await;
            }
        });
        let answering = tokio::spawn(async move {
            while let Some((_, mut stream)) = incoming.next().await {
                let asked = codec::read::<Request>(&mut stream, MAX_CONTROL_BYTES).await;
                if matches!(asked, Ok(Request::Hello(_))) {
                    let answer = match proves {
                        true => Answer::Hello(hello(&key)),
                        false => Answer::Refused("who are you?".into()),
                    };
                    let _gone = codec::write(&mut stream, &answer, MAX_CONTROL_BYTES).await;
                }
            }
        });
        let target = peer_of(&target.site()).unwrap();
        Self { streams, target, site, lanes, tasks: [driving, answering] }
    }

    /// Connected, with a good certificate shown and accepted.
    pub(super) async fn member(target: &Node, byte: u8) -> Self {
        let mut rogue = Self::connected(target, byte, true).await;
        let answer = rogue.ask(&Request::Hello(hello(&key(byte)))).await.unwrap();
        assert!(matches!(answer, Answer::Hello(_)), "{answer:?}");
        rogue
    }

    async fn open(&mut self) -> io::Result<Stream> {
        self.open_as(CONTROL).await
    }

    pub(super) async fn open_as(&mut self, protocol: StreamProtocol) -> io::Result<Stream> {
        let opening = self.streams.open_stream(self.target, protocol);
        let opened = tokio::time::timeout(SERVED, opening).await;
        opened.map_err(io::Error::other)?.map_err(io::Error::other)
    }

    async fn ask(&mut self, request: &Request) -> io::Result<Answer> {
        let mut stream = self.open().await?;
        codec::write(&mut stream, request, MAX_CONTROL_BYTES).await?;
        codec::read(&mut stream, MAX_CONTROL_BYTES).await
    }
}

/// Memory of this program that is in use, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// The end of a stream that nothing more comes from.
pub(super) async fn ended(stream: &mut Stream) {
    let mut rest = Vec::new();
    let _reset = within("the end of a stream", stream.read_to_end(&mut rest)).await;
    assert!(rest.is_empty(), "{} bytes were answered", rest.len());
}

fn broken(node: &Node) -> u64 {
    node.net.counters().messages_broken.load(Ordering::Relaxed)
}

/// `honest` asks `target` and is answered, soon.
async fn is_served(target: &mut Node, honest: &Node) {
    let served = async {
        let (asked, _) = tokio::join!(honest.net.request(target.site(), log_part(1000)), async {
            let from = honest.site();
            target
                .event("a request", |event| match event {
                    Event::Asked { from: asking, answer, .. } if asking == from => {
                        answer.send(Answer::LogHave(1000)).ok()
                    }
                    _ => None,
                })
                .await
        });
        assert!(matches!(asked, Ok(Answer::LogHave(1000))), "{asked:?}");
    };
    tokio::time::timeout(SERVED, served).await.expect("an honest member is served meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_that_say_nothing_are_dropped_and_the_others_are_served() {
    let (honest, mut target) = pair(TCP).await;
    let before = resident();
    let mut silent = Vec::new();
    let mut rogues = Vec::new();
    for n in 0..3 {
        // One connection carries no more than 512 streams.
        let mut rogue = Rogue::member(&target, 66 + n).await;
        for _ in 0..400 {
            silent.push(rogue.open().await.unwrap());
        }
        rogues.push(rogue);
        is_served(&mut target, &honest).await;
    }
    assert!(resident() < before + ROOM, "{} bytes more", resident() - before);
    for stream in &mut silent {
        ended(stream).await;
    }
    assert!(broken(&target) >= 256, "{} were counted", broken(&target));
    is_served(&mut target, &honest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn absurd_and_lying_lengths_end_their_stream_at_once_and_are_counted() {
    let (honest, mut target) = pair(TCP).await;
    let mut rogue = Rogue::member(&target, 66).await;
    let before = resident();
    let honest_bytes = meshfarm_protocol::codec::encode(&Request::Hello(hello(&key(66))));
    let len = u32::try_from(honest_bytes.len()).unwrap();
    let with = |claim: u32| [&claim.to_be_bytes()[..], &honest_bytes].concat();
    let mut said = vec![with(len - 1), with(0), with(1)];
    said.extend((0..100).map(|n| with(u32::MAX - n)));
    said.push(with(u32::try_from(MAX_CONTROL_BYTES).unwrap() + 1));
    let n = said.len() as u64;
    for bytes in said {
        let mut stream = rogue.open().await.unwrap();
        let _reset = stream.write_all(&bytes).await;
        let _reset = stream.flush().await;
        ended(&mut stream).await;
    }
    assert_eq!(broken(&target), n);
    // It promises one byte more than it sends, and ends.
    let mut stream = rogue.open().await.unwrap();
    stream.write_all(&with(len + 1)).await.unwrap();
    stream.close().await.unwrap();
    ended(&mut stream).await;
    assert_eq!(broken(&target), n + 1);
    assert!(resident() < before + ROOM);
    is_served(&mut target, &honest).await;
    let answer = rogue.ask(&Request::Hello(hello(&key(66)))).await;
    assert!(matches!(answer, Ok(Answer::Hello(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_that_comes_byte_by_byte_is_given_up_within_its_time() {
    let (honest, mut target) = pair(TCP).await;
    let mut rogue = Rogue::member(&target, 66).await;
    let mut stream = rogue.open().await.unwrap();
    stream.write_all(&1000_u32.to_be_bytes()).await.unwrap();
    let (mut reading, mut writing) = stream.split();
    let began = std::time::Instant::now();
    let dripping = async {
        loop {
            let _reset = writing.write_all(&[0x80]).await;
            let _reset = writing.flush().await;
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let mut rest = Vec::new();
    tokio::select! {
        biased;
        _ended = within("the end of it", reading.read_to_end(&mut rest)) => {}
        () = dripping => {}
    }
    assert!(rest.is_empty() && began.elapsed() < Duration::from_secs(15));
    assert_eq!(broken(&target), 1);
    is_served(&mut target, &honest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_messages_left_unfinished_hold_up_nobody_else() {
    let (honest, mut target) = pair(TCP).await;
    let mut rogue = Rogue::member(&target, 66).await;
    let before = resident();
    let mut unfinished = Vec::new();
    let most = vec![0x80; MAX_CONTROL_BYTES / 4];
    for _ in 0..200 {
        let mut stream = rogue.open().await.unwrap();
        let claim = u32::try_from(MAX_CONTROL_BYTES).unwrap();
        let writing = async {
            stream.write_all(&claim.to_be_bytes()).await?;
            stream.write_all(&most).await?;
            stream.flush().await
        };
        // Nothing takes it, so that the stream's window may be full before all of it is written.
        let _slow = tokio::time::timeout(Duration::from_millis(50), writing).await;
        unfinished.push(stream);
    }
    is_served(&mut target, &honest).await;
    let long = honest.net.request(target.site(), log_part(900_000));
    let (asked, _) = tokio::join!(long, target.answer(Answer::LogHave(900_000)));
    assert!(matches!(asked, Ok(Answer::LogHave(900_000))), "{asked:?}");
    assert!(resident() < before + ROOM, "{} bytes more", resident() - before);
    drop(unfinished);
    until("the end of them", || async { broken(&target) >= 100 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_requests_is_answered_or_refused_and_the_others_are_served() {
    let (honest, mut target) = pair(TCP).await;
    let mut stranger = Rogue::stranger(&target, 67).await;
    let mut refused = 0;
    for _ in 0..100 {
        match stranger.ask(&log_part(1)).await {
            Ok(Answer::Refused(_)) => refused += 1,
            Ok(other) => panic!("{other:?}"),
            Err(_cut) => break,
        }
    }
    assert!(refused > 16, "{refused} were refused");
    let counted = || target.net.counters().requests_refused.load(Ordering::Relaxed);
    assert!(counted() >= refused);
    let rogue = Rogue::member(&target, 66).await;
    let floods: Vec<_> = (0..40)
        .map(|_| {
            let mut one = rogue.streams.clone();
            let to = rogue.target;
            tokio::spawn(async move {
                let mut answered = 0;
                for _ in 0..100 {
                    let Ok(mut stream) = one.open_stream(to, CONTROL).await else {
                        continue;
                    };
                    let asked = Request::Hello(hello(&key(66)));
                    let _reset = codec::write(&mut stream, &asked, MAX_CONTROL_BYTES).await;
                    let answer = codec::read::<Answer>(&mut stream, MAX_CONTROL_BYTES).await;
                    answered += usize::from(answer.is_ok());
                }
                answered
            })
        })
        .collect();
    for _ in 0..5 {
        is_served(&mut target, &honest).await;
    }
    let mut answered = 0;
    for flood in floods {
        answered += within("the flood's end", flood).await.unwrap();
    }
    assert!(answered > 1000, "{answered} were answered");
    is_served(&mut target, &honest).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_member_said_admits_nobody_when_it_is_said_again() {
    let (_honest, target) = pair(TCP).await;
    let mut stranger = Rogue::stranger(&target, 67).await;
    // As the first site said it, certificate and all.
    let replayed = stranger.ask(&Request::Hello(hello(&key(1)))).await.unwrap();
    assert!(
        matches!(&replayed, Answer::Refused(why) if why.contains("another site")),
        "{replayed:?}"
    );
    let asked = stranger.ask(&Request::Core(close(1))).await.unwrap();
    assert!(matches!(&asked, Answer::Refused(why) if why.contains("certificate")), "{asked:?}");
    assert_eq!(target.net.peers().await.len(), 1);
}
