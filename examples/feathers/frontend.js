// The frontend: a page of articles from a cache that is kept until the webhook drops it.
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { Webhook } from "standardwebhooks";

const { BACKEND, NATS_WEBSOCKET, WEBHOOK_SECRET } = process.env;
const webhook = new Webhook(WEBHOOK_SECRET);
const page = readFileSync("page.html", "utf8").replace("NATS_WEBSOCKET", NATS_WEBSOCKET);
const library = readFileSync("node_modules/nats.ws/esm/nats.js");

let cache;

/** The articles as JSON. What is fetched while the cache is dropped is not kept. */
async function articles() {
  if (cache) return cache;
  const mine = (cache = fetch(`${BACKEND}/articles`).then((response) => response.text()));
  mine.catch(() => cache === mine && (cache = undefined));
  return mine;
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return Buffer.concat(chunks).toString();
}

const routes = {
  "GET /": async () => [200, "text/html", page],
  "GET /nats.js": async () => [200, "text/javascript", library],
  "GET /articles": async () => [200, "application/json", await articles()],

  "POST /api/webhook": async (request) => {
    try {
      webhook.verify(await body(request), request.headers);
    } catch {
      return [401, "text/plain", "the signature is not valid"];
    }
    // The headers come from the plugin.
    const { "x-feathers-path": path, "x-feathers-event": event } = request.headers;
    console.log(`frontend: ${path} ${event}, the cache is dropped`);
    if (path === "articles") cache = undefined;
    return [204];
  },
};

const server = createServer(async (request, response) => {
  const route = routes[`${request.method} ${request.url}`];
  const answer = route ? route(request) : Promise.resolve([404, "text/plain", "not found"]);
  const [status, type, content] = await answer.catch((error) => [502, "text/plain", error.message]);
  response.writeHead(status, type && { "content-type": `${type}; charset=utf-8`, "cache-control": "no-store" });
  response.end(content);
});
server.listen(0, "127.0.0.1", () => process.send({ url: `http://127.0.0.1:${server.address().port}` }));
