// The content backend: articles in memory, an editor's page, and a message on NATS for each save.
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { jetstream, jetstreamManager } from "@nats-io/jetstream";
import { connect, credsAuthenticator } from "@nats-io/transport-node";

const nats = await connect({
  servers: process.env.NATS_HOST,
  authenticator: credsAuthenticator(await readFile(process.env.NATS_CREDS)),
  maxReconnectAttempts: -1,
});
const streams = await jetstreamManager(nats, { checkAPI: false });
await streams.streams.add({ name: "CMS", subjects: ["cms.cache.>"] });
const js = jetstream(nats);

const articles = new Map(
  ["The harbour opens again", "A night train to Trieste", "Rain is expected"].map((title, index) => [
    String(index + 1),
    { id: String(index + 1), title, text: "Change me in the editor.", revision: 1 },
  ]),
);

async function save(id, { title, text }) {
  const article = { id, title, text, revision: articles.get(id).revision + 1 };
  articles.set(id, article);
  const event = JSON.stringify({ entity: "article", id, revision: article.revision });
  // Without the relay: browsers are told at once.
  for (const browser of listening) browser.write(`data: ${event}\n\n`);
  // With the relay: browsers are told when the frontend has dropped its cached copy. The stream confirms the message, and drops
  // a repetition by its id. If it does not confirm, the editor sees an error and saves again; a database would have an outbox.
  await js.publish(`cms.cache.article.${id}`, event, { msgID: `article-${id}-${article.revision}`, retries: 20 });
  return article;
}

const listening = new Set();
const editor = await readFile(new URL("editor.html", import.meta.url));

createServer(async (request, response) => {
  const json = (status, body) => response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
  const [, folder, id] = new URL(request.url, "http://backend").pathname.split("/");
  try {
    if (folder === "") {
      response.writeHead(200, { "content-type": "text/html" }).end(editor);
    } else if (folder === "events") {
      response.writeHead(200, { "content-type": "text/event-stream", "access-control-allow-origin": "*" }).flushHeaders();
      listening.add(response);
      response.on("close", () => listening.delete(response));
    } else if (folder !== "articles" || (id && !articles.has(id))) {
      json(404, { error: "not found" });
    } else if (request.method === "POST") {
      let body = "";
      for await (const chunk of request) body += chunk;
      json(200, await save(id, JSON.parse(body)));
    } else {
      json(200, id ? articles.get(id) : [...articles.values()]);
    }
  } catch (error) {
    console.error(error);
    json(503, { error: String(error) });
  }
}).listen(process.env.PORT, "127.0.0.1", () => console.log("ready"));
