// One of two FeathersJS applications. Both have the same services, share a database, and tell each other of every event
// through feathers-sync. Nothing here knows of the relay or of the gateway.
import { NotFound } from "@feathersjs/errors";
import { feathers } from "@feathersjs/feathers";
import { bodyParser, errorHandler, koa, rest } from "@feathersjs/koa";
import sync from "feathers-sync";
import { readFile, writeFile } from "node:fs/promises";

const { NATS_URL, NATS_USER, NATS_PASS, DATABASE } = process.env;

/** Articles in a file, which stands for the database. */
class Articles {
  async find() {
    return JSON.parse(await readFile(DATABASE, "utf8"));
  }

  async get(id) {
    const article = (await this.find()).find((article) => String(article.id) === String(id));
    if (!article) throw new NotFound(`there is no article ${id}`);
    return article;
  }

  async create({ title }) {
    const articles = await this.find();
    const article = { id: articles.length + 1, title };
    await writeFile(DATABASE, JSON.stringify([...articles, article]));
    return article;
  }

  async patch(id, { title }) {
    await this.get(id);
    const change = (article) => (String(article.id) === String(id) ? { ...article, title } : article);
    await writeFile(DATABASE, JSON.stringify((await this.find()).map(change)));
    return this.get(id);
  }
}

/** Payments come from outside, as events. Clients cannot call it. */
class Payments {
  async find() {
    return [];
  }
}

/** What this application has heard of: it stands for the real-time clients that are connected to it. */
class Heard {
  events = [];

  async find() {
    return this.events;
  }
}

const app = koa(feathers());
app.use(errorHandler());
app.use(bodyParser());
app.configure(rest());

// feathers-sync hears no more after a message that it cannot make sense of. Such a one becomes an event that nobody hears.
function deserialize(text) {
  try {
    const message = JSON.parse(text);
    if (Object.hasOwn(app.services, message.path) && message.event !== "error") return message;
  } catch {
    // Not JSON, or not an object.
  }
  console.error(`not an event of this application: ${text}`);
  return { event: "ignored", path: "payments" };
}

// Before the services, because it adds to each of them.
const natsConnectionOptions = { servers: [NATS_URL], user: NATS_USER, pass: NATS_PASS };
app.configure(sync({ uri: NATS_URL, natsConnectionOptions, deserialize }));

const heard = new Heard();
app.use("articles", new Articles(), { methods: ["find", "get", "create", "patch"] });
app.use("payments", new Payments(), { methods: ["find"], events: ["received"] });
app.use("heard", heard, { methods: ["find"], events: [] });
for (const [path, event] of [["articles", "created"], ["articles", "patched"], ["payments", "received"]])
  app.service(path).on(event, (data) => heard.events.push({ path, event, data }));

// The server has the subscription when it has answered.
await (await app.sync.ready).flush();
const server = await app.listen(0, "127.0.0.1");
server.once("listening", () => process.send({ url: `http://127.0.0.1:${server.address().port}` }));
