//! Prefixes and subjects: what is moved from one prefix to another stays below it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nats_webhook_relay::subject::{Prefix, check, covers, meets};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data);
    let mut parts = text.splitn(3, '\n');
    let (Some(listen), Some(relayed), Some(subject)) = (parts.next(), parts.next(), parts.next())
    else {
        return;
    };
    assert!(check(subject).is_err() || !covers(listen, subject) || meets(listen, subject));
    assert_eq!(meets(listen, subject), meets(subject, listen));
    let (Ok(listen), Ok(relayed)) = (Prefix::parse(listen), Prefix::parse(relayed)) else { return };
    assert_eq!(listen.overlaps(&relayed), relayed.overlaps(&listen));
    let Some(tail) = listen.tail(subject) else { return };
    assert_eq!(listen.subject(tail), subject);
    let moved = relayed.subject(tail);
    assert_eq!(relayed.tail(&moved), Some(tail));
    // What the relay publishes does not come back to it.
    assert!(listen.overlaps(&relayed) || listen.tail(&moved).is_none());
    if check(subject).is_ok() {
        assert!(
            check(&moved).is_ok()
                && covers(&relayed.wildcard(), &moved)
                && covers(&listen.wildcard(), subject)
        );
    }
});
