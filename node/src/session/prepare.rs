//! What a session begins with: its folders, and the policy of its jail.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use meshfarm_protocol::job::{Access, JailProfile, PathFormat};
use meshfarm_protocol::session::{self as speech, JOB_FILE};
use meshfarm_sandbox::{self as sandbox, Profile, Spec};

use super::{Plan, output_folder};

/// Make the session's folders and the policy of its jail.
pub(super) fn prepare(plan: &Plan) -> io::Result<Spec> {
    let work = plan.folder.join("session");
    private_folder(&plan.folder)?;
    private_folder(&work)?;
    private_folder(&plan.folder.join("out"))?;
    let base = plan.folder.join("jail");
    private_folder(&base)?;
    fs::copy(plan.content.join(JOB_FILE), work.join(JOB_FILE))?;
    let mut spec = Spec::new(&plan.programs.session, work.clone());
    spec.floor = plan.floor;
    spec.limits = plan.limits;
    // On the disk of the node's home: the temporary folder may be held in memory, and a disk at level S3 lies there.
    spec.base = Some(base);
    spec.roots = Some(plan.roots.clone());
    spec.tenant_uid = plan.tenant_uid;
    spec.preload.clone_from(&plan.programs.preload);
    spec.profile = profile_of(plan.profile);
    spec.give_cards(plan.cards.devices_of(&plan.gpus).map_err(io::Error::other)?);
    show_software(&mut spec, &plan.software);
    for root in &plan.session.layout.roots {
        let at = PathBuf::from(speech::jail_path(root));
        let (host, access) = match root.access {
            Access::In => (plan.content.join(&root.id), sandbox::Access::Read),
            Access::Out => {
                let host = output_folder(&plan.folder, &root.id);
                private_folder(&host)?;
                copy_tree(&plan.content.join(&root.id), &host)?;
                (host, sandbox::Access::Write)
            }
        };
        if root.format == PathFormat::Windows {
            let source = root.source.clone();
            let rule = sandbox::WindowsRule { source, at: at.clone(), case_insensitive: true };
            spec.windows.push(rule);
        }
        spec.mounts.push(sandbox::Mount { host, at, access, exec: false });
    }
    if let Some(uid) = plan.tenant_uid {
        give_to(&work, uid)?;
        give_to(&plan.folder.join("out"), uid)?;
    }
    Ok(spec)
}

/// Show folders of programs, which are looked into before the system's.
fn show_software(spec: &mut Spec, folders: &[PathBuf]) {
    // One that is not there now is no reason to run nothing: not every task needs it.
    let there = folders.iter().filter_map(|folder| folder.canonicalize().ok());
    spec.software.extend(there);
    prefer_software(spec);
}

/// Let programs be looked up in the folders of software first.
pub(crate) fn prefer_software(spec: &mut Spec) {
    let names = spec.software.iter().flat_map(|folder| [folder.clone(), folder.join("bin")]);
    let names = names.filter_map(|folder| folder.to_str().map(str::to_owned));
    let path: Vec<_> = names.chain(spec.environment().remove("PATH")).collect();
    spec.env.insert("PATH".to_owned(), path.join(":"));
}

const fn profile_of(profile: JailProfile) -> Profile {
    match profile {
        JailProfile::Povray => Profile::Povray,
        JailProfile::Python => Profile::Python,
        JailProfile::BlenderCpu => Profile::BlenderCpu,
        JailProfile::BlenderGpu => Profile::BlenderGpu,
        JailProfile::Command => Profile::Command,
    }
}

/// Make a folder that only we enter.
///
/// # Errors
/// When it cannot be made.
pub fn private_folder(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Copy regular files and folders; the source is ours and holds nothing else.
fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(from) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            private_folder(&target)?;
            copy_tree(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
            fs::set_permissions(&target, fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(())
}

/// Make a tree the tenant's.
fn give_to(path: &Path, uid: u32) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(uid), Some(uid))?;
    if path.is_dir() {
        for entry in fs::read_dir(path)? {
            give_to(&entry?.path(), uid)?;
        }
    }
    Ok(())
}
