//! The exact bytes of one value of everything that two sites exchange, so that none changes unnoticed.
//!
//! The bytes stand in `golden/N` for wire version N, one value in each file. They are written once:
//! bytes that must change need a new version, and with it a new folder.
#![expect(clippy::unwrap_used, reason = "a test panics when its set-up fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use meshfarm_protocol::codec::{self, encode};
use meshfarm_protocol::id::{
    AttemptId, ChunkId, JobId, LeaseId, Millis, StepNo, TaskNo, TenantId, hex,
};
use meshfarm_protocol::job::{Access, JailProfile, Layout, PathFormat, Root, SessionSpec};
use meshfarm_protocol::lease::{
    Assignment, Commit, Declined, Done, Grant, LeaseSecrets, Offer, Outcome, Outputs, Phase,
    Status, Usage, Want,
};
use meshfarm_protocol::manifest::build::Builder;
use meshfarm_protocol::manifest::{Body, Entry, File, Limits, RootLink};
use meshfarm_protocol::membership::{Certificate, CertificateBody, Role, Ticket};
use meshfarm_protocol::message::{
    Answer, Ask, Hello, Join, LaneHello, LogPart, Message, Pass, PassBody, PieceHeader, PieceKind,
    Request, SignedProfile, WIRE_VERSION,
};
use meshfarm_protocol::profile::{
    Amount, AmountNeed, AttributeNeed, HostClass, Level, MEMORY, PROFILE_VERSION, Profile,
    Requirement, VCPU, version_values,
};
use meshfarm_protocol::receipt::{
    Contested, Entry as Booked, Money, Price, RECEIPT_VERSION, Receipt, SignedVerdict, Terms, Used,
    Verdict, receipt_hash, sign_receipt, sign_verdict,
};
use meshfarm_protocol::seal::{
    self, Address, ChunkKey, Envelope, EnvelopeSeed, SealingSecret, SigningKey, TenantSecret,
};
use meshfarm_protocol::session::{
    EnvironmentFile, JobFile, MappedFormat, MappingRule, SESSION_VERSION, TemplateFormat,
};

/// Set to write the files that are missing. One that is there is never written again.
const WRITE: &str = "MESHFARM_WRITE_GOLDEN";

const BLENDER: &str = "meshfarm:attr.software.blender";

fn folder() -> PathBuf {
    let version = WIRE_VERSION.to_string();
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version)
}

fn lease() -> LeaseId {
    LeaseId([0x1e; 16])
}

fn attempt(n: u8) -> AttemptId {
    AttemptId([n; 16])
}

fn borrower() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn lender() -> SigningKey {
    SigningKey::from_seed(&[2; 32])
}

fn mesh_root() -> SigningKey {
    SigningKey::from_seed(&[3; 32])
}

fn sealing() -> SealingSecret {
    SealingSecret::from_seed([4; 32])
}

fn tenant() -> TenantSecret {
    TenantSecret::new(TenantId([5; 16]), 7, [6; 32])
}

fn certificate() -> Certificate {
    let body = CertificateBody {
        version: 1,
        mesh: mesh_root().mesh(),
        mesh_name: "consortium".into(),
        site: lender().site(),
        name: "lyon".into(),
        role: Role::Site,
        issued: Millis(1_700_000_000_000),
        expires: Millis(1_800_000_000_000),
        serial: 42,
    };
    Certificate::sign(&body, &mesh_root())
}

fn ticket() -> Ticket {
    Ticket {
        mesh: mesh_root().mesh(),
        mesh_name: "consortium".into(),
        authority: borrower().site(),
        addresses: vec!["/ip4/192.0.2.1/tcp/4510".into(), "/dns4/oslo.example/tcp/4510".into()],
        role: Role::Submitter,
        expires: Millis(1_800_000_000_000),
        secret: [7; 32],
    }
}

fn requirement() -> Requirement {
    let cpus = AmountNeed { min: Amount::whole(4), max: None };
    let memory = AmountNeed { min: Amount::whole(2048), max: Some(Amount::from_f64(4096.5)) };
    let blender = AttributeNeed {
        any_of: BTreeSet::from(["v3_4".to_owned(), "v4".to_owned()]),
        all_of: BTreeSet::from(["any".to_owned()]),
    };
    Requirement {
        amounts: BTreeMap::from([(VCPU.into(), cpus), (MEMORY.into(), memory)]),
        attributes: BTreeMap::from([(BLENDER.into(), blender)]),
    }
}

fn profile() -> Profile {
    let host = HostClass {
        count: 2,
        description: "AMD EPYC 7551, Debian 12".into(),
        amounts: BTreeMap::from([(VCPU.into(), Amount::whole(64))]),
        attributes: [(BLENDER.into(), version_values("3.4.1"))].into(),
        software: BTreeMap::from([("blender".into(), "3.4.1".into())]),
        slots: 64,
        speed: 870,
        level: Level::S2,
    };
    Profile {
        version: PROFILE_VERSION,
        site: lender().site(),
        name: "lyon".into(),
        sequence: (3 << 32) | 9,
        issued: Millis(1_700_000_000_000),
        ttl: Millis::seconds(90),
        hosts: vec![host],
        free: 12,
        lending: true,
        passes_on: true,
        sealing_key: sealing().public(),
        addresses: vec!["/ip4/192.0.2.2/tcp/4510".into()],
        price: price(),
    }
}

fn secrets() -> LeaseSecrets {
    let root = |id: &str, source: &str, format, access| Root {
        id: id.into(),
        source: source.into(),
        format,
        access,
    };
    LeaseSecrets {
        root_key: ChunkKey([8; 32]),
        outputs_to: sealing().public(),
        session: SessionSpec {
            layout: Layout {
                roots: vec![
                    root("r0", "/show/shot", PathFormat::Posix, Access::In),
                    root("r1", r"S:\show\out", PathFormat::Windows, Access::Out),
                ],
            },
            step: StepNo(1),
            environments: true,
            timeout: Some(Millis::seconds(3600)),
            silence: None,
            profile: JailProfile::Command,
        },
    }
}

/// The same for a task that may not be silent for long.
fn secrets_silence() -> LeaseSecrets {
    let mut secrets = secrets();
    secrets.session.silence = Some(Millis::seconds(300));
    secrets
}

/// The same for a program that needs little.
fn secrets_profile() -> LeaseSecrets {
    let mut secrets = secrets();
    secrets.session.profile = JailProfile::Povray;
    secrets
}

fn envelope(contents: &[u8]) -> Envelope {
    let address = Address {
        from: borrower().site(),
        to: lender().site(),
        key: sealing().public(),
        job: JobId([9; 16]),
        root: ChunkId([10; 32]),
        expires: Millis(1_700_000_600_000),
    };
    let seed = EnvelopeSeed { ephemeral: [11; 32], nonce: [12; 24] };
    seal::seal_envelope(&borrower(), address, contents, seed).unwrap()
}

fn want() -> Want {
    let assignment = |n| Assignment { attempt: attempt(n), task: TaskNo(n.into()) };
    Want { lease: lease(), version: 3, attempts: vec![assignment(1), assignment(2)], more: true }
}

fn offer() -> Offer {
    Offer {
        lease: lease(),
        tenant: TenantId([5; 16]),
        requirement: requirement(),
        isolation: Level::S2,
        slots: 2,
        tasks: 240,
        root: ChunkId([10; 32]),
        bytes: 5_000_000_000,
        priority: 50,
        hops: 2,
    }
}

fn done(outcome: Outcome, outputs: Option<Outputs>) -> Message {
    let usage = Usage {
        wall: Millis(61_000),
        cpu: Millis(60_500),
        peak_memory: 250 << 20,
        output_bytes: 3_000_000,
    };
    let done = Done { lease: lease(), attempt: attempt(1), outcome, outputs, usage };
    Message::Done(Box::new(done))
}

fn status(phase: Phase) -> Message {
    let (running, finished) = (vec![attempt(1)], vec![attempt(2), attempt(3)]);
    Message::Status(Status { lease: lease(), phase, running, finished })
}

const fn price() -> Price {
    Price { core_hour: Money(50), card_hour: Money(1200) }
}

fn contested() -> Contested {
    let used = Used { done: 1, core: Millis(4000), wall: Millis(2000), ..Used::default() };
    Contested::new(used, Money(1), "processor time 5.000 s, of which 4.000 s is right".into())
}

/// A receipt as its lender sends it, or as its borrower answers it.
fn booked(contested: Option<Contested>) -> Booked {
    let used = Used {
        done: 1,
        failed: 1,
        core: Millis(5_000),
        card: Millis(9_000),
        peak_memory: 1 << 30,
        content: 1 << 20,
        output: 1 << 16,
        wall: Millis(9_000),
    };
    let receipt = encode(&Receipt {
        version: RECEIPT_VERSION,
        mesh: mesh_root().mesh(),
        lender: lender().site(),
        borrower: borrower().site(),
        sequence: 6,
        previous: [14; 32],
        at: Millis(1_700_000_000_000),
        lease: lease(),
        tenant: TenantId([5; 16]),
        isolation: Level::S2,
        price: price(),
        used,
        waived: Money(1),
        amount: price().of(&used).less(Money(1)),
        attempts: vec![attempt(1), attempt(2)],
    });
    let hash = receipt_hash(&receipt);
    let verdict = contested.map(|own| {
        let verdict =
            Verdict { receipt: hash, at: Millis(1_700_000_000_001), contested: Some(own) };
        let body = encode(&verdict);
        SignedVerdict { signature: sign_verdict(&body, &borrower()), body }
    });
    Booked { lender: sign_receipt(&receipt, &lender()), receipt, verdict }
}

fn messages() -> Vec<Message> {
    let outputs = Outputs { root: ChunkId([13; 32]), envelope: envelope(&[8; 32]) };
    let commit =
        Commit { want: want(), root: ChunkId([10; 32]), envelope: envelope(&encode(&secrets())) };
    let declined = |reason| Message::Decline { lease: lease(), reason, retry_after: Millis(5000) };
    let grant = Grant {
        lease: lease(),
        slots: 1,
        reserved: Millis::seconds(10),
        sealing_key: sealing().public(),
        isolation: Level::S3,
        terms: Terms { mesh: mesh_root().mesh(), price: price(), cores: 2000, cards: 1 },
    };
    vec![
        Message::Offer(offer()),
        Message::Grant(grant),
        declined(Declined::Busy),
        declined(Declined::Misfit),
        declined(Declined::Policy),
        declined(Declined::Full),
        declined(Declined::Malformed),
        Message::Commit(Box::new(commit)),
        Message::Want(want()),
        status(Phase::Preparing),
        status(Phase::Active),
        status(Phase::Draining),
        status(Phase::Gone),
        done(Outcome::Done, Some(outputs)),
        done(Outcome::Failed("the renderer ended with 1".into()), None),
        Message::Accepted { lease: lease(), attempt: attempt(1), counts: true },
        Message::Receipt(Box::new(booked(None))),
        Message::Receipt(Box::new(booked(Some(contested())))),
        Message::Behind { lender: lender().site(), next: 7 },
        Message::Close { lease: lease() },
        Message::Source { lease: lease(), source: lender().site(), pass: Box::new(pass()) },
    ]
}

/// The name of a message's file. A new variant does not compile until it has a name here; it needs a
/// value in [`messages`] too.
fn message_name(message: &Message) -> String {
    match message {
        Message::Offer(_) => "offer".into(),
        Message::Grant(_) => "grant".into(),
        Message::Decline { reason, .. } => match reason {
            Declined::Busy => "decline-busy".into(),
            Declined::Misfit => "decline-misfit".into(),
            Declined::Policy => "decline-policy".into(),
            Declined::Full => "decline-full".into(),
            Declined::Malformed => "decline-malformed".into(),
        },
        Message::Commit(_) => "commit".into(),
        Message::Want(_) => "want".into(),
        Message::Status(status) => match status.phase {
            Phase::Preparing => "status-preparing".into(),
            Phase::Active => "status-active".into(),
            Phase::Draining => "status-draining".into(),
            Phase::Gone => "status-gone".into(),
        },
        Message::Done(done) => match done.outcome {
            Outcome::Done => "done".into(),
            Outcome::Failed(_) => "done-failed".into(),
        },
        Message::Accepted { .. } => "accepted".into(),
        Message::Receipt(entry) if entry.verdict.is_none() => "receipt".into(),
        Message::Receipt(_) => "receipt-answered".into(),
        Message::Behind { .. } => "behind".into(),
        Message::Close { .. } => "close".into(),
        Message::Source { .. } => "source".into(),
    }
}

fn pass_body() -> PassBody {
    let (borrower, to, root) = (borrower().site(), lender().site(), ChunkId([10; 32]));
    PassBody { borrower, lease: lease(), to, root, expires: Millis(1_800_000_000_000) }
}

fn pass() -> Pass {
    Pass::sign(&pass_body(), &borrower())
}

fn lane_hello(pass: Option<Pass>) -> LaneHello {
    LaneHello { lease: lease(), root: ChunkId([10; 32]), pass }
}

fn hello() -> Hello {
    Hello { versions: (1, 2), certificates: vec![certificate()] }
}

fn requests() -> Vec<Request> {
    let join = |role| Join { secret: [7; 32], name: "kyoto".into(), role };
    let log = LogPart { attempt: attempt(1), offset: 70_000, bytes: b"Rendering frame 1\n".into() };
    let core = messages().into_iter().map(Request::Core);
    let others = [
        Request::Hello(hello()),
        Request::Join(join(Role::Site)),
        Request::Join(join(Role::Host)),
        Request::Join(join(Role::Submitter)),
        Request::Log(log),
    ];
    others.into_iter().chain(core).collect()
}

fn request_name(request: &Request) -> String {
    match request {
        Request::Hello(_) => "request-hello".into(),
        Request::Join(join) => match join.role {
            Role::Site => "request-join-site".into(),
            Role::Host => "request-join-host".into(),
            Role::Submitter => "request-join-submitter".into(),
        },
        Request::Core(message) => format!("request-core-{}", message_name(message)),
        Request::Log(_) => "request-log".into(),
    }
}

fn answers() -> Vec<Answer> {
    vec![
        Answer::Hello(hello()),
        Answer::Joined(certificate()),
        Answer::Refused("the ticket has expired".into()),
        Answer::Heard,
        Answer::LogHave(70_018),
    ]
}

fn answer_name(answer: &Answer) -> &'static str {
    match answer {
        Answer::Hello(_) => "answer-hello",
        Answer::Joined(_) => "answer-joined",
        Answer::Refused(_) => "answer-refused",
        Answer::Heard => "answer-heard",
        Answer::LogHave(_) => "answer-log-have",
    }
}

fn piece(kind: PieceKind) -> (String, Vec<u8>) {
    let (name, len) = match kind {
        PieceKind::Chunk => ("piece-chunk", 70_016),
        PieceKind::Missing => ("piece-missing", 0),
        PieceKind::Have => ("piece-have", 900),
    };
    (name.into(), PieceHeader { len, kind, index: 258 }.to_bytes().into())
}

/// A manifest of a file in one chunk and a short file, node by node: as sealed, and as it reads.
fn manifest() -> Vec<(String, Vec<u8>)> {
    let long = seal::seal_chunk(&tenant().chunks(), &[14; 2000]);
    let file = |path: &str, size, body| File {
        path: path.into(),
        size,
        executable: size < 2000,
        modified: Millis(1_700_000_000_000),
        body,
    };
    let entry = Entry { cid: long.cid, key: long.key.clone(), len: 2000, flags: 0 };
    let mut builder = Builder::new(&tenant(), Millis(1_700_000_000_001), Limits::granting(1 << 20));
    builder.add(file("r0/scene.pov", 2000, Body::Chunks(1)), &[entry]).unwrap();
    builder.add(file("r0/tool.sh", 5, Body::Inline(b"true\n".into())), &[]).unwrap();
    let mut nodes = builder.take_nodes();
    let (built, rest) = builder.finish().unwrap();
    nodes.extend(rest);
    let names = ["manifest-files", "manifest-chunks", "manifest-root"];
    assert_eq!(nodes.len(), names.len(), "a small manifest has two nodes and a root");
    let mut found = vec![
        ("chunk-sealed".into(), long.bytes),
        ("chunk-address".into(), long.cid.0.into()),
        ("chunk-key".into(), encode(&long.key)),
        ("manifest-link".into(), encode(&built.link)),
    ];
    for (name, node) in names.into_iter().zip(nodes) {
        let plain = seal::open_chunk(&node.cid, &node.key, &node.bytes).unwrap();
        found.push((name.into(), plain));
        found.push((format!("{name}-sealed"), node.bytes));
    }
    found
}

fn job_file() -> JobFile {
    JobFile {
        version: SESSION_VERSION,
        format: TemplateFormat::Yaml,
        template: "specificationVersion: jobtemplate-2023-09\n".into(),
        parameters: BTreeMap::from([("Frames".into(), "1-20".into())]),
        environments: vec![],
        path_mapping: vec![],
    }
}

/// With what a submitter may put around a job.
fn job_file_around() -> JobFile {
    JobFile {
        environments: vec![EnvironmentFile { format: TemplateFormat::Json, template: "{}".into() }],
        path_mapping: vec![MappingRule {
            source_path_format: MappedFormat::Uri,
            source_path: "s3://show".into(),
            destination_path: "/show".into(),
        }],
        ..job_file()
    }
}

/// Everything that crosses from one site to another: the name of its file, and its bytes now.
fn wire() -> Vec<(String, Vec<u8>)> {
    let mut all = vec![
        ("certificate".into(), encode(&certificate())),
        ("envelope".into(), encode(&envelope(b"keys"))),
        ("lease-secrets".into(), encode(&secrets())),
        ("lease-secrets-silence".into(), encode(&secrets_silence())),
        ("lease-secrets-profile".into(), encode(&secrets_profile())),
        ("profile".into(), encode(&profile())),
        (
            "signed-profile".into(),
            encode(&SignedProfile::sign(&profile(), certificate(), &lender())),
        ),
        ("lane-hello".into(), encode(&lane_hello(None))),
        ("lane-hello-pass".into(), encode(&lane_hello(Some(pass())))),
        ("lane-pass".into(), encode(&pass_body())),
        ("lane-ask".into(), encode(&Ask::of(&[ChunkId([10; 32]), ChunkId([13; 32])], 1 << 40))),
        ("ticket-text".into(), ticket().to_text().into()),
        ("job-file".into(), serde_json::to_vec(&job_file()).unwrap()),
        ("job-file-around".into(), serde_json::to_vec(&job_file_around()).unwrap()),
        piece(PieceKind::Chunk),
        piece(PieceKind::Missing),
        piece(PieceKind::Have),
    ];
    all.extend(requests().iter().map(|request| (request_name(request), encode(request))));
    all.extend(answers().iter().map(|answer| (answer_name(answer).into(), encode(answer))));
    all.extend(manifest());
    all
}

/// Hex in lines of 32 bytes.
fn to_lines(bytes: &[u8]) -> String {
    bytes.chunks(32).map(|line| hex(line) + "\n").collect()
}

fn read(name: &str) -> Vec<u8> {
    let text = fs::read_to_string(folder().join(name).with_extension("hex")).unwrap();
    let text: String = text.split_whitespace().collect();
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

#[test]
fn no_byte_on_the_wire_has_changed_within_its_version() {
    let mut wrong = Vec::new();
    for (name, bytes) in wire() {
        let path = folder().join(&name).with_extension("hex");
        let is = to_lines(&bytes);
        if !path.exists() && std::env::var_os(WRITE).is_some() {
            fs::create_dir_all(folder()).unwrap();
            fs::write(&path, &is).unwrap();
        }
        match fs::read_to_string(&path) {
            Ok(was) if was == is => {}
            Ok(was) => wrong.push(format!("{name}: was\n{was}is\n{is}")),
            Err(_) => wrong.push(format!("{name}: has no file yet (set {WRITE}=1 to write it)")),
        }
    }
    assert!(
        wrong.is_empty(),
        "bytes of wire version {WIRE_VERSION} differ from what its sites send:\n{}\n\
         Raise WIRE_VERSION in protocol/src/message.rs, say there what changed, and run this test \
         with {WRITE}=1. Never change a file of a version that is in use.",
        wrong.join("\n")
    );
}

#[test]
fn every_file_of_golden_bytes_has_a_value_and_every_value_a_name_of_its_own() {
    let names: Vec<_> = wire().into_iter().map(|(name, _)| name).collect();
    let set: BTreeSet<_> = names.iter().cloned().collect();
    assert_eq!(set.len(), names.len(), "two values share a name: {names:?}");
    let files = fs::read_dir(folder()).unwrap().map(|entry| {
        let path = entry.unwrap().path();
        path.file_stem().unwrap().to_str().unwrap().to_owned()
    });
    assert_eq!(files.collect::<BTreeSet<_>>(), set);
}

/// Decoding the file and encoding it again gives the file.
fn returns<T: serde::Serialize + serde::de::DeserializeOwned>(name: &str) -> T {
    let bytes = read(name);
    let value: T = codec::decode(&bytes, bytes.len()).unwrap();
    assert_eq!(to_lines(&encode(&value)), to_lines(&bytes), "{name} does not return");
    value
}

#[test]
fn golden_bytes_still_mean_what_they_meant() {
    for request in requests() {
        returns::<Request>(&request_name(&request));
    }
    for answer in answers() {
        returns::<Answer>(answer_name(&answer));
    }
    let said = returns::<Certificate>("certificate").open().unwrap();
    assert_eq!((said.name.as_str(), said.serial), ("lyon", 42));
    assert_eq!(returns::<Profile>("profile"), profile());
    assert_eq!(returns::<LeaseSecrets>("lease-secrets").session, secrets().session);
    let silence = returns::<LeaseSecrets>("lease-secrets-silence").session;
    assert_eq!(silence, secrets_silence().session);
    let narrow = returns::<LeaseSecrets>("lease-secrets-profile").session;
    assert_eq!(narrow, secrets_profile().session);
    assert_eq!(returns::<LaneHello>("lane-hello").pass, None);
    let shown = returns::<LaneHello>("lane-hello-pass").pass.unwrap();
    assert_eq!(shown.open(lender().site(), Millis(0)), Some(pass_body()));
    assert_eq!(shown.open(borrower().site(), Millis(0)), None);
    assert_eq!(shown.open(lender().site(), pass_body().expires), None);
    assert_eq!(returns::<PassBody>("lane-pass"), pass_body());
    let asked: Vec<_> = returns::<Ask>("lane-ask").ids().unwrap().collect();
    assert_eq!(asked, [[10; 12], [13; 12]]);
    let signed: SignedProfile = returns("signed-profile");
    let context = meshfarm_protocol::message::PROFILE_CONTEXT;
    seal::verify(&lender().site().0, context, &signed.body, &signed.signature).unwrap();
    let contents = seal::open_envelope(&returns("envelope"), &sealing(), Millis(0)).unwrap();
    assert_eq!(contents.as_slice(), b"keys");
    let text = String::from_utf8(read("ticket-text")).unwrap();
    assert_eq!(Ticket::from_text(&text), Ok(ticket()));
    assert_eq!(serde_json::from_slice::<JobFile>(&read("job-file")).unwrap(), job_file());
    let around = serde_json::from_slice::<JobFile>(&read("job-file-around")).unwrap();
    assert_eq!(around, job_file_around());
    for name in ["piece-chunk", "piece-missing", "piece-have"] {
        let header = PieceHeader::from_bytes(read(name).try_into().unwrap()).unwrap();
        assert_eq!((header.index, header.to_bytes().to_vec()), (258, read(name)));
    }
}

#[test]
fn golden_content_still_opens() {
    let link: RootLink = returns("manifest-link");
    let root = link.open(&read("manifest-root-sealed"), &Limits::granting(1 << 20)).unwrap();
    assert_eq!((root.n_files, root.n_chunks, root.bytes), (2, 1, 2005));
    root.files.open(&read("manifest-files-sealed")).unwrap();
    root.tree.open(&read("manifest-chunks-sealed")).unwrap();
    let cid = ChunkId(read("chunk-address").try_into().unwrap());
    let plain = seal::open_chunk(&cid, &returns("chunk-key"), &read("chunk-sealed")).unwrap();
    assert_eq!(plain, [14; 2000]);
}
