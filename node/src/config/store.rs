//! The settings of the store of chunks.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::Millis;

use crate::sweep::Settings;

/// More than this many GiB are a slip of the finger.
const MAX_GIB: u64 = 1 << 20;

/// How the store of chunks is kept: the table `[store]` of `meshfarm.toml`. Sizes are of encrypted bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// How long content stays that nobody uses, so that the next render moves little: 0 to 3650 days.
    pub keep_days: u32,
    /// The most GiB of all chunks together, at least `tenant_gib`. None: as much as the disk has room for.
    pub total_gib: Option<u64>,
    /// The most GiB of each tenant of another site: 1 to 1048576. A larger job of it is refused.
    pub tenant_gib: u64,
    /// Other sites' work is not taken when less than this is free: 2 to 65536 GiB.
    pub keep_free_gib: u64,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { keep_days: 14, total_gib: None, tenant_gib: 256, keep_free_gib: 2 }
    }
}

impl StoreConfig {
    /// The same in bytes and milliseconds.
    #[must_use]
    pub fn settings(&self, free_bytes: fn(&Path) -> io::Result<u64>) -> Settings {
        Settings {
            keep: Millis::seconds(u64::from(self.keep_days) * 86_400),
            total: self.total_gib.map(|gib| gib << 30),
            tenant: self.tenant_gib << 30,
            keep_free: self.keep_free_gib << 30,
            free_bytes,
        }
    }

    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if self.keep_days > 3650 {
            return Err(("store.keep_days", "at most 3650 days are possible".to_owned()));
        }
        if !(1..=MAX_GIB).contains(&self.tenant_gib) {
            return Err(("store.tenant_gib", format!("1 to {MAX_GIB} GiB are possible")));
        }
        if let Some(total) = self.total_gib
            && !(self.tenant_gib..=MAX_GIB).contains(&total)
        {
            let least = self.tenant_gib;
            let problem = format!("{least} (that is tenant_gib) to {MAX_GIB} GiB are possible");
            return Err(("store.total_gib", problem));
        }
        // Chunks leave 1 GiB to everything else, and a node stops taking work before that.
        if !(2..=65_536).contains(&self.keep_free_gib) {
            return Err(("store.keep_free_gib", "2 to 65536 GiB are possible".to_owned()));
        }
        Ok(())
    }

    pub(super) fn to_text(self) -> String {
        let total = match self.total_gib {
            Some(gib) => format!("total_gib = {gib}"),
            None => "# total_gib = 2000".to_owned(),
        };
        format!(
            "# The store of encrypted chunks.\n\
             [store]\n\
             # Content that nobody uses stays for so many days, so that the next render moves little.\n\
             keep_days = {keep_days}\n\
             # The most GiB of everything together; as much as the disk has room for unless said.\n\
             {total}\n\
             # The most GiB of each tenant of another site.\n\
             tenant_gib = {tenant_gib}\n\
             # No work of other sites is taken when less than so many GiB are free.\n\
             keep_free_gib = {keep_free_gib}\n",
            keep_days = self.keep_days,
            tenant_gib = self.tenant_gib,
            keep_free_gib = self.keep_free_gib,
        )
    }
}
