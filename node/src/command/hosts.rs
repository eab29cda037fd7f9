//! `meshfarm hosts`: the machines of a site, listed, stopped, started and struck off.

use meshfarm_core::{HostMode, HostView};

use super::{Desk, Done, Failure, now};
use crate::api::{Problem, SetHost};
use crate::cli::{HostArg, HostsCommand};
use crate::print::{Page, pages, plain, strong};

pub(super) async fn hosts(desk: &Desk, command: Option<HostsCommand>) -> Done {
    let (which, mode) = match command {
        None => return desk.show(&pages::hosts(&desk.client.hosts().await?, now())),
        Some(HostsCommand::Stop(which)) => (which, HostMode::Stopped),
        Some(HostsCommand::Start(which)) => (which, HostMode::Open),
        Some(HostsCommand::Remove(which)) => (which, HostMode::Removed),
    };
    let host = find(desk.client.hosts().await?, &which)?;
    let left = desk.client.set_host(host.host, &SetHost { mode }).await?.tasks;
    let mut page = Page::of(&serde_json::json!({
        "host": host.host, "name": host.name, "mode": mode, "tasks": left,
    }));
    page.quiet = vec![host.host.to_string()];
    let text = match (mode, left) {
        (HostMode::Open, _) => "takes tasks".to_owned(),
        (HostMode::Stopped, 0) => "is stopped".to_owned(),
        (HostMode::Stopped, n) => format!("takes no more tasks; {n} that it runs go on"),
        (HostMode::Removed, _) => "is no host of this site any more".to_owned(),
    };
    page.line([strong(&host.name), plain(text)]);
    desk.show(&page)
}

/// The host of this name, of this id, or whose id alone begins so.
fn find(hosts: Vec<HostView>, HostArg { host: wanted }: &HostArg) -> Result<HostView, Failure> {
    let id = wanted.to_ascii_lowercase();
    let named = |host: &HostView| host.name == *wanted;
    let begins = |host: &HostView| host.host.to_string().starts_with(&id);
    let mut found: Vec<_> = match hosts.iter().find(|host| named(host)) {
        Some(host) => vec![host],
        None => hosts.iter().filter(|host| begins(host)).collect(),
    };
    match (found.pop(), found.len()) {
        (Some(host), 0) => Ok(host.clone()),
        (None, _) => Err(Problem::not_found(format!("this site has no host {wanted}"))
            .with_help("list them: meshfarm hosts")
            .into()),
        (Some(_), _) => {
            let text = format!("{wanted} begins the ids of several hosts");
            Err(Problem::bad_input(text).with_help("write the name, or more digits").into())
        }
    }
}
