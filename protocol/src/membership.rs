//! Who belongs to a mesh: certificates signed by its root, and the tickets that lead to one.

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::id::{MeshId, Millis, SiteId};
use crate::seal::{self, Signature, SigningKey};

/// Signing context of certificates: a signature made for anything else is worthless here.
const CERTIFICATE: &str = "meshfarm v1 certificate";

/// An encoded certificate or ticket longer than this is refused.
const MAX_BYTES: usize = 4096;

/// Longest name of a site or mesh, in bytes.
pub const MAX_NAME: usize = 64;

/// First characters of every ticket, so that a person sees what it is.
const TICKET_PREFIX: &str = "meshfarm1";

/// More addresses than this in a ticket are refused.
const MAX_ADDRESSES: usize = 16;

/// What a member may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Lend and borrow.
    Site,
    /// Lend to its own site's head only.
    Host,
    /// Borrow only.
    Submitter,
}

/// The mesh of the hosts of `site`: its root is the site's own key, so that a site without the root of any other mesh
/// can have hosts, and so that a host is a member of nothing else.
#[must_use]
pub const fn mesh_of_hosts(site: SiteId) -> MeshId {
    MeshId(site.0)
}

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CertificateBody {
    /// Layout version of this record.
    pub version: u16,
    /// The mesh that it admits to; also the key that signed it.
    pub mesh: MeshId,
    /// The mesh's name, for people.
    pub mesh_name: String,
    /// Who is admitted: the connection must be authenticated by this key.
    pub site: SiteId,
    /// The site's name, unique in the mesh.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// When it was signed.
    pub issued: Millis,
    /// From when on it is worthless.
    pub expires: Millis,
    /// Tells certificates apart, for revocation.
    pub serial: u64,
}

impl CertificateBody {
    /// The site that this one is a host of, when it is one.
    #[must_use]
    pub fn head(&self) -> Option<SiteId> {
        (self.role == Role::Host).then_some(SiteId(self.mesh.0))
    }

    /// Whether the holders of two certificates of one mesh have to do with each other: a host only with its head,
    /// everybody else with everybody else.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        match (self.head(), other.head()) {
            (None, None) => true,
            (Some(head), None) => head == other.site,
            (None, Some(head)) => head == self.site,
            (Some(_), Some(_)) => false,
        }
    }
}

/// A signed statement that a site belongs to a mesh. The signature covers the exact bytes of `body`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
    signature: Signature,
}

/// Why a certificate admits nobody. Nothing was changed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refused {
    /// Not a certificate at all. Blame the sender.
    #[error("the certificate is malformed")]
    Malformed,
    /// Not signed by the mesh's root. Blame the sender.
    #[error("the certificate is not signed by the root of its mesh")]
    Forged,
    /// It was good once. Ask an authority of the mesh for a new one.
    #[error("the certificate has expired")]
    Expired,
    /// It admits another site. Blame the sender.
    #[error("the certificate belongs to another site")]
    OtherSite,
    /// It admits to a mesh that this site does not belong to.
    #[error("the certificate is for another mesh")]
    OtherMesh,
}

impl Certificate {
    /// Sign `body` with the mesh's root key.
    #[must_use]
    pub fn sign(body: &CertificateBody, root: &SigningKey) -> Self {
        let body = codec::encode(body);
        let signature = seal::sign(root, CERTIFICATE, &body);
        Self { body, signature }
    }

    /// What it says, after its signature was checked against the mesh that it names.
    ///
    /// # Errors
    /// When it is malformed or forged. Expiry and holder are not looked at; see [`Self::admits`].
    pub fn open(&self) -> Result<CertificateBody, Refused> {
        let body: CertificateBody =
            codec::decode(&self.body, MAX_BYTES).map_err(|_bytes| Refused::Malformed)?;
        if !is_name(&body.name) || !is_name(&body.mesh_name) || body.version != 1 {
            return Err(Refused::Malformed);
        }
        match seal::verify(&body.mesh.0, CERTIFICATE, &self.body, &self.signature) {
            Ok(()) => Ok(body),
            Err(_forged) => Err(Refused::Forged),
        }
    }

    /// What it says, if it admits `site` to `mesh` at `now`.
    ///
    /// # Errors
    /// One reason, the first that applies.
    pub fn admits(
        &self,
        mesh: MeshId,
        site: SiteId,
        now: Millis,
    ) -> Result<CertificateBody, Refused> {
        let body = self.open()?;
        if body.mesh != mesh {
            return Err(Refused::OtherMesh);
        }
        if body.site != site {
            return Err(Refused::OtherSite);
        }
        if now >= body.expires {
            return Err(Refused::Expired);
        }
        Ok(body)
    }
}

/// Whether `name` may name a site or a mesh: short, printable, no blanks at the ends, no path separators.
#[must_use]
pub fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.trim() == name
        && !name.starts_with('.')
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\' | ':'))
}

/// What an invited site needs to find the mesh and to prove that it was invited.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ticket {
    /// The mesh: the key that must have signed the certificate that comes back.
    pub mesh: MeshId,
    /// Its name, for people.
    pub mesh_name: String,
    /// Who answers the request to join.
    pub authority: SiteId,
    /// Where it listens, as multiaddresses.
    pub addresses: Vec<String>,
    /// What the invited site may do.
    pub role: Role,
    /// From when on it is worthless.
    pub expires: Millis,
    /// The one-time secret. Whoever holds it can join.
    #[serde(with = "serde_bytes")]
    pub secret: [u8; 32],
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ticket(mesh {}, role {:?})", self.mesh_name, self.role)
    }
}

/// Why a text is no ticket. Nothing was sent to anybody.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadTicket {
    /// It does not begin like one.
    #[error(
        "this is not a meshfarm ticket: a ticket begins with `{TICKET_PREFIX}`; ask for `meshfarm invite`"
    )]
    Other,
    /// Characters are missing, changed or added.
    #[error(
        "the ticket is garbled (some characters are missing or changed): copy the whole line again"
    )]
    Garbled,
}

impl Ticket {
    /// Copyable text: one word of lower-case letters and digits, with a checksum.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut bytes = codec::encode(self);
        let sum = seal::content_hash(&bytes);
        bytes.extend_from_slice(&sum[..4]);
        format!("{TICKET_PREFIX}{}", data_encoding::BASE32_NOPAD.encode(&bytes).to_lowercase())
    }

    /// The ticket in `text`. White space inside is ignored: mail programs break long words.
    ///
    /// # Errors
    /// When it is no ticket, or not a whole one.
    pub fn from_text(text: &str) -> Result<Self, BadTicket> {
        let word: String = text.split_whitespace().collect::<String>().to_lowercase();
        let coded = word.strip_prefix(TICKET_PREFIX).ok_or(BadTicket::Other)?;
        if coded.len() > MAX_BYTES * 2 {
            return Err(BadTicket::Garbled);
        }
        let bytes = data_encoding::BASE32_NOPAD
            .decode(coded.to_uppercase().as_bytes())
            .map_err(|_text| BadTicket::Garbled)?;
        let (body, sum) = bytes.split_last_chunk::<4>().ok_or(BadTicket::Garbled)?;
        if seal::content_hash(body)[..4] != *sum {
            return Err(BadTicket::Garbled);
        }
        let ticket: Self = codec::decode(body, MAX_BYTES).map_err(|_bytes| BadTicket::Garbled)?;
        if ticket.addresses.len() > MAX_ADDRESSES || !is_name(&ticket.mesh_name) {
            return Err(BadTicket::Garbled);
        }
        Ok(ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(mesh: MeshId) -> CertificateBody {
        CertificateBody {
            version: 1,
            mesh,
            mesh_name: "consortium".into(),
            site: SiteId([7; 32]),
            name: "oslo".into(),
            role: Role::Site,
            issued: Millis(1),
            expires: Millis(1000),
            serial: 1,
        }
    }

    #[test]
    fn a_certificate_admits_only_its_holder_to_its_mesh_until_it_expires() {
        let root = SigningKey::from_seed(&[1; 32]);
        let mesh = root.mesh();
        let certificate = Certificate::sign(&body(mesh), &root);
        let admits = |mesh, site, now| certificate.admits(mesh, site, Millis(now)).map(|b| b.name);
        assert_eq!(admits(mesh, SiteId([7; 32]), 999), Ok("oslo".to_owned()));
        assert_eq!(admits(mesh, SiteId([7; 32]), 1000), Err(Refused::Expired));
        assert_eq!(admits(mesh, SiteId([8; 32]), 1), Err(Refused::OtherSite));
        assert_eq!(admits(MeshId([1; 32]), SiteId([7; 32]), 1), Err(Refused::OtherMesh));
    }

    #[test]
    fn a_certificate_signed_by_another_root_is_forged() {
        let root = SigningKey::from_seed(&[1; 32]);
        let other = SigningKey::from_seed(&[2; 32]);
        let mesh = root.mesh();
        assert_eq!(Certificate::sign(&body(mesh), &other).open(), Err(Refused::Forged));
    }

    #[test]
    fn a_host_meets_its_head_and_nobody_else() {
        let head = SigningKey::from_seed(&[1; 32]);
        let mesh = mesh_of_hosts(head.site());
        let of = |site, role| CertificateBody { site, role, ..body(mesh) };
        let (one, two) = (SiteId([7; 32]), SiteId([8; 32]));
        let at_head = of(head.site(), Role::Site);
        assert!(of(one, Role::Host).meets(&at_head) && at_head.meets(&of(one, Role::Host)));
        for other in [of(two, Role::Host), of(two, Role::Site), of(two, Role::Submitter)] {
            assert!(!of(one, Role::Host).meets(&other) && !other.meets(&of(one, Role::Host)));
        }
        assert!(of(one, Role::Site).meets(&of(two, Role::Submitter)));
        assert_eq!(of(one, Role::Host).head(), Some(head.site()));
    }

    #[test]
    fn a_ticket_survives_mail_and_tells_when_it_did_not() {
        let ticket = Ticket {
            mesh: MeshId([1; 32]),
            mesh_name: "consortium".into(),
            authority: SiteId([2; 32]),
            addresses: vec!["/ip4/10.0.0.1/tcp/4001".into()],
            role: Role::Site,
            expires: Millis(5),
            secret: [3; 32],
        };
        let text = ticket.to_text();
        let (head, tail) = text.split_at(60);
        assert_eq!(Ticket::from_text(&format!(" {head}\n  {tail}\n")), Ok(ticket));
        assert_eq!(Ticket::from_text(head), Err(BadTicket::Garbled));
        assert_eq!(Ticket::from_text("hello"), Err(BadTicket::Other));
        assert!(!format!("{:?}", Ticket::from_text(&text)).contains("3, 3"));
    }
}
