//! The attacker at work: in a jail, or outside of one for a control. It waits before its act and after it.

use std::{
    fs, io,
    io::{BufRead, BufReader, Read, Write},
    os::{fd::OwnedFd, unix::process::CommandExt},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    thread,
    time::{Duration, Instant},
};

use meshfarm_sandbox::{Jail, Level, Spec, launch};

use crate::yard::Yard;

/// How long one act may take, on a machine that is very busy.
const PATIENCE: Duration = Duration::from_secs(20);

/// An attacker that runs.
pub(crate) struct Acting {
    body: Body,
    stdin: Option<Box<dyn Write + Send>>,
    lines: Receiver<Vec<u8>>,
    said: Vec<u8>,
    deadline: Instant,
}

enum Body {
    Jailed(Box<Jail>),
    Loose(Child),
}

impl Acting {
    /// Start a jail around the attacker.
    pub(crate) fn in_jail(launcher: &Path, spec: &Spec) -> io::Result<Self> {
        let mut jail = launch(launcher, spec).map_err(io::Error::other)?;
        let (tx, lines) = channel();
        if let Some(stream) = jail.stdout.take() {
            listen(stream, tx.clone());
        }
        if let Some(stream) = jail.stderr.take() {
            listen(stream, tx);
        }
        let stdin = jail.stdin.take().map(|s| Box::new(s) as Box<dyn Write + Send>);
        Ok(Self::new(Body::Jailed(Box::new(jail)), stdin, lines))
    }

    /// Start the attacker as the job's host user and nothing else, or as root in a few private namespaces.
    pub(crate) fn loose(yard: &Yard, args: &[String], as_root: bool) -> io::Result<Self> {
        let program = yard.path("attacker");
        let mut command = if as_root {
            let mut command = Command::new("unshare");
            command.args(["--mount", "--uts", "--ipc", "--net", "--"]).arg(program);
            command
        } else {
            let mut command = Command::new(program);
            if let Some(uid) = yard.uid() {
                command.uid(uid).gid(uid);
            }
            command
        };
        command
            .args(args)
            .env("NODE_SECRET", yard.secret())
            .current_dir(yard.path("work"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let (tx, lines) = channel();
        if let Some(stream) = child.stdout.take() {
            listen(stream, tx.clone());
        }
        if let Some(stream) = child.stderr.take() {
            listen(stream, tx);
        }
        let stdin = child.stdin.take().map(|s| Box::new(s) as Box<dyn Write + Send>);
        Ok(Self::new(Body::Loose(child), stdin, lines))
    }

    fn new(body: Body, stdin: Option<Box<dyn Write + Send>>, lines: Receiver<Vec<u8>>) -> Self {
        Self { body, stdin, lines, said: Vec::new(), deadline: Instant::now() + PATIENCE }
    }

    /// The level that the jail has reached.
    pub(crate) fn level(&self) -> Option<Level> {
        match &self.body {
            Body::Jailed(jail) => Some(jail.report.level),
            Body::Loose(_) => None,
        }
    }

    /// The process that stands for all of it, and how many generations below it the attacker's are.
    pub(crate) fn root(&self) -> (u32, usize) {
        match &self.body {
            Body::Jailed(jail) => (jail.launcher_id(), 2),
            Body::Loose(child) => (child.id(), 0),
        }
    }

    /// Let it go on.
    pub(crate) fn go(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            // It may have ended; its last words tell.
            drop(stdin.write_all(b"go\n").and_then(|()| stdin.flush()));
        }
    }

    /// Wait until it says this, or ends, or the time is over.
    pub(crate) fn wait_for(&mut self, word: &[u8]) -> bool {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            let Ok(line) = self.lines.recv_timeout(left) else { return false };
            let found = line.trim_ascii_end() == word;
            self.said.extend_from_slice(&line);
            if found {
                return true;
            }
        }
    }

    /// Let it end, and end it if it does not.
    pub(crate) fn end(&mut self) -> io::Result<()> {
        drop(self.stdin.take());
        match &mut self.body {
            Body::Jailed(jail) => {
                let killer = jail.killer().map_err(io::Error::other)?;
                let (_ended, wait) = channel::<()>();
                let patience = self.deadline.saturating_duration_since(Instant::now());
                thread::spawn(move || {
                    if wait.recv_timeout(patience) == Err(RecvTimeoutError::Timeout) {
                        killer.kill();
                    }
                });
                jail.wait().map(drop).map_err(io::Error::other)
            }
            Body::Loose(child) => {
                while child.try_wait()?.is_none() {
                    if Instant::now() > self.deadline {
                        child.kill()?;
                    }
                    thread::sleep(Duration::from_millis(1));
                }
                Ok(())
            }
        }
    }

    /// End it before its act.
    pub(crate) fn stop(&mut self) -> io::Result<()> {
        match &mut self.body {
            Body::Jailed(jail) => jail.kill().map(drop).map_err(io::Error::other),
            Body::Loose(child) => child.kill().and_then(|()| child.wait().map(drop)),
        }
    }

    /// The folder of what it left, in a jail or outside of one. Called when it has ended.
    pub(crate) fn outputs(&self, yard: &Yard) -> io::Result<OwnedFd> {
        match &self.body {
            Body::Jailed(jail) => jail.written(&Yard::outputs_at()).map_err(io::Error::other),
            Body::Loose(_) => fs::File::open(yard.path("out")).map(OwnedFd::from),
        }
    }

    /// Everything that it printed. Called when nothing that could print more is left.
    pub(crate) fn last_words(mut self) -> Vec<u8> {
        while let Ok(line) = self.lines.recv_timeout(Duration::from_millis(500)) {
            self.said.extend_from_slice(&line);
        }
        self.said
    }
}

fn listen(stream: impl Read + Send + 'static, lines: Sender<Vec<u8>>) {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        loop {
            let mut line = Vec::new();
            match stream.read_until(b'\n', &mut line) {
                Ok(n) if n > 0 && lines.send(line).is_ok() => {}
                _ => return,
            }
        }
    });
}
