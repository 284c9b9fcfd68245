//! An HTTP endpoint that keeps every call waiting until it is released, and then accepts it.

use axum::Router;
use axum::extract::Request;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::watch;

pub struct Held {
    port: u16,
    subjects: Arc<Mutex<Vec<String>>>,
    released: watch::Sender<bool>,
    server: tokio::task::JoinHandle<()>,
}

impl Held {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (released, gate) = watch::channel(false);
        let subjects = Arc::new(Mutex::new(Vec::new()));
        let called = subjects.clone();
        let handler = move |request: Request| {
            let (called, mut gate) = (called.clone(), gate.clone());
            async move {
                called.lock().unwrap().push(request.headers()["nats-subject"].to_str().unwrap().to_owned());
                let _ = axum::body::to_bytes(request.into_body(), usize::MAX).await;
                let _ = gate.wait_for(|released| *released).await;
            }
        };
        let router = Router::new().fallback(handler);
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, subjects, released, server }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// Answers every call, those that wait and those to come.
    pub fn release(&self) {
        let _ = self.released.send(true);
    }

    /// The subjects of all calls so far.
    pub fn subjects(&self) -> Vec<String> {
        self.subjects.lock().unwrap().clone()
    }

    /// Waits until there have been `count` calls.
    pub async fn called(&self, count: usize) {
        super::eventually(&format!("{count} calls"), || self.subjects.lock().unwrap().len() >= count).await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.server.abort();
    }
}
