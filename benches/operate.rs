//! `--operate`: what each part costs that can be switched on for operating the relay, beside the
//! relay without it: CPU time of a message, in one run.

use super::dns::{Dns, HOST};
use super::nats::NatsServer;
use super::{Figures, ROUNDS, median, relay_at, start_endpoint};
use std::net::Ipv4Addr;

pub(crate) async fn compare(quick: bool) {
    let messages = if quick { 6_000 } else { 60_000 };
    println!(
        "{:46} {:>9} {:>12} {:>9} {:>9} {:>10}",
        "300 B, endpoint at once", "msg/s", "CPU us/msg", "p50 ms", "p99 ms", "peak MiB"
    );
    // It takes whatever is POSTed to it.
    let (_collector, collector) = start_endpoint(0);
    let dns = Dns::start().await;
    dns.has(&[Ipv4Addr::LOCALHOST.into()]);
    let (server, traces) =
        (dns.address.clone(), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*collector));
    let parts: [(&str, Vec<(&str, &str)>); 8] = [
        ("nothing on", vec![]),
        ("nothing on, again", vec![]),
        ("NATS_RESYNC_SUBJECT", vec![("NATS_RESYNC_SUBJECT", "resync")]),
        ("COALESCE=true, nothing to merge", vec![("COALESCE", "true")]),
        ("WEBHOOK_RATE_LIMIT, never reached", vec![("WEBHOOK_RATE_LIMIT", "1000000/s")]),
        (
            "WEBHOOK_RESOLVE=all, one address",
            vec![("WEBHOOK_RESOLVE", "all"), ("WEBHOOK_RESOLVE_SERVER", &server)],
        ),
        ("traces of all messages", vec![traces, ("OTEL_BSP_MAX_QUEUE_SIZE", "65536")]),
        (
            "traces of 1 % of the messages",
            vec![
                traces,
                ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
                ("OTEL_TRACES_SAMPLER_ARG", "0.01"),
            ],
        ),
    ];
    let mut figures: Vec<Vec<Figures>> = parts.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for ((_, variables), figures) in parts.iter().zip(&mut figures) {
            let (_endpoint, url) = start_endpoint(0);
            let url = match variables.iter().any(|(name, _)| *name == "WEBHOOK_RESOLVE") {
                true => url.replace("127.0.0.1", HOST),
                false => url,
            };
            let variables: Vec<_> =
                variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
            let nats = NatsServer::start();
            figures.push(relay_at(nats, &url, 300, messages, "warn", &variables).await);
        }
    }
    let figures: Vec<_> = figures.into_iter().map(median).collect();
    for ((name, _), figures_of) in parts.iter().zip(&figures) {
        figures_of.print(name);
        println!("{:46} CPU x {:.3}", "", figures_of.cpu_us / figures[0].cpu_us);
    }
}
