//! What `wit/plugin.wit` says, as Rust types: generated, so that the two cannot differ.

#![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]

wasmtime::component::bindgen!({
    path: "wit",
    inline: "
        package nats-webhook-relay:host;
        world hooks {
            export nats-webhook-relay:plugin/webhook-payload@1.0.0;
            export nats-webhook-relay:plugin/webhook-headers@1.0.0;
            export nats-webhook-relay:plugin/relayed-payload@1.0.0;
            export nats-webhook-relay:plugin/relayed-subject@1.0.0;
        }
    ",
    world: "nats-webhook-relay:host/hooks",
    exports: { default: async },
    ownership: Borrowing { duplicate_if_necessary: false },
});
