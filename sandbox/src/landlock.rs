//! Landlock: a second barrier on paths, and the one that holds against leaked descriptors.

use std::{io, path::PathBuf};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use crate::sys;

/// The oldest interface that is enough: version 3 covers truncation.
pub(crate) const OLDEST: u32 = 3;

/// What a job may do beneath a path of the jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rights {
    /// Read files and list folders.
    pub(crate) read: bool,
    /// Make, change and remove files, folders and links.
    pub(crate) write: bool,
    /// Run programs.
    pub(crate) exec: bool,
    /// Make pipes and sockets with names.
    pub(crate) rendezvous: bool,
    /// Send a device its own commands.
    pub(crate) control: bool,
}

impl Rights {
    pub(crate) const READ: Self =
        Self { read: true, write: false, exec: false, rendezvous: false, control: false };
    pub(crate) const DEVICE: Self = Self { control: true, ..Self::WRITE };
    pub(crate) const RUN: Self = Self { exec: true, ..Self::READ };
    pub(crate) const WRITE: Self = Self { write: true, ..Self::READ };
    pub(crate) const SCRATCH: Self = Self { rendezvous: true, ..Self::WRITE };
}

/// One line of the ruleset: a path of the jail and what is allowed beneath it.
#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) path: PathBuf,
    pub(crate) rights: Rights,
}

/// Restrict this process, for good, in one ruleset: a second layer would break renames between folders.
///
/// A path that is missing is an error and not a rule less: a ruleset must never be quietly incomplete.
/// The job may connect to these TCP ports and listen on none.
pub(crate) fn restrict(rules: &[Rule], ports: &[u16]) -> io::Result<String> {
    let version = sys::landlock_version();
    if version < OLDEST {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("the kernel has Landlock version {version} and {OLDEST} is needed"),
        ));
    }
    let abi = abi_of(version);
    let handled = AccessFs::from_all(abi);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(handled)
        .map_err(io::Error::other)?;
    if version >= 4 {
        ruleset = ruleset.handle_access(AccessNet::from_all(abi)).map_err(io::Error::other)?;
    }
    if version >= 6 {
        ruleset = ruleset.scope(Scope::from_all(abi)).map_err(io::Error::other)?;
    }
    let mut ruleset = ruleset.create().map_err(io::Error::other)?;
    for rule in rules {
        let opened = sys::open_name(&rule.path, sys::NAME)
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", rule.path.display())))?;
        let folder = std::fs::File::from(opened.try_clone()?).metadata()?.is_dir();
        let mut access = access_of(rule.rights) & handled;
        if !folder {
            access &= AccessFs::from_file(abi);
        }
        ruleset = ruleset
            .add_rule(PathBeneath::new(opened, access))
            .map_err(|e| io::Error::other(format!("{}: {e}", rule.path.display())))?;
    }
    if version >= 4 {
        for port in ports {
            let rule = NetPort::new(*port, AccessNet::ConnectTcp);
            ruleset = ruleset.add_rule(rule).map_err(io::Error::other)?;
        }
    }
    let status = ruleset.restrict_self().map_err(io::Error::other)?;
    if status.ruleset != RulesetStatus::FullyEnforced {
        return Err(io::Error::other("the ruleset is not fully in force"));
    }
    Ok(format!("version {version}, {} rules, fully enforced", rules.len()))
}

fn abi_of(version: u32) -> ABI {
    match version {
        0 => ABI::Unsupported,
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        6 => ABI::V6,
        // Later versions add rights that this policy has no rule for; those calls stay with seccomp.
        _ => ABI::V7,
    }
}

fn access_of(rights: Rights) -> BitFlags<AccessFs> {
    let mut access = BitFlags::<AccessFs>::empty();
    if rights.read {
        access |= AccessFs::ReadFile | AccessFs::ReadDir;
    }
    if rights.exec {
        access |= AccessFs::Execute;
    }
    if rights.write {
        access |= AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::MakeReg
            | AccessFs::MakeDir
            | AccessFs::MakeSym
            | AccessFs::RemoveFile
            | AccessFs::RemoveDir
            | AccessFs::Refer;
    }
    if rights.rendezvous {
        access |= AccessFs::MakeFifo | AccessFs::MakeSock;
    }
    if rights.control {
        access |= AccessFs::IoctlDev;
    }
    access
}
