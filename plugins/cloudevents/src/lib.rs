//! Makes the webhook call a CloudEvent: CloudEvents 1.0, HTTP protocol binding, binary content mode (section 3.1).
//!
//! The body is the event's data and stays as it is; the attributes are `ce-` headers. A message that is
//! a CloudEvent already, by the NATS protocol binding, keeps its attributes: only what it lacks is added.

use exports::nats_webhook_relay::plugin::webhook_headers::{Guest, HookError, Message};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

wit_bindgen::generate!({
    path: "../../wit",
    inline: "
        package example:cloudevents;

        world cloudevents {
            include nats-webhook-relay:plugin/imports@1.0.0;
            export nats-webhook-relay:plugin/webhook-headers@1.0.0;
        }
    ",
    generate_all,
});

/// The source where `PLUGIN_CLOUDEVENTS_SOURCE` is not set.
const SOURCE: &str = "/nats";
/// The type where `PLUGIN_CLOUDEVENTS_TYPE` is not set: `cms.cache.article` of `cms.cache.article.42`.
const TYPE: &str = "{$prefix}.{$1}";
/// What section 3.1.3.2 wants encoded, beside all that is not ASCII.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'"').add(b'%');

/// What the relay calls.
pub struct Plugin;

// A native linker does not take the names of the exports.
#[cfg(target_family = "wasm")]
export!(Plugin);

impl Guest for Plugin {
    fn set(message: Message) -> Result<Vec<(String, Vec<u8>)>, HookError> {
        let (source, kind) = (setting("SOURCE", SOURCE)?, setting("TYPE", TYPE)?);
        headers(&message, &source, &kind).map_err(HookError::Failed)
    }
}

/// A value of the plugin's configuration: `PLUGIN_CLOUDEVENTS_<KEY>` in the relay's environment.
fn setting(key: &str, default: &str) -> Result<String, HookError> {
    let value =
        wasi::config::store::get(key).map_err(|error| HookError::Failed(error.to_string()))?;
    Ok(value.unwrap_or_else(|| default.to_owned()))
}

/// The headers that the message lacks.
fn headers(message: &Message, source: &str, kind: &str) -> Result<Vec<(String, Vec<u8>)>, String> {
    let media_type = header(message, "content-type");
    if media_type.is_some_and(is_structured) {
        return Ok(Vec::new());
    }
    let mut headers = Vec::new();
    let mut supply = |name: &str, value: &str| {
        if header(message, name).is_none() {
            headers.push((
                name.to_owned(),
                utf8_percent_encode(value, ENCODED).to_string().into_bytes(),
            ));
        }
    };
    supply("ce-specversion", "1.0");
    supply("ce-id", &message.id);
    supply("ce-source", source);
    supply("ce-type", &fill(kind, message)?);
    supply("ce-subject", &message.tail);
    // This attribute has a header of its own in NATS. In HTTP it is the Content-Type.
    if let (None, Some(value)) = (media_type, header(message, "ce-datacontenttype")) {
        headers.push(("content-type".to_owned(), percent_decode_str(value).collect()));
    }
    Ok(headers)
}

/// The value of a header of the message; an empty one says nothing.
fn header<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    let mut headers = message.headers.iter();
    headers
        .find(|(other, value)| other.eq_ignore_ascii_case(name) && !value.is_empty())
        .map(|(_, value)| value.as_str())
}

/// Whether a message of this media type has its attributes in the payload.
fn is_structured(media_type: &str) -> bool {
    media_type.trim_start().to_ascii_lowercase().starts_with("application/cloudevents")
}

/// The template with the parts of the subject filled in.
fn fill(template: &str, message: &Message) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once("{$") {
        let (part, after) =
            after.split_once('}').ok_or_else(|| format!("TYPE: {template} has a {{ without }}"))?;
        let value = subject_part(part, message)
            .ok_or_else(|| format!("TYPE: {} has no {{${part}}}", message.subject))?;
        filled = filled + text + value;
        rest = after;
    }
    Ok(filled + rest)
}

/// What `{$subject}`, `{$prefix}`, `{$tail}` or `{$1}`, the first token of the tail, stands for.
fn subject_part<'a>(part: &str, message: &'a Message) -> Option<&'a str> {
    match part {
        "subject" => Some(&message.subject),
        "prefix" => message.subject.strip_suffix(&message.tail)?.strip_suffix('.'),
        "tail" => Some(&message.tail),
        _ => message.tail.split('.').nth(part.parse::<usize>().ok()?.checked_sub(1)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(headers: &[(&str, &str)]) -> Message {
        Message {
            id: "msg_1".to_owned(),
            subject: "cms.cache.article.42".to_owned(),
            tail: "article.42".to_owned(),
            headers: headers
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            payload: Vec::new(),
        }
    }

    fn ok(message: &Message, expected: &[(&str, &str)]) {
        let headers = headers(message, SOURCE, TYPE).unwrap();
        let headers: Vec<_> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), str::from_utf8(value).unwrap()))
            .collect();
        assert_eq!(headers, expected);
    }

    #[test]
    fn a_message_becomes_an_event() {
        let expected = [
            ("ce-specversion", "1.0"),
            ("ce-id", "msg_1"),
            ("ce-source", "/nats"),
            ("ce-type", "cms.cache.article"),
            ("ce-subject", "article.42"),
        ];
        ok(&message(&[("Content-Type", "text/plain")]), &expected);
    }

    #[test]
    fn attributes_of_the_message_stay() {
        let event = message(&[
            ("CE-Id", "a%20b"),
            ("ce-source", "/cms"),
            ("ce-type", ""),
            ("ce-subject", "x"),
            ("ce-specversion", "1.0"),
        ]);
        ok(&event, &[("ce-type", "cms.cache.article")]);
    }

    #[test]
    fn the_data_content_type_is_the_content_type() {
        let all = [
            ("ce-specversion", "1.0"),
            ("ce-id", "1"),
            ("ce-source", "/"),
            ("ce-type", "t"),
            ("ce-subject", "s"),
        ];
        let mut event = message(&all);
        event
            .headers
            .push(("ce-datacontenttype".to_owned(), "text/plain;%20charset=utf-8".to_owned()));
        ok(&event, &[("content-type", "text/plain; charset=utf-8")]);
        event.headers.push(("Content-Type".to_owned(), "text/html".to_owned()));
        ok(&event, &[]);
    }

    #[test]
    fn a_structured_event_stays_as_it_is() {
        ok(&message(&[("content-type", "Application/CloudEvents+JSON; charset=utf-8")]), &[]);
        ok(&message(&[("content-type", "application/cloudevents-batch+json")]), &[]);
    }

    #[test]
    fn values_are_encoded_as_the_binding_demands() {
        let mut event = message(&[]);
        event.tail = "Euro € 😀\"%~!\u{7f}".to_owned();
        let headers = headers(&event, SOURCE, "t").unwrap();
        let subject = headers.iter().find(|(name, _)| name == "ce-subject").unwrap();
        assert_eq!(
            str::from_utf8(&subject.1).unwrap(),
            "Euro%20%E2%82%AC%20%F0%9F%98%80%22%25~!%7F"
        );
    }

    #[test]
    fn a_type_is_made_of_the_subject() {
        let message = message(&[]);
        assert_eq!(
            fill("com.example.{$1}.changed", &message).unwrap(),
            "com.example.article.changed"
        );
        assert_eq!(
            fill("{$subject}|{$prefix}|{$tail}|{$2}", &message).unwrap(),
            "cms.cache.article.42|cms.cache|article.42|42"
        );
        for mistake in ["{$3}", "{$0}", "{$name}", "{$1"] {
            assert!(fill(mistake, &message).is_err(), "{mistake}");
        }
    }
}
