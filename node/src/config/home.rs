//! The folder of a node: where everything of it lies, who may use it, and its making.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{Config, ConfigError, MAX_CONFIG, MAX_SOCKET_PATH};

/// The folder that holds everything of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Home {
    root: PathBuf,
}

impl Home {
    /// The home at `root`, or the default: `~/.local/share/meshfarm`. Nothing is read or made.
    ///
    /// # Errors
    /// When there is no telling where it is, or when its path is too long for a socket.
    pub fn find(root: Option<PathBuf>) -> Result<Self, ConfigError> {
        let root = match root {
            Some(root) => std::path::absolute(&root).unwrap_or(root),
            None => default_home()?,
        };
        let home = Self { root };
        let over = home.socket().as_os_str().len().saturating_sub(MAX_SOCKET_PATH);
        if over > 0 {
            return Err(ConfigError::LongHome { home: home.root, over });
        }
        Ok(home)
    }

    /// The folder itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What the person set.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.root.join("meshfarm.toml")
    }

    /// The socket of the local API.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.root.join("api.sock")
    }

    /// Keys, readable by their owner only.
    #[must_use]
    pub fn secrets(&self) -> PathBuf {
        self.root.join("secrets")
    }

    /// Records and chunks.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.root.join("store")
    }

    /// Folders of running sessions.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.root.join("work")
    }

    /// Logs of tasks.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// Bundles of renderers that this site adds to the built-in ones.
    #[must_use]
    pub fn bundles(&self) -> PathBuf {
        self.root.join("bundles")
    }

    fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    /// Whether `init` has made it.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.config().is_file()
    }

    /// Make a new home with `config` in it, for its owner only.
    ///
    /// # Errors
    /// When it is a home already, a value is wrong, or the system refuses.
    pub fn create(&self, config: &Config) -> Result<(), ConfigError> {
        config.check(&self.config())?;
        if self.exists() {
            return Err(ConfigError::HomeExists(self.root.clone()));
        }
        let failed = io_error;
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.root)
            .map_err(failed("make", &self.root))?;
        // The folder may have been there before, open to others.
        fs::set_permissions(&self.root, fs::Permissions::from_mode(0o700))
            .map_err(failed("close to others", &self.root))?;
        let path = self.config();
        let draft = self.root.join("meshfarm.toml.new");
        fs::write(&draft, config.to_text()).map_err(failed("write", &draft))?;
        fs::rename(&draft, &path).map_err(failed("write", &path))
    }

    /// What the person set.
    ///
    /// # Errors
    /// When there is no such file, or when it is wrong: file and key are named.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let path = self.config();
        let size = match fs::metadata(&path) {
            Ok(about) => about.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ConfigError::NoHome(self.root.clone()));
            }
            Err(error) => return Err(io_error("read", &path)(error)),
        };
        if size > MAX_CONFIG {
            let problem = format!("it is longer than {MAX_CONFIG} bytes");
            return Err(ConfigError::Syntax { path, problem });
        }
        let text = fs::read_to_string(&path).map_err(io_error("read", &path))?;
        Config::parse(&path, &text)
    }

    /// Keep every other node away from this home for as long as the result lives.
    ///
    /// # Errors
    /// When another node has it.
    pub fn lock(&self) -> Result<HomeLock, ConfigError> {
        let path = self.lock_file();
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("open", &path))?;
        match file.try_lock() {
            Ok(()) => {
                let pid = format!("{}\n", std::process::id());
                file.set_len(0)
                    .and_then(|()| file.write_all(pid.as_bytes()))
                    .map_err(io_error("write", &path))?;
                Ok(HomeLock { _file: file })
            }
            Err(TryLockError::WouldBlock) => Err(ConfigError::Taken {
                home: self.root.clone(),
                pid: fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok()),
            }),
            Err(TryLockError::Error(error)) => Err(io_error("lock", &path)(error)),
        }
    }
}

/// Keeps other nodes away from a home; dropping it, or dying, lets go.
#[derive(Debug)]
pub struct HomeLock {
    _file: File,
}

fn default_home() -> Result<PathBuf, ConfigError> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_DATA_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| set("HOME").map(|home| home.join(".local/share")))
        .map(|share| share.join("meshfarm"))
        .ok_or(ConfigError::NoHomeNamed)
}

fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ConfigError {
    let path = path.to_owned();
    move |source| ConfigError::Io { what, path, source }
}
