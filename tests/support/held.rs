//! An HTTP endpoint that keeps every call waiting until it is released, and then accepts it.

use axum::Router;
use axum::extract::Request;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// One call, of which only the beginning of the body is kept.
#[derive(Clone, Debug)]
pub struct Call {
    pub subject: String,
    /// The value of `x-replica`, where there is one.
    pub replica: String,
    pub id: String,
    /// The body up to the first space.
    pub word: String,
}

impl Call {
    /// The number that the body begins with, as [`super::stream::JetStream::fill`] makes it.
    pub fn number(&self) -> usize {
        self.word.parse().unwrap()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Released {
    Nothing,
    /// All but those that hang.
    Most,
    All,
}

pub struct Held {
    port: u16,
    calls: Arc<Mutex<Vec<Call>>>,
    released: watch::Sender<Released>,
    server: tokio::task::JoinHandle<()>,
}

impl Held {
    pub async fn start() -> Self {
        Self::hanging(|_| false).await
    }

    /// Keeps the calls for which `hangs` says so waiting until [`Self::release_all`].
    pub async fn hanging(hangs: impl Fn(&Call) -> bool + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (released, gate) = watch::channel(Released::Nothing);
        let (calls, hangs) = (Arc::new(Mutex::new(Vec::new())), Arc::new(hangs));
        let called = calls.clone();
        let handler = move |request: Request| {
            let (called, hangs, mut gate) = (called.clone(), hangs.clone(), gate.clone());
            async move {
                let (parts, body) = request.into_parts();
                let header = |name: &str| {
                    parts
                        .headers
                        .get(name)
                        .map_or_else(String::new, |value| value.to_str().unwrap().to_owned())
                };
                let (subject, replica, id) =
                    (header("nats-subject"), header("x-replica"), header("webhook-id"));
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default();
                let word = body.split(|byte| *byte == b' ').next().unwrap_or_default();
                let call =
                    Call { subject, replica, id, word: String::from_utf8_lossy(word).into_owned() };
                let needed = if hangs(&call) { Released::All } else { Released::Most };
                called.lock().unwrap().push(call);
                let _ = gate.wait_for(|released| *released >= needed).await;
            }
        };
        let router = Router::new().fallback(handler);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, calls, released, server }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// Answers every call, those that wait and those to come, but for those that hang.
    pub fn release(&self) {
        let _ = self.released.send(Released::Most);
    }

    /// Answers every call.
    pub fn release_all(&self) {
        let _ = self.released.send(Released::All);
    }

    /// All calls so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// The subjects of all calls so far.
    pub fn subjects(&self) -> Vec<String> {
        self.calls().into_iter().map(|call| call.subject).collect()
    }

    /// The numbers of all calls so far.
    pub fn numbers(&self) -> Vec<usize> {
        self.calls().iter().map(Call::number).collect()
    }

    /// Waits until there have been `count` calls.
    pub async fn called(&self, count: usize) {
        super::eventually(&format!("{count} calls"), || self.calls.lock().unwrap().len() >= count)
            .await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.server.abort();
    }
}
