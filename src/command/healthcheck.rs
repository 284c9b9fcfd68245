//! `healthcheck`: asks the relay that runs with the same `HTTP_LISTEN` whether it is alive. For
//! containers, which have neither a shell nor curl.

use crate::config::environment::Environment;
use crate::config::{self, Mistakes};
use crate::observe::log;
use anyhow::{Context, bail};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Time for the whole answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Ends with 0 when it is alive and otherwise with 1: container engines reserve other codes.
pub(super) async fn main() -> ExitCode {
    match ask().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::complain(format_args!("nats-webhook-relay: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

async fn ask() -> anyhow::Result<()> {
    let environment = Environment::load(Path::new(".")).map_err(Mistakes::from)?;
    let address = config::http_listen(&environment)?
        .context("there is nothing to ask: HTTP_LISTEN is not set")?;
    // The address is this machine's own: no proxy, and no TLS.
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(TIMEOUT);
    let url = format!("http://{}/healthz", reachable(address));
    let status = client.build()?.get(&url).send().await?.status();
    if !status.is_success() {
        bail!("{url} answered {status}");
    }
    Ok(())
}

/// Where a server on this machine that listens on `address` can be called.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::reachable;

    #[test]
    fn an_address_for_all_interfaces_is_asked_on_the_loopback_interface() {
        let cases = [
            ("0.0.0.0:9090", "127.0.0.1:9090"),
            ("[::]:9090", "[::1]:9090"),
            ("10.0.0.7:80", "10.0.0.7:80"),
            ("[fd00::1]:80", "[fd00::1]:80"),
        ];
        for (listens, asked) in cases {
            assert_eq!(reachable(listens.parse().unwrap()).to_string(), asked);
        }
    }
}
