// What is thrown in this form is what the relay is told. Anything else that is thrown fails the message too.
const reject = (text) => ({ tag: "reject", val: text });
const failed = (text) => ({ tag: "failed", val: text });

/** The body for the route that revalidates, from the bytes of a Drupal event. */
export function revalidation(payload, { secret, pathField = "path" }) {
  if (!secret) throw failed("SECRET is not set (PLUGIN_DRUPAL_PATH_SECRET)");

  const path = parse(payload)[pathField];
  if (path === undefined) throw failed(`no "${pathField}" in the event`);
  if (path === null) throw reject(`"${pathField}" is null: nothing to revalidate`);
  if (typeof path !== "string" || !path.startsWith("/")) throw failed(`"${pathField}" is not a path that begins with /`);

  return new TextEncoder().encode(JSON.stringify({ path, secret }));
}

function parse(payload) {
  let event;
  try {
    event = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
  } catch {
    throw failed("the event is not JSON");
  }
  if (event === null || typeof event !== "object") throw failed("the event is not a JSON object");
  return event;
}
