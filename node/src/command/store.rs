//! The store of chunks: what is in it, whether it is whole, and what of it can go.

use crate::api::{Collect, Verify};
use crate::cli::StoreCommand;
use crate::print::pages;

use super::watch::HashingBar;
use super::{Desk, Done, Failure};

pub(super) async fn store(desk: &Desk, command: StoreCommand) -> Done {
    match command {
        StoreCommand::Stat => desk.show(&pages::store(&desk.client.store().await?)),
        StoreCommand::Verify { rebuild } => {
            let bar = HashingBar::verifying(desk.quiet || desk.json);
            let seen = |progress: &_| bar.show(progress);
            let verified = desk.client.store_verify(&Verify { rebuild }, seen).await;
            bar.finish();
            let verified = verified?;
            desk.show(&pages::verified(&verified))?;
            if verified.n_damaged == 0 { Ok(()) } else { Err(Failure::Said) }
        }
        StoreCommand::Gc { dry_run, free } => {
            let collect = Collect { dry_run, wanted: u64::from(free) << 30 };
            desk.show(&pages::collected(&desk.client.store_collect(&collect).await?))
        }
    }
}
