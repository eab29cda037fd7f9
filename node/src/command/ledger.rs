//! What this site owes and is owed: balances, statements, disputes, exports, and what an auditor does with those.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Write};
use std::path::Path;

use jiff::civil::Date;
use jiff::tz::TimeZone;

use crate::api::{Problem, StatementAsk};
use crate::cli::{self, LedgerCommand};
use crate::ledger::audit;
use crate::print::{self, Page, faint, pages, plain, strong};

use super::{Desk, Done, Failure};

pub(super) async fn ledger(desk: &Desk, command: Option<LedgerCommand>) -> Done {
    match command {
        None => desk.show(&pages::ledger(&desk.client.ledger().await?)),
        Some(LedgerCommand::Disputes) => {
            desk.show(&pages::disputes(&desk.client.disputes().await?))
        }
        Some(LedgerCommand::Export(flags)) => export(desk, &flags.file).await,
        Some(LedgerCommand::Verify(flags)) => verify(desk, &flags.file),
    }
}

pub(super) async fn statement(desk: &Desk, flags: cli::Statement) -> Done {
    if let (Some(from), Some(to)) = (flags.from, flags.to)
        && to < from
    {
        return Err(Problem::bad_input(format!("--to {to}: it is before --from {from}")).into());
    }
    let to = match flags.to {
        Some(to) => Some(begins(to.tomorrow().map_err(|_end| no_day(to))?)?),
        None => None,
    };
    let ask = StatementAsk { from: flags.from.map(begins).transpose()?, to, by: flags.by };
    let statement = desk.client.statement(&ask).await?;
    if flags.csv {
        return Ok(print::out(&pages::statement_csv(&statement))?);
    }
    desk.show(&pages::statement(&statement))
}

/// When a day begins, in UTC, in milliseconds since 1970.
fn begins(day: Date) -> Result<u64, Problem> {
    let zoned = day.to_zoned(TimeZone::UTC).map_err(|_range| no_day(day))?;
    u64::try_from(zoned.timestamp().as_millisecond()).map_err(|_before_1970| no_day(day))
}

fn no_day(day: Date) -> Problem {
    Problem::bad_input(format!("{day}: there are no receipts of such a day"))
}

/// Write aside, then link: half a ledger never has its name.
async fn export(desk: &Desk, file: &Path) -> Done {
    let failed = |error: io::Error| {
        let kind = error.kind();
        let problem = Problem::refused(format!("cannot write {}: {error}", file.display()));
        match kind {
            io::ErrorKind::AlreadyExists => {
                problem.with_help("an export overwrites nothing: name another file")
            }
            _ => problem,
        }
    };
    if file.symlink_metadata().is_ok() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()).into());
    }
    let mut name = file.as_os_str().to_owned();
    name.push(format!(".part-{}", std::process::id()));
    let draft = Path::new(&name);
    let opened = OpenOptions::new().write(true).create_new(true).open(draft).map_err(failed)?;
    let written = receive(desk, BufWriter::new(opened)).await;
    let written = match written {
        Ok(lines) => {
            fs::hard_link(draft, file).map_err(|error| failed(error).into()).map(|()| lines)
        }
        Err(failure) => Err(failure),
    };
    drop(fs::remove_file(draft));
    let receipts = written?;
    let mut page = Page::of(&serde_json::json!({"file": file, "receipts": receipts}));
    page.quiet = vec![file.display().to_string()];
    let what = format!("receipts with both signatures are in {}", file.display());
    page.line([strong(receipts.to_string()), plain(what)]);
    page.line([faint(format!("check it: meshfarm ledger verify {}", file.display()))]);
    desk.show(&page)
}

/// The lines of the node's ledger into a file. Returns how many receipts there are.
async fn receive(desk: &Desk, mut into: BufWriter<File>) -> Result<u64, Failure> {
    let broken = |error: io::Error| Problem::refused(format!("cannot write the export: {error}"));
    let mut lines = desk.client.ledger_export().await?;
    let (mut n, mut last) = (0u64, Vec::new());
    while let Some(line) = lines.next().await? {
        into.write_all(&line).and_then(|()| into.write_all(b"\n")).map_err(broken)?;
        n += 1;
        last = line;
    }
    let ended = serde_json::from_slice(&last)
        .is_ok_and(|line| matches!(line, crate::api::LedgerLine::End { .. }));
    if !ended {
        return Err(Problem::refused("the node stopped before every receipt was written").into());
    }
    let file = into.into_inner().map_err(|error| broken(error.into_error()))?;
    file.sync_all().map_err(broken)?;
    Ok(n.saturating_sub(2))
}

/// Check an exported ledger, without a node and without keys.
pub(super) fn verify(desk: &Desk, file: &Path) -> Done {
    let failed =
        |error: io::Error| Problem::bad_input(format!("cannot read {}: {error}", file.display()));
    let opened = File::open(file).map_err(failed)?;
    let found = audit(BufReader::new(opened)).map_err(failed)?;
    desk.show(&pages::audited(&found))?;
    if found.n_wrong == 0 { Ok(()) } else { Err(Failure::Said) }
}
