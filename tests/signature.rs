//! The secrets that calls are signed with. That the signatures are right is in `standard_webhooks.rs`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod support;

use support::endpoint::Endpoint;
use support::relay::run;
use support::setup::Setup;

const OLD: &str = "whsec_b2xkb2xkb2xkb2xkb2xkb2xkb2xkb2xk";
const NEW: &str = "whsec_bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3";

#[tokio::test]
async fn without_a_secret_nothing_is_signed() {
    let endpoint = Endpoint::ok().await;
    let mut setup = Setup::start(&endpoint.url(), &[("WEBHOOK_SECRET", " ")]).await;
    setup.publish_with("cms.cache.a", &[("webhook-signature", "v1,forged")], "x").await;
    setup.relayed().await;
    setup.end().await;
    assert!(endpoint.calls()[0].headers.get("webhook-signature").is_none());
}

#[test]
fn malformed_secrets_are_mistakes_at_the_start_and_are_not_shown() {
    let secrets = format!("{OLD} hunter2 whsec_hunter2 whsec_aHVudGVyMg== {NEW}");
    let (status, _, stderr) = run(&["check"], &[("WEBHOOK_SECRET", &secrets)]);
    assert_eq!(status.code(), Some(64));
    let said: Vec<_> = stderr.lines().filter(|line| line.contains("WEBHOOK_SECRET: ")).collect();
    assert_eq!(said.len(), 3, "{stderr}");
    for (line, number, expected) in [
        (said[0], 2, "does not begin with whsec_"),
        (said[1], 3, "base64"),
        (said[2], 4, "fewer than 24"),
    ] {
        assert!(line.contains(&format!("number {number} ")) && line.contains(expected), "{line}");
    }
    for secret in ["hunter2", "aHVudGVyMg", OLD, NEW] {
        assert!(!stderr.contains(secret), "{stderr}");
    }
}
