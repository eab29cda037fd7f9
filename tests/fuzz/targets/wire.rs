//! Every decoder that a peer reaches: the first byte chooses one, the rest is what the peer sent.
#![no_main]

use libfuzzer_sys::fuzz_target;
use meshfarm_protocol::codec::{self, encode};
use meshfarm_protocol::id::{ChunkId, MeshId, Millis, SiteId};
use meshfarm_protocol::lease::LeaseSecrets;
use meshfarm_protocol::manifest::RootLink;
use meshfarm_protocol::matching::fit;
use meshfarm_protocol::membership::{Certificate, Ticket};
use meshfarm_protocol::message::{
    Answer, Ask, LaneHello, MAX_ASK_BYTES, MAX_ASKED, MAX_CONTROL_BYTES, MAX_LANE_HELLO_BYTES,
    MAX_PIECE_BYTES, Message, PassBody, PieceHeader, Request, SignedProfile,
};
use meshfarm_protocol::profile::{HostClass, Level, MAX_PROFILE_BYTES, Profile, Requirement};
use meshfarm_protocol::seal::{
    self, ChunkKey, Envelope, MAX_CONTENTS, MAX_SEALED, SEAL_OVERHEAD, SealingSecret,
};
use meshfarm_protocol::session;
use serde::Serialize;
use serde::de::DeserializeOwned;

fuzz_target!(|bytes: &[u8]| {
    let Some((door, bytes)) = bytes.split_first() else {
        return;
    };
    match door % 18 {
        0 => request(bytes),
        1 => answer(bytes),
        2 => signed_profile(bytes),
        3 => profile(bytes),
        4 => certificate(bytes),
        5 => drop(value::<Envelope>(bytes, MAX_CONTROL_BYTES).map(|it| open_envelope(&it))),
        6 => secrets(bytes),
        7 => drop(value::<ChunkKey>(bytes, MAX_CONTENTS)),
        8 => drop(value::<RootLink>(bytes, MAX_CONTENTS)),
        9 => lane_hello(bytes),
        10 => piece(bytes),
        11 => ticket_text(bytes),
        12 => ticket_bytes(bytes),
        13 => chunk(bytes),
        14 => sealed_envelope(bytes),
        15 => drop(value::<Message>(bytes, MAX_CONTROL_BYTES)),
        16 => drop(value::<PassBody>(bytes, MAX_LANE_HELLO_BYTES)),
        _ => ask(bytes),
    }
});

/// What is decoded says the same when it is encoded and decoded again: two sites never read one message in
/// two ways.
fn value<T: DeserializeOwned + Serialize>(bytes: &[u8], max: usize) -> Option<T> {
    let value: T = codec::decode(bytes, max).ok()?;
    let ours = encode(&value);
    let again: T = codec::decode(&ours, ours.len()).expect("what we write we can read");
    assert_eq!(encode(&again), ours);
    Some(value)
}

fn lane_hello(bytes: &[u8]) {
    if let Some(LaneHello { pass: Some(pass), .. }) = value(bytes, MAX_LANE_HELLO_BYTES) {
        assert_eq!(pass.open(SiteId([1; 32]), Millis(0)), None, "nobody can sign for a site");
    }
}

fn ask(bytes: &[u8]) {
    let ask = value::<Ask>(bytes, MAX_ASK_BYTES);
    let n = ask.as_ref().and_then(Ask::ids).map(Iterator::count);
    assert!(n.is_none_or(|n| (1..=MAX_ASKED).contains(&n)));
}

fn request(bytes: &[u8]) {
    match value::<Request>(bytes, MAX_CONTROL_BYTES) {
        Some(Request::Hello(hello)) => hello.certificates.iter().for_each(open_certificate),
        Some(Request::Core(message)) => message_means(message),
        Some(Request::Join(_) | Request::Log(_)) | None => {}
    }
}

fn message_means(message: Message) {
    match message {
        Message::Offer(offer) => {
            for why in fit(&offer.requirement, offer.isolation, &host()) {
                assert!(!why.to_string().is_empty());
            }
        }
        Message::Commit(commit) => open_envelope(&commit.envelope),
        Message::Done(done) => done.outputs.iter().for_each(|it| open_envelope(&it.envelope)),
        _ => {}
    }
}

fn host() -> HostClass {
    HostClass {
        count: 1,
        description: String::new(),
        amounts: [("amount.worker.vcpu".to_owned(), meshfarm_protocol::profile::Amount(8000))]
            .into(),
        attributes: [("attr.worker.os.family".to_owned(), ["linux".to_owned()].into())].into(),
        software: [].into(),
        slots: 1,
        speed: 1000,
        level: Level::S2,
    }
}

fn answer(bytes: &[u8]) {
    match value::<Answer>(bytes, MAX_CONTROL_BYTES) {
        Some(Answer::Hello(hello)) => hello.certificates.iter().for_each(open_certificate),
        Some(Answer::Joined(certificate)) => open_certificate(&certificate),
        Some(Answer::Refused(_) | Answer::Heard | Answer::LogHave(_)) | None => {}
    }
}

fn signed_profile(bytes: &[u8]) {
    if let Some(signed) = value::<SignedProfile>(bytes, MAX_PROFILE_BYTES + 8192) {
        open_certificate(&signed.certificate);
        profile(&signed.body);
    }
}

fn profile(bytes: &[u8]) {
    if let Some(profile) = value::<Profile>(bytes, MAX_PROFILE_BYTES) {
        for host in &profile.hosts {
            let _ = fit(&Requirement::default(), Level::S2, host);
        }
    }
}

fn certificate(bytes: &[u8]) {
    if let Some(certificate) = value(bytes, MAX_CONTROL_BYTES) {
        open_certificate(&certificate);
    }
}

fn open_certificate(certificate: &Certificate) {
    let _ = certificate.admits(MeshId([1; 32]), SiteId([2; 32]), Millis(3));
}

fn open_envelope(envelope: &Envelope) {
    let _ = seal::open_envelope(envelope, &SealingSecret::from_seed([4; 32]), Millis(1));
}

fn secrets(bytes: &[u8]) {
    if let Some(secrets) = value::<LeaseSecrets>(bytes, MAX_CONTENTS) {
        let _ = secrets.session.layout.check();
        let _ = session::path_rules(&secrets.session.layout);
    }
}

fn piece(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk()
        && let Some(header) = PieceHeader::from_bytes(*head)
    {
        assert!(header.len as usize <= MAX_PIECE_BYTES);
        assert_eq!(header.to_bytes(), *head);
    }
}

fn ticket_text(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(ticket) = Ticket::from_text(text)
    {
        assert_eq!(Ticket::from_text(&ticket.to_text()), Ok(ticket));
    }
}

/// A ticket whose checksum holds, over any bytes.
fn ticket_bytes(bytes: &[u8]) {
    let sum = seal::content_hash(bytes);
    let coded = data_encoding::BASE32_NOPAD.encode(&[bytes, &sum[..4]].concat());
    let text = format!("meshfarm1{}", coded.to_lowercase());
    if let Ok(ticket) = Ticket::from_text(&text) {
        assert!(ticket.addresses.len() <= 16);
        assert_eq!(Ticket::from_text(&ticket.to_text()), Ok(ticket));
    }
}

fn chunk(bytes: &[u8]) {
    let cid = seal::chunk_id(bytes);
    let fits = (SEAL_OVERHEAD..=MAX_SEALED).contains(&bytes.len());
    assert_eq!(seal::check_chunk(&cid, bytes).is_ok(), fits);
    assert!(seal::check_chunk(&ChunkId([0; 32]), bytes).is_err());
    assert!(seal::open_chunk(&cid, &ChunkKey([8; 32]), bytes).is_err());
}

/// Contents that a member sealed to us as it should be: what is inside is as hostile as any message.
fn sealed_envelope(bytes: &[u8]) {
    let secret = SealingSecret::from_seed([4; 32]);
    let signer = seal::SigningKey::from_seed(&[5; 32]);
    let address = seal::Address {
        from: signer.site(),
        to: SiteId([2; 32]),
        key: secret.public(),
        job: meshfarm_protocol::id::JobId([3; 16]),
        root: ChunkId([6; 32]),
        expires: Millis(u64::MAX),
    };
    let seed = seal::EnvelopeSeed { ephemeral: [7; 32], nonce: [8; 24] };
    let Ok(envelope) = seal::seal_envelope(&signer, address, bytes, seed) else {
        assert!(bytes.len() > MAX_CONTENTS);
        return;
    };
    let opened = seal::open_envelope(&envelope, &secret, Millis(1)).expect("it was sealed to us");
    assert_eq!(opened.as_slice(), bytes);
    secrets(&opened);
}
