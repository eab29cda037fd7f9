//! Questions of people about the ledger, read off the store.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::mpsc;

use meshfarm_core::Site;
use meshfarm_protocol::id::{Millis, SiteId};

use crate::api::{Dispute, LedgerLine, Problem, Statement, StatementAsk};
use crate::ledger;
use crate::records::RecordsError;
use crate::store::Store;

use super::{NodeBackend, panicked};

/// The names of the sites that we have an account with, and our own.
type Names = BTreeMap<SiteId, String>;

fn name_of(names: &Names) -> impl Fn(SiteId) -> String + '_ {
    |site| names.get(&site).cloned().unwrap_or_else(|| site.short())
}

impl NodeBackend {
    /// Read the ledger on a thread that may wait.
    async fn read_ledger<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Store, &Names) -> Result<T, RecordsError> + Send + 'static,
    ) -> Result<T, Problem> {
        let look = |site: &Site, now: Millis| {
            let view = site.ledger(now);
            let others = view.pairs.into_iter().map(|pair| (pair.site, pair.name));
            others.chain([(view.site, view.name)]).collect::<Names>()
        };
        let names = self.gate.look(look).await?;
        let store = Arc::clone(&self.means.store);
        let answer = self.means.machine.block(move || read(&store, &names)).await;
        answer.ok_or_else(panicked)?.map_err(|error| Problem::broken(&error))
    }

    pub(super) async fn sum_up(&self, ask: StatementAsk) -> Result<Statement, Problem> {
        let (me, name) = (self.means.me, self.name.clone());
        let read = move |store: &Store, names: &Names| {
            ledger::statement(store, (me, &name), ask, name_of(names))
        };
        self.read_ledger(read).await
    }

    pub(super) async fn contested(&self) -> Result<Vec<Dispute>, Problem> {
        self.read_ledger(|store, names| ledger::disputes(store, name_of(names))).await
    }

    /// Hand out the ledger line by line, as fast as somebody reads.
    pub(super) async fn export(&self, lines: mpsc::Sender<LedgerLine>) -> Result<(), Problem> {
        let (key, name) = (self.means.key.clone(), self.name.clone());
        let at = self.means.machine.clock.now();
        let read = move |store: &Store, _: &Names| {
            let line = |line| lines.blocking_send(line).is_ok();
            ledger::export(store, (&key, &name), at, line)
        };
        self.read_ledger(read).await
    }
}
