//! Attacks by the mapping of the artist's paths, which is a convenience and must never be a way out.

use crate::attack::{
    Attack,
    Control::{self, Impossible, Unconfined, Without},
    Family,
    Layer::{self, Landlock, MountRestrictions, OwnRoot},
    Prepare,
};

const fn attack(
    name: &'static str,
    tries: &'static str,
    stopped_by: &'static [Layer],
    control: Control,
) -> Attack {
    Attack::new(Family::Relocation, name, tries, stopped_by, control)
}

#[rustfmt::skip]
pub(super) const ATTACKS: &[Attack] = &[
    attack("climb-out-of-the-drives-folder", "climbs out of the folder that a drive's path is shown at",
        &[OwnRoot, Landlock], Unconfined),
    attack("climb-out-of-a-windows-path", "climbs out of a rule's folder by a Windows path",
        &[OwnRoot, Landlock], Unconfined).with(Prepare::WindowsPaths),
    attack("climb-out-of-a-windows-path-with-slashes", "does so with slashes",
        &[OwnRoot, Landlock], Unconfined).with(Prepare::WindowsPaths),
    attack("climb-out-of-a-windows-path-halfway", "climbs from a deeper rule through a shallower one",
        &[OwnRoot, Landlock], Unconfined).with(Prepare::WindowsPaths),
    attack("climb-out-of-a-servers-path", "climbs out of a server's share",
        &[OwnRoot, Landlock], Unconfined).with(Prepare::WindowsPaths),
    attack("climb-out-of-a-long-windows-path", "climbs by the long form of a path",
        &[OwnRoot, Landlock], Unconfined).with(Prepare::WindowsPaths),
    attack("climb-out-of-a-device-path", "climbs by the form for devices",
        &[OwnRoot, Landlock], Unconfined).with(Prepare::WindowsPaths),
    attack("climb-out-of-the-root-of-a-drive", "climbs above the drive itself",
        &[OwnRoot, Landlock], Unconfined).with(Prepare::WindowsPaths),
    attack("put-a-link-in-the-place-of-a-rules-folder", "replaces a folder that a rule leads to by a link",
        &[OwnRoot, Landlock], Unconfined).with(Prepare::WindowsPaths),
    attack("write-an-input-by-a-windows-path", "writes an input by its Windows path",
        &[MountRestrictions, Landlock], Without(&[MountRestrictions, Landlock])).with(Prepare::WindowsPaths),
    attack("write-an-input-through-the-drives-folder", "writes one through the folder of the drive",
        &[MountRestrictions, Landlock], Without(&[MountRestrictions, Landlock])),
    attack("change-the-mode-of-an-input-through-the-drives-folder", "changes its mode there",
        &[MountRestrictions], Without(&[MountRestrictions])),
    attack("be-rid-of-the-library", "starts without the library and calls past it",
        &[OwnRoot, Landlock], Unconfined).with(Prepare::WindowsPaths),
    attack("rewrite-the-table-of-paths", "writes to the table of paths",
        &[MountRestrictions, Landlock], Impossible("the jail's root is read-only in every jail, and the file is root's")).with(Prepare::WindowsPaths),
    attack("name-another-library", "writes to the file that names the library",
        &[MountRestrictions, Landlock], Impossible("the jail's root is read-only in every jail, and the file is root's")).with(Prepare::WindowsPaths),
];
