//! A real nats-server process.

use super::{LIMIT, within};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Instant;
use tempfile::TempDir;

pub struct NatsServer {
    process: Child,
    folder: TempDir,
    pub port: u16,
}

impl NatsServer {
    pub fn start() -> Self {
        Self::with_config("debug: false")
    }

    /// Starts a server on a port that [`Absent`] has kept free.
    pub fn at(absent: Absent) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("nats.conf"), "debug: false").unwrap();
        let port = absent.port;
        drop(absent);
        let server = Self { process: spawn(folder.path(), i32::from(port)), folder, port };
        assert_eq!(server.await_port(), port);
        server
    }

    /// Starts a server with `config` in nats-server's own format.
    pub fn with_config(config: &str) -> Self {
        let folder = TempDir::new().unwrap();
        std::fs::write(folder.path().join("nats.conf"), config).unwrap();
        let process = spawn(folder.path(), -1);
        let mut server = Self { process, folder, port: 0 };
        server.port = server.await_port();
        server
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// What the server has written to its log so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("nats.log")).unwrap_or_default()
    }

    /// Kills the server as a crash would.
    pub fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Starts a killed server again on its port.
    pub fn restart(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        self.process = spawn(self.folder.path(), i32::from(self.port));
        assert_eq!(self.await_port(), self.port);
    }

    /// Replaces the configuration, for the next start.
    pub fn reconfigure(&self, config: &str) {
        std::fs::write(self.folder.path().join("nats.conf"), config).unwrap();
    }

    /// Replaces the configuration and has the server read it.
    pub fn reload(&self, config: &str) {
        self.reconfigure(config);
        super::signal(self.pid(), "HUP");
    }

    pub async fn client(&self) -> async_nats::Client {
        let options = async_nats::ConnectOptions::new()
            .subscription_capacity(1 << 20)
            .retry_on_initial_connect();
        within("test client connects", options.connect(self.url())).await.unwrap()
    }

    /// A client that logs in.
    pub async fn client_as(&self, user: &str, password: &str) -> async_nats::Client {
        let options =
            async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
        within("test client connects", options.connect(self.url())).await.unwrap()
    }

    /// The address for web sockets, where `config` has switched them on.
    pub fn websocket_url(&self) -> String {
        let file =
            self.folder.path().join(format!("{}_{}.ports", server_name(), self.process.id()));
        let text = std::fs::read_to_string(file).unwrap();
        let url = |scheme: &str| {
            let port = text.split(&format!("\"{scheme}://127.0.0.1:")).nth(1)?.split('"').next()?;
            Some(format!("{scheme}://127.0.0.1:{port}"))
        };
        url("wss").or_else(|| url("ws")).expect("web sockets are on")
    }

    /// Reads the port from the file that the server writes when it listens.
    fn await_port(&self) -> u16 {
        let start = Instant::now();
        let file =
            self.folder.path().join(format!("{}_{}.ports", server_name(), self.process.id()));
        while start.elapsed() < LIMIT {
            let text = std::fs::read_to_string(&file).unwrap_or_default();
            // The scheme is tls where the server wants that.
            let urls = ["nats://127.0.0.1:", "tls://127.0.0.1:"];
            let found = urls
                .iter()
                .find_map(|url| text.split(url).nth(1))
                .and_then(|rest| rest.split('"').next());
            if let Some(port) = found
                && std::net::TcpStream::connect(("127.0.0.1", port.parse().unwrap())).is_ok()
            {
                return port.parse().unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let log = std::fs::read_to_string(self.folder.path().join("nats.log")).unwrap_or_default();
        panic!("nats-server did not start:\n{log}");
    }
}

/// A port on which nothing listens and which nobody else gets.
pub struct Absent {
    pub port: u16,
    _bound: tokio::net::TcpSocket,
}

impl Absent {
    pub fn reserve() -> Self {
        let bound = tokio::net::TcpSocket::new_v4().unwrap();
        bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self { port: bound.local_addr().unwrap().port(), _bound: bound }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

pub(super) fn spawn(folder: &Path, port: i32) -> Child {
    let config = folder.join("nats.conf");
    Command::new(executable())
        .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-c"])
        .arg(config)
        .arg("--ports_file_dir")
        .arg(folder)
        .arg("-sd")
        .arg(folder.join("jetstream"))
        .arg("-l")
        .arg(folder.join("nats.log"))
        .stdin(Stdio::null())
        .spawn()
        .expect("nats-server starts")
}

fn server_name() -> String {
    executable().file_name().unwrap().to_string_lossy().into_owned()
}

/// The nats-server that `scripts/nats-server` finds or fetches.
pub fn executable() -> &'static PathBuf {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/nats-server");
        let output = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "scripts/nats-server failed");
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
    })
}
