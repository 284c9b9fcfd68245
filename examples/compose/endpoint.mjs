// Stands in for the frontend: prints what it is sent, and accepts it.
import { createServer } from "node:http";

const server = createServer(async (request, response) => {
  let body = "";
  for await (const chunk of request) body += chunk;
  console.log(`${request.headers["nats-subject"]} ${body}`);
  response.writeHead(204).end();
});
server.listen(Number(process.env.PORT ?? 3000), () => console.log(`listening on ${server.address().port}`));
process.on("SIGTERM", () => process.exit());
