//! The instances of a destination: every address of its host, as it was last looked up.
//!
//! They are looked up again at intervals, and when one does not answer. What has left the host's
//! addresses is not waited for any more, and what comes back is a new instance. When no address
//! can be looked up, those that are known stay.

use crate::observe::Observer;
use crate::observe::event::Event;
use crate::webhook::endpoint::Endpoint;
use crate::webhook::outage::Outage;
use crate::webhook::rate::Rate;
use crate::webhook::resolve::{self, Settings};
use crate::webhook::target::Target;
use std::collections::BTreeSet;
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Time between look-ups at least, however many calls are not answered.
const LEAST: Duration = Duration::from_millis(500);

/// One address.
pub(super) struct Instance {
    address: IpAddr,
    pub(super) target: Target,
    left: CancellationToken,
}

impl Instance {
    /// What `waiting` comes to; `None` once the address is no longer one of the host's.
    pub(super) async fn unless_left<T>(&self, waiting: impl Future<Output = T>) -> Option<T> {
        self.left.run_until_cancelled(waiting).await
    }

    pub(super) fn has_left(&self) -> bool {
        self.left.is_cancelled()
    }
}

/// All instances, of which there is at least one, or why there is none.
type Known = Result<Arc<[Arc<Instance>]>, Arc<str>>;

/// The instances of one destination.
pub(super) struct Instances {
    /// Of the destination as a whole.
    pub(super) name: Arc<str>,
    pub(super) outage: Outage,
    known: watch::Receiver<Option<Known>>,
    again: Arc<Notify>,
    _following: AbortOnDropHandle<()>,
}

impl Instances {
    /// Follows the addresses of the host of `endpoint`, which is not called itself.
    pub(super) fn new(
        endpoint: Endpoint,
        settings: Settings,
        rate: Option<Rate>,
        observer: &Observer,
    ) -> Self {
        let name: Arc<str> = endpoint.destination.to_string().into();
        let (sender, known) = watch::channel(None);
        let again = Arc::new(Notify::new());
        let (observer, outage) = (observer.clone(), Outage::new(&name, observer));
        let follower = Follower {
            name: name.clone(),
            endpoint,
            rate,
            observer,
            is_failing: false,
            again: again.clone(),
            sender,
        };
        let following = tokio::spawn(follower.follow(settings));
        Self { name, outage, known, again, _following: AbortOnDropHandle::new(following) }
    }

    /// What is known; `None` before the first look-up has ended.
    pub(super) fn known(&self) -> Option<Known> {
        self.known.borrow().clone()
    }

    /// Returns when the first look-up has ended.
    pub(super) async fn first_look_up(&self) {
        self.wait_for(Option::is_some).await;
    }

    /// Returns when there is an instance.
    pub(super) async fn any(&self) {
        self.wait_for(|known| matches!(known, Some(Ok(_)))).await;
    }

    async fn wait_for(&self, condition: impl FnMut(&Option<Known>) -> bool) {
        // Fails only when nobody follows the addresses any more, which ends with this.
        let _ = self.known.clone().wait_for(condition).await;
    }

    /// Has the addresses looked up again soon: one of them does not answer, or there is none.
    pub(super) fn look_up_again(&self) {
        self.again.notify_one();
    }
}

struct Follower {
    name: Arc<str>,
    endpoint: Endpoint,
    rate: Option<Rate>,
    observer: Observer,
    /// Whether the last look-up failed.
    is_failing: bool,
    again: Arc<Notify>,
    sender: watch::Sender<Option<Known>>,
}

impl Follower {
    async fn follow(mut self, Settings { interval, server }: Settings) {
        let least = LEAST.min(interval);
        loop {
            let found = resolve::addresses(self.endpoint.destination.host(), server).await;
            match found.and_then(|addresses| self.update(&addresses)) {
                Ok(()) => self.succeeded(),
                Err(error) => self.failed(&error),
            }
            tokio::time::sleep(least).await;
            let _ = tokio::time::timeout(interval - least, self.again.notified()).await;
        }
    }

    /// Takes `addresses` for all that there are.
    ///
    /// # Errors
    /// When one cannot be called, so that everything stays as it was.
    fn update(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), String> {
        let before = self.sender.borrow().clone().and_then(Result::ok).unwrap_or_default();
        let (mut instances, mut joined) = (Vec::new(), Vec::new());
        for address in addresses {
            match before.iter().find(|instance| instance.address == *address) {
                Some(instance) => instances.push(instance.clone()),
                None => {
                    joined.push(*address);
                    instances.push(Arc::new(self.instance(*address)?));
                }
            }
        }
        let gone = before.iter().filter(|instance| !addresses.contains(&instance.address));
        let gone: Vec<_> = gone.collect();
        let left: Vec<_> = gone.iter().map(|instance| instance.address).collect();
        if joined.is_empty() && left.is_empty() {
            return Ok(());
        }
        let (destination, count) = (&*self.name, instances.len());
        let (joined, left) = (&joined[..], &left[..]);
        self.observer.note(&Event::InstancesChanged { destination, count, joined, left });
        self.sender.send_replace(Some(Ok(instances.into())));
        // Whoever stops waiting for one must not find it among those that are known.
        gone.iter().for_each(|instance| instance.left.cancel());
        Ok(())
    }

    fn instance(&self, address: IpAddr) -> Result<Instance, String> {
        let endpoint = self.endpoint.at(address).map_err(|error| format!("{error:#}"))?;
        let Self { name, rate, observer, again, .. } = self;
        let target = Target::instance_of(name, address, endpoint, *rate, again, observer);
        Ok(Instance { address, target, left: CancellationToken::new() })
    }

    fn succeeded(&mut self) {
        if std::mem::take(&mut self.is_failing) {
            self.observer.note(&Event::LookUps { destination: &self.name, error: None });
        }
    }

    /// Those that are known stay.
    fn failed(&mut self, error: &str) {
        if !std::mem::replace(&mut self.is_failing, true) {
            let destination = &*self.name;
            self.observer.note(&Event::LookUps { destination, error: Some(error) });
        }
        self.sender.send_if_modified(|known| {
            let has_none = !matches!(known, Some(Ok(_)));
            if has_none {
                *known = Some(Err(error.into()));
            }
            has_none
        });
    }
}
