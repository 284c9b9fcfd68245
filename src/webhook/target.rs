//! Something that each message is delivered to: a destination, or one instance of it.

use crate::observe::Observer;
use crate::webhook::endpoint::Endpoint;
use crate::webhook::outage::Outage;
use crate::webhook::rate::{Rate, RateLimit};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::Notify;

pub(super) struct Target {
    /// Without secrets; names the address of an instance.
    pub(super) name: Arc<str>,
    pub(super) endpoint: Endpoint,
    pub(super) limit: Option<RateLimit>,
    pub(super) outage: Outage,
    instance: Option<InstanceOf>,
}

/// Whose instance it is.
struct InstanceOf {
    destination: Arc<str>,
    address: IpAddr,
    /// Has the addresses looked up again.
    again: Arc<Notify>,
}

impl Target {
    /// A destination that is called wherever its host is.
    pub(super) fn new(endpoint: Endpoint, rate: Option<Rate>, observer: &Observer) -> Self {
        let name = endpoint.destination.to_string().into();
        Self::named(name, endpoint, rate, observer)
    }

    /// The instance of `destination` that `endpoint` calls at `address`.
    pub(super) fn instance_of(
        destination: &Arc<str>,
        address: IpAddr,
        endpoint: Endpoint,
        rate: Option<Rate>,
        again: &Arc<Notify>,
        observer: &Observer,
    ) -> Self {
        let name = format!("{destination} at {address}").into();
        let (destination, again) = (destination.clone(), again.clone());
        let instance = Some(InstanceOf { destination, address, again });
        Self { instance, ..Self::named(name, endpoint, rate, observer) }
    }

    fn named(name: Arc<str>, endpoint: Endpoint, rate: Option<Rate>, observer: &Observer) -> Self {
        let (limit, outage) = (rate.map(RateLimit::new), Outage::new(&name, observer));
        Self { name, endpoint, limit, outage, instance: None }
    }

    /// The destination and the address of an instance.
    pub(super) fn instance(&self) -> Option<(&str, IpAddr)> {
        self.instance.as_ref().map(|of| (&*of.destination, of.address))
    }

    /// An instance that has not answered may have left.
    pub(super) fn look_up_unless(&self, is_answered: bool) {
        if let Some(of) = self.instance.as_ref().filter(|_| !is_answered) {
            of.again.notify_one();
        }
    }
}
