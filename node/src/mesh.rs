//! The meshes that this site belongs to: their certificates in the store, their root keys where it founded them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use meshfarm_protocol::codec;
use meshfarm_protocol::id::{MeshId, Millis, SiteId};
use meshfarm_protocol::membership::{Certificate, CertificateBody, Refused, Role, is_name};
use meshfarm_protocol::seal::SigningKey;

use crate::identity::{IdentityError, SecretFolder};
use crate::machine::Machine;
use crate::store::{Batch, Family, Store, StoreError};

/// How long a founder's own certificate admits. It holds the root and renews its own at every start.
const FOUNDER_LIFE: Millis = Millis::seconds(365 * 24 * 3600);

/// A stored certificate longer than this was not written by us.
const MAX_BYTES: usize = 16 * 1024;

/// Why a mesh was not created, joined or found. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum MeshError {
    /// No such name can be given.
    #[error(
        "{0:?} cannot name a mesh or a site: use 1 to 64 printable characters, no / \\ or : and no dot in front"
    )]
    Name(String),
    /// There is one already.
    #[error("this site belongs to a mesh named {0} already")]
    Exists(String),
    /// There is none.
    #[error(
        "this site belongs to no mesh yet: `meshfarm mesh create NAME` or `meshfarm join TICKET`"
    )]
    None,
    /// Several could be meant.
    #[error("this site belongs to several meshes: say which with --mesh NAME ({0})")]
    Which(String),
    /// Not by this name.
    #[error("this site belongs to no mesh named {0}")]
    Unknown(String),
    /// The site did not found it.
    #[error("only the founder of {0} can invite: its root key is not on this site")]
    NotFounder(String),
    /// A certificate does not hold.
    #[error(transparent)]
    Certificate(#[from] Refused),
    /// A key file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The meshes of this site.
#[derive(Debug)]
pub struct Meshes {
    store: Arc<Store>,
    secrets: SecretFolder,
    certificates: Mutex<BTreeMap<MeshId, Certificate>>,
}

impl Meshes {
    /// The meshes that the store knows of.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn load(store: Arc<Store>, secrets: SecretFolder) -> Result<Self, MeshError> {
        let mut certificates = BTreeMap::new();
        store.scan(Family::Membership, b"c", |_, value| {
            if let Ok(certificate) = codec::decode::<Certificate>(value, MAX_BYTES)
                && let Ok(body) = certificate.open()
            {
                certificates.insert(body.mesh, certificate);
            }
            ControlFlow::Continue(())
        })?;
        Ok(Self { store, secrets, certificates: Mutex::new(certificates) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<MeshId, Certificate>> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every mesh with our certificate of it.
    #[must_use]
    pub fn all(&self) -> Vec<(MeshId, Certificate)> {
        self.lock().iter().map(|(mesh, certificate)| (*mesh, certificate.clone())).collect()
    }

    /// What our certificates say.
    #[must_use]
    pub fn bodies(&self) -> Vec<CertificateBody> {
        self.lock().values().filter_map(|certificate| certificate.open().ok()).collect()
    }

    /// The root key of a mesh that this site founded.
    ///
    /// # Errors
    /// When this site did not found it, or the file cannot be read.
    pub fn root(&self, body: &CertificateBody) -> Result<SigningKey, MeshError> {
        match self.secrets.load_root(body.mesh) {
            Ok(key) => Ok(key),
            Err(IdentityError::Absent(_)) => Err(MeshError::NotFounder(body.mesh_name.clone())),
            Err(error) => Err(error.into()),
        }
    }

    /// The mesh of this name, or the only one.
    ///
    /// # Errors
    /// When there is none, or several could be meant.
    pub fn find(&self, name: Option<&str>) -> Result<CertificateBody, MeshError> {
        let mut bodies = self.bodies();
        if let Some(name) = name {
            let found = bodies.into_iter().find(|body| body.mesh_name == name);
            return found.ok_or_else(|| MeshError::Unknown(name.to_owned()));
        }
        match (bodies.pop(), bodies.is_empty()) {
            (None, _) => Err(MeshError::None),
            (Some(body), true) => Ok(body),
            (Some(last), false) => {
                bodies.push(last);
                let names: Vec<_> = bodies.into_iter().map(|body| body.mesh_name).collect();
                Err(MeshError::Which(names.join(", ")))
            }
        }
    }

    /// Found a mesh: a root key of its own, and our certificate under it.
    ///
    /// # Errors
    /// When the name cannot be or is taken, or the key cannot be written.
    pub fn create(
        &self,
        name: &str,
        (me, my_name): (SiteId, &str),
        machine: &Machine,
    ) -> Result<(MeshId, Certificate), MeshError> {
        if !is_name(name) {
            return Err(MeshError::Name(name.to_owned()));
        }
        if self.bodies().iter().any(|body| body.mesh_name == name) {
            return Err(MeshError::Exists(name.to_owned()));
        }
        let root = self.secrets.create_root(&machine.seed())?;
        let issued = machine.clock.now();
        let body = CertificateBody {
            version: 1,
            mesh: root.mesh(),
            mesh_name: name.to_owned(),
            site: me,
            name: my_name.to_owned(),
            role: Role::Site,
            issued,
            expires: issued.plus(FOUNDER_LIFE),
            serial: u64::from_be_bytes(machine.random()),
        };
        let certificate = Certificate::sign(&body, &root);
        self.add(&certificate)?;
        Ok((root.mesh(), certificate))
    }

    /// Renew our own certificates of the meshes that we founded.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn renew(&self, machine: &Machine) -> Result<(), MeshError> {
        for mut body in self.bodies() {
            if let Ok(root) = self.root(&body) {
                body.issued = machine.clock.now();
                body.expires = body.issued.plus(FOUNDER_LIFE);
                body.serial = u64::from_be_bytes(machine.random());
                self.add(&Certificate::sign(&body, &root))?;
            }
        }
        Ok(())
    }

    /// Sign a certificate that the core has granted.
    ///
    /// # Errors
    /// When this site did not found the mesh, or its key cannot be read.
    pub fn admit(&self, body: &CertificateBody) -> Result<Certificate, MeshError> {
        Ok(Certificate::sign(body, &self.root(body)?))
    }

    /// Keep a certificate; it is on disk when this returns.
    ///
    /// # Errors
    /// When it does not hold or the store refuses.
    pub fn add(&self, certificate: &Certificate) -> Result<MeshId, MeshError> {
        let mesh = certificate.open()?.mesh;
        let mut batch = Batch::new();
        let key = [b"c".as_slice(), &mesh.0].concat();
        batch.put(Family::Membership, key, codec::encode(certificate));
        self.store.commit(batch)?;
        self.lock().insert(mesh, certificate.clone());
        Ok(mesh)
    }
}
