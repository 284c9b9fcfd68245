// Runs everything until Ctrl-C, and says what to try.
import { start } from "./system.js";

const { NATS_SERVER, RELAY, PLUGIN } = process.env;
const say = (name, line) => console.log(`${name.padEnd(15)} ${line}`);
const system = await start({ natsServer: NATS_SERVER, relay: RELAY, plugin: PLUGIN }, say);
const [one] = system.applications;

console.log(`
Open ${system.frontend} in a browser or two. Then change an article, and watch the pages follow:

  curl ${one}/articles -H 'content-type: application/json' -d '{"title":"Hello"}'
  curl ${one}/articles/1 -X PATCH -H 'content-type: application/json' -d '{"title":"Hello again"}'

Send a webhook to both applications, and look at what each has heard:

  GATEWAY=${system.gateway} GATEWAY_SECRET=${system.gatewaySecret} node examples/feathers/pay.js 25
  curl ${system.applications.map((url) => `${url}/heard`).join(" ")}

Ctrl-C ends everything.
`);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => system.stop().then(() => process.exit()));
