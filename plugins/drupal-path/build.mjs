// Makes drupal-path.wasm. componentize-js wants all WIT in one folder: this plugin's world, and beneath it, in deps,
// what the world refers to. That lies in ../../wit, so wit/ is put together here.
import { componentize } from "@bytecodealliance/componentize-js";
import { cpSync, writeFileSync } from "node:fs";
import { resolve } from "node:path";

cpSync("world.wit", "wit/world.wit");
cpSync("../../wit/plugin.wit", "wit/deps/nats-webhook-relay-plugin/plugin.wit");
cpSync("../../wit/deps", "wit/deps", { recursive: true });

const { component } = await componentize({
  sourcePath: "plugin.js",
  witPath: resolve("wit"),
  worldName: "plugin",
  // What this plugin has no use for. stdio stays: an error that nobody expected is then in the relay's log.
  disableFeatures: ["http", "fetch-event", "random", "clocks"],
});
writeFileSync("drupal-path.wasm", component);
