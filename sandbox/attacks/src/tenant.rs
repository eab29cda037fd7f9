//! The other tenant from outside: its process, what it told about itself, how it fares.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::Duration,
};

/// How long a healthy tenant takes to answer at most, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process that owns one of everything.
#[derive(Debug)]
pub(crate) struct Tenant {
    child: Child,
    stdin: Option<ChildStdin>,
    answers: Receiver<String>,
    told: BTreeMap<String, String>,
    tidying: Command,
}

impl Tenant {
    /// Start it in its folder, as this user.
    pub(crate) fn start(
        program: &Path,
        folder: &Path,
        secret: &str,
        uid: Option<u32>,
    ) -> io::Result<Self> {
        let (mut command, mut tidying) = (Command::new(program), Command::new(program));
        tidying.arg("tidy-up-after-another-tenant").stderr(Stdio::null());
        command
            .arg0("another-tenant")
            .args(["stand-as-another-tenant", &format!("note={secret}-argument")])
            .env_clear()
            .env("SECRET", secret)
            .current_dir(folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
            tidying.uid(uid).gid(uid);
        }
        let mut child = command.spawn()?;
        let stdout = child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (tx, answers) = channel();
        thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).all(|line| tx.send(line).is_ok())
        });
        let stdin = child.stdin.take();
        let mut tenant = Self { child, stdin, answers, told: BTreeMap::new(), tidying };
        let line = tenant.answers.recv_timeout(PATIENCE).map_err(io::Error::other)?;
        let words = line.split(' ').filter_map(|word| word.split_once('='));
        tenant.told = words.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        Ok(tenant)
    }

    /// Where its belongings are, by name.
    pub(crate) fn told(&self) -> &BTreeMap<String, String> {
        &self.told
    }

    /// How it fares: by its own word, and as the process list shows it.
    pub(crate) fn state(&mut self) -> BTreeMap<String, String> {
        let pid = self.child.id();
        let read = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}"));
        let mut facts = BTreeMap::new();
        let mut note =
            |key: &str, value: String| facts.insert(format!("its process: {key}"), value);
        let stat = read("stat").unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or("").split(' ').collect();
        let alive = matches!(fields.first(), Some(&("R" | "S" | "D")));
        note("lives", alive.to_string());
        note("niceness", fields.get(16).copied().unwrap_or("").to_owned());
        let status = read("status").unwrap_or_default();
        for key in ["TracerPid:", "Cpus_allowed:", "Uid:"] {
            let line = status.lines().find_map(|l| l.strip_prefix(key));
            note(key, line.unwrap_or_default().trim().to_owned());
        }
        note("oom score", read("oom_score_adj").unwrap_or_default());
        let limits = read("limits").unwrap_or_default();
        let files = limits.lines().find(|l| l.starts_with("Max open files"));
        note("limit of files", files.unwrap_or_default().to_owned());
        // A stopped or dead one does not answer.
        note("word", if alive { self.ask() } else { String::new() });
        facts
    }

    fn ask(&mut self) -> String {
        let asked = self.stdin.as_mut().map(|stdin| stdin.write_all(b"look\n"));
        match asked {
            Some(Ok(())) => {
                self.answers.recv_timeout(PATIENCE).unwrap_or_else(|_| "no answer".to_owned())
            }
            _ => "gone".to_owned(),
        }
    }
}

impl Drop for Tenant {
    fn drop(&mut self) {
        drop(self.stdin.take());
        // It may be stopped or dead, and what it has in the kernel outlives it.
        drop(self.child.kill());
        drop(self.child.wait());
        let words = self.told.iter().map(|(key, value)| format!("{key}={value}"));
        drop(self.tidying.args(words).status());
    }
}
