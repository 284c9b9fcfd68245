// What the plugin does, without WebAssembly: path.test.js tests it.

/** Adds the page's path to a JSON object: `"path":"/article/42"` for the subject `cms.cache.article.42`. */
export function withPath(payload, tail, base) {
  let event;
  try {
    event = JSON.parse(new TextDecoder().decode(payload));
  } catch {
    // `failed` is an error, and the message goes to the failed subject. The tag `reject` drops the message deliberately.
    // Anything else that you throw fails the message too, and is in the relay's log.
    throw { tag: "failed", val: "the payload is not JSON" };
  }
  if (event === null || typeof event !== "object" || Array.isArray(event)) {
    throw { tag: "failed", val: "the payload is not a JSON object" };
  }
  const path = `${base}/${tail.replaceAll(".", "/")}`;
  return new TextEncoder().encode(JSON.stringify({ ...event, path }));
}
