//! The relay's real binary, with its log.

use super::{eventually, signal, within};
use std::fs::File;
use std::io::Read;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const BINARY: &str = env!("CARGO_BIN_EXE_nats-webhook-relay");

pub struct Relay {
    process: Mutex<Child>,
    log: Mutex<Log>,
    _folder: TempDir,
}

/// What the relay has written. It is a file, so that it is there when its consequences are.
struct Log {
    file: File,
    lines: Vec<String>,
    /// A line that has not ended.
    begun: Vec<u8>,
}

/// The binary with only the given environment, in an empty folder.
pub fn command(folder: &TempDir, variables: &[(&str, &str)]) -> Command {
    prepared(Command::new(BINARY), folder, variables)
}

fn prepared(mut command: Command, folder: &TempDir, variables: &[(&str, &str)]) -> Command {
    command
        .env_clear()
        .current_dir(folder.path())
        .envs(variables.iter().copied())
        .stdin(Stdio::null());
    command
}

/// Runs the binary to its end: status, standard output, standard error.
pub fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (ExitStatus, String, String) {
    let output = command(&TempDir::new().unwrap(), variables).args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status, text(output.stdout), text(output.stderr))
}

/// Runs a command to its end, which must come within the limit: status, standard output, standard error.
pub fn finish(mut command: Command) -> (ExitStatus, String, String) {
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (pid, (ended, output)) = (child.id(), std::sync::mpsc::channel());
    std::thread::spawn(move || ended.send(child.wait_with_output().unwrap()));
    let Ok(output) = output.recv_timeout(super::LIMIT) else {
        signal(pid, "KILL");
        panic!("the program did not end by itself");
    };
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status, text(output.stdout), text(output.stderr))
}

impl Relay {
    /// Starts the relay from `cms.cache` to `relayed.cache` with JSON logs. `variables` are
    /// added and win.
    pub fn spawn(nats: &str, destination: &str, variables: &[(&str, &str)]) -> Self {
        Self::spawn_by(Command::new(BINARY), nats, destination, variables)
    }

    /// Starts the relay after a shell has run `setting`, such as `ulimit -n 40`.
    pub fn spawn_under(
        setting: &str,
        nats: &str,
        destination: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(format!("{setting} && exec '{BINARY}'"));
        Self::spawn_by(shell, nats, destination, variables)
    }

    /// Starts a subcommand of the program and waits until it is ready.
    pub async fn subcommand(name: &str, nats: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new(BINARY);
        command.arg(name);
        let started = Self::spawn_by(command, nats, "http://127.0.0.1:9/", variables);
        started.logged("\"message\":\"ready\"").await;
        started
    }

    fn spawn_by(
        command: Command,
        nats: &str,
        destination: &str,
        variables: &[(&str, &str)],
    ) -> Self {
        let mut all = vec![
            ("WEBHOOK_DESTINATION", destination),
            ("NATS_HOST", nats),
            ("NATS_SUBJECT_PREFIX", "cms.cache"),
            ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
            ("LOG_FORMAT", "json"),
            // Also the steps of a message.
            ("RUST_LOG", "info,nats_webhook_relay::relay=debug,nats_webhook_relay::webhook=debug"),
        ];
        all.extend_from_slice(variables);
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("relay.log");
        let process = prepared(command, &folder, &all)
            .stdout(Stdio::null())
            .stderr(File::create(&path).unwrap())
            .spawn()
            .unwrap();
        let log = Log { file: File::open(&path).unwrap(), lines: Vec::new(), begun: Vec::new() };
        Self { process: Mutex::new(process), log: Mutex::new(log), _folder: folder }
    }

    /// Starts the relay and waits until its subscription is active.
    pub async fn start(nats: &str, destination: &str, variables: &[(&str, &str)]) -> Self {
        let relay = Self::spawn(nats, destination, variables);
        relay.logged("\"message\":\"ready\"").await;
        relay
    }

    pub fn pid(&self) -> u32 {
        self.process.lock().unwrap().id()
    }

    pub fn log(&self) -> Vec<String> {
        self.read().lines.clone()
    }

    /// The log lines that contain `text`.
    pub fn lines(&self, text: &str) -> Vec<String> {
        self.read().lines.iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// Waits for a log line that contains `text`, and returns the first.
    pub async fn logged(&self, text: &str) -> String {
        self.logged_times(text, 1).await.swap_remove(0)
    }

    /// Waits for `times` log lines that contain `text`.
    pub async fn logged_times(&self, text: &str, times: usize) -> Vec<String> {
        eventually(&format!("{times} log lines with {text}"), || {
            let ended = !self.is_running();
            let found = self.lines(text).len() >= times;
            assert!(found || !ended, "the relay has ended without {times} log lines with {text}");
            found
        })
        .await;
        self.lines(text)
    }

    /// Sends SIGTERM and waits for the exit.
    pub async fn stop(&mut self) -> ExitStatus {
        signal(self.pid(), "TERM");
        self.exit().await
    }

    /// Waits for the exit.
    pub async fn exit(&mut self) -> ExitStatus {
        eventually("the relay exits", || !self.is_running()).await;
        self.process.lock().unwrap().wait().unwrap()
    }

    /// Asks the relay's own HTTP server (set `HTTP_LISTEN`) for status and body of `path`.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let line = self.logged("serving /healthz").await;
        let address = field(&line, "address").to_owned();
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            let request =
                format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = within("an answer of the relay", exchange).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// One value of /metrics, such as `messages_relayed_total`; 0 while it has none.
    pub async fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics").await;
        let value = text.lines().find_map(|line| {
            line.strip_prefix("nats_webhook_relay_")?.strip_prefix(name)?.strip_prefix(' ')
        });
        value.map_or(0, |value| value.parse().unwrap())
    }

    /// Waits until /metrics has `value` under `name`.
    pub async fn counted(&self, name: &str, value: u64) {
        let counted = async {
            while self.metric(name).await != value {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        within(&format!("{name} is {value}"), counted).await;
    }

    /// Waits until /readyz answers `status`.
    pub async fn readyz(&self, status: u16) {
        let answered = async {
            while self.get("/readyz").await.0 != status {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        within(&format!("/readyz answers {status}"), answered).await;
    }

    pub fn is_running(&self) -> bool {
        self.process.lock().unwrap().try_wait().unwrap().is_none()
    }

    /// Returns when the thread that writes the log sleeps: all that was logged before is written then.
    fn log_is_written(&self, pid: u32) {
        let is_asleep = || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
            let stats = tasks
                .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
            stats.filter_map(|stat| Some(stat.split_once("(log) ")?.1.starts_with('S'))).next()
        };
        let since = std::time::Instant::now();
        while is_asleep() == Some(false) && since.elapsed() < super::LIMIT {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn read(&self) -> MutexGuard<'_, Log> {
        let mut log = self.log.lock().unwrap();
        self.log_is_written(self.process.lock().unwrap().id());
        let mut new = Vec::new();
        log.file.read_to_end(&mut new).unwrap();
        for byte in new {
            match byte {
                b'\n' => {
                    let line = std::mem::take(&mut log.begun);
                    log.lines.push(String::from_utf8_lossy(&line).into_owned());
                }
                byte => log.begun.push(byte),
            }
        }
        log
    }

    /// Resident memory in KiB: now, or at its highest.
    pub fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let mut process = self.process.lock().unwrap();
        let _ = process.kill();
        let _ = process.wait();
        drop(process);
        if std::thread::panicking() {
            eprintln!("--- log of the relay ---\n{}", self.log().join("\n"));
        }
    }
}

/// A field of a JSON log line, without quotes.
pub fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let value = line
        .split(&format!("\"{name}\":"))
        .nth(1)
        .unwrap_or_else(|| panic!("{name} is missing in {line}"));
    value.trim_start_matches('"').split(['"', ',', '}']).next().unwrap()
}
