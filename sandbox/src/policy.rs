//! The policy file: what a person writes in TOML about one jail, and the `Spec` that it becomes on this machine.
//!
//! `policies/` beside this crate holds one for each profile, with a word on every key.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{Access, Level, ProcessList, Profile, Size};

mod demand;
mod exec;
mod ready;

use exec::{Exec, JobExec};

pub use demand::Unmet;
pub use ready::{LogLimits, Outputs, Ready, Started};

/// The version of the format that is read here.
const VERSION: u32 = 1;

/// A longer policy file is refused, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Why a policy file is of no use. Nothing was started.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Not TOML, or a key or a kind of value that is not known.
    #[error("{}: {problem}", .path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser says, with the line.
        problem: String,
    },
    /// A value that means nothing, or nothing on this machine.
    #[error("{}: {key}: {problem}", .path.display())]
    Value {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// A policy as it stands in its file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Always 1.
    pub version: u32,
    /// What kind of program it is for.
    #[serde(default)]
    pub profile: Profile,
    /// The isolation that is asked for; `S3` makes a disk of the jail's own.
    #[serde(default)]
    pub level: Option<Level>,
    /// Mechanisms of the report that must hold, such as `netns` or `landlock>=3`.
    #[serde(default)]
    pub require: Vec<String>,
    /// What happens when one of them does not.
    #[serde(default)]
    pub on_missing: OnMissing,
    /// Folders and files of this machine, and where the program sees them.
    #[serde(default)]
    pub map: Vec<Map>,
    /// Variables of the program's environment, beside the defaults; nothing is inherited.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What may run.
    #[serde(default)]
    pub exec: Exec,
    /// How much of the machine it may use; the defaults are those of [`crate::Limits`].
    #[serde(default)]
    pub limits: LimitKeys,
    /// The only network that there is.
    #[serde(default)]
    pub net: Net,
    /// Graphics cards.
    #[serde(default)]
    pub gpu: Gpu,
    /// What `/proc` shows.
    #[serde(default)]
    pub proc: Proc,
    /// Windows paths within programs.
    #[serde(default)]
    pub preload: Preload,
    /// What is taken of what the program wrote. Without this table it writes into the mapped folders themselves.
    #[serde(default)]
    pub outputs: Option<OutputKeys>,
}

/// What happens when a required mechanism does not hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum OnMissing {
    /// Nothing runs.
    #[default]
    Refuse,
    /// It runs, and is told, as long as this level is reached.
    Degrade(Level),
}

impl TryFrom<String> for OnMissing {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match text.as_str() {
            "refuse" => Ok(Self::Refuse),
            "degrade:S2" => Ok(Self::Degrade(Level::S2)),
            "degrade:S3" => Ok(Self::Degrade(Level::S3)),
            _ => Err(format!(
                "{text:?} is none of \"refuse\", \"degrade:S2\", \"degrade:S3\": nothing runs below S2"
            )),
        }
    }
}

/// A folder or file, and where the program sees it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Map {
    /// A name for it, unique; windows paths lie at `/mnt/ID` in the jail.
    #[serde(default)]
    pub id: Option<String>,
    /// What kind of path `source` is.
    #[serde(default)]
    pub format: Format,
    /// The path by which the scene names it.
    pub source: String,
    /// Where it lies on this machine, relative to the policy file; for a posix path `source` when absent.
    #[serde(default)]
    pub host: Option<PathBuf>,
    /// Whether the program may change it: `ro` or `rw`.
    #[serde(default)]
    pub access: Rights,
    /// How names beneath a windows path are looked up.
    #[serde(default)]
    pub case: Case,
    /// Whether programs in it may run.
    #[serde(default)]
    pub exec: bool,
}

/// What kind of path a source is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `/mnt/show`
    #[default]
    Posix,
    /// `S:\show` or `\\nas\show`
    Windows,
}

/// Whether a mapped folder may be changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rights {
    /// No.
    #[default]
    Ro,
    /// Yes.
    Rw,
}

impl From<Rights> for Access {
    fn from(rights: Rights) -> Self {
        match rights {
            Rights::Ro => Self::Read,
            Rights::Rw => Self::Write,
        }
    }
}

/// How names beneath a windows path are looked up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Case {
    /// As Windows does.
    #[default]
    Insensitive,
    /// As they are written.
    Sensitive,
}

/// How much of the machine the program may use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitKeys {
    /// Memory of all processes together.
    pub mem: Option<Size>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Processors, 1 to 4096.
    pub cpus: Option<u64>,
    /// Time by the clock, in seconds.
    pub wall_s: Option<u64>,
    /// Open files of each process.
    pub nofile: Option<u64>,
    /// What it may write to the disk.
    pub out_bytes: Option<Size>,
    /// Files and folders that it may make.
    pub out_files: Option<u64>,
    /// The longest file.
    pub file_bytes: Option<Size>,
    /// The size of each private folder in memory, such as `/tmp`.
    pub tmp: Option<Size>,
    /// What is passed on of what it prints, in all.
    pub log_bytes: Option<Size>,
    /// What is passed on of what it prints in each second for long, such as `256KiB/s`.
    pub log_rate: Option<Rate>,
}

/// So many bytes a second, written as a size with `/s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Rate(pub u64);

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let size = text.trim().strip_suffix("/s").map(str::parse::<Size>);
        match size {
            Some(Ok(Size(bytes))) => Ok(Self(bytes)),
            _ => Err(format!("{text:?} is no rate: write a size a second, such as 256KiB/s")),
        }
    }
}

/// The only network that there is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// Services that the program reaches, such as licence servers.
    #[serde(default)]
    pub allow: Vec<Allowed>,
}

/// A service that the program reaches by its name and port.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// What it is, for people.
    #[serde(default)]
    pub name: Option<String>,
    /// Its host name. It is looked up once, before the start.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Graphics cards of the program alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gpu {
    /// Names beneath `/dev`, such as `nvidia0` or `dri/renderD128`.
    #[serde(default)]
    pub devices: Vec<String>,
}

/// What `/proc` shows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proc {
    /// `subset` or `compat`.
    #[serde(default)]
    pub mode: ProcessList,
}

/// Windows paths within programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preload {
    /// Whether programs that open windows paths find them. Off: only the alias folders of drives are there.
    pub windows_paths: bool,
    /// Whether nothing runs where the library that finds them would not be in force in the program.
    pub require_handshake: bool,
}

impl Default for Preload {
    fn default() -> Self {
        Self { windows_paths: true, require_handshake: false }
    }
}

/// What is taken of what the program wrote: the mapped folders are empty for it, and afterwards what is
/// accepted is copied into them.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputKeys {
    /// Names of files, with `*` for any part of a name, such as `*.exr`; all when absent.
    #[serde(default)]
    pub accept: Vec<String>,
    /// Folders within folders, 1 to 64.
    #[serde(default = "usual_depth")]
    pub max_depth: usize,
    /// What is taken at all.
    #[serde(default)]
    pub kinds: Kinds,
}

fn usual_depth() -> usize {
    8
}

/// What is taken of outputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kinds {
    /// Regular files with a single name: no links, devices, pipes or sockets.
    #[default]
    Regular,
}

impl Policy {
    /// Read a policy file.
    ///
    /// # Errors
    /// Names the file, and the line or the key.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let read = fs::metadata(path).and_then(|about| {
            if about.len() > MAX_FILE {
                let text = format!("it is longer than {MAX_FILE} bytes");
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
            fs::read_to_string(path)
        });
        let text = read.map_err(|source| PolicyError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// The policy in `text`, read from `path`.
    ///
    /// # Errors
    /// Names the file, and the line or the key.
    pub fn parse(path: &Path, text: &str) -> Result<Self, PolicyError> {
        let policy: Self = toml::from_str(text).map_err(|error| PolicyError::Syntax {
            path: path.to_owned(),
            problem: in_line(text, &error),
        })?;
        policy.check().map_err(|(key, problem)| PolicyError::Value {
            path: path.to_owned(),
            key,
            problem,
        })?;
        Ok(policy)
    }

    fn check(&self) -> Result<(), (String, String)> {
        let wrong = |key: &str, problem: String| Err((key.to_owned(), problem));
        if self.version != VERSION {
            return wrong("version", format!("{} is not known: {VERSION} is", self.version));
        }
        if let Some(level @ (Level::S0 | Level::S1)) = self.level {
            return wrong("level", format!("{level} is no jail: S2 or S3 is possible"));
        }
        for text in &self.require {
            demand::Demand::parse(text).map_err(|problem| ("require".to_owned(), problem))?;
        }
        let counts = [
            ("limits.cpus", self.limits.cpus, 4096),
            ("limits.pids", self.limits.pids, 4_194_304),
            ("limits.nofile", self.limits.nofile, 1 << 20),
            ("limits.out_files", self.limits.out_files, 100_000_000),
            ("limits.wall_s", self.limits.wall_s, 366 * 86_400),
        ];
        for (key, given, most) in counts {
            if given.is_some_and(|n| !(1..=most).contains(&n)) {
                return wrong(key, format!("1 to {most} is possible"));
            }
        }
        self.exec.check()?;
        if self.preload.require_handshake && !self.preload.windows_paths {
            let problem = "without windows_paths there is no library to hear from";
            return wrong("preload.require_handshake", problem.to_owned());
        }
        let depth = self.outputs.as_ref().map(|outputs| outputs.max_depth);
        if depth.is_some_and(|depth| !(1..=64).contains(&depth)) {
            return wrong("outputs.max_depth", "1 to 64 is possible".to_owned());
        }
        self.check_maps()
    }

    fn check_maps(&self) -> Result<(), (String, String)> {
        let mut ids = Vec::new();
        for (n, map) in self.map.iter().enumerate() {
            let key = |name: &str| format!("map {} ({}): {name}", n + 1, map.source);
            if let Some(id) = &map.id {
                let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
                if id.is_empty() || id.len() > 64 || !id.chars().all(fit) {
                    let problem = format!("{id:?}: letters, digits, - and _ are wanted");
                    return Err((key("id"), problem));
                }
                if ids.contains(&id) {
                    return Err((key("id"), format!("{id:?} has another map")));
                }
                ids.push(id);
            }
            match map.format {
                Format::Posix if !map.source.starts_with('/') => {
                    let problem =
                        "an absolute path is wanted; for S:\\show say format = \"windows\"";
                    return Err((key("source"), problem.to_owned()));
                }
                Format::Windows if !is_windows(&map.source) => {
                    let problem =
                        "a drive or share is wanted, such as 'S:\\show' or '\\\\nas\\show'";
                    return Err((key("source"), problem.to_owned()));
                }
                Format::Windows if map.host.is_none() => {
                    let problem = "say where it lies on this machine: host = \"/srv/show\"";
                    return Err((key("host"), problem.to_owned()));
                }
                Format::Posix | Format::Windows => {}
            }
        }
        Ok(())
    }
}

/// Whether a text is a drive with a folder, or a share.
fn is_windows(source: &str) -> bool {
    let slash = |byte: Option<&u8>| matches!(byte, Some(b'\\' | b'/'));
    let bytes = source.as_bytes();
    let drive = bytes.first().is_some_and(u8::is_ascii_alphabetic)
        && bytes.get(1) == Some(&b':')
        && slash(bytes.get(2));
    drive || (slash(bytes.first()) && slash(bytes.get(1)) && bytes.len() > 4)
}

/// What a parser says in one line, with the line of the text that it means.
fn in_line(text: &str, error: &toml::de::Error) -> String {
    let start = error.span().map_or(0, |span| span.start.min(text.len()));
    let number = text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
    let line = text.lines().nth(number).unwrap_or_default().trim();
    format!("line {}: {line:?}: {}", number + 1, error.message().replace('\n', "; "))
}

#[cfg(test)]
mod tests;
