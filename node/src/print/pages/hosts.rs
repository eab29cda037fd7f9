//! The pages of machines and slots.

use meshfarm_core::{HostState, HostView, Intake, SlotsView};
use meshfarm_protocol::id::Millis;
use meshfarm_protocol::profile::VCPU;

use super::{amount, amounts, memory, software};
use crate::print::{Cell, Page, Tone, faint, moment, plain, span, strong};

/// The machines of a site.
#[must_use]
pub fn hosts(hosts: &[HostView], now: Millis) -> Page {
    let mut page = Page::of(&hosts);
    page.quiet = hosts.iter().map(|host| host.name.clone()).collect();
    let rows = hosts.iter().map(|host| {
        let offers = host.offers.as_ref();
        vec![
            if host.own { strong(&host.name) } else { plain(&host.name) },
            state(host, now),
            plain(host.slots.to_string()),
            plain(host.used.to_string()),
            plain(host.free.to_string()),
            plain(host.running.to_string()),
            plain(offers.map(|host| amount(host, VCPU)).unwrap_or_default()),
            plain(offers.map(memory).unwrap_or_default()),
            plain(offers.map(|host| host.level.to_string()).unwrap_or_default()),
            // In thousandths of the reference core.
            plain(offers.map_or_else(String::new, |host| {
                format!("{}.{:02}", host.speed / 1000, host.speed % 1000 / 10)
            })),
            plain(offers.map(|host| software(std::slice::from_ref(host))).unwrap_or_default()),
            faint(host.host.short()),
        ]
    });
    let head = [
        "HOST",
        "STATE",
        ">SLOTS",
        ">USED",
        ">FREE",
        ">RUNNING",
        ">CORES",
        ">MEMORY",
        "ISOLATION",
        ">SPEED",
        "SOFTWARE",
        "ID",
    ];
    page.table(&head, rows);
    page
}

fn state(host: &HostView, now: Millis) -> Cell {
    match (host.state, host.heard) {
        _ if host.own => Cell::new("this machine", Tone::Strong),
        (HostState::Connected, _) => Cell::new("connected", Tone::Good),
        (HostState::Away, Some(heard)) => {
            Cell::new(format!("away, heard {} ago", span(now.since(heard))), Tone::Bad)
        }
        (HostState::Away, None) => Cell::new("away", Tone::Bad),
        (HostState::Pausing, _) => Cell::new("pausing", Tone::Busy),
        (HostState::Stopped, _) => Cell::new("stopped", Tone::Faint),
        (HostState::Paused, _) => Cell::new("paused there", Tone::Faint),
    }
}

/// Our slots and who holds them, and what our jobs have of the slots of our hosts.
#[must_use]
pub fn slots(slots: &SlotsView) -> Page {
    let mut page = Page::of(slots);
    page.quiet = vec![slots.free.to_string()];
    let lends = if slots.lending { "lends to other sites" } else { "does not lend" };
    let free = format!("{} of {} slots free;", slots.free, slots.host.slots);
    page.line([strong(free), plain(format!("this site {lends}"))]);
    if !slots.left.is_empty() {
        page.line([faint(format!("left: {}", amounts(&slots.left)))]);
    }
    if let Some(shut) = slots.shut {
        let text = format!("closed for other sites: {shut}");
        page.line([Cell::new(text, Tone::Busy), faint("([lending] in meshfarm.toml)")]);
    }
    for (whose, intake) in [("other sites", slots.foreign), ("this site", slots.own)] {
        if let Intake::Closed { give_back } = intake {
            let then = give_back.map_or_else(
                || "what runs goes on to its end".to_owned(),
                |at| format!("what still runs at {} goes back", moment(at)),
            );
            let text = format!("paused: no tasks of {whose} are taken, {then}");
            page.line([Cell::new(text, Tone::Busy), faint("(meshfarm resume)")]);
        }
    }
    let rows = slots.leases.iter().map(|lease| {
        vec![
            plain(lease.lease.short()),
            plain(&lease.borrower),
            faint(lease.tenant.short()),
            plain(lease.runs_on.as_deref().unwrap_or("here")),
            plain(lease.slots.to_string()),
            plain(amounts(&lease.each)),
            plain(lease.running.to_string()),
            plain(lease.queued.to_string()),
        ]
    });
    page.table(
        &["LEASE", "BORROWER", "TENANT", "RUNS ON", ">SLOTS", "EACH", ">RUNNING", ">QUEUED"],
        rows,
    );
    let rows = slots.hosts.iter().map(|lease| {
        vec![
            plain(lease.lease.short()),
            plain(&lease.host),
            plain(lease.job.short()),
            plain(lease.slots.to_string()),
            plain(lease.running.to_string()),
            plain(lease.queued.to_string()),
        ]
    });
    page.table(&["LEASE", "HOST", "JOB", ">SLOTS", ">RUNNING", ">QUEUED"], rows);
    page
}
