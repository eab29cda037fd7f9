//! What works on this machine and what would make it better.

use std::fs;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::time::{SystemTime, UNIX_EPOCH};

use meshfarm_core::SlotsView;
use meshfarm_protocol::profile::Level;

use crate::api::{Check, CheckState, Examination, Software, Status, causes};
use crate::config::{Config, Home};
use crate::sys;

mod confines;

/// Fewer open files than this, and a node with many peers and transfers runs out of them.
const OPEN_FILES: u64 = 4096;

/// With fewer than this a node cannot work at all: its database keeps files open.
const FEWEST_OPEN_FILES: u64 = 512;

/// A clock before this moment was never set, in seconds since 1970: 2026-01-01.
const EARLIEST: u64 = 1_767_225_600;

/// What was found out about the machine: its sandbox and its renderers.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The isolation that a jail reaches here.
    pub level: Level,
    /// Each mechanism of isolation.
    pub mechanisms: Vec<Mechanism>,
    /// Renderers found, with their versions.
    pub software: Software,
    /// Renderers that are known, found or not.
    pub known: Vec<String>,
}

/// A mechanism of isolation.
#[derive(Clone, Debug)]
pub struct Mechanism {
    /// Its name.
    pub name: String,
    /// Whether it holds.
    pub in_force: bool,
    /// What shows that.
    pub evidence: String,
    /// What would make it better.
    pub better: Option<String>,
}

/// Look at everything. `running` is the node of this home, when it runs, and `slots` what it does with them.
#[must_use]
pub fn examine(
    home: &Home,
    found: &Found,
    running: Option<&Status>,
    slots: Option<&SlotsView>,
) -> Examination {
    let mut checks = vec![writable(home)];
    let config = match home.load() {
        Ok(config) => {
            let path = home.config().display().to_string();
            checks.push(good("settings", path));
            Some(config)
        }
        Err(error) => {
            checks.push(broken("settings", causes(&error), error.help()));
            None
        }
    };
    checks.push(clock());
    checks.push(open_files());
    match (running, &config) {
        (Some(status), _) => {
            let text =
                format!("runs as process {}, listens on {}", status.pid, status.listen.join(" "));
            checks.push(good("node", text));
        }
        (None, Some(config)) => {
            checks.push(weak("node", "does not run", "start it: meshfarm node"));
            checks.extend(config.listen.iter().map(|address| port(address)));
        }
        (None, None) => checks.push(weak("node", "does not run", "meshfarm init")),
    }
    checks.extend(slots.map(|slots| taking(slots, config.as_ref().is_some_and(|c| c.lend))));
    checks.extend(sandbox(found, config.as_ref()));
    let read = |path: &str| match path {
        // A name of a namespace, not a file.
        "/proc/self/ns/user" => fs::exists(path).unwrap_or(false).then(String::new),
        path => fs::read(path).ok().map(|text| String::from_utf8_lossy(&text).into_owned()),
    };
    checks.extend(confines::confines(&read, found.level, sys::is_root()));
    checks.extend(renderers(found));
    checks.sort_by_key(|check| match check.state {
        CheckState::Broken => 0,
        CheckState::Weak | CheckState::Good => 1,
    });
    Examination { checks }
}

/// Whether something is so wrong that a node does not work.
#[must_use]
pub fn is_broken(examination: &Examination) -> bool {
    examination.checks.iter().any(|check| check.state == CheckState::Broken)
}

fn good(name: &str, found: impl Into<String>) -> Check {
    Check { name: name.into(), state: CheckState::Good, found: found.into(), help: None }
}

fn weak(name: &str, found: impl Into<String>, help: impl Into<String>) -> Check {
    Check { state: CheckState::Weak, help: Some(help.into()), ..good(name, found) }
}

fn broken(name: &str, found: impl Into<String>, help: impl Into<String>) -> Check {
    Check { state: CheckState::Broken, help: Some(help.into()), ..good(name, found) }
}

fn writable(home: &Home) -> Check {
    let root = home.root();
    if !root.exists() {
        let text = format!("{} does not exist", root.display());
        return broken("home", text, format!("meshfarm --home {} init", root.display()));
    }
    match tempfile::Builder::new().prefix(".doctor").tempfile_in(root) {
        Ok(_gone) => good("home", root.display().to_string()),
        Err(error) => {
            let text = format!("{} cannot be written: {error}", root.display());
            broken("home", text, "give the folder to the user who runs the node, or free some disk")
        }
    }
}

fn clock() -> Check {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    if now < EARLIEST {
        let help = "set it: certificates and tickets end at a moment that every site must agree on";
        return broken("clock", "stands before 2026", help);
    }
    let synced = ["/run/systemd/timesync/synchronized", "/run/chrony", "/run/ntpd.pid"];
    match synced.iter().find(|path| fs::exists(path).unwrap_or(false)) {
        Some(path) => good("clock", format!("is kept right by the network ({path})")),
        None => weak(
            "clock",
            "no sign that it is kept right by the network",
            "run a time service, such as systemd-timesyncd or chrony",
        ),
    }
}

fn open_files() -> Check {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let word = line.and_then(|rest| rest.split_whitespace().next()).unwrap_or("");
    let help =
        format!("raise it for the node: ulimit -n {OPEN_FILES}, or LimitNOFILE= in its unit");
    match word.parse::<u64>() {
        Ok(n) if n < FEWEST_OPEN_FILES => broken("open files", format!("at most {n}"), help),
        Ok(n) if n < OPEN_FILES => weak("open files", format!("at most {n}"), help),
        Ok(n) => good("open files", format!("up to {n}")),
        Err(_no_number) if word == "unlimited" => good("open files", "unlimited"),
        Err(_no_number) => weak("open files", "the limit cannot be read", help),
    }
}

/// Whether a port that the node shall listen on is free now.
fn port(address: &str) -> Check {
    let name = format!("listen {address}");
    let parts: Vec<_> = address.split('/').collect();
    let (host, kind, number) = match parts.as_slice() {
        ["", _, host, kind, number, ..] => (*host, *kind, *number),
        _ => {
            return weak(&name, "is no address that can be tried", "see meshfarm.toml");
        }
    };
    let (Ok(host), Ok(number)) = (host.parse::<IpAddr>(), number.parse::<u16>()) else {
        return weak(&name, "is no address that can be tried", "see meshfarm.toml");
    };
    let tried = match kind {
        "udp" => UdpSocket::bind((host, number)).map(drop),
        _ => TcpListener::bind((host, number)).map(drop),
    };
    match tried {
        Ok(()) => good(&name, "free"),
        Err(error) => broken(&name, error.to_string(), "choose another port in meshfarm.toml"),
    }
}

/// Whether the node's slots take tasks, and who has decided that.
fn taking(slots: &SlotsView, lends: bool) -> Check {
    let name = "slots";
    let resume = "take tasks again: meshfarm resume";
    match (slots.own.is_open(), slots.foreign.is_open(), slots.shut) {
        (false, _, _) => {
            weak(name, "paused by a person: no task is taken, not even own ones", resume)
        }
        (true, false, _) => {
            weak(name, "paused by a person: no task of another site is taken", resume)
        }
        (true, true, Some(shut)) if lends => weak(
            name,
            format!("no task of another site is taken now: {shut}"),
            "it lends again by itself",
        ),
        (true, true, _) if lends => good(name, "take tasks, own ones and those of other sites"),
        (true, true, _) => good(name, "take own tasks; this site does not lend"),
    }
}

fn sandbox(found: &Found, config: Option<&Config>) -> Vec<Check> {
    let lends = config.is_some_and(|config| config.lend);
    let text = format!("{}: {}", found.level, meaning(found.level));
    let mut checks = vec![match found.level {
        Level::S2 | Level::S3 => good("isolation", text),
        Level::S0 | Level::S1 if lends => {
            broken("isolation", text, "this site lends: jobs of other sites ask for S2; see below")
        }
        Level::S0 | Level::S1 => weak("isolation", text, "lending needs S2; see below"),
    }];
    checks.extend(found.mechanisms.iter().map(|mechanism| {
        let name = format!("isolation: {}", mechanism.name);
        match (mechanism.in_force, &mechanism.better) {
            (true, None) => good(&name, &mechanism.evidence),
            (_, Some(better)) => weak(&name, &mechanism.evidence, better),
            (false, None) => weak(&name, &mechanism.evidence, ""),
        }
    }));
    checks
}

fn meaning(level: Level) -> &'static str {
    match level {
        Level::S0 => "none; own jobs only",
        Level::S1 => "paths, system calls and limits, under one user",
        Level::S2 => "namespaces, paths, system calls and limits",
        Level::S3 => "as S2, and each job has a user, a control group and a disk of its own",
    }
}

fn renderers(found: &Found) -> Vec<Check> {
    if found.software.is_empty() {
        let help = match found.known.as_slice() {
            [] => "install a renderer, such as Blender or POV-Ray".to_owned(),
            known => format!("install one of: {}", known.join(", ")),
        };
        return vec![weak("renderers", "none: this site can submit and not render", help)];
    }
    let there = found.software.iter();
    let mut checks: Vec<_> =
        there.map(|(name, version)| good(&format!("renderer {name}"), version)).collect();
    let missing = found.known.iter().filter(|name| !found.software.contains_key(*name));
    checks.extend(missing.map(|name| {
        weak(&format!("renderer {name}"), "not found", "install it to render such scenes here")
    }));
    checks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home(config: &Config) -> (tempfile::TempDir, Home) {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::find(Some(temp.path().join("h"))).unwrap();
        home.create(config).unwrap();
        (temp, home)
    }

    fn state(examination: &Examination, name: &str) -> CheckState {
        let check = examination.checks.iter().find(|check| check.name == name);
        check.unwrap_or_else(|| panic!("{name}: {examination:#?}")).state
    }

    fn local(port: u16) -> Config {
        let mut config = Config::new("oslo");
        config.listen = vec![format!("/ip4/127.0.0.1/tcp/{port}")];
        config
    }

    #[test]
    fn a_machine_that_can_work_is_told_what_would_be_better() {
        let (_temp, home) = home(&local(0));
        let found = Found {
            level: Level::S2,
            software: Software::from([("povray".into(), "3.7.0".into())]),
            known: vec!["blender".into(), "povray".into()],
            mechanisms: vec![Mechanism {
                name: "cgroup".into(),
                in_force: false,
                evidence: "not writable".into(),
                better: Some("delegate one".into()),
            }],
        };
        let examination = examine(&home, &found, None, None);
        assert!(!is_broken(&examination), "{examination:#?}");
        assert_eq!(state(&examination, "isolation"), CheckState::Good);
        assert_eq!(state(&examination, "isolation: cgroup"), CheckState::Weak);
        assert_eq!(state(&examination, "renderer povray"), CheckState::Good);
        assert_eq!(state(&examination, "renderer blender"), CheckState::Weak);
        assert_eq!(state(&examination, "listen /ip4/127.0.0.1/tcp/0"), CheckState::Good);
    }

    #[test]
    fn a_taken_port_and_a_lender_without_a_jail_are_broken() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let mut config = local(port);
        config.lend = true;
        let (_temp, home) = home(&config);
        let examination = examine(&home, &Found::default(), None, None);
        assert!(is_broken(&examination));
        assert_eq!(
            state(&examination, &format!("listen {}", config.listen[0])),
            CheckState::Broken
        );
        assert_eq!(state(&examination, "isolation"), CheckState::Broken);
        assert_eq!(examination.checks[0].state, CheckState::Broken, "the worst comes first");
    }

    #[test]
    fn paused_slots_are_told_with_the_way_back() {
        let host = serde_json::json!({"count": 1, "description": "", "amounts": {}, "attributes": {},
            "software": {}, "slots": 1, "speed": 1000, "level": "S2"});
        let closed = serde_json::json!({"closed": {"give_back": null}});
        let slots = |foreign, own, shut| {
            let view = serde_json::json!({"host": host, "free": 1, "lending": true, "foreign": foreign,
                "own": own, "shut": shut, "leases": []});
            serde_json::from_value::<SlotsView>(view).unwrap()
        };
        let open = serde_json::json!("open");
        let none = serde_json::Value::Null;
        let check = |slots: &SlotsView, lends| taking(slots, lends);
        assert_eq!(check(&slots(&open, &open, &none), true).state, CheckState::Good);
        for (foreign, own, word) in [(&closed, &open, "another site"), (&closed, &closed, "own")] {
            let said = check(&slots(foreign, own, &none), true);
            assert_eq!(said.state, CheckState::Weak);
            assert!(said.found.contains(word) && said.help.unwrap().contains("resume"));
        }
        let hours = serde_json::json!("hours");
        let said = check(&slots(&open, &open, &hours), true);
        assert!(said.found.contains("lending hours") && said.state == CheckState::Weak);
        assert_eq!(check(&slots(&open, &open, &hours), false).state, CheckState::Good);
    }

    #[test]
    fn a_folder_that_is_no_home_is_named_with_the_way_out() {
        let temp = tempfile::tempdir().unwrap();
        let home = Home::find(Some(temp.path().join("none"))).unwrap();
        let examination = examine(&home, &Found::default(), None, None);
        assert!(is_broken(&examination));
        let check = &examination.checks[0];
        assert!(check.found.contains("none") && check.help.as_deref().unwrap().contains("init"));
    }
}
