//! The pages about the store of chunks.

use crate::api::{StoreCollected, StoreStat, StoreVerified};
use crate::print::{Cell, Page, Tone, bytes, faint, moment, plain, strong};

/// What is in the store.
#[must_use]
pub fn store(stat: &StoreStat) -> Page {
    let mut page = Page::of(stat);
    page.quiet = vec![stat.bytes.to_string()];
    let what = format!("in {} chunks, {} segments", stat.chunks, stat.segments);
    page.line([strong(bytes(stat.bytes)), plain(what)]);
    let cached = stat.bytes.saturating_sub(stat.pinned);
    let line = format!("in use, {} cached; {} can go now", bytes(cached), bytes(stat.collectable));
    page.line([plain(bytes(stat.pinned)), plain(line)]);
    let line = format!(
        "on the disk, {} of it reclaimable; {} free, of which {} stay free",
        bytes(stat.reclaimable),
        bytes(stat.free),
        bytes(stat.keep_free)
    );
    page.line([plain(bytes(stat.disk)), plain(line)]);
    let verified = match stat.verified {
        Some(at) => format!("every chunk was verified last on {}", moment(at)),
        None => "not every chunk was verified yet".to_owned(),
    };
    page.line([faint(verified)]);
    if stat.unread > 0 {
        let text = format!("{} segments have lost their index and are read again", stat.unread);
        page.line([Cell::new(text, Tone::Busy)]);
    }
    if stat.damaged > 0 {
        let text = format!("{} damaged chunks were found so far and forgotten", stat.damaged);
        page.line([Cell::new(text, Tone::Bad)]);
    }
    let mut rows: Vec<_> = stat.tenants.iter().collect();
    rows.sort_by_key(|tenant| std::cmp::Reverse(tenant.bytes));
    let rows = rows.into_iter().map(|tenant| {
        vec![
            plain(&tenant.name),
            tenant.tenant.map_or_else(|| faint("results"), |id| plain(id.short())),
            plain(bytes(tenant.bytes)),
            plain(bytes(tenant.pinned)),
            faint(tenant.quota.map_or_else(|| "none".to_owned(), bytes)),
        ]
    });
    page.table(&["SITE", "TENANT", ">BYTES", ">IN USE", ">QUOTA"], rows);
    page
}

/// What looking at every chunk found.
#[must_use]
pub fn verified(verified: &StoreVerified) -> Page {
    let mut page = Page::of(verified);
    page.quiet = verified.damaged.iter().map(ToString::to_string).collect();
    let what = format!("chunks, {}, were looked at", bytes(verified.bytes));
    page.line([strong(verified.chunks.to_string()), plain(what)]);
    if verified.found > 0 {
        page.line([plain(format!("{} were not in the index and are again", verified.found))]);
    }
    if verified.n_damaged == 0 {
        page.line([Cell::new("none is damaged", Tone::Good)]);
        return page;
    }
    let text = format!(
        "{} are damaged and were forgotten; they are fetched again when they are needed",
        verified.n_damaged
    );
    page.line([Cell::new(text, Tone::Bad)]);
    for cid in &verified.damaged {
        page.line([faint(cid.to_string())]);
    }
    for job in &verified.jobs {
        let text = "needs one of them, and this site is its only source: submit it again";
        page.line([plain("job"), strong(job.short()), Cell::new(text, Tone::Bad)]);
    }
    page
}

/// What a collection removed, or would.
#[must_use]
pub fn collected(collected: &StoreCollected) -> Page {
    let mut page = Page::of(collected);
    page.quiet = vec![collected.bytes.to_string()];
    if let Some(blocked) = &collected.blocked {
        page.line([Cell::new("nothing was removed:", Tone::Busy), plain(blocked)]);
        return page;
    }
    let verb = if collected.dry_run { "would go" } else { "are gone" };
    let what = format!("in {} chunks of {} contents {verb}", collected.chunks, collected.contents);
    page.line([strong(bytes(collected.bytes)), plain(what)]);
    if collected.segments > 0 {
        page.line([plain(format!("{} segments were compacted", collected.segments))]);
    }
    page
}
