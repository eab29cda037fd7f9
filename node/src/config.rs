//! A node's home: the folder's layout, and `meshfarm.toml`, strict and validated once.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use meshfarm_protocol::job::Place;
use meshfarm_protocol::membership::{MAX_NAME, is_name};

use crate::pace::RateSettings;

mod home;
mod lending;
mod licences;
mod limits;
mod price;
mod services;
mod store;

pub use home::{Home, HomeLock};
pub use lending::LendingConfig;
pub use licences::{LicenceConfig, kept_licences, with_licences};
pub use limits::{IsolationConfig, LimitConfig, SessionLimits};
pub use price::PriceConfig;
pub use services::ServiceConfig;
pub use store::StoreConfig;

/// Longest path of a Unix socket, in bytes: the kernel's field has 108 with a closing zero.
const MAX_SOCKET_PATH: usize = 107;

/// A longer `meshfarm.toml` is refused, in bytes.
const MAX_CONFIG: u64 = 1 << 20;

/// More slots than this are a slip of the finger.
pub const MAX_SLOTS: u32 = 4096;

/// The port that a new site listens on.
pub const PORT: u16 = 4510;

/// Why a home or its `meshfarm.toml` is of no use. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There is no `meshfarm.toml`: the folder is no home yet.
    #[error("{} is no meshfarm home: it has no meshfarm.toml", .0.display())]
    NoHome(PathBuf),
    /// `init` was asked for a home that exists.
    #[error("{} is a meshfarm home already", .0.display())]
    HomeExists(PathBuf),
    /// Neither a home was named nor can one be guessed.
    #[error("no home was named, and the variable HOME is not set")]
    NoHomeNamed,
    /// Its socket would have too long a path.
    #[error("{}: the path is too long by {over} bytes for the socket api.sock in it", .home.display())]
    LongHome {
        /// The home.
        home: PathBuf,
        /// By how much.
        over: usize,
    },
    /// Another node has it.
    #[error("another node{} runs on the home {}", holder(.pid), .home.display())]
    Taken {
        /// The home.
        home: PathBuf,
        /// Number of its process, where it said so.
        pid: Option<u32>,
    },
    /// Not TOML, or a key or a kind of value that is not known.
    #[error("{}: {problem}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with line and key.
        problem: String,
    },
    /// A value that means nothing.
    #[error("{}: {key}: {problem}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The system refused.
    #[error("{what} {}: {source}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

impl ConfigError {
    /// What a person does about it.
    #[must_use]
    pub fn help(&self) -> String {
        match self {
            Self::NoHome(home) => format!("make it one: meshfarm --home {} init", home.display()),
            Self::HomeExists(_) => {
                "edit its meshfarm.toml, or name another folder with --home".to_owned()
            }
            Self::NoHomeNamed => {
                "name one with --home DIR or the variable MESHFARM_HOME".to_owned()
            }
            Self::LongHome { .. } => "choose a home with a shorter path".to_owned(),
            Self::Taken { .. } => {
                "stop that node first, or give this one a home of its own with --home".to_owned()
            }
            Self::Syntax { .. } | Self::Value { .. } => "correct the file".to_owned(),
            Self::Io { .. } => "check that the folder exists and belongs to you".to_owned(),
        }
    }
}

/// How a node writes its log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Whether files of jobs are compressed before they are encrypted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compress {
    /// Those of which a look at 64 KiB says that it saves at least 8 %.
    #[default]
    Auto,
    /// None.
    Off,
}

/// What a person set for a node: the content of `meshfarm.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The site's name, as other sites shall see it: 1 to 64 bytes.
    pub name: String,
    /// Addresses to listen on, as multiaddresses; at least one. Port 0 takes a free one.
    #[serde(default = "everywhere")]
    pub listen: Vec<String>,
    /// Slots of this machine. None: one for each core. 0: this site only submits.
    #[serde(default)]
    pub slots: Option<u32>,
    /// Whether the slots take tasks of other sites.
    #[serde(default)]
    pub lend: bool,
    /// Where jobs run that do not say: `local`, `auto`, `remote` or a site's name.
    #[serde(default = "local", rename = "where")]
    pub place: String,
    /// Addresses of members to connect to at start, beside those learned before.
    #[serde(default)]
    pub bootstrap: Vec<String>,
    /// Whether to look for members on the local network.
    #[serde(default = "yes")]
    pub mdns: bool,
    /// Whether files of jobs are compressed before they are encrypted: `auto` or `off`.
    #[serde(default)]
    pub compress: Compress,
    /// How many days a job that has ended is remembered, with its logs: 1 to 36500.
    #[serde(default = "a_month")]
    pub keep_jobs_days: u32,
    /// How the log is written; `--log-format` overrides it.
    #[serde(default)]
    pub log_format: LogFormat,
    /// When the slots are lent.
    #[serde(default)]
    pub lending: LendingConfig,
    /// What is asked for the slots.
    #[serde(default)]
    pub price: PriceConfig,
    /// How fast content may go to and from other sites.
    #[serde(default)]
    pub rates: RateSettings,
    /// How the store is kept.
    #[serde(default)]
    pub store: StoreConfig,
    /// How much of the machine one task may use.
    #[serde(default)]
    pub limits: LimitConfig,
    /// How strongly tasks are isolated.
    #[serde(default)]
    pub isolation: IsolationConfig,
    /// Floating licences.
    #[serde(default, rename = "licence", skip_serializing_if = "Vec::is_empty")]
    pub licences: Vec<LicenceConfig>,
    /// Services outside that tasks may reach.
    #[serde(default, rename = "service", skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<ServiceConfig>,
}

fn everywhere() -> Vec<String> {
    vec![format!("/ip4/0.0.0.0/tcp/{PORT}"), format!("/ip4/0.0.0.0/udp/{PORT}/quic-v1")]
}

fn local() -> String {
    "local".to_owned()
}

fn a_month() -> u32 {
    30
}

fn yes() -> bool {
    true
}

impl Config {
    /// The settings of a new site: lends nothing, sends nothing away.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            listen: everywhere(),
            slots: None,
            lend: false,
            place: local(),
            bootstrap: Vec::new(),
            mdns: true,
            compress: Compress::Auto,
            keep_jobs_days: a_month(),
            log_format: LogFormat::Text,
            lending: LendingConfig::default(),
            price: PriceConfig::default(),
            rates: RateSettings::default(),
            store: StoreConfig::default(),
            limits: LimitConfig::default(),
            isolation: IsolationConfig::default(),
            licences: Vec::new(),
            services: Vec::new(),
        }
    }

    /// The settings in `text`, read from `path`.
    ///
    /// # Errors
    /// Names the file and the key.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            problem: in_line(text, &error),
        })?;
        config.check(path)?;
        Ok(config)
    }

    /// Slots of this machine.
    #[must_use]
    pub fn n_slots(&self) -> u32 {
        self.slots.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            u32::try_from(cores).unwrap_or(MAX_SLOTS).min(MAX_SLOTS)
        })
    }

    /// Where jobs run that do not say.
    #[must_use]
    pub fn default_place(&self) -> Place {
        place(&self.place)
    }

    /// The text of a `meshfarm.toml` with these settings and a word on each.
    #[must_use]
    pub fn to_text(&self) -> String {
        let string = |text: &str| toml::Value::String(text.to_owned()).to_string();
        let strings = |texts: &[String]| {
            let texts: Vec<_> = texts.iter().map(|text| string(text)).collect();
            format!("[{}]", texts.join(", "))
        };
        let slots = match self.slots {
            Some(n) => format!("slots = {n}"),
            None => "# slots = 4".to_owned(),
        };
        let log_format = match self.log_format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        let compress = match self.compress {
            Compress::Auto => "auto",
            Compress::Off => "off",
        };
        format!(
            "# Settings of this meshfarm node; read when it starts.\n\n\
             # The site's name, as other sites see it.\n\
             name = {name}\n\n\
             # Where it listens for other sites. Port 0 takes a free one.\n\
             listen = {listen}\n\n\
             # How many tasks run at once; one for each core unless said. 0: this site only submits.\n\
             {slots}\n\n\
             # Whether the slots take tasks of other sites.\n\
             lend = {lend}\n\n\
             # Where jobs run that do not say: \"local\", \"auto\", \"remote\" or a site's name.\n\
             # A site that renders a job can read its scene.\n\
             where = {place}\n\n\
             # Members to connect to at start, such as \"/dns/farm.example.org/tcp/{PORT}\".\n\
             bootstrap = {bootstrap}\n\n\
             # Whether to look for members on the local network.\n\
             mdns = {mdns}\n\n\
             # Files of jobs are compressed before they are encrypted: \"auto\" where that saves at least 8 %,\n\
             # \"off\" never. Off spares processor time where all links are faster than 4 Gbit/s.\n\
             compress = \"{compress}\"\n\n\
             # A job that has ended is listed for so many days, with its logs. Its frames stay where they are.\n\
             keep_jobs_days = {keep_jobs}\n\n\
             # The log: \"text\" or \"json\".\n\
             log_format = \"{log_format}\"\n\n\
             {lending}\n{price}\n\
             # How fast content may go, such as \"50 MB/s\" or \"200 Mbit/s\": to or from all sites together, and each.\n\
             [rates]\n\
             # send = \"50 MB/s\"\n\
             # receive = \"50 MB/s\"\n\
             # send_each = \"20 MB/s\"\n\
             # receive_each = \"20 MB/s\"\n\
             # Other rates for some hours of the day; what is not named there is as fast as it goes.\n\
             # [[rates.hours]]\n\
             # from = 8\n\
             # to = 20\n\
             # send = \"5 MB/s\"\n\n{store}\n{limits}\n{isolation}\n{licences}\n{services}",
            name = string(&self.name),
            listen = strings(&self.listen),
            lend = self.lend,
            lending = self.lending.to_text(),
            price = self.price.to_text(),
            place = string(&self.place),
            bootstrap = strings(&self.bootstrap),
            mdns = self.mdns,
            keep_jobs = self.keep_jobs_days,
            store = self.store.to_text(),
            limits = self.limits.to_text(),
            isolation = self.isolation.to_text(),
            licences = licences::to_text(&self.licences),
            services = services::to_text(&self.services),
        )
    }

    fn check(&self, path: &Path) -> Result<(), ConfigError> {
        let wrong =
            |key, problem: String| Err(ConfigError::Value { path: path.to_owned(), key, problem });
        if !is_name(&self.name) {
            return wrong("name", bad_name(&self.name));
        }
        if self.listen.is_empty() {
            return wrong("listen", "at least one address is wanted".to_owned());
        }
        for address in &self.listen {
            if let Err(problem) = check_address(address, false) {
                return wrong("listen", format!("{address}: {problem}"));
            }
        }
        for address in &self.bootstrap {
            if let Err(problem) = check_address(address, true) {
                return wrong("bootstrap", format!("{address}: {problem}"));
            }
        }
        if let Err((key, problem)) = self.lending.opening() {
            return wrong(key, problem);
        }
        if let Some(problem) = self.rates.problem() {
            return wrong("rates", problem);
        }
        if self.slots.is_some_and(|n| n > MAX_SLOTS) {
            return wrong("slots", format!("at most {MAX_SLOTS} are possible"));
        }
        if !(1..=36_500).contains(&self.keep_jobs_days) {
            return wrong("keep_jobs_days", "1 to 36500 days are possible".to_owned());
        }
        if let Place::Site(name) = self.default_place()
            && !is_name(&name)
        {
            let problem = "`local`, `auto`, `remote` or a site's name is wanted".to_owned();
            return wrong("where", problem);
        }
        let tables = self.store.check().and_then(|()| self.limits.check());
        let tables = tables.and_then(|()| self.price.check());
        let tables = tables.and_then(|()| self.isolation.check());
        let tables = tables.and_then(|()| licences::check(&self.licences));
        let tables = tables.and_then(|()| services::check(&self.services));
        tables.or_else(|(key, problem)| wrong(key, problem))
    }
}

/// What a parser says in one line, with the line of the text that it means.
fn in_line(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let before = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n');
    let number = before.count();
    let line = text.lines().nth(number).unwrap_or_default().trim();
    format!("line {}: {line:?}: {}", number + 1, error.message().replace('\n', "; "))
}

/// Why `name` may name neither a site nor a mesh, in words.
#[must_use]
pub fn bad_name(name: &str) -> String {
    format!(
        "{name:?} is no name: 1 to {MAX_NAME} bytes are wanted, without / \\ : or control characters, \
         blanks at the ends, or a dot in front"
    )
}

/// What people write for a place.
#[must_use]
pub fn place(text: &str) -> Place {
    match text {
        "local" => Place::Local,
        "auto" => Place::Auto,
        "remote" => Place::Remote,
        name => Place::Site(name.to_owned()),
    }
}

/// Whether `address` is a multiaddress of a kind that a node can use. The network parses it again; this
/// check is here to name the key while the file is read.
fn check_address(address: &str, remote: bool) -> Result<(), String> {
    let wanted = if remote {
        "such as /dns/farm.example.org/tcp/4510 or /ip4/10.0.0.1/udp/4510/quic-v1 is wanted"
    } else {
        "such as /ip4/0.0.0.0/tcp/4510 or /ip4/0.0.0.0/udp/4510/quic-v1 is wanted"
    };
    let mut parts = address.strip_prefix('/').ok_or(wanted)?.split('/');
    let (kind, host) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    let ip = host.parse::<IpAddr>();
    match (kind, ip) {
        ("ip4", Ok(IpAddr::V4(_))) | ("ip6", Ok(IpAddr::V6(_))) => {}
        ("dns" | "dns4" | "dns6", _) if remote && !host.is_empty() => {}
        _ => return Err(wanted.to_owned()),
    }
    let (transport, port) = (parts.next().unwrap_or(""), parts.next().unwrap_or(""));
    if port.parse::<u16>().is_err() {
        return Err(wanted.to_owned());
    }
    let mut rest = parts.next();
    match transport {
        "tcp" => {}
        "udp" if rest == Some("quic-v1") => rest = parts.next(),
        _ => return Err(wanted.to_owned()),
    }
    match (rest, parts.next(), parts.next()) {
        (None, None, None) => Ok(()),
        (Some("p2p"), Some(peer), None) if remote && !peer.is_empty() => Ok(()),
        _ => Err(wanted.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use meshfarm_protocol::profile::Level;
    use meshfarm_sandbox::Size;

    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("/h/meshfarm.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_init_writes_is_what_a_node_reads() {
        let mut config = Config::new("oslo \"north\"");
        assert_eq!(parse(&config.to_text()), Ok(config.clone()));
        config.slots = Some(0);
        config.lend = true;
        config.place = "lyon".into();
        config.bootstrap = vec!["/dns/farm.example.org/tcp/4510".into()];
        config.mdns = false;
        config.compress = Compress::Off;
        config.log_format = LogFormat::Json;
        config.store.total_gib = Some(500);
        config.store.keep_days = 0;
        config.limits.memory = Some(Size(1500 << 20));
        config.limits.processes = Some(64);
        config.limits.tmp = Some(Size(1_000_000_000));
        config.isolation.floor = Level::S3;
        config.licences = vec![LicenceConfig { name: "nuke".into(), count: 2, lend: true }];
        config.services = vec![ServiceConfig { host: "lic.example".into(), port: 5053 }];
        assert_eq!(parse(&config.to_text()), Ok(config));
    }

    #[test]
    fn a_wrong_setting_names_the_file_and_the_key() {
        for (text, words) in [
            ("", ["/h/meshfarm.toml", "name"]),
            ("name = 'x'\nlisten = ['tcp:1']", ["listen", "tcp:1"]),
            ("name = 'x'\nlisten = []", ["listen", "at least one"]),
            ("name = 'x'\nlisten = ['/ip4/1.2.3.4/tcp/99999']", ["listen", "99999"]),
            ("name = 'x'\nlisten = ['/ip4/1.2.3.4/udp/1']", ["listen", "quic-v1"]),
            ("name = 'x'\nlisten = ['/dns/a/tcp/1']", ["listen", "/dns/a"]),
            ("name = 'x'\nbootstrap = ['/ip4/1.2.3.4/tcp/1/ws']", ["bootstrap", "/ws"]),
            ("name = 'x'\nslot = 1", ["unknown field", "slot"]),
            ("name = 'x'\nslots = 99999", ["slots", "at most"]),
            ("name = 'x'\nslots = -1", ["slots", "-1"]),
            ("name = 'x'\nlend = 'yes'", ["lend", "boolean"]),
            ("name = 'x'\nwhere = 'a/b'", ["where", "local"]),
            ("name = 'x'\nlog_format = 'xml'", ["log_format", "xml"]),
            ("name = 'x'\ncompress = 'zip'", ["compress", "zip"]),
            ("name = 'x'\nkeep_jobs_days = 0", ["keep_jobs_days", "1 to 36500"]),
            ("name = 'a/b'", ["name", "a/b"]),
            ("name = 'x'\n[store]\nkeep_days = 9999", ["store.keep_days", "3650"]),
            ("name = 'x'\n[store]\ntenant_gib = 0", ["store.tenant_gib", "1 to"]),
            ("name = 'x'\n[store]\ntotal_gib = 9", ["store.total_gib", "256 (that is tenant_gib)"]),
            ("name = 'x'\n[store]\nkeep_free_gib = 1", ["store.keep_free_gib", "2 to"]),
            ("name = 'x'\n[store]\ndays = 1", ["unknown field", "days"]),
            ("name = 'x'\n[limits]\nmemory = '8'", ["line 3", "24GiB"]),
            ("name = 'x'\n[limits]\nmemory = '1 KiB'", ["limits.memory", "64 MiB"]),
            ("name = 'x'\n[limits]\nprocesses = 1", ["limits.processes", "16 to"]),
            ("name = 'x'\n[limits]\nmemory = '1GiB'\ntmp = '2GiB'", ["limits.tmp", "1 GiB"]),
            ("name = 'x'\n[isolation]\nfloor = 'S1'", ["isolation.floor", "S2 or S3"]),
            ("name = 'x'\n[[licence]]\nname = 'a b'\ncount = 1", ["licence", "small letters"]),
            ("name = 'x'\n[[licence]]\nname = 'a'\ncount = -1", ["count", "-1"]),
            ("name = 'x'\n[[licence]]\nname = 'a'\ncount = 999999", ["licence", "at most"]),
            ("name = 'x'\n[[licence]]\nname = 'a'\nseats = 1", ["unknown field", "seats"]),
            ("name = 'x'\nlicence = [{name='a',count=1},{name='a',count=2}]", ["licence", "twice"]),
            ("name = 'x'\n[[service]]\nhost = 'a b'\nport = 1", ["service", "no host name"]),
            ("name = ", ["line 1", "/h/meshfarm.toml"]),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("/h/meshfarm.toml"), "{error}");
            assert!(words.iter().all(|word| error.contains(word)), "{text:?}: {error}");
        }
    }

    #[test]
    fn addresses_of_members_may_have_names_and_peers() {
        for good in [
            "/dns/farm.example.org/tcp/4510",
            "/ip6/::1/udp/4510/quic-v1",
            "/ip4/10.0.0.1/tcp/4510/p2p/12D3KooWxyz",
        ] {
            assert_eq!(check_address(good, true), Ok(()), "{good}");
        }
    }

    #[test]
    fn a_home_is_made_once_and_belongs_to_one_node() {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::find(Some(temp.path().join("oslo"))).unwrap();
        assert!(matches!(home.load(), Err(ConfigError::NoHome(_))));
        let config = Config::new("oslo");
        home.create(&config).unwrap();
        assert_eq!(home.load().unwrap(), config);
        assert!(matches!(home.create(&config), Err(ConfigError::HomeExists(_))));
        let lock = home.lock().unwrap();
        let error = home.lock().unwrap_err();
        let pid = std::process::id();
        assert!(matches!(error, ConfigError::Taken { pid: Some(p), .. } if p == pid), "{error}");
        drop(lock);
        home.lock().unwrap();
    }

    #[test]
    fn a_home_whose_socket_would_have_too_long_a_path_is_refused() {
        let long = PathBuf::from(format!("/tmp/{}", "a".repeat(120)));
        let error = Home::find(Some(long)).unwrap_err();
        assert!(error.to_string().contains("too long by"), "{error}");
    }

    #[test]
    fn a_wrong_name_makes_no_home() {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::find(Some(temp.path().join("h"))).unwrap();
        assert!(home.create(&Config::new("a/b")).is_err());
        assert!(!home.root().exists());
    }
}
