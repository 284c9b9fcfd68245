//! Prefixes and subjects: what is moved from one prefix or exact subject to another belongs to it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use nats_webhook_relay::subject::{Prefix, Subjects, check, covers, meets};

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
    for both in [Subjects::Below, Subjects::Exact] {
        moves(&both(listen.clone()), &both(relayed.clone()), subject);
    }
});

fn moves(listen: &Subjects, relayed: &Subjects, subject: &str) {
    let Some(tail) = listen.tail(subject) else { return };
    assert_eq!(listen.subject(tail), subject);
    let moved = relayed.subject(tail);
    assert_eq!(relayed.tail(&moved), Some(tail));
    // What the relay publishes does not come back to it.
    assert!(relayed.may_reach(&listen.pattern()) || listen.tail(&moved).is_none());
    if check(subject).is_ok() {
        assert!(
            check(&moved).is_ok()
                && covers(&relayed.pattern(), &moved)
                && covers(&listen.pattern(), subject)
        );
    }
}
