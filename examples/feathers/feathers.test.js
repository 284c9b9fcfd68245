// Both ways, with the real packages: from the applications to the frontend and to browsers, and from outside to the applications.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { connect } from "nats.ws";
import WebSocket from "ws";
import { pay } from "./pay.js";
import { eventually, start } from "./system.js";

// Node 20 has none of its own.
globalThis.WebSocket ??= WebSocket;

const { NATS_SERVER, RELAY, PLUGIN } = process.env;
const log = [];
let system;
let browser;

before(async () => {
  system = await start({ natsServer: NATS_SERVER, relay: RELAY, plugin: PLUGIN }, (name, line) =>
    log.push(`${name}: ${line}`),
  );
  browser = await connect({ servers: system.websocket });
});

after(async () => {
  await browser?.close();
  await system?.stop();
});

const get = async (url) => (await fetch(url)).json();

const send = async (method, url, body) => {
  const headers = { "content-type": "application/json", authorization: "Bearer s3cret" };
  const response = await fetch(url, { method, headers, body: JSON.stringify(body) });
  const text = await response.text();
  assert.ok(response.ok, text);
  return JSON.parse(text);
};

/** What each application has heard of a service, once both have heard something that `last` finds. */
const heard = (path, last) =>
  Promise.all(
    system.applications.map((url, number) =>
      eventually(`application ${number} hears of ${path}`, async () => {
        const events = (await get(`${url}/heard`)).filter((event) => event.path === path);
        return events.some(last) && events;
      }),
    ),
  );

/** The next message of a browser's subscription, and what the frontend shows right then. */
const next = async (messages) => {
  const { value } = await messages.next();
  return [value.json(), await get(`${system.frontend}/articles`)];
};

test("a browser is told of a change without its context, after the frontend has dropped its cache", { timeout: 60_000 }, async () => {
  const subscription = browser.subscribe("relayed.feathers");
  const messages = subscription[Symbol.asyncIterator]();
  await browser.flush();
  const [one, two] = system.applications;
  assert.deepEqual(await get(`${system.frontend}/articles`), []);

  const first = await send("POST", `${one}/articles`, { title: "Hello" });
  assert.deepEqual(await next(messages), [{ event: "created", path: "articles", data: first }, [first]]);

  // By way of the other application, and again and again: the frontend never shows the old title afterwards.
  for (let number = 0; number < 10; number += 1) {
    const application = number % 2 ? one : two;
    const changed = await send("PATCH", `${application}/articles/1`, { title: `Hello ${number}` });
    assert.deepEqual(await next(messages), [{ event: "patched", path: "articles", data: changed }, [changed]]);
  }
  subscription.unsubscribe();

  const both = await heard("articles", ({ data }) => data.title === "Hello 9");
  for (const events of both) assert.equal(events.length, 11);
  assert.ok(log.every((line) => !line.includes("s3cret")), log.join("\n"));
});

test("a webhook reaches both applications, and no browser", { timeout: 60_000 }, async () => {
  const subscription = browser.subscribe("relayed.feathers");
  const messages = subscription[Symbol.asyncIterator]();
  await browser.flush();

  const wrong = `whsec_${Buffer.alloc(24).toString("base64")}`;
  assert.equal((await pay(system.gateway, wrong, 1)).status, 401);
  assert.equal((await pay(system.gateway, system.gatewaySecret, 25)).status, 202);
  for (const events of await heard("payments", ({ event }) => event === "received"))
    assert.deepEqual(events, [{ path: "payments", event: "received", data: { amount: 25 } }]);

  // The plugin rejects it, so the next thing that a browser hears of is an article.
  const [one] = system.applications;
  await send("POST", `${one}/articles`, { title: "Afterwards" });
  const [{ path, data }] = await next(messages);
  assert.deepEqual([path, data.title], ["articles", "Afterwards"]);
  assert.equal(log.filter((line) => line.includes("the event received is not in EVENTS")).length, 1, log.join("\n"));
  subscription.unsubscribe();
});

test("the applications hear on after an event that is not theirs", { timeout: 60_000 }, async () => {
  await pay(system.gateway, system.gatewaySecret, 0, { event: "received", path: "nowhere", data: {} });
  assert.equal((await pay(system.gateway, system.gatewaySecret, 50)).status, 202);
  await heard("payments", ({ data }) => data.amount === 50);
});

test("a browser can neither read what the applications tell each other nor publish", { timeout: 60_000 }, async () => {
  const denied = [];
  (async () => {
    for await (const { type, permissionContext } of browser.status())
      if (type === "error" && permissionContext) denied.push(permissionContext.subject);
  })();
  browser.subscribe("feathers-sync", { callback: () => {} });
  browser.publish("relayed.feathers", "{}");
  await eventually("both are denied", () => denied.length >= 2);
  assert.deepEqual(denied.sort(), ["feathers-sync", "relayed.feathers"]);
});
