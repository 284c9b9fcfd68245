//! From the source into the lanes, within the pending limits, until told to stop.

use crate::message::{End, Message};
use crate::observe::metrics::Metrics;
use crate::observe::supervisor::{self, Phase};
use crate::pending::Limits;
use crate::relay::Settings;
use crate::relay::{Failure, Relay};
use crate::source::Source;
use crate::source::{self, Intake as From};
use anyhow::bail;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{error, info, warn};

/// How often messages that are being dropped are mentioned.
const REPORT_LOSS: Duration = Duration::from_secs(5);
/// How long messages that could not be finished may take to reach the failed subject.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long it may take to tell NATS that nothing more is wanted, and what is given back.
const GOODBYE: Duration = Duration::from_secs(5);

/// Relays what `source` yields until `stop` resolves, then finishes what has arrived.
///
/// # Errors
/// When the source ends by itself, or when something could not be finished in time.
pub(crate) async fn run(
    settings: &Settings,
    from: &source::Settings,
    mut source: Source,
    relay: &Arc<Relay>,
    metrics: &Metrics,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let is_stored = matches!(from.intake, From::Stream(_));
    let limits = (!is_stored).then_some(from.limits);
    let mut intake = Intake { relay, limits, metrics, losses: None };
    let mut stop = std::pin::pin!(stop);
    let mut ended_by_itself = false;
    loop {
        tokio::select! {
            biased;
            () = &mut stop => break,
            () = intake.loss_is_due() => intake.report_losses(),
            // Without a budget: everything that has arrived is taken in one turn, so that
            // nothing piles up where the limits do not hold.
            message = unconstrained(source.next()) => match message {
                Some(message) => intake.take(message),
                None => {
                    ended_by_itself = true;
                    break;
                }
            },
        }
    }

    let (messages, _) = relay.lanes.pending();
    info!(
        messages,
        grace_ms = settings.grace.as_millis() as u64,
        "stopping: finishing what has arrived"
    );
    supervisor::tell(Phase::Stopping);
    let deadline = Instant::now() + settings.grace;
    let finished = timeout_at(deadline, finish(&mut source, &mut intake)).await.is_ok();
    intake.report_losses();
    let unfinished = if finished { 0 } else { abandon(relay, is_stored).await };
    let is_denied = source.is_denied();
    if timeout(GOODBYE, source.close()).await.is_err() {
        warn!(
            "NATS does not take what is left to say; what was not settled is delivered again later"
        );
    }
    info!(
        received = metrics.received.get(),
        relayed = metrics.relayed.get(),
        lost = metrics.lost.get(),
        unfinished,
        "stopped"
    );
    if unfinished > 0 && !is_stored {
        bail!("{unfinished} messages could not be finished within SHUTDOWN_GRACE");
    }
    if ended_by_itself && is_denied {
        bail!(
            "the NATS user may not subscribe to {} any more: grant it to the user",
            settings.listen.wildcard()
        );
    }
    if ended_by_itself {
        bail!("the subscription to {} ended by itself", settings.listen.wildcard());
    }
    Ok(())
}

struct Intake<'a> {
    relay: &'a Arc<Relay>,
    /// `None` where the source asks for no more than there is room for.
    limits: Option<Limits>,
    metrics: &'a Metrics,
    losses: Option<Losses>,
}

/// Messages dropped since the last report.
struct Losses {
    report_at: Instant,
    messages: u64,
    first_subject: String,
}

impl Intake<'_> {
    fn take(&mut self, message: Message) {
        let (messages, bytes) = self.relay.lanes.pending();
        // A message larger than the limit alone may still be the only one that waits.
        let is_full = |limits: Limits| {
            messages > 0 && (messages >= limits.messages || bytes + message.size() > limits.bytes)
        };
        if self.limits.is_some_and(is_full) {
            self.metrics.lost.inc();
            let losses = self.losses.get_or_insert_with(|| Losses {
                report_at: Instant::now() + REPORT_LOSS,
                messages: 0,
                first_subject: message.subject.to_string(),
            });
            losses.messages += 1;
            return;
        }
        self.metrics.received.inc();
        self.relay.receive(message.detached());
    }

    async fn loss_is_due(&self) {
        match &self.losses {
            Some(losses) => sleep_until(losses.report_at).await,
            None => std::future::pending().await,
        }
    }

    fn report_losses(&mut self) {
        let (Some(Losses { messages, first_subject, .. }), Some(limits)) =
            (self.losses.take(), self.limits)
        else {
            return;
        };
        self.metrics.gaps.inc();
        error!(
            messages,
            first_subject,
            pending_messages = limits.messages,
            pending_bytes = limits.bytes,
            "messages dropped: more would have waited than NATS_PENDING_MESSAGES and NATS_PENDING_BYTES allow"
        );
    }
}

/// Takes in what is on its way, and waits until all is done. The source goes on meanwhile: a
/// connection or a turn that is lost now counts as much as before.
async fn finish(source: &mut Source, intake: &mut Intake<'_>) {
    source.stop().await;
    while let Some(message) = source.next().await {
        intake.take(message);
    }
    tokio::select! {
        biased;
        () = intake.relay.lanes.idle() => {}
        () = source.hold() => {}
    }
}

/// Ends all lanes and settles what is left in them as failed, unless it is stored and will be
/// delivered to somebody else. Returns how many.
async fn abandon(relay: &Relay, is_stored: bool) -> usize {
    relay.halt.cancel();
    let mut left = relay.lanes.abandon();
    // Of some it was known already what became of them.
    left.retain(|message| matches!(message.end.get(), None | Some(End::Failed)));
    if is_stored {
        left.iter().for_each(|message| relay.given_back(message));
        return left.len();
    }
    // Logging is done at the first poll of each; only the failed subject takes time.
    let settled = left.iter().map(|message| async {
        if timeout(LAST_WORDS, relay.settle(message, Err(Failure::Shutdown))).await.is_err() {
            relay.not_published_failed(
                message,
                &"no confirmation from NATS before the end of the process",
            );
        }
    });
    futures_util::future::join_all(settled).await;
    left.len()
}
