//! The settings of the only network that tasks have: services outside, such as licence servers, each by name.

use std::net::{IpAddr, ToSocketAddrs};

use serde::{Deserialize, Serialize};

use meshfarm_sandbox::Service;

/// More services than this are a mistake: a jail takes no more.
const MOST: usize = 64;

/// A service that every task may reach: a table `[[service]]` of `meshfarm.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceConfig {
    /// Its host, as jobs look it up: a name or an IPv4 address.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
}

impl ServiceConfig {
    /// The service at its present address, to which a jail is pinned.
    ///
    /// # Errors
    /// In words, when the name has no address.
    pub fn resolve(&self) -> Result<Service, String> {
        let Self { host, port } = self;
        let mut found = (host.as_str(), *port).to_socket_addrs().map_err(|error| {
            format!("the service {host}:{port} of meshfarm.toml cannot be found: {error}")
        })?;
        let address: Option<IpAddr> = found.next().map(|address| address.ip());
        let address = address.ok_or_else(|| format!("the service {host}:{port} has no address"))?;
        Ok(Service { host: host.clone(), port: *port, address })
    }
}

pub(super) fn check(services: &[ServiceConfig]) -> Result<(), (&'static str, String)> {
    let fit = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let wrong = |problem| Err(("service", problem));
    if services.len() > MOST {
        return wrong(format!("at most {MOST} are possible"));
    }
    for ServiceConfig { host, port } in services {
        if host.is_empty() || host.len() > 253 || !host.chars().all(fit) {
            return wrong(format!("host {host:?} is no host name"));
        }
        if *port == 0 {
            return wrong(format!("the port of {host} is missing"));
        }
    }
    Ok(())
}

pub(super) fn to_text(services: &[ServiceConfig]) -> String {
    let mut text = "# Services outside that every task may reach, such as licence servers: the only network that tasks have.\n"
        .to_owned();
    if services.is_empty() {
        text.push_str("# [[service]]\n# host = \"lic.studio.example\"\n# port = 5053\n");
    }
    for ServiceConfig { host, port } in services {
        text.push_str(&format!("[[service]]\nhost = \"{host}\"\nport = {port}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_pinned_to_the_address_that_its_name_has_now() {
        let service = |host: &str| ServiceConfig { host: host.to_owned(), port: 5053 };
        let found = service("127.0.0.1").resolve().unwrap();
        assert_eq!((found.address, found.port), ([127, 0, 0, 1].into(), 5053));
        let error = service("nowhere.invalid").resolve().unwrap_err();
        assert!(error.contains("nowhere.invalid:5053 of meshfarm.toml"), "{error}");
    }

    #[test]
    fn what_is_no_host_or_port_is_refused_and_settings_survive_their_text() {
        let service = |host: &str, port| ServiceConfig { host: host.to_owned(), port };
        assert!(check(&[service("lic.studio.example", 5053)]).is_ok());
        for bad in [service("", 1), service("a b", 1), service("x", 0), service("a/b", 7)] {
            assert!(check(std::slice::from_ref(&bad)).is_err(), "{bad:?}");
        }
        assert!(check(&vec![service("x", 1); 65]).is_err());
    }
}
