//! What plugins write to stdout and stderr, as lines.
//!
//! Lines are cut at a length, and a plugin that writes too many loses some, so that no plugin
//! can fill the log. Values that the operator gave as secrets do not get through.

use crate::observe::Observer;
use crate::observe::event::Event;
use crate::secret::Secret;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::AsyncWrite;
use tokio_util::bytes::Bytes;
use tracing::warn;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

/// Longer lines are cut.
pub(crate) const MAX_LINE_BYTES: usize = 1024;
/// The most lines of one plugin that are logged in [`WINDOW`].
const MAX_LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(1);
/// Of a secret with several lines, shorter ones are no secrets, such as brackets.
const MIN_SECRET_LINE: usize = 8;
/// How many of the last lines of a call are kept for its error.
const MOST_LAST: usize = 3;
/// What the stream takes at once.
const PERMIT: usize = 64 * 1024;

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Channel {
    Stdout,
    Stderr,
}

impl Channel {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

pub(crate) type Sink = Arc<dyn Fn(Channel, &str) + Send + Sync>;

/// One stream of one instance; a clone is the same stream.
#[derive(Clone)]
pub(crate) struct Lines(Arc<Mutex<Open>>);

struct Open {
    stream: Channel,
    /// Up to [`MAX_LINE_BYTES`], and more so that a secret at the cut is there as a whole.
    line: Vec<u8>,
    /// The last lines of this call that say something, for the error of a call that traps.
    last: VecDeque<String>,
    hide: Hide,
    sink: Sink,
}

impl Lines {
    /// A stream whose lines go to `sink`.
    pub(crate) fn new(stream: Channel, hide: Hide, sink: Sink) -> Self {
        Self(Arc::new(Mutex::new(Open {
            stream,
            line: Vec::new(),
            last: VecDeque::new(),
            hide,
            sink,
        })))
    }

    /// Ends a line that has begun.
    pub(crate) fn end(&self) {
        let mut open = self.open();
        if !open.line.is_empty() {
            open.end();
        }
    }

    /// Forgets what an earlier call wrote.
    pub(super) fn begin(&self) {
        self.open().last.clear();
    }

    /// The last lines of this call: the message of a panic, or an exception.
    pub(super) fn last(&self) -> Option<String> {
        let last = &self.open().last;
        (!last.is_empty())
            .then(|| cut(&last.iter().map(String::as_str).collect::<Vec<_>>().join(" ")))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an instance wrote before its time was over.
impl Drop for Open {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.end();
        }
    }
}

impl Open {
    fn write(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            self.push(line);
            self.end();
            bytes = rest.get(1..).unwrap_or_default();
        }
        self.push(bytes);
    }

    fn push(&mut self, bytes: &[u8]) {
        let room = (MAX_LINE_BYTES + 1 + self.hide.longest()).saturating_sub(self.line.len());
        self.line.extend(bytes.iter().take(room));
    }

    fn end(&mut self) {
        let line = self.hide.apply(&String::from_utf8_lossy(&self.line));
        self.line.clear();
        let line = cut(line.trim_end());
        (self.sink)(self.stream, &line);
        // The frames of a stack, and how to get more of them, say less than what is before them.
        let text = line.trim_start();
        if !text.is_empty() && !["at ", "note: "].iter().any(|start| text.starts_with(start)) {
            self.last.push_back(text.to_owned());
            self.last.drain(..self.last.len().saturating_sub(MOST_LAST));
        }
    }
}

/// At most [`MAX_LINE_BYTES`] of `text`; three dots stand for the rest.
pub(crate) fn cut(text: &str) -> String {
    match text.get(..text.floor_char_boundary(MAX_LINE_BYTES)) {
        Some(start) if start.len() < text.len() => format!("{start} ..."),
        _ => text.to_owned(),
    }
}

impl IsTerminal for Lines {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for Lines {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        // For WASI 0.3, which is not provided.
        Box::new(tokio::io::sink())
    }
}

impl OutputStream for Lines {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.open().write(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(PERMIT)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for Lines {
    async fn ready(&mut self) {}
}

/// Texts that are not to be shown.
#[derive(Clone, Default)]
pub(crate) struct Hide(Arc<[Secret]>);

impl Hide {
    /// Hides these, and each line of those that have several, as keys do.
    pub(crate) fn new(secrets: impl IntoIterator<Item = Secret>) -> Self {
        let texts = secrets.into_iter().flat_map(|secret| {
            let lines =
                secret.expose().lines().map(str::trim).filter(|line| line.len() >= MIN_SECRET_LINE);
            let lines: Vec<_> = lines.map(Secret::new).collect();
            lines.into_iter().chain([secret])
        });
        let mut texts: Vec<_> = texts.filter(|secret| !secret.expose().is_empty()).collect();
        // The longest first: one may begin with another.
        texts.sort_by_key(|secret| std::cmp::Reverse(secret.expose().len()));
        Self(texts.into())
    }

    fn longest(&self) -> usize {
        self.0.iter().map(|secret| secret.expose().len()).max().unwrap_or_default()
    }

    /// `text` without them.
    pub(crate) fn apply(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| text.replace(secret.expose(), "***"))
    }
}

/// Sinks that log a plugin's lines, at most [`MAX_LINES`] in each [`WINDOW`].
pub(crate) fn log(observer: &Observer) -> impl Fn(Arc<str>) -> Sink + use<> {
    let observer = observer.clone();
    move |name| {
        let (observer, window) = (observer.clone(), Mutex::new((Instant::now(), 0u32)));
        Arc::new(move |stream, line| {
            let (lines, dropped) = counted(&window);
            if dropped > 0 {
                warn!(plugin = %name, lines = dropped, "lines of the plugin were not logged");
            }
            if lines <= MAX_LINES {
                let is_error = stream == Channel::Stderr;
                observer.note(&Event::PluginSaid { plugin: &name, line, is_error });
            } else if lines == MAX_LINES + 1 {
                warn!(
                    plugin = %name,
                    "the plugin writes more than {MAX_LINES} lines a second; the rest is not logged"
                );
            }
        })
    }
}

/// Counts a line: how many there are in this window, and how many were too many in the last one.
fn counted(window: &Mutex<(Instant, u32)>) -> (u32, u32) {
    let mut window = window.lock().unwrap_or_else(PoisonError::into_inner);
    let mut dropped = 0;
    if window.0.elapsed() >= WINDOW {
        dropped = window.1.saturating_sub(MAX_LINES);
        *window = (Instant::now(), 0);
    }
    window.1 = window.1.saturating_add(1);
    (window.1, dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lines that come of these writes.
    fn lines(writes: &[&[u8]], hide: Hide) -> Vec<String> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = seen.clone();
        let stream = Lines::new(
            Channel::Stdout,
            hide,
            Arc::new(move |_, line| sink.lock().unwrap().push(line.to_owned())),
        );
        for bytes in writes {
            stream.clone().write(Bytes::copy_from_slice(bytes)).unwrap();
        }
        stream.end();
        drop(stream);
        Arc::into_inner(seen).unwrap().into_inner().unwrap()
    }

    #[test]
    fn lines_are_put_together_and_the_last_needs_no_end() {
        assert_eq!(lines(&[b"a", b"b\nc\r\n", b"\nd"], Hide::default()), ["ab", "c", "", "d"]);
        assert_eq!(lines(&[b"a\n"], Hide::default()), ["a"]);
        assert_eq!(lines(&[b"\xff"], Hide::default()), ["\u{fffd}"]);
    }

    #[test]
    fn a_long_line_is_cut() {
        let long = vec![b'x'; MAX_LINE_BYTES + 1];
        let expected = format!("{} ...", "x".repeat(MAX_LINE_BYTES));
        assert_eq!(lines(&[&long, b"y\n", b"z"], Hide::default()), [expected, "z".to_owned()]);
        let exact = vec![b'x'; MAX_LINE_BYTES];
        assert_eq!(lines(&[&exact, b"\n"], Hide::default()), ["x".repeat(MAX_LINE_BYTES)]);
    }

    #[test]
    fn secrets_do_not_get_through_also_over_several_writes() {
        let hide = Hide::new([Secret::new("hunter2"), Secret::new("")]);
        assert_eq!(lines(&[b"it is hun", b"ter2, hunter2\n"], hide.clone()), ["it is ***, ***"]);
        let at_the_cut = format!("{}hunter2\n", "x".repeat(MAX_LINE_BYTES - 3));
        assert_eq!(
            lines(&[at_the_cut.as_bytes()], hide),
            [format!("{}***", "x".repeat(MAX_LINE_BYTES - 3))]
        );
    }
}
