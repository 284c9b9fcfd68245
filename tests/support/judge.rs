//! What a run of the relay has to be like, judged from what was recorded around it.
//!
//! The record has four parts: what publishers had acknowledged, what the webhook was asked and
//! answered, and the streams of relayed and of failed messages. The relay's own word is no part of it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::time::SystemTime;

/// A message, whichever prefix it has at the time.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Without the prefix.
    pub subject: String,
    /// Counts the messages of the subject in the order in which they were published.
    pub number: u64,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.subject, self.number)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Answer {
    Accepted,
    Refused,
    Hung,
    Closed,
    /// Closed in the middle of an answer.
    Torn,
}

/// A call of the webhook.
#[derive(Clone, Debug)]
pub struct Call {
    pub key: Key,
    pub id: String,
    pub answer: Answer,
    /// Of an accepted call: just before the answer was sent.
    pub at: SystemTime,
}

/// A message in a stream.
#[derive(Clone, Debug)]
pub struct Copy {
    pub key: Key,
    /// Its `Nats-Msg-Id`.
    pub id: String,
    /// When the stream took it.
    pub at: SystemTime,
}

#[derive(Default)]
pub struct Record {
    pub acknowledged: Vec<Key>,
    /// The stream that the relay reads.
    pub source: Vec<Key>,
    pub calls: Vec<Call>,
    /// In the stream's order, with a dedup window longer than the run.
    pub relayed: Vec<Copy>,
    pub failed: Vec<Copy>,
    /// Whether the call of a message may stand for earlier ones of its subject.
    pub shared: bool,
}

/// The messages with which something is wrong, and how many there were in all.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub acknowledged: usize,
    pub relayed: usize,
    pub failed: usize,
    /// Acknowledged, and neither relayed nor failed.
    pub lost: Vec<Key>,
    /// Relayed although the stream had this id or this message already.
    pub duplicated: Vec<Key>,
    /// Relayed for the first time after a later one of its subject.
    pub out_of_order: Vec<Key>,
    /// Relayed, and the webhook had not accepted it before under the same id.
    pub barrier_violations: Vec<Key>,
    /// Acknowledged, and not in the stream that the relay reads.
    pub lost_by_the_server: Vec<Key>,
    /// Twice in the stream that the relay reads.
    pub doubled_by_the_server: Vec<Key>,
    /// Relayed or failed, and never in the stream that the relay reads.
    pub unknown: Vec<Key>,
}

impl Verdict {
    pub fn of(record: &Record) -> Self {
        let relayed: HashSet<_> = record.relayed.iter().map(|copy| &copy.key).collect();
        let failed: HashSet<_> = record.failed.iter().map(|copy| &copy.key).collect();
        let mut source = HashSet::new();
        let doubled = record.source.iter().filter(|key| !source.insert(*key)).cloned().collect();
        let missing = |key: &&Key| !relayed.contains(key) && !failed.contains(key);
        let unknown = |key: &&&Key| !source.contains(**key);
        Self {
            acknowledged: record.acknowledged.len(),
            relayed: relayed.len(),
            failed: failed.len(),
            lost: record.acknowledged.iter().filter(missing).cloned().collect(),
            duplicated: duplicated(&record.relayed),
            out_of_order: out_of_order(&record.relayed),
            barrier_violations: barrier_violations(record),
            lost_by_the_server: record
                .acknowledged
                .iter()
                .filter(|key| !source.contains(key))
                .cloned()
                .collect(),
            doubled_by_the_server: doubled,
            unknown: relayed.union(&failed).filter(unknown).map(|key| (*key).clone()).collect(),
        }
    }

    /// The messages that the relay has done wrong, or that make the run worthless, by what is wrong.
    pub fn wrong(&self) -> Vec<(&'static str, &[Key])> {
        let all = [
            ("lost", &self.lost),
            ("duplicated", &self.duplicated),
            ("out of order", &self.out_of_order),
            ("barrier violation", &self.barrier_violations),
            ("lost by the server", &self.lost_by_the_server),
            ("stored twice by the server", &self.doubled_by_the_server),
            ("never published", &self.unknown),
        ];
        all.into_iter()
            .filter(|(_, keys)| !keys.is_empty())
            .map(|(what, keys)| (what, &keys[..]))
            .collect()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, count) in [
            ("messages acknowledged", self.acknowledged),
            ("relayed", self.relayed),
            ("failed", self.failed),
            ("lost", self.lost.len()),
            ("duplicated", self.duplicated.len()),
            ("out of order", self.out_of_order.len()),
            ("barrier violations", self.barrier_violations.len()),
        ] {
            writeln!(f, "{what:<24}{count:>8}")?;
        }
        Ok(())
    }
}

fn duplicated(relayed: &[Copy]) -> Vec<Key> {
    let (mut keys, mut ids) = (HashSet::new(), HashSet::new());
    // Both are to remember it, so neither is left out.
    relayed
        .iter()
        .filter(|copy| !keys.insert(&copy.key) | !ids.insert(&copy.id))
        .map(|copy| copy.key.clone())
        .collect()
}

fn out_of_order(relayed: &[Copy]) -> Vec<Key> {
    let (mut seen, mut latest) = (HashSet::new(), HashMap::new());
    let first = relayed.iter().map(|copy| &copy.key).filter(|key| seen.insert(*key));
    let overtaken = first.filter(|key| {
        let latest = latest.entry(&key.subject).or_insert(key.number);
        let overtaken = key.number < *latest;
        *latest = key.number.max(*latest);
        overtaken
    });
    overtaken.cloned().collect()
}

fn barrier_violations(record: &Record) -> Vec<Key> {
    let mut accepted: HashMap<(&Key, &str), SystemTime> = HashMap::new();
    let mut by_subject: HashMap<&str, Vec<(u64, SystemTime)>> = HashMap::new();
    for call in record.calls.iter().filter(|call| call.answer == Answer::Accepted) {
        let first = accepted.entry((&call.key, &call.id)).or_insert(call.at);
        *first = call.at.min(*first);
        by_subject.entry(&call.key.subject).or_default().push((call.key.number, call.at));
    }
    let violates = |copy: &&Copy| {
        let own = accepted.get(&(&copy.key, &*copy.id)).is_some_and(|at| *at <= copy.at);
        let calls = by_subject.get(&*copy.key.subject).into_iter().flatten();
        let mut later = calls.filter(|(number, _)| *number > copy.key.number);
        !(own || record.shared && later.any(|(_, at)| *at <= copy.at))
    };
    record.relayed.iter().filter(violates).map(|copy| copy.key.clone()).collect()
}
