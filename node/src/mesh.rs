//! The meshes that this site belongs to: their certificates in the store, their root keys where it founded them; and
//! the mesh of its own hosts, whose root is its own key.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use meshfarm_protocol::codec;
use meshfarm_protocol::id::{MeshId, Millis, SiteId};
use meshfarm_protocol::membership::{
    Certificate, CertificateBody, Refused, Role, is_name, mesh_of_hosts,
};
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
    /// A host belongs to its head.
    #[error("this machine is a host of {0}, and a host belongs to no mesh")]
    IsHost(String),
    /// A site cannot become a host.
    #[error(
        "this site belongs to {0} already: only a machine that belongs to none can become a host"
    )]
    IsSite(String),
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
    key: SigningKey,
    certificates: Mutex<BTreeMap<MeshId, Certificate>>,
}

impl Meshes {
    /// The meshes that the store knows of; `key` is the site's own.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn load(
        store: Arc<Store>,
        secrets: SecretFolder,
        key: SigningKey,
    ) -> Result<Self, MeshError> {
        let mut certificates = BTreeMap::new();
        store.scan(Family::Membership, b"c", |_, value| {
            if let Ok(certificate) = codec::decode::<Certificate>(value, MAX_BYTES)
                && let Ok(body) = certificate.open()
            {
                certificates.insert(body.mesh, certificate);
            }
            ControlFlow::Continue(())
        })?;
        Ok(Self { store, secrets, key, certificates: Mutex::new(certificates) })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<MeshId, Certificate>> {
        self.certificates.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every mesh with our certificate of it.
    #[must_use]
    pub fn all(&self) -> Vec<(MeshId, Certificate)> {
        self.lock().iter().map(|(mesh, certificate)| (*mesh, certificate.clone())).collect()
    }

    /// What our certificates say, without that of the mesh of our own hosts.
    #[must_use]
    pub fn bodies(&self) -> Vec<CertificateBody> {
        let hosts = mesh_of_hosts(self.key.site());
        self.all_bodies().filter(|body| body.mesh != hosts).collect()
    }

    fn all_bodies(&self) -> impl Iterator<Item = CertificateBody> + use<> {
        self.all().into_iter().filter_map(|(_, certificate)| certificate.open().ok())
    }

    /// The site that this machine is a host of, and its name, when it is a host.
    #[must_use]
    pub fn head(&self) -> Option<(SiteId, String)> {
        self.all_bodies().find_map(|body| Some((body.head()?, body.mesh_name)))
    }

    /// Whether our certificates let this site borrow only, in every mesh that it belongs to.
    #[must_use]
    pub fn is_submitter(&self) -> bool {
        let bodies = self.bodies();
        !bodies.is_empty() && bodies.iter().all(|body| body.role == Role::Submitter)
    }

    /// Whether this machine can become a host: it belongs to nothing.
    ///
    /// # Errors
    /// When it does.
    pub fn may_serve(&self) -> Result<(), MeshError> {
        match self.all_bodies().next() {
            None => Ok(()),
            Some(body) if body.head().is_some() => Err(MeshError::IsHost(body.mesh_name)),
            Some(body) if body.mesh == mesh_of_hosts(self.key.site()) => {
                Err(MeshError::IsSite("its own hosts".to_owned()))
            }
            Some(body) => Err(MeshError::IsSite(body.mesh_name)),
        }
    }

    /// Whether this machine can belong to a mesh: it is no host.
    ///
    /// # Errors
    /// When it is one.
    pub fn may_join(&self) -> Result<(), MeshError> {
        self.head().map_or(Ok(()), |(_, name)| Err(MeshError::IsHost(name)))
    }

    /// The mesh of our own hosts, with our certificate of it. It is made when it is asked for first.
    ///
    /// # Errors
    /// When we are a host ourselves, or the store refuses.
    pub fn of_hosts(&self, my_name: &str, machine: &Machine) -> Result<Certificate, MeshError> {
        self.may_join()?;
        let (me, mesh) = (self.key.site(), mesh_of_hosts(self.key.site()));
        if let Some(certificate) = self.lock().get(&mesh) {
            return Ok(certificate.clone());
        }
        let certificate = Self::founder((&self.key, my_name), (me, my_name), machine);
        self.add(&certificate)?;
        Ok(certificate)
    }

    /// A founder's own certificate.
    fn founder(
        (root, name): (&SigningKey, &str),
        (me, my_name): (SiteId, &str),
        machine: &Machine,
    ) -> Certificate {
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
        Certificate::sign(&body, root)
    }

    /// The root key of a mesh that this site founded.
    ///
    /// # Errors
    /// When this site did not found it, or the file cannot be read.
    pub fn root(&self, body: &CertificateBody) -> Result<SigningKey, MeshError> {
        if body.mesh == mesh_of_hosts(self.key.site()) {
            return Ok(self.key.clone());
        }
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
        self.may_join()?;
        let root = self.secrets.create_root(&machine.seed())?;
        let certificate = Self::founder((&root, name), (me, my_name), machine);
        self.add(&certificate)?;
        Ok((root.mesh(), certificate))
    }

    /// Renew our own certificates of the meshes that we founded.
    ///
    /// # Errors
    /// When the store refuses.
    pub fn renew(&self, machine: &Machine) -> Result<(), MeshError> {
        for mut body in self.all_bodies() {
            if let Ok(root) = self.root(&body) {
                body.issued = machine.clock.now();
                body.expires = body.issued.plus(FOUNDER_LIFE);
                body.serial = u64::from_be_bytes(machine.random());
                self.add(&Certificate::sign(&body, &root))?;
            }
        }
        Ok(())
    }

    /// Sign a certificate that the core has granted: of a host with our own key, of anybody else with the root's.
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
