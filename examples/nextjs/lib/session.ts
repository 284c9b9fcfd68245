import { encodeUser } from "@nats-io/jwt";
import { createUser, fromSeed } from "@nats-io/nkeys";

/** A JWT with which a browser may subscribe to these subjects for some time, and do nothing else. */
export async function createSession(subjects: string[], seconds: number) {
  const account = fromSeed(new TextEncoder().encode(process.env.NATS_BROWSERS_SEED!));
  return encodeUser(
    "browser",
    createUser(),
    account,
    {
      // The JWT alone is enough to log in: the browser never has a key.
      bearer_token: true,
      allowed_connection_types: ["WEBSOCKET"],
      sub: { allow: subjects },
      pub: { deny: [">"] },
    },
    { exp: Math.floor(Date.now() / 1000) + seconds },
  );
}
