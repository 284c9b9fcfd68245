//! Reading from a stream.

mod support;

use support::endpoint::{Endpoint, Reply};
use support::nats::NatsServer;
use support::setup::Setup;

const JETSTREAM: &str = "jetstream: enabled";

#[tokio::test]
async fn what_is_in_the_stream_is_relayed_and_acknowledged() {
    let nats = NatsServer::with_config(JETSTREAM);
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::on(nats, &endpoint.url(), &[("NATS_STREAM", "CMS"), ("NATS_STREAM_CREATE", "true")]).await;
    for n in 0..100 {
        setup.publish(&format!("cms.cache.{n}"), n.to_string()).await;
    }
    for _ in 0..100 {
        setup.relayed().await;
    }
    assert_eq!(endpoint.count(), 100);
    setup.end().await;
    let _ = Reply::ok();
}
