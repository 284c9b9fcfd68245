// What the plugin does, without WebAssembly: path.test.js tests it.

/** Adds the page's path to a JSON object: `"path":"/article/42"` for the subject `cms.cache.article.42`. */
export function withPath(payload, tail, base) {
  let event;
  try {
    event = JSON.parse(new TextDecoder().decode(payload));
  } catch {
    // `failed` is an error and goes to the failed subject; with the tag `reject` the message is dropped as decided.
    // Anything else that is thrown fails the message too, and is in the relay's log.
    throw { tag: "failed", val: "the payload is not JSON" };
  }
  if (event === null || typeof event !== "object" || Array.isArray(event)) {
    throw { tag: "failed", val: "the payload is not a JSON object" };
  }
  const path = `${base}/${tail.replaceAll(".", "/")}`;
  return new TextEncoder().encode(JSON.stringify({ ...event, path }));
}
