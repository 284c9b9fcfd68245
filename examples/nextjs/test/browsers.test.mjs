// The example in real browsers: what a visitor sees, and what a stranger does not.
import assert from "node:assert/strict";
import { cp, readFile, rm, writeFile } from "node:fs/promises";
import { after, afterEach, before, test as plainTest } from "node:test";
import { fileURLToPath } from "node:url";
import { encodeUser } from "@nats-io/jwt";
import { createAccount, createUser } from "@nats-io/nkeys";
import { chromium } from "playwright-core";
import { start } from "../start.mjs";

const flags = `--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
  --disable-component-update --disable-sync`.split(/\s+/);
const test = (name, run) => plainTest(name, { timeout: 150_000 }, run);
const limit = { timeout: 60_000 };
let system, browser;
/** Pages that are open during all tests: two on each of two instances. */
let pages;

before(async () => {
  system = await start({ say: () => {} });
  browser = await chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: flags });
  const [first, second] = system.frontends;
  pages = await Promise.all([first, first, second, second].map((frontend) => open(`${frontend}/articles/1`)));
});

after(async () => {
  await browser?.close();
  await system?.stop();
});

afterEach(() => system?.gates.forEach((gate) => Object.assign(gate, { status: undefined, pass: async () => {} })));

/** Opens a page as another visitor would, and notes all that it hears, fetches and shows. */
async function open(url, context) {
  const page = await (context ?? (await browser.newContext())).newPage();
  const id = url.match(/\d+$/)?.[0] ?? "1";
  Object.assign(page, { heard: 0, told: 0, sockets: [], mistakes: [] });
  page.on("domcontentloaded", () => (page.sockets = []));
  page.on("pageerror", (error) => page.mistakes.push(String(error)));
  page.on("websocket", (socket) => {
    page.sockets.push(socket);
    socket.on("framereceived", ({ payload }) => {
      for (const [, of, revision] of String(payload).matchAll(/"id":"(\d+)","revision":(\d+)/g)) {
        if (of !== id) continue;
        page.heard = Number(revision);
        page.told++;
      }
    });
  });
  page.on("request", async (request) => {
    if (!new URL(request.url()).searchParams.has("_rsc") || new URL(request.url()).pathname !== `/articles/${id}`) return;
    const heard = page.heard;
    const answer = await request.response().then((response) => response?.text()).catch(() => "");
    const revision = Number(answer?.match(/"revision":(\d+)/)?.[1] ?? Infinity);
    if (revision < heard) page.mistakes.push(`heard of revision ${heard}, then fetched ${revision}`);
  });
  await page.addInitScript(() => {
    window.shown = [];
    const note = () => {
      const revision = Number(document.querySelector("footer")?.textContent.match(/\d+/)?.[0]);
      if (revision && revision !== window.shown.at(-1)) window.shown.push(revision);
    };
    new MutationObserver(note).observe(document, { subtree: true, childList: true, characterData: true });
  });
  await page.goto(url, limit);
  await page.evaluate(() => (window.loaded = "once"));
  await connected(page);
  return page;
}

const connected = (page) => page.locator(".state:not(:text('connecting'))").waitFor(limit);

async function save(title, id = "1") {
  const body = JSON.stringify({ title, text: `About ${title}.` });
  const response = await fetch(`${system.backend}/articles/${id}`, { method: "POST", body });
  assert.equal(response.status, 200);
  return (await response.json()).revision;
}

async function shows(page, title) {
  await page.locator("h1", { hasText: new RegExp(`^${title}$`) }).waitFor(limit).catch(async () => {
    assert.fail(`${page.url()} shows ${await page.locator("h1").textContent()}, not ${title}; the relay:\n${system.relay.output().slice(-3000)}`);
  });
}

/** All pages show this, and none was reloaded, has shown something older again, or was served it after it had heard of the new. */
async function allShow(title, which = pages) {
  await Promise.all(which.map((page) => shows(page, title)));
  for (const page of which) {
    assert.deepEqual(page.mistakes, []);
    const { loaded, shown } = await page.evaluate(() => ({ loaded: window.loaded, shown: window.shown }));
    assert.equal(loaded, "once", "the page was reloaded");
    assert.deepEqual(shown, shown.toSorted((a, b) => a - b), "the page went back");
  }
}

async function until(condition, what) {
  for (const end = Date.now() + limit.timeout; !(await condition()); await new Promise((next) => setTimeout(next, 50))) {
    assert.ok(Date.now() < end, `not within a minute: ${what}`);
  }
}

/** Speaks NATS as a stranger would, with the cookies of the page; waits for the answer to all of it, or for the end. */
async function speak(page, ...lines) {
  await page.evaluate(
    ([url, said]) =>
      new Promise((resolve) => {
        window.answer = "";
        const socket = new WebSocket(url);
        socket.binaryType = "arraybuffer";
        socket.onmessage = ({ data }) => {
          const greeting = window.answer === "";
          window.answer += typeof data === "string" ? data : new TextDecoder().decode(data);
          if (greeting) socket.send(`CONNECT {"protocol":1,"verbose":false,"headers":true}\r\n${said}PING\r\n`);
          if (window.answer.includes("PONG")) resolve();
        };
        socket.onclose = () => ((window.answer += "closed"), resolve());
      }),
    [system.webSocket, lines.map((line) => `${line}\r\n`).join("")],
  );
  return page.evaluate(() => window.answer);
}

/** A page of this origin that does nothing, with this as its cookie. */
async function blank(origin, cookie) {
  const context = await browser.newContext();
  if (cookie) await context.addCookies([{ name: "nats", value: cookie, url: origin }]);
  const page = await context.newPage();
  await page.goto(`${origin}/none`, limit);
  return page;
}

async function vend(frontend) {
  const response = await fetch(`${frontend}/api/nats/session`, { method: "POST" });
  return response.headers.get("set-cookie").match(/^nats=([^;]+)/)[1];
}

test("side by side: stale without the relay, fresh with it", async () => {
  const page = await browser.newPage({ viewport: { width: 1100, height: 790 } });
  await page.goto(system.frontends[0], limit);
  const frame = (title) => page.frameLocator(`iframe[title="${title}"]`);
  const [without, first, second] = ["Without the relay", "With the relay", "With the relay, second instance"].map(frame);
  await without.locator(".state.fresh").waitFor(limit);
  for (const each of [first, second]) await connected(each);

  // The frontend needs as long as the browser that was told too early.
  const early = without.locator(".state.stale").waitFor(limit);
  for (const gate of system.gates) gate.pass = () => early;
  await frame("Editor").getByLabel("Title").fill("The harbour closes for a week");
  await frame("Editor").getByLabel("Text").fill("Ferries leave from the old pier until Sunday.");
  await frame("Editor").getByRole("button").click();
  await early;
  for (const each of [first, second]) {
    await each.locator("h1", { hasText: "The harbour closes for a week" }).waitFor(limit);
    await each.locator(".state.fresh").waitFor(limit);
  }
  await frame("Editor").getByText("Saved as revision").waitFor(limit);
  assert.equal(await without.locator("h1").textContent(), "The harbour opens again", "nothing tells it to ask again");
  const picture = await page.screenshot({ path: process.env.SCREENSHOT });
  assert.ok(picture.length < 150_000, `the picture has ${picture.length} bytes`);
  await page.close();
});

test("after each save, every open page shows the new text", async () => {
  for (let round = 1; round <= 5; round++) {
    await save(`Round ${round}`);
    await allShow(`Round ${round}`);
  }
  await Promise.all(Array.from({ length: 20 }, (_, index) => save(`Burst ${index}`)));
  await save("After the burst");
  await allShow("After the burst");
});

test("while one instance answers 503, no browser is told, and afterwards all are", async () => {
  const before = await save("Fair weather");
  await until(() => pages.every((page) => page.heard === before), "all hear of it");
  const [, gate] = system.gates;
  Object.assign(gate, { status: 503, calls: 0 });
  await save("Through the storm");
  await until(() => gate.calls >= 3, "the relay tries again");
  for (const page of pages) assert.equal(page.heard, before);
  gate.status = undefined;
  await allShow("Through the storm");
});

test("what is saved while the relay is away is shown once it is back", async () => {
  await system.relay.stop();
  await save("Saved alone");
  system.relay = await system.startRelay();
  await allShow("Saved alone");
});

test("browsers come back when nats-server does", async () => {
  await system.natsServer.stop();
  await Promise.all(pages.map((page) => page.locator(".state:text('connecting')").waitFor(limit)));
  system.natsServer = await system.startNatsServer();
  await Promise.all(pages.map(connected));
  await until(() => save("Back again").then(() => true, () => false), "the backend is connected");
  await allShow("Back again");
});

test("a browser that was away catches up", async () => {
  const context = await browser.newContext();
  let isAway = false;
  const sockets = new Set();
  await context.route("**/api/nats/session", (route) => (isAway ? route.abort() : route.continue()));
  await context.routeWebSocket(/./, (socket) => {
    socket.connectToServer();
    sockets.add(socket);
  });
  const page = await open(`${system.frontends[0]}/articles/1`, context);
  const before = await page.locator("h1").textContent();
  isAway = true;
  for (const socket of sockets) await socket.close();
  await page.locator(".state:text('connecting')").waitFor(limit);
  await save("Missed");
  await allShow("Missed");
  assert.equal(await page.locator("h1").textContent(), before);
  isAway = false;
  await allShow("Missed", [page]);
  await context.close();
});

test("a message that is given up is followed by a resync", async () => {
  const [gate] = system.gates;
  gate.status = 404;
  gate.calls = 0;
  await save("Given up");
  await until(() => gate.calls >= 1, "the call");
  gate.status = undefined;
  await allShow("Given up");
});

test("navigation keeps one connection and loses nothing", async () => {
  await save("Departure");
  const page = await open(`${system.frontends[0]}/articles`);
  await page.getByRole("link", { name: "Departure" }).click();
  await shows(page, "Departure");
  await page.getByRole("link", { name: "All articles" }).click();
  await shows(page, "Articles");
  await save("Meanwhile");
  await page.getByRole("link", { name: "Meanwhile" }).waitFor(limit);
  await page.goBack();
  await shows(page, "Meanwhile");
  await save("At last");
  await allShow("At last", [page]);
  assert.equal(page.sockets.length, 1);
  await page.close();
});

test("the session is renewed before it ends", async (t) => {
  const [, , frontend] = system.frontends;
  const instance = await system.startFrontend(system.frontendPorts[2], { env: { NATS_SESSION_SECONDS: "20" } });
  t.after(() => instance.stop());
  const page = await open(`${frontend}/articles/2`);
  const old = await blank(frontend, await vend(frontend));
  await until(() => page.sockets.length >= 3, "two renewals");
  await until(() => page.sockets.filter((socket) => !socket.isClosed()).length === 1, "the last connection is the only one");
  const revision = await save("Renewed", "2");
  await until(() => page.heard === revision, "the new connection hears");
  // What was not renewed has expired by now.
  assert.match(await speak(old, "SUB relayed.cache.> 1"), /-ERR 'Authorization Violation'.*closed$/s);
  await page.close();
});

test("a forged cookie, or none, hears nothing", async () => {
  const [frontend] = system.frontends;
  const rights = { bearer_token: true, sub: { allow: [">"] } };
  const forged = await encodeUser("browser", createUser(), createAccount(), rights);
  const genuine = await vend(frontend);
  const altered = genuine.replace(/\.(.+)\./, (_, claims) => {
    const text = Buffer.from(claims, "base64url").toString().replaceAll("relayed.cache.>", ">");
    return `.${Buffer.from(text).toString("base64url")}.`;
  });
  for (const cookie of [undefined, "x", forged, altered]) {
    const page = await blank(frontend, cookie);
    assert.match(await speak(page, "SUB > 1"), /^INFO .*-ERR 'Authorization Violation'.*closed$/s);
    await page.context().close();
  }
  // The same words are understood with a genuine one.
  assert.match(await speak(await blank(frontend, genuine), "SUB relayed.cache.> 1"), /PONG/);
});

test("a page of another origin cannot use the visitor's cookie", async () => {
  const page = await blank(system.backend, await vend(system.frontends[0]));
  assert.equal(await speak(page, "SUB relayed.cache.> 1"), "closed");
});

test("a tenant hears nothing of another one", async (t) => {
  const [, , frontend] = system.frontends;
  const env = { NATS_BROWSER_SUBJECTS: "relayed.cache.acme.>" };
  const instance = await system.startFrontend(system.frontendPorts[2], { env });
  t.after(() => instance.stop());
  const page = await blank(frontend, await vend(frontend));
  const answer = await speak(page, "SUB relayed.cache.> 1", "SUB relayed.cache.article.1 2", "SUB > 3", "SUB relayed.cache.acme.> 4");
  assert.equal(answer.match(/-ERR 'Permissions Violation for Subscription/g).length, 3, answer);
  await save("Not for acme");
  await allShow("Not for acme");
  assert.doesNotMatch(await page.evaluate(() => window.answer), /MSG/);
});

test("browsers cannot publish", async () => {
  const [frontend] = system.frontends;
  const page = await blank(frontend, await vend(frontend));
  const forged = '{"entity":"article","id":"1","revision":999999}';
  const subjects = ["relayed.cache.article.1", "cms.cache.article.1", "$JS.API.INFO", "_INBOX.x"];
  const answer = await speak(page, ...subjects.map((subject) => `PUB ${subject} ${forged.length}\r\n${forged}`));
  for (const subject of subjects) assert.ok(answer.includes(`-ERR 'Permissions Violation for Publish to "${subject}"'`), answer);
  const revision = await save("Genuine");
  await allShow("Genuine");
  for (const each of pages) assert.equal(each.heard, revision);
});

test("the route takes only calls that the relay has signed", async () => {
  for (const headers of [{}, { "webhook-id": "msg_1", "webhook-timestamp": String(Math.floor(Date.now() / 1000)), "webhook-signature": "v1,eA==" }]) {
    const response = await fetch(`${system.frontends[0]}/api/cache/webhook`, { method: "POST", headers, body: '{"type":"resync"}' });
    assert.equal(response.status, 401);
  }
});

test("strict mode and hot reload neither lose nor double anything", async (t) => {
  // A copy, to change a file of it.
  const folder = fileURLToPath(new URL("../.dev", import.meta.url));
  await rm(folder, { recursive: true, force: true });
  for (const name of ["app", "lib", "next.config.ts", "tsconfig.json", "package.json"]) {
    await cp(fileURLToPath(new URL(`../${name}`, import.meta.url)), `${folder}/${name}`, { recursive: true });
  }
  const instance = await system.startFrontend(system.frontendPorts[3], { command: "dev", folder });
  t.after(async () => {
    await instance.stop();
    await rm(folder, { recursive: true });
  });
  // It compiles what is called for the first time.
  await fetch(`${system.frontends[3]}/articles/2`);
  await fetch(`${system.frontends[3]}/api/nats/session`, { method: "POST" });
  const page = await open(`${system.frontends[3]}/articles/2`);
  const edit = async (name, from, to) => {
    const code = await readFile(`${folder}/${name}`, "utf8");
    assert.ok(code.includes(from));
    await writeFile(`${folder}/${name}`, code.replaceAll(from, to));
  };
  const alive = () => page.sockets.filter((socket) => socket.url().startsWith(system.webSocket) && !socket.isClosed());
  const hearsOnce = async () => {
    await connected(page);
    await until(() => alive().length === 1, "one connection");
    page.told = 0;
    const revision = await save("Developed", "2");
    await until(() => page.heard === revision, "it hears");
    assert.equal(page.told, 1, "it hears once");
  };
  await hearsOnce();
  await edit("app/refresh.tsx", "className={`state ${state}`}", "className={`state ${state} reloaded`}");
  await page.locator(".reloaded").waitFor(limit);
  await hearsOnce();
  assert.equal(await page.evaluate(() => window.loaded), "once", "the page was reloaded");
  // Next.js reloads the page for a file that exports hooks beside components.
  await edit("lib/nats.tsx", "pingInterval: 20_000", "pingInterval: 19_000");
  await page.waitForFunction(() => !window.loaded, undefined, limit);
  await hearsOnce();
});
