// The hooks that the relay calls. What they do is in feathers.js, which knows nothing of WebAssembly.
import { get } from "wasi:config/store@0.2.0-rc.1";
import { headers, listOfEvents, withoutContext } from "./feathers.js";

// Read at the first call, not at the top level, which runs when the plugin is built. It never changes afterwards.
let events;

// Both payloads begin as what was received, so the context is in both.
const transform = ({ payload }) => withoutContext(payload, (events ??= listOfEvents(get("EVENTS"))));

export const webhookPayload = { transform };
export const relayedPayload = { transform };
export const webhookHeaders = { set: ({ payload }) => headers(payload) };
