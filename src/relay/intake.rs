//! From the source into the lanes, within the pending limits, until told to stop.

use crate::message::{End, Message};
use crate::observe::Observer;
use crate::observe::event::{Event, Gap};
use crate::observe::supervisor::{self, Phase};
use crate::pending::{Limits, Pending};
use crate::relay::outcome::{Failure, Outcome};
use crate::relay::{Relay, Settings};
use crate::source::Source;
use anyhow::bail;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::coop::unconstrained;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tracing::{info, warn};

/// How often messages that are being dropped are reported.
const REPORT_LOSS: Duration = Duration::from_secs(5);
/// How long messages that could not be finished may take to reach the failed subject.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the last exchange with NATS may take: that no more is wanted, and what is given back.
const GOODBYE: Duration = Duration::from_secs(5);

/// Relays what `source` yields until `stop` resolves, then finishes what has arrived. `limits`
/// are for a source that does not ask for messages by the room there is.
///
/// # Errors
/// When the source ends by itself, or when something could not be finished in time.
pub(crate) async fn run(
    settings: &Settings,
    limits: Option<Limits>,
    mut source: Source,
    relay: &Arc<Relay>,
    observer: &Observer,
    pending: &Pending,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut intake = Intake { relay, limits, observer, pending, losses: None };
    let ended_by_itself = intake.take_all(&mut source, stop).await;

    let grace = settings.grace;
    info!(
        messages = pending.messages(),
        grace_ms = grace.as_millis() as u64,
        "stopping: finishing what has arrived"
    );
    supervisor::tell(Phase::Stopping);
    let deadline = Instant::now() + grace;
    let finished = timeout_at(deadline, intake.finish(&mut source)).await.is_ok();
    intake.report_losses();
    let is_kept = limits.is_none();
    let unfinished = if finished { 0 } else { abandon(relay, is_kept).await };
    let is_denied = source.is_denied();
    if timeout(GOODBYE, source.close()).await.is_err() {
        warn!("NATS did not answer in time at the end; unsettled messages are redelivered later");
    }
    let metrics = observer.metrics();
    let (received, relayed, lost) = (metrics.received(), metrics.relayed(), metrics.lost());
    info!(received, relayed, lost, unfinished, "stopped");
    let subject = settings.listen.pattern();
    if unfinished > 0 && !is_kept {
        bail!("{unfinished} messages could not be finished within SHUTDOWN_GRACE");
    }
    if ended_by_itself && is_denied {
        bail!("the NATS user may no longer subscribe to {subject}: grant it to the user");
    }
    if ended_by_itself {
        bail!("the subscription to {subject} ended by itself");
    }
    Ok(())
}

struct Intake<'a> {
    relay: &'a Arc<Relay>,
    limits: Option<Limits>,
    observer: &'a Observer,
    pending: &'a Pending,
    losses: Option<Losses>,
}

/// Messages dropped since the last report.
struct Losses {
    began: Instant,
    messages: u64,
    first_subject: String,
}

impl Intake<'_> {
    /// Takes in what `source` yields until `stop` resolves. Returns whether the source ended first.
    async fn take_all(&mut self, source: &mut Source, stop: impl Future<Output = ()>) -> bool {
        let mut stop = std::pin::pin!(stop);
        loop {
            tokio::select! {
                biased;
                () = &mut stop => return false,
                () = self.loss_is_due() => self.report_losses(),
                // Without a budget: everything that has arrived is taken in one turn, so that
                // nothing piles up where the limits do not hold.
                message = unconstrained(source.next()) => match message {
                    Some(message) => self.take(message),
                    None => return true,
                },
            }
        }
    }

    fn take(&mut self, message: Message) {
        if self.limits.is_some_and(|limits| self.pending.is_full(limits, message.size())) {
            self.observer.note(&Event::Dropped);
            let losses = self.losses.get_or_insert_with(|| Losses {
                began: Instant::now(),
                messages: 0,
                first_subject: message.subject.to_string(),
            });
            losses.messages += 1;
            return;
        }
        self.relay.receive(message.detached());
    }

    async fn loss_is_due(&self) {
        match &self.losses {
            Some(losses) => sleep_until(losses.began + REPORT_LOSS).await,
            None => std::future::pending().await,
        }
    }

    fn report_losses(&mut self) {
        let losses = self.losses.take().zip(self.limits);
        if let Some((Losses { began, messages, first_subject }, limits)) = losses {
            let (first_subject, within) = (first_subject.as_str(), began.elapsed());
            let gap = Gap::Limits { messages, first_subject, limits, within };
            self.observer.note(&Event::Gap(gap));
        }
    }

    /// Takes in what is on its way, and waits until all is done. The source goes on meanwhile: a
    /// connection or a turn that is lost now counts as much as before.
    async fn finish(&mut self, source: &mut Source) {
        source.stop().await;
        while let Some(message) = source.next().await {
            self.take(message);
        }
        tokio::select! {
            biased;
            () = self.relay.lanes.idle() => {}
            () = source.hold() => {}
        }
    }
}

/// Ends all lanes and settles what is left in them as failed, unless it is kept elsewhere and
/// will be delivered again. Returns how many.
async fn abandon(relay: &Relay, is_kept: bool) -> usize {
    relay.halt.cancel();
    let mut left = relay.lanes.abandon();
    // What became of some of them was known already.
    left.retain(|message| matches!(message.end.get(), None | Some(End::Failed)));
    if is_kept {
        left.iter().for_each(|message| relay.report(message, &Outcome::GivenBack));
        return left.len();
    }
    // Logging is done at the first poll of each; only the failed subject takes time.
    let settled = left.iter().map(|message| async {
        let settled = relay.settle(message, Outcome::Failed(Failure::Shutdown));
        if timeout(LAST_WORDS, settled).await.is_err() {
            let error = "no confirmation from NATS before the end of the process";
            relay.failed_unpublished(message, &error);
        }
    });
    futures_util::future::join_all(settled).await;
    left.len()
}
