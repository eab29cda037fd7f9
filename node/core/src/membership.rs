//! Who is let in: invitations that this site gave, and who has used them.

use std::collections::BTreeMap;

use rand_core::Rng;

use meshfarm_protocol::id::{Millis, SiteId};
use meshfarm_protocol::membership::{CertificateBody, Role, is_name, mesh_of_hosts};

use crate::door::{Event, Output, Request};
use crate::hosts::Hosts;
use crate::jobs::{put, put_delete};
use crate::record::{InviteRecord, Key, Record};

/// How long a certificate admits.
const CERTIFICATE_LIFE: Millis = Millis::seconds(90 * 24 * 3600);

/// How long that of a host does: its head can stop and remove it at any time, and nobody else believes it.
const HOST_LIFE: Millis = Millis::seconds(10 * 365 * 24 * 3600);

/// More invitations than this at a time are not kept.
const MAX_INVITES: usize = 10_000;

/// A request to join that has arrived.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    pub(crate) request: Request,
    pub(crate) peer: SiteId,
    pub(crate) secret_hash: [u8; 32],
    pub(crate) name: String,
    pub(crate) role: Role,
}

/// Invitations that this site gave.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    me: SiteId,
    own_name: String,
    invites: BTreeMap<[u8; 32], InviteRecord>,
}

impl Membership {
    pub(crate) const fn new(me: SiteId, own_name: String) -> Self {
        let invites = BTreeMap::new();
        Self { me, own_name, invites }
    }

    pub(crate) fn restore(&mut self, invite: InviteRecord) {
        self.invites.insert(invite.secret_hash, invite);
    }

    /// Keep an invitation.
    ///
    /// # Errors
    /// When too many are open, or the role has no place in that mesh, in words for the person who asked.
    pub(crate) fn invite(
        &mut self,
        invite: InviteRecord,
        now: Millis,
        out: &mut Vec<Output>,
    ) -> Result<(), String> {
        if (invite.mesh == mesh_of_hosts(self.me)) != (invite.role == Role::Host) {
            return Err("a host joins the site that it serves, everybody else a mesh".to_owned());
        }
        let old: Vec<_> = self
            .invites
            .values()
            .filter(|invite| invite.expires <= now && invite.used_by.is_empty())
            .map(|invite| invite.secret_hash)
            .collect();
        for hash in old {
            self.invites.remove(&hash);
            put_delete(out, Key::Invite(hash));
        }
        if self.invites.len() >= MAX_INVITES {
            return Err(format!("{MAX_INVITES} invitations are open already"));
        }
        put(out, Record::Invite(invite.clone()));
        self.invites.insert(invite.secret_hash, invite);
        Ok(())
    }

    /// Let a stranger in, or say why not. Asking again after a lost answer costs no further use.
    pub(crate) fn on_join(
        &mut self,
        asking: Asking,
        hosts: &mut Hosts,
        (now, rng): (Millis, &mut impl Rng),
        out: &mut Vec<Output>,
    ) {
        let request = asking.request;
        match self.admit(&asking, hosts, now) {
            Err(reason) => out.push(Output::Refuse(request, reason)),
            Ok(invite) => {
                let life = match invite.role {
                    Role::Host => {
                        hosts.joined(asking.peer, asking.name.clone(), now, out);
                        HOST_LIFE
                    }
                    Role::Site | Role::Submitter => CERTIFICATE_LIFE,
                };
                let body = CertificateBody {
                    version: 1,
                    mesh: invite.mesh,
                    mesh_name: invite.mesh_name.clone(),
                    site: asking.peer,
                    name: asking.name.clone(),
                    role: invite.role,
                    issued: now,
                    expires: now.plus(life),
                    serial: rng.next_u64(),
                };
                put(out, Record::Invite(invite.clone()));
                out.push(Output::Admit(request, body));
                out.push(Output::Tell(Event::Joined { site: asking.peer, name: asking.name }));
            }
        }
    }

    fn admit(
        &mut self,
        asking: &Asking,
        hosts: &Hosts,
        now: Millis,
    ) -> Result<&InviteRecord, String> {
        if !is_name(&asking.name) {
            return Err("a site's name has 1 to 64 printable characters, no / \\ or :".to_owned());
        }
        if asking.peer == self.me {
            return Err("this is the site itself".to_owned());
        }
        let mut taken = self.invites.values().flat_map(|invite| &invite.used_by);
        let others = |(site, name): &(SiteId, String)| {
            *site != asking.peer && *name == asking.name && !hosts.is_removed(*site)
        };
        if asking.name == self.own_name
            || taken.any(others)
            || hosts.all().any(|host| host.host != asking.peer && host.name == asking.name)
        {
            let name = &asking.name;
            return Err(format!("the name {name} is taken: choose another with --name"));
        }
        let Some(invite) = self.invites.get_mut(&asking.secret_hash) else {
            return Err("nobody here gave this ticket: ask for a new one".to_owned());
        };
        if invite.expires <= now {
            return Err("the ticket has expired: ask for a new one".to_owned());
        }
        if invite.role != asking.role {
            return Err("the ticket is for another role".to_owned());
        }
        if hosts.contains(asking.peer) && invite.role != Role::Host {
            return Err("this machine is a host here, and so it is no site".to_owned());
        }
        if invite.role == Role::Host && hosts.is_full(asking.peer) {
            return Err("this site has as many hosts as it can have".to_owned());
        }
        if let Some(used) = invite.used_by.iter_mut().find(|(site, _)| *site == asking.peer) {
            if hosts.is_removed(asking.peer) {
                return Err("this machine was removed: ask for a new ticket".to_owned());
            }
            used.1.clone_from(&asking.name);
            return Ok(invite);
        }
        if invite.uses_left == 0 {
            return Err("the ticket is used up: ask for a new one".to_owned());
        }
        invite.uses_left -= 1;
        invite.used_by.push((asking.peer, asking.name.clone()));
        Ok(invite)
    }
}
