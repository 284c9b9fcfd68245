// Keys, JWTs and the configuration of a nats-server in operator mode. `nsc` does the same on the command line.
import { encodeAccount, encodeOperator, encodeUser, fmtCreds } from "@nats-io/jwt";
import { createAccount, createOperator, createUser } from "@nats-io/nkeys";

const text = (bytes) => new TextDecoder().decode(bytes);

/** What nats-server, the backend, the relay and the frontend need. Everything is new at each start. */
export async function createOperatorMode({ port, webSocketPort, storeFolder, origins }) {
  const [operator, system, content, browsers] = [createOperator(), createAccount(), createAccount(), createAccount()];
  const unlimited = { subs: -1, data: -1, payload: -1, imports: -1, exports: -1, wildcards: true, conn: -1, leaf: -1 };

  // The backend and the relay share an account. It exports what has been relayed, and nothing else.
  const relayed = { name: "relayed", subject: "relayed.cache.>", type: "stream" };
  const contentJwt = await encodeAccount(
    "content",
    content,
    { exports: [relayed], limits: { ...unlimited, mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 } },
    { signer: operator },
  );
  // Browsers have an account of their own: even a permission too many leads nowhere else.
  const browsersJwt = await encodeAccount(
    "browsers",
    browsers,
    { imports: [{ ...relayed, account: content.getPublicKey() }], limits: unlimited },
    { signer: operator },
  );
  const systemJwt = await encodeAccount("system", system, { limits: unlimited }, { signer: operator });
  const operatorJwt = await encodeOperator("example", operator, { system_account: system.getPublicKey() });

  const credentials = async (name, publish) => {
    const user = createUser();
    const permissions = { pub: { allow: publish }, sub: { allow: ["_INBOX.>"] } };
    return text(fmtCreds(await encodeUser(name, user, content, permissions), user));
  };

  return {
    configuration: `
      listen: "127.0.0.1:${port}"
      operator: ${operatorJwt}
      system_account: ${system.getPublicKey()}
      resolver: MEMORY
      resolver_preload: {
        ${system.getPublicKey()}: ${systemJwt}
        ${content.getPublicKey()}: ${contentJwt}
        ${browsers.getPublicKey()}: ${browsersJwt}
      }
      jetstream: { store_dir: ${JSON.stringify(storeFolder)} }
      websocket: {
        listen: "127.0.0.1:${webSocketPort}"
        no_tls: true # in production: tls
        jwt_cookie: "nats"
        # Cookies travel whoever asks for the connection. Only the frontend's own pages may.
        allowed_origins: ${JSON.stringify(origins)}
      }
    `,
    // Browsers are told apart by this account: the frontend signs their JWTs with its seed.
    browsersSeed: text(browsers.getSeed()),
    backendCredentials: await credentials("backend", ["cms.cache.>", "$JS.API.STREAM.CREATE.CMS"]),
    // docs/jetstream.md explains each of these.
    relayCredentials: await credentials("relay", [
      "$JS.API.STREAM.INFO.CMS",
      "$JS.API.CONSUMER.INFO.CMS.nats-webhook-relay",
      "$JS.API.CONSUMER.CREATE.CMS.nats-webhook-relay.cms.cache.>",
      "$JS.API.CONSUMER.MSG.NEXT.CMS.nats-webhook-relay",
      "$JS.ACK.CMS.nats-webhook-relay.>",
      "$JS.ACK.*.*.CMS.nats-webhook-relay.>",
      "relayed.cache.>",
      "_INBOX.>",
      "$JS.API.STREAM.LIST",
      "$JS.API.STREAM.MSG.GET.CMS",
      "$JS.API.CONSUMER.UNPIN.CMS.nats-webhook-relay",
    ]),
  };
}
