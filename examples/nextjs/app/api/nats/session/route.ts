import { createSession } from "@/lib/session";
import { cookies } from "next/headers";

/** Vends the cookie with which the browser logs in to nats-server. Scripts cannot read it. */
export async function POST() {
  // Here your application looks who asks, and decides what they may hear: one tenant's part, for example.
  const subjects = process.env.NATS_BROWSER_SUBJECTS!.split(" ");
  const seconds = Number(process.env.NATS_SESSION_SECONDS ?? 300);
  const url = process.env.NATS_WEBSOCKET_URL!;
  const cookie = { httpOnly: true, sameSite: "strict", secure: url.startsWith("wss:"), maxAge: seconds, path: "/" } as const;
  (await cookies()).set("nats", await createSession(subjects, seconds), cookie);
  return Response.json({ url, seconds });
}
