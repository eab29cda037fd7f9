//! Who is let in.

use meshfarm_core::{Ask, Input, Reply, Request};
use meshfarm_protocol::id::{MeshId, SiteId};
use meshfarm_protocol::membership::Role;

use crate::mesh::Mesh;

fn inviting(uses: u32) -> Mesh {
    let mut mesh = Mesh::new([("oslo", 0)]);
    let expires = mesh.now.plus(meshfarm_protocol::id::Millis::seconds(3600));
    let invite = Ask::Invite {
        mesh: MeshId([7; 32]),
        mesh_name: "consortium".into(),
        secret_hash: [4; 32],
        role: Role::Site,
        uses,
        expires,
    };
    assert_eq!(mesh.ask(0, invite), Reply::Changed(uses));
    mesh
}

fn join(mesh: &mut Mesh, peer: u8, name: &str, role: Role) -> Result<String, String> {
    mesh.give(
        0,
        Input::JoinAsked {
            request: Request(1),
            peer: SiteId([peer; 32]),
            secret_hash: [4; 32],
            name: name.into(),
            role,
        },
    );
    mesh.peers[0].admitted.pop().unwrap()
}

#[test]
fn a_ticket_admits_as_often_as_it_says_and_asking_again_costs_nothing() {
    let mut mesh = inviting(2);
    assert_eq!(join(&mut mesh, 50, "lyon", Role::Site), Ok("lyon".into()));
    assert_eq!(join(&mut mesh, 50, "lyon", Role::Site), Ok("lyon".into()));
    mesh.restart(0);
    assert_eq!(join(&mut mesh, 50, "lyon", Role::Site), Ok("lyon".into()));
    assert_eq!(join(&mut mesh, 51, "graz", Role::Site), Ok("graz".into()));
    let refused = join(&mut mesh, 52, "bern", Role::Site).unwrap_err();
    assert!(refused.contains("used up"), "{refused}");
}

#[test]
fn an_expired_ticket_admits_nobody() {
    let mut mesh = inviting(1);
    mesh.advance(3600 * 1000);
    let refused = join(&mut mesh, 50, "lyon", Role::Site).unwrap_err();
    assert!(refused.contains("expired"), "{refused}");
}

#[test]
fn a_ticket_gives_its_own_role_only() {
    let mut mesh = inviting(1);
    let refused = join(&mut mesh, 50, "lyon", Role::Submitter).unwrap_err();
    assert!(refused.contains("role"), "{refused}");
    assert_eq!(join(&mut mesh, 50, "lyon", Role::Site), Ok("lyon".into()));
}

#[test]
fn no_two_sites_have_one_name_and_none_has_that_of_its_host() {
    let mut mesh = inviting(5);
    assert_eq!(join(&mut mesh, 50, "lyon", Role::Site), Ok("lyon".into()));
    for name in ["lyon", "oslo"] {
        let refused = join(&mut mesh, 51, name, Role::Site).unwrap_err();
        assert!(refused.contains("taken"), "{refused}");
    }
    assert!(join(&mut mesh, 51, "../x", Role::Site).is_err());
}

#[test]
fn a_secret_that_nobody_gave_admits_nobody() {
    let mut mesh = Mesh::new([("oslo", 0)]);
    let refused = join(&mut mesh, 50, "lyon", Role::Site).unwrap_err();
    assert!(refused.contains("nobody here gave"), "{refused}");
}
