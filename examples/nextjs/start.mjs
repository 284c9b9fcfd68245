// Starts all of it on free ports: nats-server, the content backend, the relay, and two instances of the frontend.
import { spawn } from "node:child_process";
import { randomBytes, randomInt } from "node:crypto";
import { once } from "node:events";
import { rmSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, request as call } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { createOperatorMode } from "./nats.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const repository = join(here, "../..");
const next = join(here, "node_modules/next/dist/bin/next");

/** Starts everything, and returns the addresses, and what a test needs to get in the way. */
export async function start({ say = console.log } = {}) {
  const processes = new Set();
  const folder = await mkdtemp(join(tmpdir(), "nextjs-example-"));
  // Nothing is left behind, however this process ends.
  process.once("exit", () => {
    for (const each of processes) each.kill();
    rmSync(folder, { recursive: true, force: true });
  });
  for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(130));

  /** Runs a program until `stop`; its output is shown if it ends by itself. */
  async function run(name, command, args, env, isReady) {
    // Killed as a group, because `next dev` has children, and `next start` would wait for connections that browsers keep.
    const child = spawn(command, args, { cwd: here, env: { ...process.env, ...env }, detached: true });
    let output = "";
    for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (output = (output + data).slice(-20_000)));
    const ended = new Promise((resolve) => {
      child.once("error", (error) => resolve(error.message)).once("close", (code, signal) => resolve(signal ?? code));
    });
    const self = {
      output: () => output,
      kill: () => process.kill(-child.pid, "SIGKILL"),
      stop: async () => {
        if (processes.delete(self)) self.kill();
        await ended;
      },
    };
    processes.add(self);
    const failed = ended.then((how) => {
      if (processes.delete(self)) throw new Error(`${name} has ended (${how}):\n${output}`);
    });
    failed.catch((error) => say(error.message));
    while (processes.has(self) && !isReady(output)) await Promise.race([sleep(50), failed]);
    return self;
  }

  async function stop() {
    for (const gate of gates) gate.close();
    await Promise.all([...processes].map((each) => each.stop()));
    await rm(folder, { recursive: true, force: true });
  }

  // Tests start more instances on the last ports.
  const [natsPort, webSocketPort, backendPort, ...frontendPorts] = await freePorts(7);
  const frontends = frontendPorts.map((port) => `http://localhost:${port}`);
  const webSocket = `ws://localhost:${webSocketPort}`;
  const backend = `http://localhost:${backendPort}`;
  const keys = await createOperatorMode({
    port: natsPort,
    webSocketPort,
    storeFolder: join(folder, "jetstream"),
    origins: frontends,
  });
  for (const name of ["configuration", "backendCredentials", "relayCredentials"]) {
    await writeFile(join(folder, name), keys[name], { mode: 0o600 });
  }
  const webhookSecret = `whsec_${randomBytes(32).toString("base64")}`;
  const natsHost = `nats://127.0.0.1:${natsPort}`;
  // The way from the relay to each instance takes its time, as between data centres. Tests put other obstacles there.
  const gates = frontendPorts.slice(0, 2).map(createGate);
  const gateUrls = await Promise.all(gates.map((gate) => gate.url));

  const startNatsServer = () =>
    run("nats-server", process.env.NATS_SERVER, ["-c", join(folder, "configuration")], {}, (output) => output.includes("Server is ready"));
  const startRelay = () =>
    run(
      "the relay",
      process.env.RELAY,
      [],
      {
        NATS_HOST: natsHost,
        NATS_CREDS: join(folder, "relayCredentials"),
        NATS_STREAM: "CMS",
        NATS_DELIVER: "all",
        NATS_SUBJECT_PREFIX: "cms.cache",
        NATS_RELAYED_SUBJECT_PREFIX: "relayed.cache",
        NATS_RESYNC_SUBJECT: "relayed.cache.resync",
        // A message is relayed when both instances have accepted it.
        WEBHOOK_DESTINATION: gateUrls.map((url) => `${url}/api/cache/webhook`).join(" "),
        WEBHOOK_SECRET: webhookSecret,
        PLUGINS: process.env.NEXTJS_TAGS,
      },
      (output) => output.includes("ready"),
    );
  const startFrontend = (port, { command = "start", folder = here, env } = {}) =>
    run(
      "the frontend",
      process.execPath,
      [next, command, folder, "--hostname", "127.0.0.1", "--port", String(port)],
      {
        BACKEND_URL: backend,
        FRONTEND_URLS: frontends.slice(0, 2).join(" "),
        WEBHOOK_SECRET: webhookSecret,
        NATS_WEBSOCKET_URL: webSocket,
        NATS_BROWSERS_SEED: keys.browsersSeed,
        NATS_BROWSER_SUBJECTS: "relayed.cache.>",
        ...env,
      },
      (output) => output.includes("Ready in"),
    );

  const system = { frontends, frontendPorts, backend, webSocket, gates, startNatsServer, startRelay, startFrontend, stop };
  try {
    await prepare(say);
    system.natsServer = await startNatsServer();
    await run(
      "the backend",
      process.execPath,
      ["backend.mjs"],
      { PORT: String(backendPort), NATS_HOST: natsHost, NATS_CREDS: join(folder, "backendCredentials") },
      (output) => output.includes("ready"),
    );
    await Promise.all(frontendPorts.slice(0, 2).map((port) => startFrontend(port)));
    system.relay = await startRelay();
    return system;
  } catch (error) {
    await stop();
    throw error;
  }
}

/** Finds or builds the relay (RELAY), its plugin (NEXTJS_TAGS), nats-server (NATS_SERVER), and the frontend. */
async function prepare(say) {
  if (!process.env.RELAY) {
    say("building the relay (the first time takes three to ten minutes)");
    await build("cargo", ["build", "--locked", "--bin", "nats-webhook-relay"], repository);
    process.env.RELAY = join(process.env.CARGO_TARGET_DIR ?? join(repository, "target"), "debug/nats-webhook-relay");
  }
  process.env.NEXTJS_TAGS ??= await build(join(repository, "scripts/build-plugins"), ["nextjs-tags"]);
  process.env.NATS_SERVER ??= await build(join(repository, "scripts/nats-server"), []);
  say("building the frontend");
  await build(process.execPath, [next, "build"]);
}

/** Runs a command to its end, and returns the last line that it prints. */
async function build(command, args, cwd = here) {
  const child = spawn(command, args, { cwd, env: { ...process.env, NEXT_TELEMETRY_DISABLED: "1" } });
  let output = "";
  let lines = "";
  child.stdout.on("data", (data) => ((lines += data), (output += data)));
  child.stderr.on("data", (data) => (output += data));
  const [code] = await once(child, "close");
  if (code !== 0) throw new Error(`this has failed: ${command} ${args.join(" ")}\n${output}`);
  return lines.trim().split("\n").at(-1);
}

/** Passes each call on to the port after a while, or answers it with `status` itself. */
function createGate(port) {
  const gate = { pass: () => sleep(500), status: undefined, calls: 0 };
  const server = createServer(async (request, response) => {
    gate.calls++;
    await gate.pass();
    if (gate.status) return response.writeHead(gate.status).end();
    const { method, url: path, headers } = request;
    const passed = call({ host: "127.0.0.1", port, method, path, headers }, (answer) => {
      response.writeHead(answer.statusCode, answer.headers);
      answer.pipe(response);
    });
    passed.on("error", () => response.writeHead(502).end());
    request.pipe(passed);
  }).listen(0, "127.0.0.1");
  gate.url = once(server, "listening").then(() => `http://127.0.0.1:${server.address().port}`);
  gate.close = () => (server.close(), server.closeAllConnections());
  return gate;
}

async function freePorts(count) {
  const ports = [];
  while (ports.length < count) {
    // Below those that systems give to whoever asks for any port, or one could be gone before it is listened on.
    const port = randomInt(10_000, 32_000);
    const server = createServer().listen(port, "127.0.0.1");
    const isFree = await once(server, "listening").catch(() => false);
    if (isFree && !ports.includes(port)) ports.push(port);
    await new Promise((closed) => server.close(closed));
  }
  return ports;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const system = await start();
  console.log(`open ${system.frontends[0]} (Ctrl-C ends)`);
}
