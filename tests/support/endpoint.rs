//! Real HTTP endpoints: a well-behaved one that records, and a raw one that answers any bytes.

use super::authority::TlsListener;
use axum::Router;
use axum::body::Bytes;
use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::response::Response;
use axum::serve::{IncomingStream, Listener};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One call as an endpoint saw it.
#[derive(Clone, Debug)]
pub struct Call {
    pub method: String,
    pub path: String,
    pub version: axum::http::Version,
    /// Which connection it came over: equal for those of one.
    pub connection: usize,
    pub headers: axum::http::HeaderMap,
    pub body: Bytes,
    pub at: Instant,
    /// When the answer was handed to the HTTP server; `None` while it is being worked out.
    pub answered_at: Option<Instant>,
}

impl Call {
    pub fn subject(&self) -> &str {
        self.header("nats-subject")
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| std::str::from_utf8(value.as_bytes()).unwrap())
    }
}

/// What an endpoint does with a call.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(&'static str, String)>,
    pub body: Vec<u8>,
    pub after: Duration,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), after: Duration::ZERO }
    }

    pub fn ok() -> Self {
        Self::status(200)
    }

    pub fn after(mut self, after: Duration) -> Self {
        self.after = after;
        self
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

/// Tells the connections of an endpoint apart.
#[derive(Clone, Copy)]
struct Connection(usize);

impl Connected<IncomingStream<'_, TcpListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TcpListener>) -> Self {
        Self(stream.remote_addr().port().into())
    }
}

impl Connected<IncomingStream<'_, TlsListener>> for Connection {
    fn connect_info(stream: IncomingStream<'_, TlsListener>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// An HTTP server on a free port.
pub struct Endpoint {
    pub port: u16,
    scheme: &'static str,
    calls: Arc<Mutex<Vec<Call>>>,
    server: tokio::task::JoinHandle<()>,
}

impl Endpoint {
    /// Answers every call with what `reply` makes of it.
    pub async fn start(reply: impl Fn(&Call) -> Reply + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), reply)
    }

    /// Answers every call with 200.
    pub async fn ok() -> Self {
        Self::start(|_| Reply::ok()).await
    }

    pub fn on(
        listener: TcpListener,
        reply: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let port = listener.local_addr().unwrap().port();
        Self::serve("http", port, listener, reply)
    }

    /// Answers over TLS.
    pub fn tls(
        listener: TlsListener,
        reply: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self {
        Self::serve("https", listener.port, listener, reply)
    }

    fn serve<L>(
        scheme: &'static str,
        port: u16,
        listener: L,
        reply: impl Fn(&Call) -> Reply + Send + Sync + 'static,
    ) -> Self
    where
        L: Listener<Addr: std::fmt::Debug>,
        Connection: for<'a> Connected<IncomingStream<'a, L>>,
    {
        let calls = Arc::new(Mutex::new(Vec::new()));
        let reply = Arc::new(reply);
        let recorded = calls.clone();
        let handler = move |request: Request| {
            let (calls, reply) = (recorded.clone(), reply.clone());
            async move { handle(request, &calls, &*reply).await }
        };
        let router =
            Router::new().fallback(handler).into_make_service_with_connect_info::<Connection>();
        let server = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { port, scheme, calls, server }
    }

    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}/hook", self.scheme, self.port)
    }

    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    /// Waits until there have been `count` calls.
    pub async fn received(&self, count: usize) -> Vec<Call> {
        super::eventually(&format!("{count} calls"), || self.count() >= count).await;
        self.calls()
    }

    /// Waits until the first `count` calls have been answered.
    pub async fn answered(&self, count: usize) -> Vec<Call> {
        let done = || {
            self.calls.lock().unwrap().iter().filter(|call| call.answered_at.is_some()).count()
                >= count
        };
        super::eventually(&format!("{count} answers"), done).await;
        self.calls()
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn handle(
    request: Request,
    calls: &Mutex<Vec<Call>>,
    reply: &(impl Fn(&Call) -> Reply + Send + Sync),
) -> Response {
    let (parts, body) = request.into_parts();
    let at = Instant::now();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let path = parts.uri.path_and_query().map_or_else(String::new, ToString::to_string);
    let ConnectInfo(Connection(connection)) = parts.extensions.get().copied().unwrap();
    let method = parts.method.to_string();
    let call = Call {
        method,
        path,
        version: parts.version,
        connection,
        headers: parts.headers,
        body,
        at,
        answered_at: None,
    };
    let index = {
        let mut calls = calls.lock().unwrap();
        calls.push(call.clone());
        calls.len() - 1
    };
    let reply = reply(&call);
    tokio::time::sleep(reply.after).await;
    let mut response = Response::builder().status(reply.status);
    for (name, value) in reply.headers {
        response = response.header(name, value);
    }
    calls.lock().unwrap()[index].answered_at = Some(Instant::now());
    response.body(reply.body.into()).unwrap()
}

type Conversation = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A TCP server that does to each connection what `converse` says; connections are numbered from 0.
pub async fn raw(
    converse: impl Fn(usize, TcpStream) -> Conversation + Send + Sync + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(converse(number, stream));
        }
    });
    port
}

/// Reads one HTTP request with a `Content-Length` body; false when the peer has closed.
pub async fn read_request(stream: &mut TcpStream) -> bool {
    request(stream).await.is_some()
}

/// Reads one HTTP request with a `Content-Length` body and returns it as text; `None` when the
/// peer has closed.
pub async fn request(stream: &mut TcpStream) -> Option<String> {
    let (mut request, mut buffer) = (Vec::new(), vec![0; 16 * 1024]);
    let mut whole = None;
    loop {
        if whole.is_none()
            && let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n")
        {
            let head = String::from_utf8_lossy(&request[..end]).to_lowercase();
            let length = head
                .split("content-length: ")
                .nth(1)
                .and_then(|rest| rest.split("\r\n").next()?.parse().ok())
                .unwrap_or(0);
            whole = Some(end + 4 + length);
        }
        if whole.is_some_and(|whole| request.len() >= whole) {
            return Some(String::from_utf8_lossy(&request).into_owned());
        }
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => request.extend_from_slice(&buffer[..read]),
        }
    }
}

/// A port that refuses connections until the socket is told to listen; nobody else can take it.
pub fn refusing() -> (tokio::net::TcpSocket, u16) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// Reads a request and answers these bytes.
pub async fn answer(stream: &mut TcpStream, bytes: &[u8]) {
    if read_request(stream).await {
        let _ = stream.write_all(bytes).await;
    }
}
