//! The subjects on which a stream's messages are acknowledged (`$JS.ACK.`..., ADR-15), in their
//! older form or the one with domain and account.

use async_nats::Subject;

const PREFIX: &str = "$JS.ACK.";
/// What follows the subjects of probes for the permission to acknowledge.
const PROBE: &str = ".check";

/// Whether a message that is answered on `reply` is one of a stream.
pub(crate) fn is_of_stream(reply: &str) -> bool {
    reply.starts_with(PREFIX)
}

/// Whether something published on `subject` acknowledges a message.
pub(super) fn is_ack(subject: &str) -> bool {
    is_of_stream(subject) && !subject.ends_with(PROBE)
}

/// Subjects by which the permission to acknowledge is probed, one in each form. A subject with
/// all its tokens would be taken for an acknowledgement.
pub(crate) fn probes(stream: &str, consumer: &str) -> [String; 2] {
    [
        format!("{PREFIX}{stream}.{consumer}{PROBE}"),
        format!("{PREFIX}_._.{stream}.{consumer}{PROBE}"),
    ]
}

/// Where the first message of a consumer would be answered by an old server.
pub(crate) fn first(stream: &str, consumer: &str) -> String {
    format!("{PREFIX}{stream}.{consumer}.1.0.1.0.0")
}

/// Where to answer for a message that has not arrived, made of where another one is answered.
/// The consumer's count of `deliveries` is one that the server takes for that of an unsettled
/// message.
pub(crate) fn of_other(template: &str, sequence: u64, deliveries: u64) -> Subject {
    let mut tokens: Vec<_> = template.split('.').map(str::to_owned).collect();
    let place = if tokens.len() >= 11 { 7 } else { 5 };
    if let Some([of_stream, of_consumer]) = tokens.get_mut(place..place + 2) {
        (*of_stream, *of_consumer) = (sequence.to_string(), deliveries.to_string());
    }
    tokens.join(".").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_answered_where_another_one_is_but_for_its_sequence() {
        let old = "$JS.ACK.CMS.relay.1.42.17.1700000000.3";
        assert_eq!(of_other(old, 7, 18).as_str(), "$JS.ACK.CMS.relay.1.7.18.1700000000.3");
        let new = "$JS.ACK._.hash.CMS.relay.1.42.17.1700000000.3.token";
        let expected = "$JS.ACK._.hash.CMS.relay.1.7.18.1700000000.3.token";
        assert_eq!(of_other(new, 7, 18).as_str(), expected);
    }

    #[test]
    fn a_probe_is_no_acknowledgement() {
        assert!(probes("CMS", "relay").iter().all(|probe| !is_ack(probe) && is_of_stream(probe)));
        assert!(is_ack(&first("CMS", "relay")) && !is_ack("cms.ack"));
    }
}
