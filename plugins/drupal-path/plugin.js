// The hook that the relay calls. What it does is in revalidation.js, which knows nothing of WebAssembly.
import { get } from "wasi:config/store@0.2.0-rc.1";
import { revalidation } from "./revalidation.js";

// Read at the first call, not at the top level, which runs when the plugin is built. It never changes afterwards.
let config;

export const webhookPayload = {
  transform({ payload }) {
    config ??= { secret: get("SECRET"), pathField: get("PATH_FIELD") };
    return revalidation(payload, config);
  },
};
