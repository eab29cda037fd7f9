//! The pages about what sites owe each other.

use meshfarm_core::{LedgerView, PairView};
use meshfarm_protocol::receipt::{Money, Used};

use crate::api::{Dispute, Side, Statement, StatementRow};
use crate::ledger::Audit;
use crate::print::{Cell, Page, Tone, bytes, clean, faint, moment, plain, span, strong};

/// One sum less another, with its sign.
fn balance(credit: Money, debit: Money) -> Cell {
    if debit > credit {
        Cell::new(format!("-{}", debit.less(credit)), Tone::Bad)
    } else {
        Cell::new(credit.less(debit).to_string(), Tone::Good)
    }
}

/// The balance with each site, and of all together.
#[must_use]
pub fn ledger(view: &LedgerView) -> Page {
    let mut page = Page::of(view);
    page.quiet = view.pairs.iter().map(|pair| pair.site.to_string()).collect();
    let sum = |of: fn(&PairView) -> Money| view.pairs.iter().map(of).fold(Money(0), Money::plus);
    let (credit, debit) = (sum(|pair| pair.lent.owed), sum(|pair| pair.borrowed.owed));
    page.line([
        strong(&view.name),
        plain(format!("is owed {credit} and owes {debit}: balance")),
        balance(credit, debit),
    ]);
    let price = match (view.price.is_free(), view.free) {
        (true, _) => "it lends for nothing".to_owned(),
        (false, free) => format!(
            "it asks {} for a core-hour and {} for an hour of a card; {free} a month are free for each site",
            view.price.core_hour, view.price.card_hour
        ),
    };
    page.line([faint(price)]);
    if !view.pairs.is_empty() {
        page.gap();
    }
    let rows = view.pairs.iter().map(|pair| {
        let note = match (pair.withheld, pair.refused.len()) {
            (true, _) => Cell::new("gets no slots: too much is not signed", Tone::Bad),
            (false, 0) => plain(""),
            (false, n) => Cell::new(format!("{n} receipts of it were refused"), Tone::Bad),
        };
        let unsigned = pair.lent.unsigned;
        let disputes = pair.lent.disputes + pair.borrowed.disputes;
        vec![
            strong(&pair.name),
            plain(pair.lent.owed.to_string()),
            plain(pair.borrowed.owed.to_string()),
            balance(pair.lent.owed, pair.borrowed.owed),
            plain((pair.lent.receipts + pair.borrowed.receipts).to_string()),
            Cell::new(unsigned.to_string(), if unsigned > 0 { Tone::Busy } else { Tone::Plain }),
            Cell::new(disputes.to_string(), if disputes > 0 { Tone::Bad } else { Tone::Plain }),
            note,
        ]
    });
    let head =
        ["SITE", ">OWES US", ">WE OWE", ">BALANCE", ">RECEIPTS", ">UNSIGNED", ">DISPUTES", "NOTE"];
    page.table(&head, rows);
    for pair in &view.pairs {
        for refusal in &pair.refused {
            let text = format!("{}: a receipt was refused: {}", pair.name, refusal.why);
            page.line([faint(moment(refusal.at)), Cell::new(text, Tone::Bad)]);
        }
    }
    if view.pairs.iter().any(|pair| pair.lent.disputes + pair.borrowed.disputes > 0) {
        page.line([faint("what is contested: meshfarm ledger disputes")]);
    }
    page
}

const fn side(side: Side) -> &'static str {
    match side {
        Side::Lent => "lent",
        Side::Borrowed => "borrowed",
        Side::Own => "own",
    }
}

/// What was used and is owed.
#[must_use]
pub fn statement(statement: &Statement) -> Page {
    let mut page = Page::of(statement);
    page.quiet = vec![statement.credit.to_string(), statement.debit.to_string()];
    let rows = statement.rows.iter().map(|row| {
        vec![
            faint(row.at.map(moment).or_else(|| row.month.clone()).unwrap_or_default()),
            plain(side(row.side)),
            strong(row.site.as_deref().or(row.project.as_deref()).unwrap_or_default()),
            faint(row.tenant.map(|tenant| tenant.short()).unwrap_or_default()),
            plain(row.used.done.to_string()),
            plain(row.used.failed.to_string()),
            plain(span(row.used.core)),
            plain(span(row.used.card)),
            plain(bytes(row.used.output)),
            plain(row.credit.to_string()),
            plain(row.debit.to_string()),
            Cell::new(
                row.contested.to_string(),
                if row.contested.is_zero() { Tone::Faint } else { Tone::Bad },
            ),
        ]
    });
    let head = [
        "WHEN",
        "SIDE",
        "SITE",
        "TENANT",
        ">DONE",
        ">FAILED",
        ">CORE TIME",
        ">CARD TIME",
        ">OUTPUT",
        ">CREDIT",
        ">DEBIT",
        ">CONTESTED",
    ];
    page.table(&head, rows);
    let (credit, debit) = (statement.credit, statement.debit);
    page.line([
        strong(&statement.site),
        plain(format!("is owed {credit} and owes {debit}: balance")),
        balance(credit, debit),
    ]);
    page
}

/// The same for other programs.
#[must_use]
pub fn statement_csv(statement: &Statement) -> String {
    let mut text =
        "at,month,side,site,tenant,project,lease,receipts,done,failed,core_ms,card_ms,wall_ms,\
                    peak_memory_bytes,content_bytes,output_bytes,credit,debit,contested\n"
            .to_owned();
    for row in &statement.rows {
        let StatementRow { used, .. } = row;
        let figures: [u64; 9] = [
            row.receipts,
            used.done.into(),
            used.failed.into(),
            used.core.0,
            used.card.0,
            used.wall.0,
            used.peak_memory,
            used.content,
            used.output,
        ];
        let mut cells = vec![
            row.at.map(|at| at.0.to_string()).unwrap_or_default(),
            row.month.clone().unwrap_or_default(),
            side(row.side).to_owned(),
            quoted(row.site.as_deref().unwrap_or_default()),
            row.tenant.map(|tenant| tenant.to_string()).unwrap_or_default(),
            quoted(row.project.as_deref().unwrap_or_default()),
            row.lease.map(|lease| lease.to_string()).unwrap_or_default(),
        ];
        cells.extend(figures.map(|n| n.to_string()));
        cells.extend([row.credit, row.debit, row.contested].map(|money| money.to_string()));
        text.push_str(&cells.join(","));
        text.push('\n');
    }
    text
}

/// A name as one cell that no spreadsheet takes for a formula.
fn quoted(name: &str) -> String {
    let name = clean(name);
    let formula = name.starts_with(['=', '+', '-', '@']);
    let name = if formula { format!("'{name}") } else { name };
    if name.contains([',', '"']) { format!("\"{}\"", name.replace('"', "\"\"")) } else { name }
}

/// Contested receipts, with both sides' figures beneath each other.
#[must_use]
pub fn disputes(disputes: &[Dispute]) -> Page {
    let mut page = Page::of(&disputes);
    page.quiet = disputes.iter().map(|dispute| dispute.lease.to_string()).collect();
    if disputes.is_empty() {
        page.line([plain("no receipt is contested")]);
    }
    let figures = |who: &str, used: &Used, amount: Money| {
        vec![
            plain(who),
            plain(used.done.to_string()),
            plain(used.failed.to_string()),
            plain(span(used.core)),
            plain(span(used.card)),
            plain(span(used.wall)),
            plain(bytes(used.output)),
            strong(amount.to_string()),
        ]
    };
    for dispute in disputes {
        let Dispute { lender, borrower, .. } = dispute;
        page.line([
            faint(moment(dispute.at)),
            strong(format!("receipt {} of {lender} for {borrower}", dispute.sequence)),
            faint(format!("lease {}", dispute.lease.short())),
        ]);
        page.line([Cell::new(&dispute.why, Tone::Bad)]);
        let rows = [
            figures(&format!("{lender} says"), &dispute.claimed, dispute.claimed_amount),
            figures(&format!("{borrower} says"), &dispute.granted, dispute.granted_amount),
        ];
        let head =
            ["WHO", ">DONE", ">FAILED", ">CORE TIME", ">CARD TIME", ">WALL", ">OUTPUT", ">AMOUNT"];
        page.table(&head, rows);
    }
    page
}

/// What an exported ledger is found to be.
#[must_use]
pub fn audited(found: &Audit) -> Page {
    let mut page = Page::of(found);
    page.quiet = found.wrong.iter().map(|(line, _)| line.to_string()).collect();
    if let Some(site) = found.site {
        page.line([strong(&found.name), faint(site.to_string())]);
    }
    let line = format!(
        "receipts with {} other sites hold, {} of them contested; it is owed {} and owes {}: balance",
        found.sites, found.disputes, found.credit, found.debit
    );
    page.line([
        strong(found.receipts.to_string()),
        plain(line),
        balance(found.credit, found.debit),
    ]);
    for (number, why) in &found.wrong {
        page.line([Cell::new(format!("line {number}:"), Tone::Bad), plain(why)]);
    }
    match found.n_wrong {
        0 => {
            page.line([Cell::new("every chain is whole, and every signature is good", Tone::Good)])
        }
        n => page.line([Cell::new(format!("{n} lines do not hold"), Tone::Bad)]),
    }
    page
}
