//! Syncthing: two instances that know each other's address and look for nobody, tuned as its documentation's page for high
//! performance says, with its safety left on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{Peer, Place, path_of, remove};
use crate::content::files;
use crate::content::processes::{Running, children, settle};
use crate::sites::{ask, get, terminate, wait_until};

/// Where the first of them listens.
const FIRST_PORT: u16 = 23_000;

const KEY: &str = "bench";

/// The head of a request that may do everything.
const HEAD: &str = "X-API-Key: bench\r\nContent-Type: application/json\r\n";

/// The options of an instance that differ from those that it writes itself: nobody is looked for or told, and high performance.
const OPTIONS: [(&str, &str); 15] = [
    ("globalAnnounceEnabled", "false"),
    ("localAnnounceEnabled", "false"),
    ("relaysEnabled", "false"),
    ("natEnabled", "false"),
    ("stunKeepaliveStartS", "0"),
    ("urAccepted", "-1"),
    ("crashReportingEnabled", "false"),
    ("autoUpgradeIntervalH", "0"),
    ("startBrowser", "false"),
    ("reconnectionIntervalS", "5"),
    ("progressUpdateIntervalS", "-1"),
    ("setLowPriority", "false"),
    ("databaseTuning", "large"),
    ("maxConcurrentIncomingRequestKiB", "1048576"),
    ("apikey", KEY),
];

/// Asks for files that came and are in place.
const EVENTS: &str = "/rest/events?events=ItemFinished";

/// A request for events returns after so many seconds when there are none.
const EVENTS_FOR: u64 = 5;

#[derive(Debug)]
struct Instance {
    running: Running,
    socket: PathBuf,
    device: String,
    address: String,
}

impl Instance {
    fn start(place: Place<'_>, number: u16) -> Result<Self> {
        let program = path_of("syncthing", "syncthing")?;
        let home = place.folder.join(format!("syncthing{number}"));
        let make = Command::new(&program)
            .args(["generate", "--no-default-folder", "--skip-port-probing", "--home"])
            .arg(&home)
            .output()?;
        ensure!(
            make.status.success(),
            "syncthing generate: {}",
            String::from_utf8_lossy(&make.stderr)
        );
        let address = format!("tcp://127.0.0.1:{}", FIRST_PORT + number);
        let file = home.join("config.xml");
        let mut config = fs::read_to_string(&file)?;
        for (name, value) in OPTIONS.into_iter().chain([("listenAddress", &*address)]) {
            config =
                with(&config, name, value).with_context(|| format!("no {name} in its settings"))?;
        }
        fs::write(&file, config)?;
        let socket = home.join("api.sock");
        let mut command = place.command(&program);
        command
            .args(["serve", "--no-browser", "--no-restart", "--no-upgrade", "--home"])
            .arg(&home);
        command.arg(format!("--gui-address=unix://{}", socket.display())).env("STNOUPGRADE", "1");
        let running = Running::start(command, &home.join("said"))?;
        wait_until("syncthing answers", || Ok(get(&socket, "/rest/system/ping", HEAD).is_ok()))?;
        let status: Value = serde_json::from_str(&get(&socket, "/rest/system/status", HEAD)?)?;
        let device = status["myID"].as_str().context("an instance has an id")?.to_owned();
        Ok(Self { running, socket, device, address })
    }

    fn get(&self, path: &str) -> Result<Value> {
        Ok(serde_json::from_str(&get(&self.socket, path, HEAD)?)?)
    }

    fn send(&self, what: &str, body: &Value) -> Result<()> {
        ask(&self.socket, what, HEAD, &body.to_string()).map(drop)
    }

    fn knows(&self, other: &Self) -> Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let device = json!({
            "deviceID": other.device, "addresses": [other.address], "compression": "metadata",
            "numConnections": cores,
        });
        self.send("POST /rest/config/devices", &device)
    }

    fn shares(&self, folder: &Path, kind: &str, with: &Self) -> Result<()> {
        let folder = json!({
            "id": "bench", "path": folder, "type": kind, "rescanIntervalS": 0, "fsWatcherEnabled": false,
            "devices": [{"deviceID": self.device}, {"deviceID": with.device}],
            "pullerMaxPendingKiB": 128 << 10, "scanProgressIntervalS": -1, "caseSensitiveFS": true,
            "copyRangeMethod": "all", "blockPullOrder": "inOrder",
        });
        self.send("POST /rest/config/folders", &folder)
    }

    fn forget(&self) -> Result<()> {
        self.send("DELETE /rest/config/folders/bench", &Value::Null)
    }

    /// The number of the last file that came. Each selection of events has numbers of its own.
    fn last_event(&self) -> Result<u64> {
        let events = self.get(&format!("{EVENTS}&limit=1&timeout=1"))?;
        Ok(events[0]["id"].as_u64().unwrap_or(0))
    }

    /// The process that does the work, beside the one that watches over it.
    fn processes(&self) -> Vec<u32> {
        let mut all = children(self.running.id()).unwrap_or_default();
        all.push(self.running.id());
        all
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The one that watches ends the other one, if it is asked to end.
        if terminate(self.running.id()).is_ok() {
            drop(settle(self.running.id()));
        }
    }
}

/// The settings with the text of every element of this name replaced; none when there is no such element.
fn with(config: &str, name: &str, value: &str) -> Option<String> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let start = config.find(&open)? + open.len();
    let end = start + config[start..].find(&close)?;
    Some(format!("{}{value}{}", &config[..start], &config[end..]))
}

#[derive(Debug)]
pub(crate) struct Syncthing {
    from: Instance,
    to: Instance,
}

impl Syncthing {
    pub(crate) fn start(place: Place<'_>) -> Result<Self> {
        let (from, to) = (Instance::start(place, 0)?, Instance::start(place, 1)?);
        from.knows(&to)?;
        to.knows(&from)?;
        wait_until("the two of syncthing are connected", || {
            let all = from.get("/rest/system/connections")?;
            Ok(all["connections"][&to.device]["connected"] == true)
        })?;
        Ok(Self { from, to })
    }

    /// Waits until so many files have come, each of which is said when it is in place.
    fn wait(&self, mut since: u64, n_files: u64, end: Instant) -> Result<()> {
        let mut n_came = 0;
        while n_came < n_files {
            ensure!(Instant::now() < end, "{n_came} of {n_files} files have come");
            let path =
                format!("/rest/events?since={since}&timeout={EVENTS_FOR}&events=ItemFinished");
            let events = self.to.get(&path)?;
            for event in events.as_array().into_iter().flatten() {
                since = event["id"].as_u64().unwrap_or(since);
                let data = &event["data"];
                ensure!(data["error"].is_null(), "{}: {}", data["item"], data["error"]);
                n_came += u64::from(data["type"] == "file");
            }
        }
        Ok(())
    }
}

impl Peer for Syncthing {
    fn name(&self) -> &'static str {
        "syncthing"
    }

    fn servers(&self) -> Vec<u32> {
        [&self.from, &self.to].into_iter().flat_map(Instance::processes).collect()
    }

    fn bring(&mut self, from: &Path, to: &Path, patience: Duration) -> Result<Duration> {
        let n_files = files::amount_in(from)?.files;
        remove(to)?;
        fs::create_dir_all(to)?;
        self.to.shares(to, "receiveonly", &self.from)?;
        let since = self.to.last_event()?;
        let began = Instant::now();
        self.from.shares(from, "sendonly", &self.to)?;
        let came = self.wait(since, n_files, began + patience);
        let took = began.elapsed();
        self.from.forget()?;
        self.to.forget()?;
        came?;
        // Its own marker is not one of the files.
        for folder in [from, to] {
            remove(&folder.join(".stfolder"))?;
        }
        Ok(took)
    }
}
