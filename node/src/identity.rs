//! The secrets that a node keeps in files of its own: its key, its sealing secret, its tenants and its mesh.
//!
//! Every file holds 32 secret bytes as one line of hexadecimal digits, so that it can be backed up by copying
//! and recognised by looking. It is created whole and readable by its owner only, or not at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use meshfarm_protocol::id::{MeshId, TenantId, hex};
use meshfarm_protocol::seal::{SealingSecret, SigningKey, TenantSecret};
use zeroize::{Zeroize, Zeroizing};

/// Length of every secret, in bytes.
const SECRET_BYTES: usize = 32;

/// A file longer than this holds no secret of ours: 64 digits and a line end, and some white space.
const MAX_FILE_BYTES: u64 = 256;

/// Why a secret was not loaded or not created. No file was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// There is no such file. `meshfarm init` creates the node's own; the others come from a backup.
    #[error("{} does not exist", .0.display())]
    Absent(PathBuf),
    /// The file is there already, and a secret is never overwritten.
    #[error("{} exists already; a secret is never overwritten, so move it away first", .0.display())]
    Exists(PathBuf),
    /// Others on this machine could have read it.
    #[error(
        "{} can be read by others (mode {mode:04o}); run `chmod 600 {}`, and replace the secret if others may have read it",
        .path.display(), .path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another user owns it, who could change it at any time.
    #[error("{} belongs to another user (uid {owner}); a node uses its own secrets only", .path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
    },
    /// Its contents are not what we write.
    #[error("{} holds no secret: one line of 64 hexadecimal digits is wanted; restore it from a backup", .0.display())]
    Garbled(PathBuf),
    /// The system refused.
    #[error("{what} {}", .path.display())]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The folder in which a node keeps its secrets.
#[derive(Clone, Debug)]
pub struct SecretFolder {
    path: PathBuf,
}

impl SecretFolder {
    /// The secrets in `path`. Nothing is read or created yet.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// The node's Ed25519 key: who this site is.
    ///
    /// # Errors
    /// When the file is absent, exposed or garbled.
    pub fn load_key(&self) -> Result<SigningKey, IdentityError> {
        let seed = load(&self.path.join("node.key"))?;
        Ok(SigningKey::from_seed(&seed))
    }

    /// Makes the node's key from `seed`, 32 fresh random bytes.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create_key(
        &self,
        seed: &Zeroizing<[u8; SECRET_BYTES]>,
    ) -> Result<SigningKey, IdentityError> {
        create(&self.path.join("node.key"), seed)?;
        Ok(SigningKey::from_seed(seed))
    }

    /// The X25519 secret that envelopes for this site are sealed to.
    ///
    /// # Errors
    /// When the file is absent, exposed or garbled.
    pub fn load_sealing(&self) -> Result<SealingSecret, IdentityError> {
        let seed = load(&self.path.join("sealing.key"))?;
        Ok(SealingSecret::from_seed(*seed))
    }

    /// Makes the sealing secret from `seed`, 32 fresh random bytes.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create_sealing(
        &self,
        seed: &Zeroizing<[u8; SECRET_BYTES]>,
    ) -> Result<SealingSecret, IdentityError> {
        create(&self.path.join("sealing.key"), seed)?;
        Ok(SealingSecret::from_seed(**seed))
    }

    /// The secret of `tenant` in `epoch`, under which its content is encrypted.
    ///
    /// # Errors
    /// When the file is absent, exposed or garbled.
    pub fn load_tenant(&self, tenant: TenantId, epoch: u64) -> Result<TenantSecret, IdentityError> {
        let secret = load(&self.tenant_file(tenant, epoch))?;
        Ok(TenantSecret::new(tenant, epoch, *secret))
    }

    /// Makes the secret of `tenant` in `epoch` from 32 fresh random bytes.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create_tenant(
        &self,
        tenant: TenantId,
        epoch: u64,
        secret: &Zeroizing<[u8; SECRET_BYTES]>,
    ) -> Result<TenantSecret, IdentityError> {
        create(&self.tenant_file(tenant, epoch), secret)?;
        Ok(TenantSecret::new(tenant, epoch, **secret))
    }

    /// The root key of `mesh`, which only its founder has.
    ///
    /// # Errors
    /// When the file is absent, exposed or garbled, or holds the key of another mesh.
    pub fn load_root(&self, mesh: MeshId) -> Result<SigningKey, IdentityError> {
        let path = self.root_file(mesh);
        let root = SigningKey::from_seed(&*load(&path)?);
        if root.mesh() == mesh { Ok(root) } else { Err(IdentityError::Garbled(path)) }
    }

    /// Makes the root key of a new mesh from `seed`, 32 fresh random bytes. Its public half names the mesh.
    ///
    /// # Errors
    /// When the file exists or cannot be written.
    pub fn create_root(
        &self,
        seed: &Zeroizing<[u8; SECRET_BYTES]>,
    ) -> Result<SigningKey, IdentityError> {
        let root = SigningKey::from_seed(seed);
        create(&self.root_file(root.mesh()), seed)?;
        Ok(root)
    }

    fn tenant_file(&self, tenant: TenantId, epoch: u64) -> PathBuf {
        self.path.join(format!("tenant-{tenant}-{epoch}.key"))
    }

    fn root_file(&self, mesh: MeshId) -> PathBuf {
        self.path.join(format!("mesh-{mesh}.key"))
    }
}

/// The secret in `path`, after making sure that only its owner can read it.
fn load(path: &Path) -> Result<Zeroizing<[u8; SECRET_BYTES]>, IdentityError> {
    let failed = |what| io_error(what, path);
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(IdentityError::Absent(path.to_owned()));
        }
        Err(error) => return Err(failed("open")(error)),
    };
    // Asked of the open file, so that it cannot be exchanged between the look and the reading.
    let about = file.metadata().map_err(failed("look at"))?;
    let mode = about.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(IdentityError::Exposed { path: path.to_owned(), mode });
    }
    let own = std::fs::metadata("/proc/self").map_err(failed("compare the owner of"))?;
    if about.uid() != own.uid() && own.uid() != 0 {
        return Err(IdentityError::Foreign { path: path.to_owned(), owner: about.uid() });
    }
    let mut text = Zeroizing::new(String::with_capacity(128));
    let limited = Read::take(&mut file, MAX_FILE_BYTES);
    let read = io::BufReader::new(limited).read_to_string(&mut text);
    match read {
        Ok(_) => parse(&text).ok_or_else(|| IdentityError::Garbled(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            Err(IdentityError::Garbled(path.to_owned()))
        }
        Err(error) => Err(failed("read")(error)),
    }
}

fn parse(text: &str) -> Option<Zeroizing<[u8; SECRET_BYTES]>> {
    let mut id: meshfarm_protocol::id::ChunkId = text.trim_end().parse().ok()?;
    let secret = Zeroizing::new(id.0);
    id.0.zeroize();
    Some(secret)
}

/// Writes `secret` to a file beside `path`, syncs it, and links it to its name, which fails if that is taken.
fn create(path: &Path, secret: &[u8; SECRET_BYTES]) -> Result<(), IdentityError> {
    let failed = |what| io_error(what, path);
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed("make the folder of"))?;
    let draft = path.with_extension(format!("new-{}", std::process::id()));
    let written = write_draft(&draft, secret)
        .and_then(|()| std::fs::hard_link(&draft, path))
        .and_then(|()| File::open(folder)?.sync_all());
    // The draft is a second name of the same file, or the rest of a failed attempt: gone either way.
    let _absent = std::fs::remove_file(&draft);
    match written {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(IdentityError::Exists(path.to_owned()))
        }
        Err(error) => Err(failed("write")(error)),
    }
}

fn write_draft(draft: &Path, secret: &[u8; SECRET_BYTES]) -> io::Result<()> {
    // A crash may have left one behind under the same process number.
    let _absent = std::fs::remove_file(draft);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
    let line = Zeroizing::new(format!("{}\n", hex(secret)));
    file.write_all(line.as_bytes())?;
    file.sync_all()
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> IdentityError {
    let path = path.to_owned();
    move |source| IdentityError::Io { what, path: path.clone(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn seed(byte: u8) -> Zeroizing<[u8; 32]> {
        Zeroizing::new([byte; 32])
    }

    #[test]
    fn secrets_come_back_as_they_were_created_and_are_never_overwritten() {
        let temp = tempfile::tempdir().unwrap();
        let folder = SecretFolder::new(temp.path().join("secrets"));
        assert!(matches!(folder.load_key(), Err(IdentityError::Absent(_))));
        let key = folder.create_key(&seed(1)).unwrap();
        let sealing = folder.create_sealing(&seed(2)).unwrap();
        let root = folder.create_root(&seed(3)).unwrap();
        let tenant = TenantId([4; 16]);
        let secret = folder.create_tenant(tenant, 1, &seed(4)).unwrap();
        assert_eq!(folder.load_key().unwrap().site(), key.site());
        assert_eq!(folder.load_sealing().unwrap().public(), sealing.public());
        assert_eq!(folder.load_root(root.mesh()).unwrap().mesh(), root.mesh());
        let sealed =
            |secret: &TenantSecret| meshfarm_protocol::seal::seal_chunk(&secret.chunks(), b"x").cid;
        let loaded = folder.load_tenant(tenant, 1).unwrap();
        assert_eq!(sealed(&loaded), sealed(&secret));
        let again = folder.create_key(&seed(9));
        assert!(matches!(again, Err(IdentityError::Exists(_))));
        assert_eq!(folder.load_key().unwrap().site(), key.site());
        let mode = |name: &str| {
            let path = temp.path().join("secrets").join(name);
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777
        };
        assert_eq!((mode("node.key"), mode("sealing.key")), (0o600, 0o600));
        let left: Vec<_> = std::fs::read_dir(temp.path().join("secrets"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.contains("new-"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_with_the_cure() {
        let temp = tempfile::tempdir().unwrap();
        let folder = SecretFolder::new(temp.path());
        folder.create_key(&seed(1)).unwrap();
        let path = temp.path().join("node.key");
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            let error = folder.load_key().unwrap_err().to_string();
            assert!(error.contains("chmod 600") && error.contains("node.key"), "{error}");
        }
    }

    #[test]
    fn a_garbled_or_foreign_file_is_named_and_refused() {
        let temp = tempfile::tempdir().unwrap();
        let folder = SecretFolder::new(temp.path());
        let root = folder.create_root(&seed(3)).unwrap();
        let other = SigningKey::from_seed(&seed(5)).mesh();
        let file = |mesh: MeshId| temp.path().join(format!("mesh-{mesh}.key"));
        std::fs::copy(file(root.mesh()), file(other)).unwrap();
        assert!(matches!(folder.load_root(other), Err(IdentityError::Garbled(_))));
        for garbage in [&b"secret"[..], &[0xff; 200], &[b'0'; 4096], b""] {
            folder.create_key(&seed(1)).unwrap();
            std::fs::write(temp.path().join("node.key"), garbage).unwrap();
            let error = folder.load_key().unwrap_err().to_string();
            assert!(error.contains("node.key"), "{error}");
            std::fs::remove_file(temp.path().join("node.key")).unwrap();
        }
    }
}
