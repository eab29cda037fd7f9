//! Requests and answers about the ledger: statements, disputes, and the lines of an exported ledger.

use serde::{Deserialize, Serialize};

use meshfarm_protocol::id::{LeaseId, MeshId, Millis, SiteId, TenantId};
use meshfarm_protocol::receipt::{Money, Used};

/// Which statement is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StatementAsk {
    /// From this moment on, in milliseconds since 1970.
    #[serde(default)]
    pub from: Option<u64>,
    /// Until this moment, without it.
    #[serde(default)]
    pub to: Option<u64>,
    /// What makes a row; each receipt when nothing is said.
    #[serde(default)]
    pub by: Option<By>,
}

/// What makes a row of a statement.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Whose jobs they were
    Tenant,
    /// The other site
    Site,
    /// The month, in UTC
    Month,
}

/// Whose machines did whose work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Ours, for another site.
    Lent,
    /// Another site's, for us.
    Borrowed,
    /// Ours, for us: nothing is owed for it.
    Own,
}

/// What was used and is owed in a span of time, as both sides have signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Our site's name.
    pub site: String,
    /// Its id.
    pub id: SiteId,
    /// From when on.
    pub from: Option<Millis>,
    /// Until when.
    pub to: Option<Millis>,
    /// Receipts, or sums of them.
    pub rows: Vec<StatementRow>,
    /// What is owed to us in all.
    pub credit: Money,
    /// What we owe in all.
    pub debit: Money,
}

/// A receipt, or a sum of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementRow {
    /// Whose machines did whose work.
    pub side: Side,
    /// When the receipt was made, by its lender's clock; of our own work, the day.
    pub at: Option<Millis>,
    /// The month, such as `2026-03`.
    pub month: Option<String>,
    /// Name of the other site.
    pub site: Option<String>,
    /// Whose jobs they were.
    pub tenant: Option<TenantId>,
    /// Our own project.
    pub project: Option<String>,
    /// The lease.
    pub lease: Option<LeaseId>,
    /// How many receipts.
    pub receipts: u64,
    /// What was used, as both sides agree.
    pub used: Used,
    /// What is owed to us.
    pub credit: Money,
    /// What we owe.
    pub debit: Money,
    /// What the lender asks beyond that.
    pub contested: Money,
}

/// A receipt that its borrower contests: both sides' figures.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dispute {
    /// When the receipt was made.
    pub at: Millis,
    /// Who lent.
    pub lender: String,
    /// Who borrowed.
    pub borrower: String,
    /// Its place among the receipts of the two.
    pub sequence: u64,
    /// The lease.
    pub lease: LeaseId,
    /// What the lender says.
    pub claimed: Used,
    /// What the lender asks.
    pub claimed_amount: Money,
    /// What the borrower says.
    pub granted: Used,
    /// What the borrower grants: what counts.
    pub granted_amount: Money,
    /// What the borrower does not agree with.
    pub why: String,
}

/// One line of an exported ledger, in JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LedgerLine {
    /// The first one.
    Ledger {
        /// Version of the format: 1.
        version: u16,
        /// Whose ledger it is.
        site: SiteId,
        /// Its name.
        name: String,
        /// When it was written.
        at: Millis,
    },
    /// A receipt with its answer. What follows `entry` is for reading: the signatures cover `entry` only.
    Receipt {
        /// An encoded [`meshfarm_protocol::receipt::Entry`], in hexadecimal digits.
        entry: String,
        /// Its mesh.
        mesh: MeshId,
        /// Who lent.
        lender: SiteId,
        /// Who borrowed.
        borrower: SiteId,
        /// Its place among the receipts of the two.
        sequence: u64,
        /// When it was made.
        at: Millis,
        /// What is owed.
        owed: Money,
    },
    /// The last one: without it something is lacking.
    End {
        /// How many receipts there are.
        receipts: u64,
        /// What is owed to the site.
        credit: Money,
        /// What it owes.
        debit: Money,
    },
}
