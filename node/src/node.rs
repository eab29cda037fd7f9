//! A node put together: a home opened, its rooms made, its loop run, its local API served.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc, oneshot};

use meshfarm_core::{self as core, Input, Record, Site};
use meshfarm_protocol::id::{Millis, SiteId, TenantId};
use meshfarm_protocol::job::MeshPolicy;
use meshfarm_protocol::profile::{HostClass, Level, MEMORY};
use meshfarm_protocol::seal::{self, SealingSecret, SigningKey, TenantSecret};
use meshfarm_sandbox::{self as sandbox, Programs};

use crate::api::{BackedUp, Problem, Status, causes};
use crate::backend::NodeBackend;
use crate::backup::{self, BackupError, Counted};
use crate::chunks::{Chunks, Settings as ChunkSettings};
use crate::command;
use crate::config::{Config, Home, kept_licences};
use crate::daemon::{Daemon, INPUTS, Inlets, Rooms};
use crate::doctor::{Found, Mechanism};
use crate::gate::Gate;
use crate::identity::{IdentityError, SecretFolder};
use crate::job_bundle::Catalog;
use crate::lending::{Ground, Lending, TENANT_UIDS};
use crate::logs::Logs;
use crate::machine::Machine;
use crate::means::{MAX_UNITS, Means};
use crate::mesh::Meshes;
use crate::meter::Meter;
use crate::neighbours::Neighbours;
use crate::net::{self, Outside, transport};
use crate::pace::Pace;
use crate::passing::Passing;
use crate::pins::Pins;
use crate::probe::{self, Cards};
use crate::records;
use crate::refresh::{self, Probing};
use crate::returning::Returning;
use crate::session::{self, Driver};
use crate::sharing::Sharing;
use crate::store::Store;
use crate::sweep::Sweeper;
use crate::{owner, sys, web};

/// The project of jobs that name none.
pub const DEFAULT_PROJECT: &str = "default";

/// The rooms beneath the command line.
#[derive(Clone, Copy, Debug)]
pub struct Node;

impl command::Rooms for Node {
    fn create_keys(&self, home: &Home) -> Result<(), Problem> {
        let machine = Machine::real();
        Keys::make(&SecretFolder::new(home.secrets()), &machine)
            .map(drop)
            .map_err(|error| Problem::refused(causes(&error)))
    }

    fn run_node(
        &self,
        home: &Home,
        config: Config,
        ready: &dyn Fn(&Status),
    ) -> Result<(), Problem> {
        run_with(home, config, session::run, ready)
    }

    fn backup(&self, home: &Home, file: &Path) -> Result<BackedUp, Problem> {
        let (store, chunks) = open_store(home)?;
        let counted = backup::write(home, (&store, &chunks), file);
        counted.map(|n| backed_up(file, n)).map_err(|error| backup_problem(&error))
    }

    fn restore(&self, home: &Home, file: &Path) -> Result<BackedUp, Problem> {
        let counted = backup::restore(home, file);
        counted.map(|n| backed_up(file, n)).map_err(|error| backup_problem(&error))
    }

    fn look(&self, home: &Home) -> Found {
        let report = sandbox::probe();
        let catalog = Catalog::open(Some(&home.bundles())).or_else(|_| Catalog::open(None));
        let Ok(catalog) = catalog else {
            return Found::default();
        };
        let level = level_of(report.level);
        let scratch = home.root();
        let cards = &Cards::default();
        let config = home.load().ok();
        let software = config.as_ref().map_or(&[][..], |config| &config.isolation.software);
        let (catalog_of, slots, speed) = (&catalog, None, Some(1));
        let ask = probe::Ask { catalog: catalog_of, software, scratch, slots, speed, level, cards };
        let host = probe::probe(&ask);
        let mechanisms = report.mechanisms.into_iter().map(|mechanism| Mechanism {
            name: mechanism.name.to_string(),
            in_force: mechanism.in_force,
            evidence: mechanism.evidence,
            better: mechanism.better,
        });
        Found {
            level,
            mechanisms: mechanisms.collect(),
            software: host.software,
            known: catalog
                .renderers
                .values()
                .filter(|renderer| renderer.about.probe.is_some())
                .map(|renderer| renderer.name.clone())
                .collect(),
        }
    }
}

/// Who a node is, and what it seals with.
struct Keys {
    key: SigningKey,
    sealing: SealingSecret,
    tenant: TenantSecret,
}

impl Keys {
    /// The keys in the folder; those that are not there yet are made.
    fn make(secrets: &SecretFolder, machine: &Machine) -> Result<Self, IdentityError> {
        let key = or_make(secrets.load_key(), || secrets.create_key(&machine.seed()))?;
        let sealing = secrets.load_sealing();
        let sealing = or_make(sealing, || secrets.create_sealing(&machine.seed()))?;
        let tenant = tenant_of(key.site(), DEFAULT_PROJECT);
        let secret = secrets.load_tenant(tenant, 0);
        let secret = or_make(secret, || secrets.create_tenant(tenant, 0, &machine.seed()))?;
        Ok(Self { key, sealing, tenant: secret })
    }
}

fn or_make<T>(
    loaded: Result<T, IdentityError>,
    make: impl FnOnce() -> Result<T, IdentityError>,
) -> Result<T, IdentityError> {
    match loaded {
        Err(IdentityError::Absent(_)) => make(),
        loaded => loaded,
    }
}

/// The tenant that a project of a site is.
#[must_use]
pub fn tenant_of(site: SiteId, project: &str) -> TenantId {
    let hash = seal::content_hash(&[b"meshfarm tenant", &site.0[..], project.as_bytes()].concat());
    let mut id = [0; 16];
    id.copy_from_slice(&hash[..16]);
    TenantId(id)
}

fn level_of(level: sandbox::Level) -> Level {
    match level {
        sandbox::Level::S0 => Level::S0,
        sandbox::Level::S1 => Level::S1,
        sandbox::Level::S2 => Level::S2,
        sandbox::Level::S3 => Level::S3,
    }
}

/// A home whose records are open.
struct Opened {
    machine: Machine,
    keys: Keys,
    store: Arc<Store>,
    chunks: Arc<Chunks>,
    meshes: Arc<Meshes>,
    catalog: Arc<Catalog>,
    programs: Programs,
    level: sandbox::Level,
    cards: Arc<Cards>,
}

fn backed_up(file: &Path, counted: Counted) -> BackedUp {
    BackedUp { file: file.to_owned(), records: counted.records, chunks: counted.chunks }
}

/// A backup that was refused is the person's to mend; one that broke is not.
pub(crate) fn backup_problem(error: &BackupError) -> Problem {
    match error {
        BackupError::Exists(_)
        | BackupError::HomeExists(_)
        | BackupError::Broken { .. }
        | BackupError::Config(_)
        | BackupError::Records(_)
        | BackupError::Io { .. } => Problem::refused(causes(error)),
        BackupError::Store(_) | BackupError::Chunks(_) => Problem::broken(error),
    }
}

/// The records and the content of a home.
fn open_store(home: &Home) -> Result<(Arc<Store>, Arc<Chunks>), Problem> {
    let records = home.store().join("records");
    fs::create_dir_all(&records).map_err(|error| Problem::broken(&error))?;
    let store = Store::open(&records).map_err(|error| Problem::refused(causes(&error)))?;
    let store = Arc::new(store);
    let segments = home.store().join("segments");
    let now = || net::Clock::now(&net::SystemClock);
    let settings = ChunkSettings::new(sys::free_bytes, sys::punch_hole, now);
    let chunks = Chunks::open(&segments, Arc::clone(&store), settings);
    let chunks = Arc::new(chunks.map_err(|error| Problem::refused(causes(&error)))?);
    Ok((store, chunks))
}

fn open(home: &Home) -> Result<Opened, Problem> {
    let machine = Machine::real();
    let secrets = SecretFolder::new(home.secrets());
    let keys = Keys::make(&secrets, &machine).map_err(|e| Problem::refused(causes(&e)))?;
    let (store, chunks) = open_store(home)?;
    let meshes = Meshes::load(Arc::clone(&store), secrets, keys.key.clone());
    let meshes = meshes.map_err(|error| Problem::refused(causes(&error)))?;
    meshes.renew(&machine).map_err(|error| Problem::refused(causes(&error)))?;
    let catalog = Catalog::open(Some(&home.bundles()));
    let catalog = catalog.map_err(|error| Problem::bad_input(causes(&error)))?;
    let programs = sandbox::find_programs().map_err(|error| Problem::refused(causes(&error)))?;
    let level = sandbox::probe_with(&programs.launcher).level;
    let (meshes, catalog) = (Arc::new(meshes), Arc::new(catalog));
    let cards = Arc::default();
    Ok(Opened { machine, keys, store, chunks, meshes, catalog, programs, level, cards })
}

impl Opened {
    /// What the machine offers: as remembered, and probed anew in the background; at the first start probed before
    /// anything else. From then on its programs are watched.
    fn host(&self, home: &Home, config: &Config, input_tx: &mpsc::Sender<Input>) -> HostClass {
        let probing = Probing {
            catalog: Arc::clone(&self.catalog),
            store: Arc::clone(&self.store),
            scratch: home.root().to_owned(),
            slots: config.n_slots(),
            level: level_of(self.level),
            licences: config.licences.clone(),
            software: config.isolation.software.clone(),
            cards: Arc::clone(&self.cards),
        };
        let (host, probed) = match probing.remembered() {
            Some(host) => (host, None),
            None => {
                let programs = probing.programs();
                (probing.probe(), Some(programs))
            }
        };
        tokio::spawn(refresh::watch(probing, probed, self.machine.clone(), input_tx.clone()));
        host
    }

    fn site(
        &self,
        config: &Config,
        host: HostClass,
        (started, records): (Millis, Vec<Record>),
    ) -> Site {
        let head = self.meshes.head().map(|(head, _)| head);
        let config = core::Config {
            me: self.keys.key.site(),
            name: config.name.clone(),
            host,
            head,
            submitter: self.meshes.is_submitter(),
            sealing_key: self.keys.sealing.public(),
            addresses: Vec::new(),
            // Whether to lend to other sites is no question for a host.
            lending: config.lend || head.is_some(),
            floor: config.isolation.floor,
            pass_on: config.lending.pass_on,
            opening: config.lending.opening().unwrap_or_default(),
            keep_jobs: Millis::seconds(u64::from(config.keep_jobs_days) * 86_400),
            kept: kept_licences(&config.licences),
            pricing: config.price.pricing(),
            seed: self.machine.random(),
        };
        Site::new(config, started, records)
    }

    fn means(
        &self,
        config: &Config,
        net: &net::Net,
        input_tx: &mpsc::Sender<Input>,
        (pins, quota): (&Arc<Pins>, u64),
    ) -> Means {
        Means {
            me: self.keys.key.site(),
            key: self.keys.key.clone(),
            sealing: self.keys.sealing.clone(),
            machine: self.machine.clone(),
            store: Arc::clone(&self.store),
            chunks: Arc::clone(&self.chunks),
            pins: Arc::clone(pins),
            quota,
            net: net.clone(),
            meter: Arc::new(Meter::default()),
            sharing: Sharing::default(),
            pace: Pace::new(&config.rates),
            received: Arc::new(Semaphore::new(MAX_UNITS as usize)),
            input_tx: input_tx.clone(),
        }
    }

    /// What is in use, and what keeps the store in order.
    fn pins(
        &self,
        home: &Home,
        config: &Config,
        records: &[Record],
    ) -> Result<(Arc<Pins>, Arc<Sweeper>), Problem> {
        let (store, chunks) = (Arc::clone(&self.store), Arc::clone(&self.chunks));
        let pins = Pins::load(Arc::clone(&store), Arc::clone(&chunks), records);
        let pins = Arc::new(pins.map_err(|error| Problem::refused(causes(&error)))?);
        let settings = config.store.settings(sys::free_bytes);
        let rooms = (store, chunks, Arc::clone(&pins));
        let sweeper = Sweeper::new(self.keys.key.site(), rooms, home.store(), settings);
        let sweeper = sweeper.map_err(|error| Problem::refused(causes(&error)))?;
        Ok((pins, Arc::new(sweeper)))
    }

    fn start_net(
        &self,
        config: &Config,
    ) -> Result<(net::Net, mpsc::Receiver<net::Event>), Problem> {
        let transport = transport::transport(&self.keys.key);
        let outside = Outside {
            transport: transport.map_err(|error| Problem::broken(&error))?,
            clock: Arc::clone(&self.machine.clock),
            seed: self.machine.random(),
            is_free: transport::is_free,
        };
        let settings = net::Settings {
            listen: addresses(&config.listen, "listen")?,
            bootstrap: addresses(&config.bootstrap, "bootstrap")?,
            mdns: config.mdns,
            ..net::Settings::default()
        };
        net::start(&self.keys.key, &settings, outside)
            .map_err(|error| Problem::refused(causes(&error)))
    }
}

fn addresses(texts: &[String], key: &str) -> Result<Vec<net::Multiaddr>, Problem> {
    let parse = |text: &String| {
        text.parse().map_err(|error| {
            Problem::bad_input(format!(
                "meshfarm.toml: {key}: {text:?} is no multiaddress: {error}"
            ))
            .with_help("write it like /ip4/0.0.0.0/tcp/4510")
        })
    };
    texts.iter().map(parse).collect()
}

/// Run a node whose sessions this driver runs, on `home`, until a signal ends it; `ready` as for [`command::Rooms`].
///
/// # Errors
/// When it cannot start, or breaks.
pub fn run_with(
    home: &Home,
    config: Config,
    driver: Driver,
    ready: &dyn Fn(&Status),
) -> Result<(), Problem> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problem::broken(&error))?;
    runtime.block_on(run(home, config, driver, ready))
}

async fn run(
    home: &Home,
    config: Config,
    driver: Driver,
    ready: &dyn Fn(&Status),
) -> Result<(), Problem> {
    let opened = open(home)?;
    let started = opened.machine.clock.now();
    let records = records::load(&opened.store).map_err(|e| Problem::refused(causes(&e)))?;
    let (input_tx, input_rx) = mpsc::channel(INPUTS);
    let host = opened.host(home, &config, &input_tx);
    let memory = host.amounts.get(MEMORY).map_or(0, |mib| (mib.0 / 1000) << 20);
    let limits = config.limits.of_sessions(memory, config.n_slots());
    // Wrong ones were refused when the settings were read.
    let opening = config.lending.opening().unwrap_or_default();
    tokio::spawn(owner::watch(opening, opened.machine.clone(), input_tx.clone()));
    let (net, net_rx) = opened.start_net(&config)?;
    for (mesh, certificate) in opened.meshes.all() {
        net.add_mesh(mesh, certificate).await;
    }
    let neighbours = Neighbours::load(&opened.store).map_err(|e| Problem::refused(causes(&e)))?;
    for (site, addresses) in neighbours.all() {
        net.remember(site, addresses).await;
    }
    let (pins, sweeper) = opened.pins(home, &config, &records)?;
    let site = opened.site(&config, host, (started, records));
    let (gate, question_rx) = Gate::new();
    let quota = sweeper.settings().tenant;
    let means = Arc::new(opened.means(&config, &net, &input_tx, (&pins, quota)));
    let logs = Arc::new(Logs::open(home.logs()).map_err(|error| Problem::broken(&error))?);
    logs.resume(&net).map_err(|error| Problem::broken(&error))?;
    let ground = Ground {
        driver,
        programs: opened.programs.clone(),
        limits,
        services: config.services.clone(),
        isolation: config.isolation.clone(),
        cards: Arc::clone(&opened.cards),
        root: sys::is_root() && sys::has_user(TENANT_UIDS),
        folder: home.work(),
    };
    let lending = Lending::new(Arc::clone(&means), Arc::clone(&logs), ground);
    let lending = Arc::new(lending.map_err(|error| Problem::broken(&error))?);
    let returning = Arc::new(Returning::new(Arc::clone(&means), opened.keys.tenant.clone()));
    let rooms = Rooms {
        machine: opened.machine.clone(),
        store: Arc::clone(&opened.store),
        net: net.clone(),
        meshes: Arc::clone(&opened.meshes),
        key: opened.keys.key.clone(),
        means: Arc::clone(&means),
        lending,
        passing: Arc::new(Passing::new(Arc::clone(&means))),
        returning,
        pins,
        neighbours,
        logs: Arc::clone(&logs),
        gate: gate.clone(),
    };
    let daemon = Daemon::new(site, rooms, Inlets { input_rx, question_rx, net_rx });
    let backend = NodeBackend {
        means,
        gate: gate.clone(),
        meshes: opened.meshes,
        sweeper,
        catalog: opened.catalog,
        logs,
        tenant: opened.keys.tenant,
        policy: MeshPolicy { place: config.default_place(), ..MeshPolicy::default() },
        compress: config.compress,
        name: config.name,
        home: home.clone(),
        started,
    };
    serve(home, daemon, (gate, Arc::new(backend), input_tx), ready).await
}

/// Serve the API and run the loop until a signal comes.
async fn serve(
    home: &Home,
    daemon: Daemon,
    (gate, backend, input_tx): (Gate, Arc<NodeBackend>, mpsc::Sender<Input>),
    ready: &dyn Fn(&Status),
) -> Result<(), Problem> {
    let listener = web::bind(&home.socket()).map_err(|error| Problem::broken(&error))?;
    let (stop_tx, stop_rx) = oneshot::channel::<()>();
    let (loop_tx, loop_rx) = oneshot::channel::<()>();
    let api = Arc::clone(&backend) as Arc<dyn web::Backend>;
    let api = tokio::spawn(web::serve(listener, gate, api, async { drop(stop_rx.await) }));
    let daemon = tokio::spawn(daemon.run(async { drop(loop_rx.await) }));
    let (machine, sweeper) = (&backend.means.machine, &backend.sweeper);
    tokio::spawn(Arc::clone(sweeper).watch_disk(machine.clone(), input_tx));
    tokio::spawn(Arc::clone(sweeper).collect_in_time(machine.clone()));
    tokio::spawn(Arc::clone(sweeper).scrub_in_time(machine.clone()));
    backend.until_listening().await;
    ready(&backend.status_now().await);
    let mut daemon = daemon;
    let ended = tokio::select! {
        biased;
        ended = &mut daemon => Some(ended),
        () = signalled() => None,
    };
    drop(stop_tx);
    drop(loop_tx);
    let ended = match ended {
        Some(ended) => ended,
        None => daemon.await,
    };
    drop(api.await);
    drop(fs::remove_file(home.socket()));
    match ended {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(Problem::broken(&error)),
        Err(error) => Err(Problem::broken(&error)),
    }
}

async fn signalled() {
    let signals =
        signal(SignalKind::interrupt()).and_then(|i| Ok((i, signal(SignalKind::terminate())?)));
    match signals {
        Ok((mut interrupt, mut terminate)) => {
            tokio::select! {
                biased;
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        Err(error) => {
            tracing::error!(%error, "signals cannot be awaited; only a kill ends this node");
            std::future::pending::<()>().await;
        }
    }
}
