//! Turns a CMS event into the cache tags of a Next.js frontend: `{"entity":"article","id":42}`
//! becomes `{"tags":["article","article:42"]}`.
//!
//! An event that gives no tag fails. A call of the webhook without tags would invalidate nothing
//! and succeed, and browsers would then refresh a stale page.

use exports::nats_webhook_relay::plugin::webhook_payload::{Guest, HookError, Message};
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

wit_bindgen::generate!({
    path: "../../wit",
    inline: "
        package example:nextjs-tags;

        world nextjs-tags {
            include nats-webhook-relay:plugin/imports@1.0.0;
            export nats-webhook-relay:plugin/webhook-payload@1.0.0;
        }
    ",
    generate_all,
});

/// The templates where `PLUGIN_NEXTJS_TAGS_TAGS` is not set.
const TAGS: &str = "{entity} {entity}:{id}";
/// Next.js takes no longer tag. It counts as JavaScript does, in UTF-16.
const LONGEST_TAG: usize = 256;

/// What the relay calls.
pub struct Plugin;

// A native linker does not take the names of the exports.
#[cfg(target_family = "wasm")]
export!(Plugin);

impl Guest for Plugin {
    fn transform(message: Message) -> Result<Vec<u8>, HookError> {
        let setting = wasi::config::store::get("TAGS")
            .map_err(|error| HookError::Failed(error.to_string()))?;
        let templates = setting.unwrap_or_else(|| TAGS.to_owned());
        let tags = tags(&templates, &message).map_err(HookError::Failed)?;
        Ok(json!({ "tags": tags }).to_string().into_bytes())
    }
}

/// The tags of this message, each once, in the order of the templates.
fn tags(templates: &str, message: &Message) -> Result<Vec<String>, String> {
    let event = event(&message.payload)?;
    let mut seen = BTreeSet::new();
    let mut tags = Vec::new();
    for template in templates.split_whitespace() {
        for tag in fill(template, &event, message)? {
            if tag.encode_utf16().count() > LONGEST_TAG {
                return Err(format!(
                    "the tag of template {template} is longer than {LONGEST_TAG} characters"
                ));
            }
            if seen.insert(tag.clone()) {
                tags.push(tag);
            }
        }
    }
    if tags.is_empty() {
        return Err(format!("no tag: the event lacks the fields of every template in {templates}"));
    }
    Ok(tags)
}

/// The payload as a JSON object. An empty one has no fields: the subject may say it all.
fn event(payload: &[u8]) -> Result<Value, String> {
    if payload.is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match serde_json::from_slice(payload) {
        Ok(event @ Value::Object(_)) => Ok(event),
        Ok(_) => Err("the payload is JSON, but not an object".to_owned()),
        Err(error) => Err(format!("the payload is not JSON: {error}")),
    }
}

/// The template with its fields filled in, once for each combination of their values.
fn fill(template: &str, event: &Value, message: &Message) -> Result<Vec<String>, String> {
    let mut filled = vec![String::new()];
    let mut rest = template;
    while let Some((text, after)) = rest.split_once('{') {
        let (field, after) =
            after.split_once('}').ok_or_else(|| format!("TAGS: {template} has a {{ without }}"))?;
        let values = match field.strip_prefix('$') {
            Some(part) => subject_part(part, message)?.into_iter().map(str::to_owned).collect(),
            None => values(event, &field.split('.').collect::<Vec<_>>()),
        };
        filled = filled
            .iter()
            .flat_map(|start| values.iter().map(move |value| format!("{start}{text}{value}")))
            .collect();
        rest = after;
    }
    Ok(filled.into_iter().map(|start| start + rest).collect())
}

/// The texts at a path of the event: several where it leads through an array, none where nothing is there.
fn values(value: &Value, path: &[&str]) -> Vec<String> {
    match (value, path) {
        (Value::Array(items), _) => items.iter().flat_map(|item| values(item, path)).collect(),
        (Value::Object(fields), [name, path @ ..]) => {
            fields.get(*name).map(|value| values(value, path)).unwrap_or_default()
        }
        (Value::String(text), []) if !text.is_empty() => vec![text.clone()],
        (Value::Number(_) | Value::Bool(_), []) => vec![value.to_string()],
        _ => Vec::new(),
    }
}

/// What `{$subject}`, `{$tail}` or `{$1}`, the first token of the tail, stands for; none where the tail has fewer tokens.
fn subject_part<'a>(part: &str, message: &'a Message) -> Result<Option<&'a str>, String> {
    match part {
        "subject" => Ok(Some(&message.subject)),
        "tail" => Ok(Some(&message.tail)),
        _ => match part.parse::<usize>() {
            Ok(number @ 1..) => Ok(message.tail.split('.').nth(number - 1)),
            _ => Err(format!(
                "TAGS: {{${part}}} is unknown, expected {{$subject}}, {{$tail}}, or {{$1}} and so on"
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(payload: &str) -> Message {
        Message {
            id: "msg_1".to_owned(),
            subject: "cms.cache.article.42".to_owned(),
            tail: "article.42".to_owned(),
            headers: Vec::new(),
            payload: payload.into(),
        }
    }

    fn ok(templates: &str, payload: &str, expected: &[&str]) {
        assert_eq!(
            tags(templates, &message(payload)).unwrap(),
            expected,
            "{templates} of {payload}"
        );
    }

    fn fails(templates: &str, payload: &str, expected: &str) {
        let error = tags(templates, &message(payload)).unwrap_err();
        assert!(error.contains(expected), "{templates} of {payload}: {error}");
    }

    #[test]
    fn fields_fill_the_templates() {
        ok(TAGS, r#"{"entity":"article","id":42,"langcode":"de"}"#, &["article", "article:42"]);
        ok("{node.type}/{node.id}", r#"{"node":{"type":"page","id":"home"}}"#, &["page/home"]);
        ok(
            "{a} {b} {c}",
            r#"{"a":1.50,"b":true,"c":12345678901234567890123}"#,
            &["1.50", "true", "12345678901234567890123"],
        );
        ok("cms {entity}", r#"{"entity":"Gerät"}"#, &["cms", "Gerät"]);
    }

    #[test]
    fn a_template_without_its_fields_is_left_out() {
        ok(
            "{entity} {entity}:{langcode} {langcode}",
            r#"{"entity":"article","langcode":null}"#,
            &["article"],
        );
        ok("x {a} {a.b} {b.c}", r#"{"a":"","b":{"c":{}}}"#, &["x"]);
    }

    #[test]
    fn an_array_gives_a_tag_for_each_element() {
        ok("{tags}", r#"{"tags":["a","b","a",{"x":1},null,["c"]]}"#, &["a", "b", "c"]);
        ok("{refs.type}", r#"{"refs":[{"type":"page"},{"type":"menu"}]}"#, &["page", "menu"]);
        ok(
            "{entity}:{ids}:{langs}",
            r#"{"entity":"n","ids":[1,2],"langs":["de","en"]}"#,
            &["n:1:de", "n:1:en", "n:2:de", "n:2:en"],
        );
        ok("{ids} x", r#"{"ids":[]}"#, &["x"]);
    }

    #[test]
    fn the_subject_fills_templates_too() {
        ok(
            "{$subject} {$tail} {$1}:{$2} {$3}",
            "{}",
            &["cms.cache.article.42", "article.42", "article:42"],
        );
        ok("{$1}", "", &["article"]);
    }

    #[test]
    fn no_tag_is_a_failure() {
        fails(TAGS, "{}", "no tag");
        fails(TAGS, "", "no tag");
        fails(" ", r#"{"entity":"article"}"#, "no tag");
    }

    #[test]
    fn what_is_no_event_is_a_failure() {
        fails(TAGS, "entity=article", "not JSON");
        fails(TAGS, r#"["article"]"#, "not an object");
        fails(TAGS, &"[".repeat(100_000), "not JSON");
        assert!(event(b"\xff").is_err());
    }

    #[test]
    fn mistakes_in_templates_are_told() {
        fails("{entity", "{}", "without }");
        fails("{$0}", "{}", "{$0} is unknown");
        fails("{$id}", "{}", "{$id} is unknown");
    }

    #[test]
    fn a_tag_has_at_most_256_characters() {
        let event = |length: usize| format!(r#"{{"entity":"{}"}}"#, "ü".repeat(length));
        assert!(tags("{entity}", &message(&event(256))).is_ok());
        fails("{entity}", &event(257), "longer than 256");
        fails("{entity}", &format!(r#"{{"entity":"{}"}}"#, "😀".repeat(129)), "longer than 256");
    }
}
