//! A site and its hosts: they meet each other and nobody else, whatever certificate is shown.

use meshfarm_protocol::membership::mesh_of_hosts;
use meshfarm_protocol::profile::Profile;
use meshfarm_protocol::receipt::Price;

use super::strangers::{Intruder, refused, shown};
use super::*;

const HEAD: u8 = 1;

/// What `root` says of `holder`.
fn signed(root: &SigningKey, holder: &SigningKey, role: Role) -> Certificate {
    let body = CertificateBody {
        version: 1,
        mesh: root.mesh(),
        mesh_name: "oslo".into(),
        site: holder.site(),
        name: format!("site {}", holder.site().short()),
        role,
        issued: Millis(0),
        expires: FOREVER,
        serial: 1,
    };
    Certificate::sign(&body, root)
}

/// A member of the consortium that has hosts.
async fn head() -> Node {
    let node = member(HEAD, TCP).await;
    assert_eq!(mesh_of_hosts(node.site()), node.key.mesh());
    node.net.add_mesh(node.key.mesh(), signed(&node.key, &node.key, Role::Site)).await;
    node
}

/// A host of the head.
async fn host(byte: u8) -> Node {
    let node = stranger(byte, TCP);
    let certificate = signed(&key(HEAD), &node.key, Role::Host);
    node.net.add_mesh(key(HEAD).mesh(), certificate).await;
    node
}

#[tokio::test]
async fn a_host_meets_its_head_and_tells_it_alone_what_it_offers() {
    let (mut head, mut one, mut two, mut lyon) =
        (head().await, host(2).await, host(3).await, member(4, TCP).await);
    for node in [&one, &two, &lyon] {
        node.call(&head).await;
    }
    assert_eq!(head.up(&one).await.memberships[0].role, Role::Host);
    one.up(&head).await;
    two.up(&head).await;
    lyon.up(&head).await;
    let profile = Profile {
        version: PROFILE_VERSION,
        site: one.site(),
        name: format!("site {}", one.site().short()),
        sequence: 0,
        issued: SystemClock.now(),
        ttl: Millis::seconds(60),
        hosts: Vec::new(),
        free: 1,
        lending: true,
        passes_on: false,
        sealing_key: SealingKey([1; 32]),
        addresses: Vec::new(),
        price: Price::default(),
    };
    let mesh = head.key.mesh();
    let mut sequence = 0;
    let heard = loop {
        sequence += 1;
        let profile = Profile { sequence, ..profile.clone() };
        let certificate = signed(&key(HEAD), &one.key, Role::Host);
        one.net.publish(mesh, SignedProfile::sign(&profile, certificate, &one.key)).await;
        let next = tokio::time::timeout(Duration::from_secs(1), head.events.recv()).await;
        if let Ok(Some(Event::Profile { profile, .. })) = next {
            break profile;
        }
        assert!(sequence < 30, "the head hears nothing of its host");
    };
    assert_eq!(heard.site, one.site());
    // The head's own goes round after it: whoever has that would have had the other.
    let own = Profile { site: head.site(), sequence: 1, ..profile };
    let own = Profile { name: format!("site {}", head.site().short()), ..own };
    let certificate = signed(&head.key, &head.key, Role::Site);
    head.net.publish(mesh, SignedProfile::sign(&own, certificate, &head.key)).await;
    let first = two.event("a profile", |event| match event {
        Event::Profile { profile, .. } => Some(profile.site),
        _ => None,
    });
    assert_eq!(first.await, head.site(), "hosts do not hear of each other");
    assert!(lyon.events.try_recv().is_err(), "other sites hear nothing");
}

#[tokio::test]
async fn whatever_certificate_is_shown_a_host_is_a_host_of_its_head() {
    let (head, one, lyon) = (head().await, host(2).await, member(4, TCP).await);
    let (thief, of_head) = (key(9), key(HEAD));
    let cases = [
        // Another host's certificate, and one that the thief has signed itself.
        (&head, signed(&of_head, &key(2), Role::Host), "another site"),
        (&head, signed(&thief, &thief, Role::Host), "no certificate"),
        // A good certificate of a host, shown to another site and to another host.
        (&lyon, signed(&of_head, &thief, Role::Host), "no certificate"),
        (&one, signed(&of_head, &thief, Role::Host), "of only"),
        // Somebody who is no head, at a host; and a host that a mesh's root has made.
        (&one, signed(&of_head, &thief, Role::Site), "of only"),
        (&one, signed(&root(), &thief, Role::Site), "no certificate"),
        (&lyon, signed(&root(), &thief, Role::Host), "of only"),
        (&head, signed(&root(), &thief, Role::Host), "of only"),
    ];
    for (target, certificate, words) in cases {
        let mut intruder = Intruder::into(target, 9).await;
        let why = refused(intruder.ask(target, shown(certificate)).await);
        assert!(why.contains(words), "{why}");
        let why = refused(intruder.ask(target, Request::Core(close(1))).await);
        assert!(!why.is_empty());
    }
}
