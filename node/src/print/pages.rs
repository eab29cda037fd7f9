//! The pages that commands print: what people see of jobs, sites, slots, meshes and the node.

use std::collections::BTreeMap;

use meshfarm_core::SiteView;
use meshfarm_protocol::id::Millis;
use meshfarm_protocol::membership::Role;
use meshfarm_protocol::profile::{Amount, HostClass, MEMORY, Profile, VCPU};

use crate::api::{Check, CheckState, Examination, Invited, MeshView};

use super::{Cell, Page, Tone, bytes, faint, moment, plain, span, strong};

mod deadline;
mod explain;
mod hosts;
mod jobs;
mod ledger;
mod sandbox;
mod store;

pub use explain::explain;
pub use hosts::{hosts, slots};
pub use jobs::{Share, Summary, counts, dry_run, job, jobs, reads, speed, submitted, summary};
pub use ledger::{audited, disputes, ledger, statement, statement_csv};
pub use sandbox::{Attacked, attacked, sandbox_report};
pub use store::{collected, store, verified};

fn role(role: Role) -> &'static str {
    match role {
        Role::Site => "site",
        Role::Host => "host",
        Role::Submitter => "submitter",
    }
}

fn amount(host: &HostClass, name: &str) -> String {
    host.amounts.get(name).map(ToString::to_string).unwrap_or_default()
}

fn memory(host: &HostClass) -> String {
    // The amount is in thousandths of a MiB.
    let mib = host.amounts.get(MEMORY).map_or(0, |amount| amount.0 / 1000);
    if mib == 0 { String::new() } else { bytes(mib.saturating_mul(1 << 20)) }
}

fn software(hosts: &[HostClass]) -> String {
    let mut found: Vec<String> = Vec::new();
    for (name, version) in hosts.iter().flat_map(|host| &host.software) {
        let text = format!("{name} {version}");
        if !found.contains(&text) {
            found.push(text);
        }
    }
    found.join(", ")
}

/// The sites of the mesh.
#[must_use]
pub fn sites(sites: &[SiteView], now: Millis) -> Page {
    let mut page = Page::of(&sites);
    page.quiet = sites.iter().map(|site| site.name.clone()).collect();
    let rows = sites.iter().map(|site| {
        let state = match (site.own, site.connected) {
            (true, _) => Cell::new("this site", Tone::Strong),
            (false, _) if site.shut => Cell::new("paused", Tone::Busy),
            (false, true) => Cell::new("connected", Tone::Good),
            (false, false) => {
                Cell::new(format!("silent for {}", span(now.since(site.heard))), Tone::Faint)
            }
        };
        let hosts = site.profile.as_ref().map_or(&[][..], |profile| &profile.hosts);
        let slots: u64 = hosts.iter().map(|h| u64::from(h.slots) * u64::from(h.count)).sum();
        let level = hosts.iter().map(|host| host.level).max().map(|l| l.to_string());
        let (free, lends) = site.profile.as_ref().map_or((String::new(), ""), |profile| {
            (profile.free.to_string(), if profile.lending { "yes" } else { "no" })
        });
        vec![
            plain(&site.name),
            state,
            plain(role(site.role)),
            plain(slots.to_string()),
            plain(free),
            plain(lends),
            plain(level.unwrap_or_default()),
            plain(software(hosts)),
            faint(site.site.short()),
        ]
    });
    let head = ["SITE", "STATE", "ROLE", ">SLOTS", ">FREE", "LENDS", "ISOLATION", "SOFTWARE", "ID"];
    page.table(&head, rows);
    page
}

/// What a site offers.
#[must_use]
pub fn profile(profile: &Profile) -> Page {
    let mut page = Page::of(profile);
    page.quiet = vec![profile.site.to_string()];
    page.line([strong(&profile.name), faint(profile.site.to_string())]);
    let lends = if profile.lending { "lends to other sites" } else { "does not lend" };
    page.line([plain(format!("{lends}, {} slots free", profile.free))]);
    for address in &profile.addresses {
        page.line([faint("reached at"), plain(address)]);
    }
    for host in &profile.hosts {
        page.gap();
        page.line([strong(format!("{} x", host.count)), plain(&host.description)]);
        page.line([plain(format!(
            "{} cores, {} of memory, {} slots, isolation {}",
            amount(host, VCPU),
            memory(host),
            host.slots,
            host.level
        ))]);
        let amounts = host.amounts.iter();
        page.table(
            &["AMOUNT", ">HAS"],
            amounts.map(|(name, amount)| vec![plain(name), plain(amount.to_string())]),
        );
        let attributes = host.attributes.iter().map(|(name, values)| {
            let values: Vec<_> = values.iter().map(String::as_str).collect();
            vec![plain(name), plain(values.join(", "))]
        });
        page.table(&["ATTRIBUTE", "VALUES"], attributes);
        let software = host.software.iter();
        page.table(
            &["SOFTWARE", "VERSION"],
            software.map(|(name, version)| vec![plain(name), plain(version)]),
        );
    }
    page
}

/// Amounts in words: `vcpu 4, memory 8192`.
fn amounts(amounts: &BTreeMap<String, Amount>) -> String {
    let short = |name: &String| {
        let plain = name.strip_prefix("amount.worker.");
        plain.or_else(|| name.strip_prefix("meshfarm:amount.")).unwrap_or(name).to_owned()
    };
    let words = amounts.iter().map(|(name, amount)| format!("{} {amount}", short(name)));
    words.collect::<Vec<_>>().join(", ")
}

/// The meshes of this site.
#[must_use]
pub fn meshes(meshes: &[MeshView]) -> Page {
    let mut page = Page::of(&meshes);
    page.quiet = meshes.iter().map(|mesh| mesh.mesh.to_string()).collect();
    if meshes.is_empty() {
        page.line([plain("this site belongs to no mesh")]);
        page.line([faint("found one: meshfarm mesh create NAME; join one: meshfarm join TICKET")]);
    }
    let rows = meshes.iter().map(|mesh| {
        vec![
            strong(&mesh.name),
            plain(&mesh.site_name),
            plain(if mesh.founder { "founder" } else { role(mesh.role) }),
            plain(moment(mesh.expires)),
            faint(mesh.mesh.short()),
        ]
    });
    page.table(&["MESH", "AS", "ROLE", "UNTIL", "ID"], rows);
    page
}

/// A ticket: alone on a line, so that it can be copied.
#[must_use]
pub fn invited(invited: &Invited) -> Page {
    let mut page = Page::of(invited);
    page.quiet = vec![invited.ticket.clone()];
    page.line([faint(format!(
        "{} may join {} as {} until {}, with this on the other machine:",
        match (invited.role, invited.uses) {
            (Role::Host, 1) => "one machine".to_owned(),
            (Role::Host, n) => format!("{n} machines"),
            (Role::Site | Role::Submitter, 1) => "one site".to_owned(),
            (Role::Site | Role::Submitter, n) => format!("{n} sites"),
        },
        invited.mesh_name,
        role(invited.role),
        moment(invited.expires)
    ))]);
    page.line([plain("meshfarm join"), plain(&invited.ticket)]);
    page
}

/// What a machine is fit for.
#[must_use]
pub fn examination(examination: &Examination) -> Page {
    let mut page = Page::of(examination);
    let state = |check: &Check| match check.state {
        CheckState::Good => Cell::new("ok", Tone::Good),
        CheckState::Weak => Cell::new("could be better", Tone::Busy),
        CheckState::Broken => Cell::new("broken", Tone::Bad),
    };
    let bad = |check: &&Check| check.state == CheckState::Broken;
    page.quiet = examination.checks.iter().filter(bad).map(|check| check.name.clone()).collect();
    let rows = examination.checks.iter().map(|check| {
        let help = check.help.as_deref().unwrap_or("");
        vec![plain(&check.name), state(check), plain(&check.found), faint(help)]
    });
    page.table(&["WHAT", "STATE", "FOUND", "WHAT WOULD HELP"], rows);
    page
}
