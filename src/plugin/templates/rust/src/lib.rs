//! The plugin {{name}}. README.md says how to build and try it.

use exports::nats_webhook_relay::plugin as hooks;
use nats_webhook_relay::plugin::types::{HookError, Message};
use serde_json::Value;
use wasi::config::store;

// Generates Rust from wit/: a module with a trait `Guest` for each hook that wit/world.wit exports.
wit_bindgen::generate!({ generate_all });

/// What the relay calls.
pub struct Plugin;

// Only WebAssembly accepts the names of the exports, so the tests run without them.
#[cfg(target_family = "wasm")]
export!(Plugin);

/// The body of the webhook call.
impl hooks::webhook_payload::Guest for Plugin {
    fn transform(message: Message) -> Result<Vec<u8>, HookError> {
        // The relay's variable PLUGIN_{{NAME}}_BASE.
        let base = store::get("BASE").ok().flatten().unwrap_or_default();
        // `Failed` is an error, and the message goes to the failed subject. `Reject` drops it deliberately.
        with_path(&message.payload, &message.tail, &base).map_err(HookError::Failed)
    }
}

/// Adds the page's path to a JSON object: `"path":"/article/42"` for the subject `cms.cache.article.42`.
fn with_path(payload: &[u8], tail: &str, base: &str) -> Result<Vec<u8>, String> {
    let path = format!("{base}/{}", tail.replace('.', "/"));
    match serde_json::from_slice(payload) {
        Ok(Value::Object(mut event)) => {
            event.insert("path".to_owned(), path.into());
            Ok(Value::Object(event).to_string().into_bytes())
        }
        Ok(_) => Err("the payload is JSON, but not an object".to_owned()),
        Err(error) => Err(format!("the payload is not JSON: {error}")),
    }
}

// /// Headers of the webhook call. They replace those of the same name; others stay.
// impl hooks::webhook_headers::Guest for Plugin {
//     fn set(message: Message) -> Result<Vec<(String, Vec<u8>)>, HookError> {
//         Ok(vec![("x-length".to_owned(), message.payload.len().to_string().into_bytes())])
//     }
// }

// /// The payload that is republished for the browsers.
// impl hooks::relayed_payload::Guest for Plugin {
//     fn transform(_message: Message) -> Result<Vec<u8>, HookError> {
//         Ok(b"{}".to_vec())
//     }
// }

// /// Where below the relayed prefix it is republished.
// impl hooks::relayed_subject::Guest for Plugin {
//     fn remap(message: Message) -> Result<String, HookError> {
//         Ok(format!("pages.{}", message.tail))
//     }
// }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_added() {
        let body = with_path(br#"{"id":42}"#, "article.42", "/de").unwrap();
        assert_eq!(body, br#"{"id":42,"path":"/de/article/42"}"#);
    }

    #[test]
    fn what_is_no_json_object_fails() {
        assert!(with_path(b"article", "article.42", "").is_err());
        assert!(with_path(b"[42]", "article.42", "").is_err());
    }
}
