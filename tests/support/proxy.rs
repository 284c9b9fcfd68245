//! A TCP proxy in front of a server, which a test can cut, close, slow down, or have swallow what is sent.

use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

/// How much is read at once.
const PART: usize = 64 * 1024;

pub struct Proxy {
    pub port: u16,
    state: Arc<Mutex<State>>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    closed: bool,
    swallowing: bool,
    silent: bool,
    swallowed: Vec<u8>,
    hold: Option<Vec<u8>>,
    held: Vec<u8>,
    left: Option<usize>,
    cuts: usize,
    /// Whether what the server sends waits.
    stalled: bool,
    /// Bytes per second of what the server sends, and when the next part may be read.
    throttle: Option<(usize, Instant)>,
    connections: Vec<JoinHandle<()>>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let mut state = shared.lock().unwrap();
                if !state.closed {
                    // What was swallowed belongs to the connections before.
                    (state.swallowing, state.silent) = (false, false);
                    state.connections.push(tokio::spawn(forward(client, port, shared.clone())));
                }
            }
        });
        Self { port: own, state, accepting }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// From now on nothing that is sent to the server arrives there, until the next connection.
    pub fn swallow(&self) {
        self.lock().swallowing = true;
    }

    /// From now on nothing that the server sends comes out here, until the next connection.
    pub fn silence(&self) {
        self.lock().silent = true;
    }

    /// Whether `text` was swallowed.
    pub fn has_swallowed(&self, text: &str) -> bool {
        self.lock().swallowed.windows(text.len()).any(|window| window == text.as_bytes())
    }

    /// Stops what is sent to the server at the first part that contains `text`.
    pub fn hold(&self, text: &str) {
        self.lock().hold = Some(text.into());
    }

    /// Whether something is held.
    pub fn is_holding(&self) -> bool {
        !self.lock().held.is_empty()
    }

    /// What is held.
    pub fn held(&self) -> String {
        String::from_utf8_lossy(&self.lock().held).into_owned()
    }

    /// Lets pass what is held, and holds nothing any more.
    pub fn resume(&self) {
        self.lock().hold = None;
    }

    /// Breaks all connections.
    pub fn cut(&self) {
        self.lock().connections.drain(..).for_each(|connection| connection.abort());
    }

    /// Lets this many bytes more pass, in both directions together, and breaks the connection of
    /// the next one: as a rule in the middle of a message.
    pub fn cut_after(&self, bytes: usize) {
        self.lock().left = Some(bytes);
    }

    /// Takes back a [`Self::cut_after`] that has not come to its end.
    pub fn spare(&self) {
        self.lock().left = None;
    }

    /// How often [`Self::cut_after`] has come to its end.
    pub fn times_cut(&self) -> usize {
        self.lock().cuts
    }

    /// From now on the server's side comes out here at this many bytes per second, all connections
    /// together. Nothing more is read from the server meanwhile, so that it has to wait as on a slow link.
    /// New connections keep little in the buffers of the system, those that are there as much as it likes.
    pub fn throttle(&self, bytes_per_second: usize) {
        self.lock().throttle = Some((bytes_per_second, Instant::now()));
    }

    /// From now on what the server sends waits, until [`Self::go_on`].
    pub fn stall(&self) {
        self.lock().stalled = true;
    }

    /// Lets pass what waits because of [`Self::stall`].
    pub fn go_on(&self) {
        self.lock().stalled = false;
    }

    /// Takes back a [`Self::throttle`].
    pub fn unthrottle(&self) {
        self.lock().throttle = None;
    }

    /// Breaks every new connection before it has begun. Those that are there stay.
    pub fn refuse(&self) {
        self.lock().closed = true;
    }

    /// Breaks all connections and every new one before it has begun.
    pub fn close(&self) {
        self.lock().closed = true;
        self.cut();
    }

    /// Lets new connections through again.
    pub fn open(&self) {
        self.lock().closed = false;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl State {
    /// When a part may be read, where the link is slow.
    fn next_part(&self) -> Option<Instant> {
        self.throttle.map(|(_, next)| next)
    }

    /// Uses up the time that this many bytes take. What was not used before is lost, but for one part.
    fn spend(&mut self, bytes: usize) {
        if let Some((rate, next)) = &mut self.throttle {
            let taking = |bytes: usize| Duration::from_secs_f64(bytes as f64 / *rate as f64);
            let credit = Instant::now().checked_sub(taking(PART)).unwrap_or(*next);
            *next = credit.max(*next) + taking(bytes);
        }
    }

    /// How many of these bytes may pass.
    fn pass(&mut self, bytes: usize) -> usize {
        match self.left {
            None => bytes,
            Some(left) if bytes <= left => {
                self.left = Some(left - bytes);
                bytes
            }
            Some(left) => {
                self.left = None;
                self.cuts += 1;
                left
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut();
    }
}

async fn forward(client: TcpStream, port: u16, state: Arc<Mutex<State>>) {
    let socket = TcpSocket::new_v4().unwrap();
    if state.lock().unwrap().throttle.is_some() {
        let _ = socket.set_recv_buffer_size(2 * PART as u32);
    }
    let Ok(server) = socket.connect(([127, 0, 0, 1], port).into()).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((from_client, to_client), (from_server, to_server)) =
        (client.into_split(), server.into_split());
    let swallow = |bytes: &[u8]| {
        let mut state = state.lock().unwrap();
        if state.swallowing {
            state.swallowed.extend_from_slice(bytes);
        }
        state.swallowing
    };
    let hold = |bytes: &[u8]| {
        let mut state = state.lock().unwrap();
        let holding = state
            .hold
            .as_ref()
            .is_some_and(|text| bytes.windows(text.len()).any(|window| window == text));
        state.held = if holding { bytes.to_vec() } else { Vec::new() };
        holding
    };
    let pass = |bytes| state.lock().unwrap().pass(bytes);
    let is_due = || state.lock().unwrap().next_part();
    let pass_slowly = |bytes| {
        let mut state = state.lock().unwrap();
        state.spend(bytes);
        state.pass(bytes)
    };
    tokio::select! {
        () = copy(from_client, to_server, || None, swallow, hold, pass) => {}
        () = copy(from_server, to_client, is_due, |_| state.lock().unwrap().silent, |_| state.lock().unwrap().stalled, pass_slowly) => {}
    }
}

async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    is_due: impl Fn() -> Option<Instant>,
    swallow: impl Fn(&[u8]) -> bool,
    hold: impl Fn(&[u8]) -> bool,
    pass: impl Fn(usize) -> usize,
) {
    let mut buffer = vec![0; PART];
    loop {
        while let Some(due) = is_due().filter(|due| *due > Instant::now()) {
            sleep_until(due).await;
        }
        let Ok(read @ 1..) = from.read(&mut buffer).await else { return };
        while hold(&buffer[..read]) {
            sleep(Duration::from_millis(5)).await;
        }
        let passing = pass(read);
        if !swallow(&buffer[..passing]) && to.write_all(&buffer[..passing]).await.is_err()
            || passing < read
        {
            return;
        }
    }
}
