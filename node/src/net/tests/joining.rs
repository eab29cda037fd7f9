//! From a ticket to a certificate, and every way in which that fails.

use super::*;

async fn ticket(authority: &Node) -> Ticket {
    Ticket {
        mesh: root().mesh(),
        mesh_name: "consortium".into(),
        authority: authority.site(),
        addresses: vec![authority.address().await.to_string()],
        role: Role::Site,
        expires: FOREVER,
        secret: [5; 32],
    }
}

/// Answers the next request to join as an authority would, with what `answer` makes of it.
async fn authority(node: &mut Node, answer: impl Fn(SiteId, &Join) -> Answer) {
    node.event("a request to join", |event| match event {
        Event::JoinAsked { peer, join, answer: reply } => {
            let _gone = reply.send(answer(peer, &join));
            Some(())
        }
        _ => None,
    })
    .await;
}

fn admit(peer: SiteId, join: &Join) -> Answer {
    if join.secret != [5; 32] {
        return Answer::Refused("the ticket was used already".into());
    }
    let body = CertificateBody {
        version: 1,
        mesh: root().mesh(),
        mesh_name: "consortium".into(),
        site: peer,
        name: join.name.clone(),
        role: join.role,
        issued: Millis(0),
        expires: FOREVER,
        serial: 9,
    };
    Answer::Joined(Certificate::sign(&body, &root()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_leads_from_stranger_to_member() {
    let mut founder = member(1, TCP).await;
    let mut guest = stranger(2, TCP);
    let mut ticket = ticket(&founder).await;
    // A dead address before the good one only costs a moment.
    ticket.addresses.insert(0, "/ip4/127.0.0.1/tcp/1".into());
    let (joined, ()) =
        tokio::join!(guest.net.join(&ticket, "lyon"), authority(&mut founder, admit));
    let certificate = joined.unwrap();
    assert_eq!(certificate.open().unwrap().name, "lyon");
    guest.net.add_mesh(ticket.mesh, certificate).await;
    guest.up(&founder).await;
    let up = founder.up(&guest).await;
    assert_eq!(up.memberships[0].name, "lyon");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_that_leads_nowhere_says_which_addresses_failed_and_why() {
    let founder = member(1, TCP).await;
    let other = stranger(3, TCP);
    let guest = stranger(2, TCP);
    let mut ticket = ticket(&founder).await;
    ticket.addresses =
        vec!["/ip4/127.0.0.1/tcp/1".into(), other.address().await.to_string(), "nonsense".into()];
    let error = guest.net.join(&ticket, "lyon").await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, JoinError::Unreachable { .. }), "{text}");
    assert!(text.contains("tcp/1 (") && text.contains("refused"), "{text}");
    assert!(text.contains("another node answers there"), "{text}");
    assert!(text.contains("nonsense ("), "{text}");
    ticket.expires = Millis(1);
    let error = guest.net.join(&ticket, "lyon").await.unwrap_err();
    assert!(matches!(error, JoinError::Expired(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_is_passed_on_and_a_worthless_certificate_is_found_out() {
    let mut founder = member(1, TCP).await;
    let guest = stranger(2, TCP);
    let mut ticket = ticket(&founder).await;
    ticket.secret = [6; 32];
    let (refused, ()) =
        tokio::join!(guest.net.join(&ticket, "lyon"), authority(&mut founder, admit));
    let text = refused.unwrap_err().to_string();
    assert!(text.contains("used already"), "{text}");
    let worthless = [
        certificate(&key(201), &guest.key, FOREVER),
        certificate(&root(), &key(8), FOREVER),
        certificate(&root(), &guest.key, Millis(1)),
    ];
    for one in worthless {
        let (joined, ()) = tokio::join!(
            guest.net.join(&ticket, "lyon"),
            authority(&mut founder, |_, _| Answer::Joined(one.clone()))
        );
        let error = joined.unwrap_err();
        assert!(matches!(error, JoinError::Forged { .. }), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_is_rationed() {
    let mut founder = member(1, TCP).await;
    let ticket = ticket(&founder).await;
    let guests: Vec<Node> = (10..24).map(|byte| stranger(byte, TCP)).collect();
    let joins = guests.iter().map(|guest| guest.net.join(&ticket, "lyon"));
    let all = futures::future::join_all(joins);
    tokio::pin!(all);
    let results = within("every answer", async {
        loop {
            tokio::select! {
                results = &mut all => return results,
                event = founder.events.recv() => {
                    if let Some(Event::JoinAsked { peer, join, answer }) = event {
                        let _gone = answer.send(admit(peer, &join));
                    }
                }
            }
        }
    })
    .await;
    let joined = results.iter().filter(|result| result.is_ok()).count();
    assert!((10..14).contains(&joined), "{joined} of 14");
    let refused = results.into_iter().find_map(Result::err).unwrap();
    assert!(refused.to_string().contains("try again"), "{refused}");
}
