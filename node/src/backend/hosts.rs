//! What a node does for people who run a site of several machines: the mesh that hosts join, what a host is asked in
//! vain, and backups of the head.

use std::sync::Arc;

use meshfarm_core::{JobPhase, JobView};
use meshfarm_protocol::membership::{CertificateBody, Role};

use super::{NodeBackend, mesh_problem, panicked};
use crate::api::{BackedUp, Backup, Invite, Problem};
use crate::backup;
use crate::node::backup_problem;

impl NodeBackend {
    /// The mesh that a ticket leads to: that of our hosts, or one that we founded.
    pub(super) async fn mesh_for(&self, invite: &Invite) -> Result<CertificateBody, Problem> {
        if invite.role != Role::Host {
            let body = self.meshes.find(invite.mesh.as_deref()).map_err(mesh_problem)?;
            self.meshes.root(&body).map_err(mesh_problem)?;
            return Ok(body);
        }
        if let Some(mesh) = &invite.mesh {
            let text = format!("--mesh {mesh}: a host joins this site, and no mesh");
            return Err(Problem::bad_input(text));
        }
        let known = self.meshes.all().len();
        let certificate = self.meshes.of_hosts(&self.name, &self.means.machine);
        let certificate = certificate.map_err(mesh_problem)?;
        let body = certificate.open().map_err(|error| Problem::broken(&error))?;
        if self.meshes.all().len() > known {
            self.means.net.add_mesh(body.mesh, certificate).await;
        }
        Ok(body)
    }

    /// Whether this machine can become a host: it belongs to no mesh and has no jobs to end.
    pub(super) async fn may_serve(&self) -> Result<(), Problem> {
        self.meshes.may_serve().map_err(mesh_problem)?;
        let active = |job: &JobView| job.phase == JobPhase::Active;
        let jobs = self.gate.look(move |site, _| site.jobs().iter().any(active)).await?;
        if jobs {
            let text = "this site has jobs that have not ended: a host has none of its own";
            return Err(Problem::refused(text).with_help("wait for them, or cancel them"));
        }
        Ok(())
    }

    /// A host takes no jobs of people: said before their files are read.
    pub(super) fn no_host(&self) -> Result<(), Problem> {
        let Some((_, head)) = self.meshes.head() else {
            return Ok(());
        };
        Err(Problem::refused(format!("this machine is a host of {head} and takes no jobs itself"))
            .with_help(format!("submit on {head}")))
    }

    /// Write a backup of this home, on a thread that may wait.
    pub(super) async fn save(&self, asked: Backup) -> Result<BackedUp, Problem> {
        let (means, home) = (Arc::clone(&self.means), self.home.clone());
        let file = asked.file.clone();
        let write = move || backup::write(&home, (&means.store, &means.chunks), &file);
        let written = self.means.machine.block(write).await.ok_or_else(panicked)?;
        let counted = written.map_err(|error| backup_problem(&error))?;
        Ok(BackedUp { file: asked.file, records: counted.records, chunks: counted.chunks })
    }
}
