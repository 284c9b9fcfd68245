//! Reading from a stream in states that are rare and broke a promise once: a link that is slow, a
//! server that is away while the relay drains, a call that hangs, a message that nobody can settle.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, clippy::print_stdout)]

mod support;

use async_nats::Client;
use futures_util::StreamExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::held::Held;
use support::nats::NatsServer;
use support::proxy::Proxy;
use support::relay::Relay;
use support::stream::{HTTP, JETSTREAM, JetStream, PATIENT, STREAM, complete_and_in_order, number};
use support::{signal, subscribe};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

const LOST: &str = "lost the connection to NATS";
const FROM_THE_BEGINNING: (&str, &str) = ("NATS_DELIVER", "all");
/// How long nothing at all may happen where there is something to do.
const STANDSTILL: Duration = Duration::from_secs(30);

/// What moves much or measures is alone on a small machine.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The numbers of what is relayed, as a subscriber gets them.
struct Relayed {
    numbers: Arc<Mutex<Vec<usize>>>,
    task: JoinHandle<()>,
}

impl Relayed {
    async fn listen(client: &Client) -> Self {
        let mut subscriber = subscribe(client, "relayed.>").await;
        let numbers = Arc::<Mutex<Vec<usize>>>::default();
        let shared = numbers.clone();
        let task = tokio::spawn(async move {
            while let Some(message) = subscriber.next().await {
                shared.lock().unwrap().push(number(std::str::from_utf8(&message.payload).unwrap()));
            }
        });
        Self { numbers, task }
    }

    fn numbers(&self) -> Vec<usize> {
        self.numbers.lock().unwrap().clone()
    }

    fn count(&self) -> usize {
        self.numbers.lock().unwrap().len()
    }

    /// Waits for `count` of them for as long as there are more and more, and `holds` is content.
    async fn grow_to(&self, count: usize, mut holds: impl FnMut()) {
        let (mut last, mut since) = (self.count(), Instant::now());
        while last < count {
            tokio::time::sleep(Duration::from_millis(20)).await;
            holds();
            let now = self.count();
            if now > last {
                (last, since) = (now, Instant::now());
            }
            assert!(since.elapsed() < STANDSTILL, "{last} of {count} are relayed, and nothing for {STANDSTILL:?}");
        }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        self.task.abort();
    }
}

// Large messages

#[tokio::test]
async fn the_link_of_these_tests_is_as_slow_as_it_says_and_the_server_feels_it() {
    const BYTES: usize = 16_000_000;
    let _alone = ALONE.lock().await;
    let written = Arc::new(AtomicUsize::new(0));
    let counted = written.clone();
    let server = support::endpoint::raw(move |_, mut stream| {
        let written = counted.clone();
        Box::pin(async move {
            while written.load(Ordering::Relaxed) < BYTES && stream.write_all(&[0; 10_000]).await.is_ok() {
                written.fetch_add(10_000, Ordering::Relaxed);
            }
        })
    })
    .await;
    let proxy = Proxy::to(server).await;
    proxy.throttle(10_000_000);
    let mut client = tokio::net::TcpStream::connect(("127.0.0.1", proxy.port)).await.unwrap();
    let (mut buffer, mut read, began) = (vec![0; 100_000], 0, Instant::now());
    while let Ok(bytes @ 1..) = client.read(&mut buffer).await {
        read += bytes;
        let fastest = 130_000 + began.elapsed().as_millis() as usize * 10_000;
        assert!(read <= fastest, "{read} bytes instead of {fastest} at most");
        // What is on its way is in the buffers of the system.
        let ahead = written.load(Ordering::Relaxed) - read.min(written.load(Ordering::Relaxed));
        assert!(ahead < 8_000_000, "{ahead} bytes ahead");
    }
    assert_eq!(read, BYTES);
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}

/// A backlog of large messages, and the link that they come over.
struct Backlog {
    messages: usize,
    bytes: usize,
    subjects: usize,
    /// Bytes per second; `None` is as fast as this machine.
    link: Option<usize>,
}

impl Backlog {
    /// A relay with its room full of them is killed, and the next one relays all, over one connection.
    async fn is_relayed_after_a_crash(self) {
        let Self { messages, bytes, subjects, link } = self;
        let _alone = ALONE.lock().await;
        let nats = NatsServer::with_config(&format!("{JETSTREAM}, max_payload: 8MB"));
        let client = nats.client().await;
        let stream = JetStream::new(&client);
        stream.add("CMS", "cms.cache.>", json!({})).await;
        let mut filled = 0;
        while filled < messages {
            // A server drops what it cannot store in time.
            let end = messages.min(filled + 1 + 16_000_000 / bytes);
            stream.fill(filled..end, subjects, bytes).await;
            filled = end;
        }
        let proxy = Proxy::to(nats.port).await;
        if let Some(link) = link {
            proxy.throttle(link);
        }
        let endpoint = Held::start().await;
        let variables = [STREAM, HTTP, PATIENT, FROM_THE_BEGINNING, ("NATS_PENDING_BYTES", "16MiB")];
        let first = Relay::start(&proxy.url(), &endpoint.url(), &variables).await;
        let room = (16 << 20) / bytes as u64;
        support::stream::until_true("its room is full", || async { first.metric("messages_received_total").await >= room * 3 / 4 }).await;
        endpoint.called(subjects).await;
        assert!(room > subjects as u64, "none waits");
        signal(first.pid(), "KILL");
        drop(first);

        let relayed = Relayed::listen(&client).await;
        endpoint.release();
        let began = Instant::now();
        let relay = Relay::start(&proxy.url(), &endpoint.url(), &variables).await;
        let keeps_its_connection = || assert!(relay.lines(LOST).is_empty(), "lost the connection after {:?}", began.elapsed());
        relayed.grow_to(messages, keeps_its_connection).await;
        stream.settled().await;
        keeps_its_connection();
        let highest = relay.memory("VmHWM");
        println!("{messages} messages of {bytes} bytes after {:?}, memory up to {highest} KiB", began.elapsed());
        assert_eq!(complete_and_in_order(&relayed.numbers(), messages, subjects), 0, "relayed again");
        complete_and_in_order(&endpoint.numbers(), messages, subjects);
        assert!(highest < 120 * 1024, "{highest} KiB");
    }
}

#[tokio::test]
async fn large_messages_over_a_link_are_relayed_after_a_crash() {
    Backlog { messages: 400, bytes: 300_000, subjects: 10, link: Some(20_000_000) }.is_relayed_after_a_crash().await;
}

#[tokio::test]
async fn large_messages_over_a_slow_link_are_relayed_after_a_crash() {
    Backlog { messages: 300, bytes: 300_000, subjects: 10, link: Some(3_000_000) }.is_relayed_after_a_crash().await;
}

#[tokio::test]
async fn messages_of_a_megabyte_are_relayed_after_a_crash_in_little_memory() {
    Backlog { messages: 250, bytes: 1_000_000, subjects: 5, link: None }.is_relayed_after_a_crash().await;
}

#[tokio::test]
async fn messages_of_several_megabytes_are_relayed_after_a_crash() {
    Backlog { messages: 60, bytes: 4_000_000, subjects: 2, link: None }.is_relayed_after_a_crash().await;
}

#[tokio::test]
async fn messages_of_several_megabytes_over_a_link_are_relayed_after_a_crash() {
    Backlog { messages: 40, bytes: 4_000_000, subjects: 2, link: Some(20_000_000) }.is_relayed_after_a_crash().await;
}
