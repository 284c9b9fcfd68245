// The plugin {{name}}: what the relay calls. README.md says how to build and try it.
//
// Every hook receives a message: { id, subject, tail, headers: [[name, value], ...], payload }. The payload is bytes
// (a Uint8Array). Return bytes too: if you return a string, the body is empty.

import { get } from "wasi:config/store@0.2.0-rc.1";
import { withPath } from "./path.js";

// Settings do not change, so the hook reads them once. The top level cannot: it runs when the plugin is built.
let base;

/** The body of the webhook call. */
export const webhookPayload = {
  transform(message) {
    // The relay's variable PLUGIN_{{NAME}}_BASE.
    base ??= get("BASE") ?? "";
    return withPath(message.payload, message.tail, base);
  },
};

// /** Headers of the webhook call. They replace those of the same name; others stay. */
// export const webhookHeaders = {
//   set(message) {
//     return [["x-length", new TextEncoder().encode(String(message.payload.length))]];
//   },
// };

// /** The payload that is republished for the browsers. */
// export const relayedPayload = {
//   transform(message) {
//     return new TextEncoder().encode("{}");
//   },
// };

// /** Where below the relayed prefix it is republished. */
// export const relayedSubject = {
//   remap(message) {
//     return `pages.${message.tail}`;
//   },
// };
