//! Bytes from strangers: whatever is decoded never panics and never takes much more memory than it is long.
#![expect(unsafe_code, reason = "counting memory needs an allocator of our own")]
#![expect(clippy::unwrap_used, reason = "a test panics when its set-up fails")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::Path;

use meshfarm_protocol::codec::{self, encode};
use meshfarm_protocol::id::{ChunkId, MeshId, Millis, SiteId, TenantId};
use meshfarm_protocol::lease::{Commit, Done, LeaseSecrets};
use meshfarm_protocol::manifest::{Limits, Reader, RootLink};
use meshfarm_protocol::matching::fit;
use meshfarm_protocol::membership::{Certificate, Ticket};
use meshfarm_protocol::message::{
    Answer, Ask, LaneHello, MAX_ASK_BYTES, MAX_CONTROL_BYTES, MAX_LANE_HELLO_BYTES, Message,
    PassBody, PieceHeader, Request, SignedProfile, WIRE_VERSION,
};
use meshfarm_protocol::profile::{HostClass, Level, MAX_PROFILE_BYTES, Profile, Requirement};
use meshfarm_protocol::seal::{
    self, ChunkKey, Envelope, MAX_CONTENTS, MAX_PLAIN, SealedChunk, SealingSecret, TenantSecret,
};
use meshfarm_protocol::session::{self, FromRunner, JobFile, ToRunner};
use proptest::prelude::*;
use serde::Deserialize;

/// Decoding may hold so many bytes for each byte that came. The densest value that there is, a set of
/// the shortest texts that differ, takes 12.
const TIMES: usize = 16;

/// The same for an offer, whose requirement is copied into the reasons why a host does not fit it.
const TIMES_MATCHED: usize = 2 * TIMES;

/// The same for JSON, which does not say how long a list is: the list doubles as it grows, and holds
/// 24 bytes for each three (`"",`).
const TIMES_JSON: usize = 24;

/// And so many whatever came: serde believes the claimed length of a list up to 1 MiB (which is
/// reserved, not touched), and no value that a peer sends has more than two lists open at once.
const AHEAD: usize = 2 * 1024 * 1024 + 64 * 1024;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static PEAK: Cell<usize> = const { Cell::new(0) };
}

/// The system's allocator, counting for each thread what it holds.
struct Counting;

fn took(size: usize) {
    let live = LIVE.get().wrapping_add(size);
    LIVE.set(live);
    PEAK.set(PEAK.get().max(live));
}

fn gave(size: usize) {
    LIVE.set(LIVE.get().saturating_sub(size));
}

// SAFETY: every call goes to the system's allocator unchanged; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: our caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        gave(layout.size());
        // SAFETY: our caller keeps the contract of `dealloc`, and `at` came from `System`.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both count: the bytes may be copied from one place to the other.
        took(size);
        // SAFETY: our caller keeps the contract of `realloc`, and `at` came from `System`.
        let moved = unsafe { System.realloc(at, layout, size) };
        gave(layout.size());
        moved
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// The most bytes that `act` holds at any moment, beyond what was held before.
fn peak_of(act: impl FnOnce()) -> usize {
    let before = LIVE.get();
    PEAK.set(before);
    act();
    PEAK.get().saturating_sub(before)
}

/// One way in which bytes from outside are read.
struct Door {
    name: &'static str,
    /// Longer bytes never get so far.
    max: usize,
    /// How many bytes it may hold for each byte that came.
    times: usize,
    read: fn(&[u8]),
}

const fn door(name: &'static str, max: usize, read: fn(&[u8])) -> Door {
    Door { name, max, times: TIMES, read }
}

const DOORS: [Door; 18] = [
    Door { name: "request", max: MAX_CONTROL_BYTES, times: TIMES_MATCHED, read: read_request },
    door("request", MAX_CONTROL_BYTES, decode::<Request>),
    door("answer", MAX_CONTROL_BYTES, read_answer),
    door("signed-profile", MAX_PROFILE_BYTES + 8192, read_signed_profile),
    door("profile", MAX_PROFILE_BYTES, read_profile),
    door("certificate", MAX_CONTROL_BYTES, read_certificate),
    door("envelope", MAX_CONTROL_BYTES, read_envelope),
    door("lease-secrets", MAX_CONTENTS, read_secrets),
    door("chunk-key", MAX_CONTENTS, decode::<ChunkKey>),
    door("manifest-link", MAX_CONTENTS, decode::<RootLink>),
    door("lane-hello", MAX_LANE_HELLO_BYTES, read_lane_hello),
    door("lane-pass", MAX_LANE_HELLO_BYTES, decode::<PassBody>),
    door("lane-ask", MAX_ASK_BYTES, read_ask),
    door("piece", 12, read_piece),
    door("ticket-text", 1 << 20, read_ticket),
    door("manifest", MAX_PLAIN, read_manifest),
    Door { name: "job-file", max: session::MAX_LINE, times: TIMES_JSON, read: read_lines },
    door("chunk", seal::MAX_SEALED + 1, read_chunk),
];

/// The doors of a golden value: those with the longest name that its name begins with.
fn doors_of(name: &str) -> impl Iterator<Item = &'static Door> {
    let fits = |door: &&Door| name.starts_with(door.name);
    let longest = DOORS.iter().filter(fits).map(|door| door.name.len()).max();
    let longest = longest.unwrap_or_else(|| panic!("{name} has no door"));
    let name = name[..longest].to_owned();
    DOORS.iter().filter(move |door| door.name == name)
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) {
    let _ = codec::decode::<T>(bytes, bytes.len());
}

fn decoded<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Option<T> {
    codec::decode(bytes, bytes.len()).ok()
}

fn read_request(bytes: &[u8]) {
    match decoded::<Request>(bytes) {
        Some(Request::Hello(hello)) => hello.certificates.iter().for_each(open_certificate),
        Some(Request::Core(message)) => read_message(message),
        Some(Request::Join(_) | Request::Log(_)) | None => {}
    }
}

fn read_message(message: Message) {
    match message {
        Message::Offer(offer) => match_requirement(&offer.requirement),
        Message::Commit(commit) => {
            let Commit { envelope, .. } = *commit;
            open_envelope(&envelope);
        }
        Message::Done(done) => {
            let Done { outputs, .. } = *done;
            outputs.iter().for_each(|outputs| open_envelope(&outputs.envelope));
        }
        _ => {}
    }
}

fn match_requirement(requirement: &Requirement) {
    let host: HostClass = HostClass {
        count: 1,
        description: String::new(),
        amounts: [].into(),
        attributes: [].into(),
        software: [].into(),
        slots: 1,
        speed: 1000,
        level: Level::S2,
    };
    let _ = fit(requirement, Level::S2, &host);
}

fn read_answer(bytes: &[u8]) {
    match decoded::<Answer>(bytes) {
        Some(Answer::Hello(hello)) => hello.certificates.iter().for_each(open_certificate),
        Some(Answer::Joined(certificate)) => open_certificate(&certificate),
        Some(Answer::Refused(_) | Answer::Heard | Answer::LogHave(_)) | None => {}
    }
}

fn open_certificate(certificate: &Certificate) {
    let _ = certificate.admits(MeshId([1; 32]), SiteId([2; 32]), Millis(3));
}

fn read_certificate(bytes: &[u8]) {
    if let Some(certificate) = decoded(bytes) {
        open_certificate(&certificate);
    }
}

fn read_signed_profile(bytes: &[u8]) {
    if let Some(signed) = decoded::<SignedProfile>(bytes) {
        open_certificate(&signed.certificate);
        read_profile(&signed.body);
    }
}

fn read_profile(bytes: &[u8]) {
    if let Some(profile) = decoded::<Profile>(bytes) {
        for host in &profile.hosts {
            let _ = fit(&Requirement::default(), Level::S2, host);
        }
    }
}

fn open_envelope(envelope: &Envelope) {
    let _ = seal::open_envelope(envelope, &SealingSecret::from_seed([4; 32]), Millis(1));
}

fn read_envelope(bytes: &[u8]) {
    if let Some(envelope) = decoded(bytes) {
        open_envelope(&envelope);
    }
}

fn read_secrets(bytes: &[u8]) {
    if let Some(secrets) = decoded::<LeaseSecrets>(bytes) {
        let _ = secrets.session.layout.check();
        let _ = session::path_rules(&secrets.session.layout);
    }
}

fn read_lane_hello(bytes: &[u8]) {
    if let Some(LaneHello { pass: Some(pass), .. }) = decoded(bytes) {
        let _ = pass.open(SiteId([1; 32]), Millis(0));
    }
}

fn read_ask(bytes: &[u8]) {
    if let Some(ask) = decoded::<Ask>(bytes) {
        let _ = ask.ids().map(Iterator::count);
    }
}

fn read_piece(bytes: &[u8]) {
    if let Some(header) = bytes.first_chunk() {
        let _ = PieceHeader::from_bytes(*header);
    }
}

fn read_ticket(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = Ticket::from_text(text);
    }
}

fn read_lines(bytes: &[u8]) {
    let _ = session::from_line::<JobFile>(bytes);
    let _ = session::from_line::<FromRunner>(bytes);
    let _ = session::from_line::<ToRunner>(bytes);
}

fn read_chunk(bytes: &[u8]) {
    let cid = seal::chunk_id(bytes);
    let _ = seal::open_chunk(&cid, &ChunkKey([8; 32]), bytes);
    let _ = seal::check_chunk(&ChunkId([0; 32]), bytes);
}

/// Reads `plain` as the root of a manifest, as its node of files and as its node of chunks. Whoever
/// writes a manifest seals what he likes, so its nodes are as hostile as a message.
fn read_manifest(plain: &[u8]) {
    let secret = TenantSecret::new(TenantId([5; 16]), 7, [6; 32]).nodes();
    let node = seal::seal_chunk(&secret, plain);
    read_tree(&RootLink { cid: node.cid, key: node.key.clone() }, &[&node]);
    // `{"l": 0, "f": []}`: the byte of a text of one letter is itself an `a`.
    let empty = seal::seal_chunk(&secret, b"\xa2al\0af\x80");
    for (files, chunks) in [(&node, &empty), (&empty, &node)] {
        let root = seal::seal_chunk(&secret, &root_over(files, chunks));
        let link = RootLink { cid: root.cid, key: root.key.clone() };
        read_tree(&link, &[&root, files, chunks]);
    }
}

fn read_tree(link: &RootLink, nodes: &[&SealedChunk]) {
    let fetch = |cid: &ChunkId| {
        let found = nodes.iter().find(|node| node.cid == *cid);
        found.map(|node| node.bytes.clone()).ok_or(std::fmt::Error)
    };
    let limits = Limits::granting(1 << 20);
    let Ok(mut reader) = Reader::new(link, limits, fetch) else {
        return;
    };
    while let Ok(Some(_)) = reader.next_file() {}
    let _ = reader.root().files.open(&nodes[0].bytes);
    let _ = reader.root().tree.open(&nodes[0].bytes);
}

/// A root that any reader takes, over nodes that say what they like.
fn root_over(files: &SealedChunk, chunks: &SealedChunk) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct Row<'a> {
        v: u64,
        tenant: TenantId,
        epoch: u64,
        files: (ChunkId, &'a ChunkKey, u64, u64),
        tree: (ChunkId, &'a ChunkKey, u64, u64),
        n: u64,
        bytes: u64,
        created: u64,
    }
    encode(&Row {
        v: 1,
        tenant: TenantId([5; 16]),
        epoch: 7,
        files: (files.cid, &files.key, 2, 2005),
        tree: (chunks.cid, &chunks.key, 1, 2000),
        n: 2,
        bytes: 2005,
        created: 0,
    })
}

/// Reads `bytes` through `door` and measures. A panic in it is the test's panic.
fn knock(door: &Door, bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(door.max)];
    let peak = peak_of(|| (door.read)(bytes));
    let allowed = door.times * bytes.len() + AHEAD;
    assert!(
        peak <= allowed,
        "{}: {} bytes take {peak} where {allowed} are allowed; they begin with {:02x?}",
        door.name,
        bytes.len(),
        &bytes[..bytes.len().min(64)]
    );
}

fn knock_as(name: &str, bytes: &[u8]) {
    doors_of(name).for_each(|door| knock(door, bytes));
}

fn knock_everywhere(bytes: &[u8]) {
    DOORS.iter().for_each(|door| knock(door, bytes));
}

/// The golden bytes of this wire version: name and bytes.
fn golden() -> Vec<(String, Vec<u8>)> {
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(WIRE_VERSION.to_string());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let text: String = fs::read_to_string(&path).unwrap().split_whitespace().collect();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        found.push((name, data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()));
    }
    found.sort();
    assert!(found.len() > 40, "only {} golden values were found", found.len());
    found
}

/// Heads that claim a list, map, text or byte string of 2^62, 2^32 or 2^20 elements, or one without end.
const CLAIMS: [&[u8]; 16] = [
    &[0x9b, 0x40, 0, 0, 0, 0, 0, 0, 0],
    &[0xbb, 0x40, 0, 0, 0, 0, 0, 0, 0],
    &[0x7b, 0x40, 0, 0, 0, 0, 0, 0, 0],
    &[0x5b, 0x40, 0, 0, 0, 0, 0, 0, 0],
    &[0x9b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
    &[0x9a, 0xff, 0xff, 0xff, 0xff],
    &[0xba, 0xff, 0xff, 0xff, 0xff],
    &[0x7a, 0xff, 0xff, 0xff, 0xff],
    &[0x5a, 0xff, 0xff, 0xff, 0xff],
    &[0x9a, 0, 0x10, 0, 0],
    &[0x5a, 0, 0x10, 0, 0],
    &[0x9f],
    &[0xbf],
    &[0x7f],
    &[0x5f],
];

#[test]
fn golden_bytes_cut_short_anywhere_are_refused_within_bounds() {
    for (name, bytes) in golden() {
        for end in 0..=bytes.len() {
            knock_as(&name, &bytes[..end]);
        }
    }
}

#[test]
fn a_changed_byte_anywhere_does_no_harm() {
    for (name, bytes) in golden() {
        for at in 0..bytes.len() {
            for value in [0, 0x17, 0x80, 0xff, bytes[at] ^ 1, bytes[at] ^ 0x20, bytes[at] ^ 0x80] {
                let mut changed = bytes.clone();
                changed[at] = value;
                knock_as(&name, &changed);
            }
        }
    }
}

#[test]
fn a_length_that_lies_anywhere_takes_no_memory() {
    for (name, bytes) in golden() {
        for at in 0..bytes.len() {
            for claim in CLAIMS {
                knock_as(&name, &[&bytes[..at], claim, &bytes[at + 1..]].concat());
            }
        }
    }
}

#[test]
fn every_golden_value_at_every_wrong_door_is_refused() {
    for (_, bytes) in golden() {
        knock_everywhere(&bytes);
    }
}

#[test]
fn nesting_without_end_is_refused_before_the_stack_ends() {
    let heads: [&[u8]; 10] = [
        b"\x81",
        b"\x9f",
        b"\xbf",
        b"\xa1\x60",
        b"\xa1",
        b"\xc0",
        b"\xd8\x40",
        b"\x7f",
        b"[",
        b"{\"a\":",
    ];
    for head in heads {
        knock_everywhere(&head.repeat(MAX_CONTROL_BYTES / head.len()));
    }
    // The same where a field of a message should stand, known or not.
    for (name, bytes) in golden() {
        for head in heads {
            let deep = [&bytes[..bytes.len().min(20)], &head.repeat(200_000)].concat();
            knock_as(&name, &deep);
        }
    }
}

/// The longest values that are made of the shortest elements, where memory grows most.
#[test]
fn the_densest_values_stay_within_bounds() {
    let offer = golden().into_iter().find(|(name, _)| name == "request-core-offer").unwrap().1;
    let at = find(&offer, b"\x66any_of") + 7;
    let rest = &offer[at + 1 + 5 + 3..];
    for order in [|n| n, |n| 200_000 - n] as [fn(u32) -> u32; 2] {
        let texts: Vec<_> = (0..200_000).map(|n| short_text(order(n))).collect();
        let dense = [&offer[..at], &encode(&texts), rest].concat();
        assert!(decoded::<Request>(&dense).is_some(), "a dense offer is an offer");
        knock_as("request", &dense);
    }
    let profile = golden().into_iter().find(|(name, _)| name == "profile").unwrap().1;
    let at = find(&profile, b"\x69addresses") + 10;
    for list in [&[0x99, 0x75, 0x30][..], &[0x9f]] {
        let empty = [&profile[..at], list, &[0x60; 30_000], &[0xff]].concat();
        knock_as("profile", &empty);
    }
    let lines = format!("{{\"log\":{{\"task\":1,\"lines\":[{}\"\"]}}}}", "\"\",".repeat(340_000));
    knock_as("job-file", lines.as_bytes());
    let control = "\u{1}".repeat(MAX_CONTROL_BYTES - 64);
    for text in [encode(&control), encode(&[control.as_str()]), control.clone().into_bytes()] {
        knock_everywhere(&text);
    }
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|window| window == what).expect("the field is there")
}

/// A text of at most four bytes that no other number has.
fn short_text(n: u32) -> String {
    let n = if n < 0xd800 { n } else { n + 0x800 };
    char::from_u32(n).expect("surrogates are stepped over").to_string()
}

/// A CBOR head of any kind, with an argument that is short, long or absurd.
fn head() -> impl Strategy<Value = Vec<u8>> {
    let argument = prop_oneof![
        (0_u8..24).prop_map(|n| (n, Vec::new())),
        any::<u8>().prop_map(|n| (24, vec![n])),
        any::<u16>().prop_map(|n| (25, n.to_be_bytes().into())),
        any::<u32>().prop_map(|n| (26, n.to_be_bytes().into())),
        any::<u64>().prop_map(|n| (27, n.to_be_bytes().into())),
        Just((31, Vec::new())),
    ];
    (0_u8..8, argument).prop_map(|(major, (info, rest))| {
        let mut bytes = vec![(major << 5) | info];
        bytes.extend(rest);
        bytes
    })
}

/// What is done to golden bytes.
#[derive(Clone, Debug)]
enum Harm {
    Set(prop::sample::Index, u8),
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize, usize),
    Graft(prop::sample::Index, prop::sample::Index),
}

fn harm() -> impl Strategy<Value = Harm> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Harm::Set(at, byte)),
        (at(), head()).prop_map(|(at, head)| Harm::Insert(at, head)),
        (at(), 1_usize..40).prop_map(|(at, n)| Harm::Remove(at, n)),
        (at(), 1_usize..200, 2_usize..400).prop_map(|(at, n, times)| Harm::Repeat(at, n, times)),
        (at(), at()).prop_map(|(other, at)| Harm::Graft(other, at)),
    ]
}

fn harmed(mut bytes: Vec<u8>, harms: Vec<Harm>, all: &[(String, Vec<u8>)]) -> Vec<u8> {
    for harm in harms {
        let len = bytes.len();
        if len == 0 {
            break;
        }
        match harm {
            Harm::Set(at, value) => bytes[at.index(len)] = value,
            Harm::Insert(at, more) => drop(bytes.splice(at.index(len)..at.index(len), more)),
            Harm::Remove(at, n) => {
                let at = at.index(len);
                drop(bytes.drain(at..len.min(at + n)));
            }
            Harm::Repeat(at, n, times) => {
                let at = at.index(len);
                let part = bytes[at..len.min(at + n)].repeat(times);
                drop(bytes.splice(at..at, part));
            }
            Harm::Graft(other, at) => {
                bytes.truncate(at.index(len));
                bytes.extend_from_slice(&other.get(all).1);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn bytes_of_any_kind_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        knock_everywhere(&bytes);
    }

    #[test]
    fn heads_of_any_kind_do_no_harm(heads in prop::collection::vec(head(), 0..80)) {
        knock_everywhere(&heads.concat());
    }

    #[test]
    fn harmed_golden_bytes_do_no_harm(
        from in any::<prop::sample::Index>(),
        harms in prop::collection::vec(harm(), 1..6),
    ) {
        let all = golden();
        let (name, bytes) = from.get(&all);
        let bytes = harmed(bytes.clone(), harms, &all);
        knock_as(name, &bytes);
    }

    #[test]
    fn any_text_is_a_ticket_or_is_refused(text in "\\PC{0,300}", tail in "[a-zA-Z2-7 \n=]{0,300}") {
        for text in [text.clone(), format!("meshfarm1{tail}"), format!("{text}meshfarm1{tail}")] {
            knock_as("ticket-text", text.as_bytes());
            prop_assert!(Ticket::from_text(&text).is_err());
        }
    }

    /// The checksum holds, so that what is decoded is what a stranger has written.
    #[test]
    fn a_ticket_of_any_bytes_is_refused(
        bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..300),
            prop::collection::vec(head(), 0..60).prop_map(|heads| heads.concat()),
        ],
    ) {
        let sum = seal::content_hash(&bytes);
        let coded = data_encoding::BASE32_NOPAD.encode(&[&bytes, &sum[..4]].concat());
        let text = format!("meshfarm1{}", coded.to_lowercase());
        knock_as("ticket-text", text.as_bytes());
        prop_assert!(Ticket::from_text(&text).is_err());
    }
}

#[test]
fn the_scale_weighs_what_is_taken() {
    let peak = peak_of(|| {
        let first = vec![1_u8; 5000];
        drop(first);
        let second = vec![1_u8; 3000];
        std::hint::black_box(&second);
    });
    assert!((5000..6000).contains(&peak), "{peak}");
}
