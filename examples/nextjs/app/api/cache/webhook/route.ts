import { revalidateTag } from "next/cache";
import { Webhook } from "standardwebhooks";

/** The relay calls this for each message, and tells browsers only after it has answered 2xx. */
export async function POST(request: Request) {
  const body = await request.text();
  try {
    new Webhook(process.env.WEBHOOK_SECRET!).verify(body, Object.fromEntries(request.headers), { jsonParse: false });
  } catch {
    return new Response(null, { status: 401 });
  }
  const { type, tags } = JSON.parse(body) as { type?: string; tags?: string[] };
  // After a gap, anything may be stale. Every cached fetch has the tag "content".
  for (const tag of type === "resync" ? ["content"] : tags!) {
    // Not "max": that profile serves the stale entry once more, to the very browser that refreshes.
    revalidateTag(tag, { expire: 0 });
  }
  return new Response(null, { status: 204 });
}
