//! All addresses of a host: from the name servers of the system, or from one that is named.
//!
//! What only a part of the answers says is no result, and neither is that there is no address:
//! whoever takes an address for gone stops waiting for it.

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Time between look-ups unless something else is said.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Time between look-ups.
    pub(crate) interval: Duration,
    /// Whom to ask; `None` for the name servers of the system.
    pub(crate) server: Option<SocketAddr>,
}

/// The address of a name server, by default on the usual port.
pub(crate) fn server(text: &str) -> Option<SocketAddr> {
    let address = || text.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, 53));
    text.parse().ok().or_else(address)
}

/// All addresses of `host`, of both families: at least one.
///
/// # Errors
/// Why none can be known, for a person.
pub(crate) async fn addresses(
    host: &str,
    server: Option<SocketAddr>,
) -> Result<BTreeSet<IpAddr>, String> {
    let failed = |error: NetError| format!("cannot look up the addresses of {host}: {error}");
    let mut name = Name::from_utf8(host).map_err(|error| failed(error.into()))?;
    // A new one each time: nothing is cached, and a change of the system's settings is noticed.
    let resolver = resolver(server).map_err(failed)?;
    let mut addresses = BTreeSet::new();
    for family in [RecordType::A, RecordType::AAAA] {
        match resolver.lookup(name.clone(), family).await {
            Ok(found) => {
                // Both families are those of one name, where search domains offer several.
                name = found.query().name().clone();
                let records = found.answers().iter();
                addresses.extend(records.filter_map(|record| record.data.ip_addr()));
            }
            Err(error) if error.is_no_records_found() => {}
            Err(error) => return Err(failed(error)),
        }
    }
    match addresses.is_empty() {
        true => Err(format!("the host {host} has no address")),
        false => Ok(addresses),
    }
}

fn resolver(server: Option<SocketAddr>) -> Result<TokioResolver, NetError> {
    let Some(server) = server else { return TokioResolver::builder_tokio()?.build() };
    let mut named = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut named.connections {
        connection.port = server.port();
    }
    let config = ResolverConfig::from_name_servers(vec![named]);
    let provider = TokioRuntimeProvider::default();
    let mut builder = TokioResolver::builder_with_config(config, provider);
    builder.options_mut().use_hosts_file = ResolveHosts::Never;
    builder.build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_server_is_an_address_with_or_without_a_port() {
        for (text, expected) in [
            ("127.0.0.1", Some("127.0.0.1:53")),
            ("127.0.0.1:8600", Some("127.0.0.1:8600")),
            ("::1", Some("[::1]:53")),
            ("[::1]:5353", Some("[::1]:5353")),
            ("consul", None),
            ("127.0.0.1:", None),
            (":53", None),
        ] {
            assert_eq!(server(text), expected.map(|text| text.parse().unwrap()), "{text}");
        }
    }
}
