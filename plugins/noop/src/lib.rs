//! The smallest plugin: the body of the webhook call is the payload, as it is without plugins.
//! It shows what a call costs (`scripts/bench --plugins`).

use exports::nats_webhook_relay::plugin::webhook_payload::{Guest, HookError, Message};

wit_bindgen::generate!({
    path: "../../wit",
    inline: "
        package example:noop;

        world noop {
            export nats-webhook-relay:plugin/webhook-payload@1.0.0;
        }
    ",
    generate_all,
});

/// What the relay calls.
pub struct Plugin;

// A native linker does not take the names of the exports.
#[cfg(target_family = "wasm")]
export!(Plugin);

impl Guest for Plugin {
    fn transform(message: Message) -> Result<Vec<u8>, HookError> {
        Ok(message.payload)
    }
}
