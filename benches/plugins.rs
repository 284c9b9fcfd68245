//! What plugins cost: the relay without and with them side by side, and one call of a hook beside
//! a bare wasmtime call of the same component. Run it with `scripts/bench --plugins`.

use super::{Figures, ROUNDS, Relay, body, median, memory_mib, relay_with};
use async_nats::HeaderMap;
use nats_webhook_relay::message::{Id, Message};
use nats_webhook_relay::observe::Observer;
use nats_webhook_relay::plugin::settings::{Cache, Setting, Settings};
use nats_webhook_relay::plugin::{Hook, Limits, Plugins};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Config, Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};

mod bare {
    #![allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
    wasmtime::component::bindgen!({
        path: "wit",
        inline: "
            package nats-webhook-relay:bench;
            world hooks {
                export nats-webhook-relay:plugin/webhook-payload@1.0.0;
                export nats-webhook-relay:plugin/relayed-payload@1.0.0;
                export nats-webhook-relay:plugin/relayed-subject@1.0.0;
            }
        ",
        world: "nats-webhook-relay:bench/hooks",
        ownership: Borrowing { duplicate_if_necessary: false },
    });
}
use bare::exports::nats_webhook_relay::plugin::{
    relayed_payload, relayed_subject, webhook_payload,
};
use bare::nats_webhook_relay::plugin::types;

pub(crate) async fn compare(quick: bool) {
    let scale = if quick { 10 } else { 1 };
    let cache = tempfile::tempdir().unwrap();
    println!(
        "{:46} {:>9} {:>12} {:>9} {:>9} {:>10}",
        "", "msg/s", "CPU us/msg", "p50 ms", "p99 ms", "peak MiB"
    );
    for (after, messages) in [(0, 30_000), (20, 15_000)] {
        let cases = [
            ("no plugin", vec![]),
            ("no-op (Rust)", vec![plugin("noop")]),
            ("no-op x 3", copies("noop", 3, cache.path())),
            ("nextjs-tags (Rust)", vec![plugin("nextjs-tags")]),
            ("tenant-subject (Python)", vec![plugin("tenant-subject")]),
            ("drupal-path (JavaScript)", vec![plugin("drupal-path")]),
        ];
        let mut figures: Vec<Vec<Figures>> = cases.iter().map(|_| Vec::new()).collect();
        for _ in 0..ROUNDS {
            for ((_, plugins), figures) in cases.iter().zip(&mut figures) {
                figures.push(
                    relay_with(
                        after,
                        300,
                        messages / scale,
                        "error",
                        &environment(plugins, cache.path()),
                    )
                    .await,
                );
            }
        }
        let medians: Vec<_> = figures.into_iter().map(median).collect();
        for ((name, _), median) in cases.iter().zip(&medians) {
            median.print(&format!("300 B, endpoint after {after} ms: {name}"));
            println!(
                "{:46} throughput x {:.2}, CPU x {:.2}",
                "",
                median.rate / medians[0].rate,
                median.cpu_us / medians[0].cpu_us
            );
        }
        println!();
    }
    start(cache.path()).await;
    println!(
        "\none call of a hook, 300 B, beside a bare wasmtime call on a live instance (medians of {ROUNDS} rounds)"
    );
    for (name, calls) in [("noop", 100_000), ("tenant-subject", 20_000), ("drupal-path", 10_000)] {
        call(name, calls / scale, cache.path()).await;
    }
}

fn plugin(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/plugins").join(name).with_extension("wasm")
}

/// The same plugin under several names.
fn copies(name: &str, count: usize, folder: &Path) -> Vec<PathBuf> {
    let copy = |index: usize| {
        let path = folder.join(format!("{name}-{index}.wasm"));
        std::fs::copy(plugin(name), &path).unwrap();
        path
    };
    (0..count).map(copy).collect()
}

fn environment(plugins: &[PathBuf], cache: &Path) -> Vec<(&'static str, String)> {
    let mut environment = vec![
        ("PLUGIN_CACHE", cache.join("code").display().to_string()),
        ("PLUGIN_DRUPAL_PATH_SECRET", "s".to_owned()),
    ];
    if !plugins.is_empty() {
        environment
            .push(("PLUGINS", std::env::join_paths(plugins).unwrap().into_string().unwrap()));
    }
    environment
}

/// Start with a large plugin, before and after its code is in the cache.
async fn start(folder: &Path) {
    let nats = super::nats::NatsServer::start();
    let cache = folder.join("start");
    std::fs::create_dir(&cache).unwrap();
    let start = || {
        Relay::start(
            &nats.url(),
            "http://127.0.0.1:9/",
            "info",
            &environment(&[plugin("drupal-path")], &cache),
        )
    };
    let first = start().ready_after;
    // The cache writes at its leisure.
    let mut cached: Vec<_> = (0..9).map(|_| start().ready_after).collect();
    let (p50, worst) = super::percentiles(&mut cached);
    let relay = start();
    println!(
        "ready with a JavaScript plugin of {:.1} MiB: {:.1} s after the first start, {p50:.0} ms after the next ones (of 9 at most {worst:.0} ms); idle memory {:.1} MiB",
        std::fs::metadata(plugin("drupal-path")).unwrap().len() as f64 / (1024.0 * 1024.0),
        first.as_secs_f64(),
        memory_mib(&relay.pid(), "VmRSS")
    );
}

async fn call(name: &str, calls: usize, folder: &Path) {
    let message = Arc::new(Message::new(
        "cms.cache.article.42",
        HeaderMap::new(),
        body(300, 0),
        Id::unique(),
    ));
    let plugins = Settings {
        paths: vec![plugin(name)],
        timeout: Duration::from_secs(1),
        memory: 128 << 20,
        watch: false,
        cache: Cache::At(folder.join("code")),
        settings: vec![Setting {
            name: "DRUPAL_PATH_SECRET".to_owned(),
            value: nats_webhook_relay::secret::Secret::new("s"),
            from_file: true,
        }],
    };
    let plugins = Plugins::load(&plugins, &Observer::default()).await.unwrap().unwrap();
    let limits = Limits { payload: 1024 * 1024, tail: 1000, no_tail: false };
    let mut bare = Bare::new(&plugin(name), false);
    let mut stoppable = Bare::new(&plugin(name), true);
    let (mut relays, mut bares, mut stoppables) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let start = Instant::now();
        for _ in 0..calls {
            black_box(plugins.shape(&message, "article.42", limits).await.unwrap());
        }
        let relay = start.elapsed();
        let [bare, stoppable] = [&mut bare, &mut stoppable].map(|bare| {
            let start = Instant::now();
            for _ in 0..calls {
                bare.call(&message);
            }
            start.elapsed()
        });
        // The first round warms up.
        if round > 0 {
            relays.push(relay);
            bares.push(bare);
            stoppables.push(stoppable);
        }
    }
    let us = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64() * 1e6 / calls as f64
    };
    let (relay, bare_us, stoppable_us) = (us(&mut relays), us(&mut bares), us(&mut stoppables));
    let hooks = bare.hooks.iter().map(|hook| hook.name()).collect::<Vec<_>>().join(", ");
    println!(
        "{name:16} {relay:7.2} us; bare {bare_us:7.2} us: x {:.2}; bare, but with epochs so that it can be interrupted {stoppable_us:7.2} us: x {:.2} ({hooks})",
        relay / bare_us,
        relay / stoppable_us
    );
}

/// A component as a program that only calls it would: no limits, no pool, one instance.
struct Bare {
    store: Store<State>,
    body: Option<webhook_payload::Guest>,
    payload: Option<relayed_payload::Guest>,
    subject: Option<relayed_subject::Guest>,
    hooks: Vec<Hook>,
}

struct State {
    wasi: WasiCtx,
    table: ResourceTable,
    config: WasiConfigVariables,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl Bare {
    /// `stoppable`: compiled so that a call can be interrupted, which costs something in every loop and function.
    fn new(path: &Path, stoppable: bool) -> Self {
        let engine = Engine::new(Config::new().epoch_interruption(stoppable)).unwrap();
        let component = Component::from_file(&engine, path).unwrap();
        let mut linker = Linker::<State>::new(&engine);
        wasmtime_wasi::p2::add_to_linker_sync(&mut linker).unwrap();
        wasmtime_wasi_config::add_to_linker(&mut linker, |state: &mut State| {
            WasiConfig::from(&state.config)
        })
        .unwrap();
        let config = [("SECRET", "s")].into_iter().collect();
        let mut store = Store::new(
            &engine,
            State { wasi: WasiCtx::builder().build(), table: ResourceTable::new(), config },
        );
        if stoppable {
            store.set_epoch_deadline(1);
        }
        let pre = linker.instantiate_pre(&component).unwrap();
        let instance = pre.instantiate(&mut store).unwrap();
        let body = webhook_payload::GuestIndices::new(&pre)
            .ok()
            .map(|hook| hook.load(&mut store, &instance).unwrap());
        let payload = relayed_payload::GuestIndices::new(&pre)
            .ok()
            .map(|hook| hook.load(&mut store, &instance).unwrap());
        let subject = relayed_subject::GuestIndices::new(&pre)
            .ok()
            .map(|hook| hook.load(&mut store, &instance).unwrap());
        let found = [
            (body.is_some(), Hook::WebhookPayload),
            (payload.is_some(), Hook::RelayedPayload),
            (subject.is_some(), Hook::RelayedSubject),
        ];
        let hooks = found.into_iter().filter_map(|(found, hook)| found.then_some(hook)).collect();
        Self { store, body, payload, subject, hooks }
    }

    fn call(&mut self, message: &Message) {
        let message = || types::Message {
            id: message.id.as_str(),
            subject: &message.subject,
            tail: "article.42",
            headers: &[],
            payload: &message.payload,
        };
        if let Some(hook) = &self.body {
            black_box(hook.call_transform(&mut self.store, message()).unwrap().unwrap());
        }
        if let Some(hook) = &self.payload {
            black_box(hook.call_transform(&mut self.store, message()).unwrap().unwrap());
        }
        if let Some(hook) = &self.subject {
            black_box(hook.call_remap(&mut self.store, message()).unwrap().unwrap());
        }
    }
}
