//! The relay's real binary, with its log.

use super::{eventually, signal, within};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const BINARY: &str = env!("CARGO_BIN_EXE_nats-webhook-relay");

pub struct Relay {
    process: Child,
    log: Arc<Mutex<Vec<String>>>,
    _folder: TempDir,
}

/// The binary with only the given environment, in an empty folder.
pub fn command(folder: &TempDir, variables: &[(&str, &str)]) -> Command {
    let mut command = Command::new(BINARY);
    command.env_clear().current_dir(folder.path()).envs(variables.iter().copied()).stdin(Stdio::null());
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
        let mut all = vec![
            ("WEBHOOK_DESTINATION", destination),
            ("NATS_HOST", nats),
            ("NATS_SUBJECT_PREFIX", "cms.cache"),
            ("NATS_RELAYED_SUBJECT_PREFIX", "relayed.cache"),
            ("LOG_FORMAT", "json"),
        ];
        all.extend_from_slice(variables);
        let folder = TempDir::new().unwrap();
        let mut process = command(&folder, &all).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (stderr, lines) = (process.stderr.take().unwrap(), log.clone());
        std::thread::spawn(move || read_lines(stderr, &lines));
        Self { process, log, _folder: folder }
    }

    /// Starts the relay and waits until its subscription is active.
    pub async fn start(nats: &str, destination: &str, variables: &[(&str, &str)]) -> Self {
        let relay = Self::spawn(nats, destination, variables);
        relay.logged("\"message\":\"ready\"").await;
        relay
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// The log lines that contain `text`.
    pub fn lines(&self, text: &str) -> Vec<String> {
        self.log.lock().unwrap().iter().filter(|line| line.contains(text)).cloned().collect()
    }

    /// Waits for a log line that contains `text`, and returns the first.
    pub async fn logged(&self, text: &str) -> String {
        self.logged_times(text, 1).await.swap_remove(0)
    }

    /// Waits for `times` log lines that contain `text`.
    pub async fn logged_times(&self, text: &str, times: usize) -> Vec<String> {
        eventually(&format!("{times} log lines with {text}"), || {
            // The reader of the log ends with the process.
            let ended = Arc::strong_count(&self.log) == 1;
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

    /// Waits for the exit and the end of the log.
    pub async fn exit(&mut self) -> ExitStatus {
        let process = &mut self.process;
        let waited = async {
            loop {
                if let Some(status) = process.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let status = within("the relay exits", waited).await;
        let log = self.log.clone();
        eventually("the log is complete", || Arc::strong_count(&log) == 2).await;
        status
    }

    /// Asks the relay's own HTTP server (set `HTTP_LISTEN`) for status and body of `path`.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let line = self.logged("serving /healthz").await;
        let address = field(&line, "address").to_owned();
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(&address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
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
        let value = text.lines().find_map(|line| line.strip_prefix("nats_webhook_relay_")?.strip_prefix(name)?.strip_prefix(' '));
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

    pub fn is_running(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
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
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("--- log of the relay ---\n{}", self.log().join("\n"));
        }
    }
}

/// A field of a JSON log line, without quotes.
pub fn field<'a>(line: &'a str, name: &str) -> &'a str {
    let value = line.split(&format!("\"{name}\":")).nth(1).unwrap_or_else(|| panic!("{name} is missing in {line}"));
    value.trim_start_matches('"').split(['"', ',', '}']).next().unwrap()
}

fn read_lines(stderr: impl Read, lines: &Arc<Mutex<Vec<String>>>) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        lines.lock().unwrap().push(line);
    }
}
