// Starts everything on free ports: nats-server, two applications, the frontend, the relay and the gateway.
import { fork, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";

const LIMIT = 60_000;

/** What `check` returns once it returns something. */
export async function eventually(what, check) {
  for (const end = Date.now() + LIMIT; Date.now() < end; await new Promise((next) => setTimeout(next, 20))) {
    const found = await check();
    if (found) return found;
  }
  throw new Error(`${what}: not within ${LIMIT / 1000} s`);
}

const password = () => randomBytes(16).toString("hex");
const secret = () => `whsec_${randomBytes(24).toString("base64")}`;

/** The server's configuration: everyone may do what they need and no more, browsers without a password. */
const configuration = (folder, passwords) => `
listen: "127.0.0.1:-1"
ports_file_dir: "${folder}"
websocket { listen: "127.0.0.1:-1", no_tls: true, no_auth_user: browser }
authorization { users: [
  { user: application, password: "${passwords.application}", permissions: { publish: "feathers-sync", subscribe: "feathers-sync" } }
  { user: relay, password: "${passwords.relay}", permissions: {
    subscribe: ["feathers-sync", "_INBOX.>"], publish: ["relayed.feathers", "_INBOX.>"] } }
  { user: gateway, password: "${passwords.gateway}", permissions: {
    subscribe: "_INBOX.>", publish: ["feathers-sync", "_INBOX.>"] } }
  { user: browser, password: "${passwords.browser}", permissions: { subscribe: "relayed.feathers", publish: { deny: ">" } } }
] }
`;

/** `programs` are the paths of `nats-server`, the relay, and the plugin feathers-event. `say` gets what they log. */
export async function start({ natsServer, relay, plugin }, say = () => {}) {
  const folder = mkdtempSync(join(tmpdir(), "feathers-"));
  const children = [];
  const stop = async () => {
    const ended = children.filter((child) => child.exitCode === null && child.signalCode === null);
    const exits = ended.map((child) => new Promise((exited) => child.once("exit", exited)));
    ended.forEach((child) => child.kill());
    await Promise.all(exits);
    rmSync(folder, { recursive: true, force: true });
  };

  /** Resolves with what `ready` finds in a line or a message of the child; fails when it ends before. */
  const started = (name, child, ready) => {
    children.push(child);
    return new Promise((resolve, reject) => {
      const lines = [];
      const found = (value) => value && resolve(value);
      child.on("message", found);
      for (const stream of [child.stdout, child.stderr])
        createInterface({ input: stream }).on("line", (line) => {
          lines.push(line);
          say(name, line);
          found(ready?.(line));
        });
      child.once("error", reject);
      child.once("exit", (code) => reject(new Error([`${name} has ended, with ${code}`, ...lines.slice(-20)].join("\n"))));
    });
  };
  const script = (name, file, env) =>
    started(name, fork(file, { env: { ...process.env, ...env }, silent: true, cwd: import.meta.dirname }));
  const program = (name, args, env, ready) =>
    started(name, spawn(relay, args, { env: { LOG_FORMAT: "json", NATS_ENV: "true", ...env }, cwd: folder }), ready);
  const ready = (line) => {
    const { message, ...fields } = line.startsWith("{") ? JSON.parse(line) : {};
    return message === "ready" && fields;
  };

  try {
    const passwords = Object.fromEntries(
      ["application", "relay", "gateway", "browser"].map((user) => [user, password()]),
    );
    writeFileSync(join(folder, "nats.conf"), configuration(folder, passwords));
    const server = spawn(natsServer, ["--config", join(folder, "nats.conf")]);
    const ended = started("nats-server", server);
    const ports = eventually("nats-server listens", () => {
      const file = readdirSync(folder).find((name) => name.endsWith(".ports"));
      const text = file && readFileSync(join(folder, file), "utf8");
      return text && JSON.parse(text);
    });
    const { nats: [nats], websocket: [websocket] } = await Promise.race([ports, ended]);
    ended.catch(() => {});

    const database = join(folder, "articles.json");
    writeFileSync(database, "[]");
    const login = (user) => ({ NATS_USER: user, NATS_PASS: passwords[user] });
    const environment = { NATS_URL: nats, DATABASE: database, ...login("application") };
    const applications = await Promise.all(
      ["one", "two"].map((name) => script(`application ${name}`, "application.js", environment)),
    );
    const webhookSecret = secret();
    const frontend = await script("frontend", "frontend.js", {
      BACKEND: applications[1].url,
      NATS_WEBSOCKET: websocket,
      WEBHOOK_SECRET: webhookSecret,
    });
    const gatewaySecret = secret();
    const [, gateway] = await Promise.all([
      program("relay", [], {
        NATS_HOST: nats,
        ...login("relay"),
        NATS_SUBJECT: "feathers-sync",
        NATS_RELAYED_SUBJECT: "relayed.feathers",
        WEBHOOK_DESTINATION: `${frontend.url}/api/webhook`,
        WEBHOOK_SECRET: webhookSecret,
        PLUGINS: plugin,
        // Compiling it takes much longer than all else, and is done once.
        PLUGIN_CACHE: join(dirname(plugin), "cache"),
        PLUGIN_FEATHERS_EVENT_EVENTS: "created updated patched removed",
      }, ready),
      program("gateway", ["gateway"], {
        NATS_HOST: nats,
        ...login("gateway"),
        GATEWAY_LISTEN: "127.0.0.1:0",
        GATEWAY_SUBJECT: "feathers-sync",
        GATEWAY_ANSWER: "sent",
        GATEWAY_SECRET: gatewaySecret,
      }, ready),
    ]);
    return {
      applications: applications.map(({ url }) => url),
      frontend: frontend.url,
      gateway: `http://${gateway.address}`,
      gatewaySecret,
      nats,
      websocket,
      stop,
    };
  } catch (error) {
    await stop();
    throw error;
  }
}
