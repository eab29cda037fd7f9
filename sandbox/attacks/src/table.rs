//! The table of attacks, family by family.

use std::sync::LazyLock;

use crate::attack::Attack;

mod contact;
mod files;
mod outputs;
mod privilege;
mod relocation;
mod resources;

/// Every attack. The order is that of the families.
#[must_use]
pub fn attacks() -> &'static [Attack] {
    static ALL: LazyLock<Vec<Attack>> = LazyLock::new(|| {
        [
            files::ATTACKS,
            privilege::ATTACKS,
            contact::ATTACKS,
            resources::ATTACKS,
            outputs::ATTACKS,
            relocation::ATTACKS,
        ]
        .concat()
    });
    &ALL
}
