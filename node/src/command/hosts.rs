//! `meshfarm hosts`: the machines of a site, listed, stopped, started and struck off; and the head's backups.

use std::path::Path;

use meshfarm_core::{HostMode, HostView};

use super::{Desk, Done, Failure, Rooms, block_on, now};
use crate::api::{BackedUp, Backup, Problem, SetHost};
use crate::cli::{HostArg, HostsCommand};
use crate::client::ClientError;
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

/// Through the node when it runs, beside it when it does not.
pub(super) fn backup(rooms: &dyn Rooms, desk: &Desk, file: &Path) -> Done {
    let file = std::path::absolute(file).map_err(|error| Problem::bad_input(error.to_string()))?;
    let mut asked = None;
    block_on(async {
        asked = Some(desk.client.backup(&Backup { file: file.clone() }).await);
        Ok(())
    })?;
    let done = match asked {
        Some(Err(ClientError::NotReachable { .. })) | None => {
            desk.home.load()?;
            let _lock = desk.home.lock()?;
            rooms.backup(&desk.home, &file)?
        }
        Some(done) => done?,
    };
    show(desk, &done, "was backed up to")
}

pub(super) fn restore(rooms: &dyn Rooms, desk: &Desk, file: &Path) -> Done {
    let done = rooms.restore(&desk.home, file)?;
    show(desk, &done, "was restored from")
}

fn show(desk: &Desk, done: &BackedUp, what: &str) -> Done {
    let mut page = Page::of(done);
    page.quiet = vec![done.file.display().to_string()];
    let home = desk.home.root().display().to_string();
    page.line([strong(home), plain(what), plain(done.file.display().to_string())]);
    page.line([plain(format!("{} records, {} chunks of content", done.records, done.chunks))]);
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
