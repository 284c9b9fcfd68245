// What is thrown in this form is what the relay is told. Anything else that is thrown fails the message too.
const reject = (text) => ({ tag: "reject", val: text });
const failed = (text) => ({ tag: "failed", val: text });

const encoder = new TextEncoder();

/** The configured list; an empty one means every event. */
export const listOfEvents = (text = "") => text.split(/\s+/).filter(Boolean);

/** The event as it may be seen outside: what is named here passes, whatever else feathers-sync may send. */
export function withoutContext(payload, events) {
  const { event, path, data } = parse(payload);
  if (events.length > 0 && !events.includes(event)) throw reject(`the event ${event} is not in EVENTS`);
  return encoder.encode(JSON.stringify({ event, path, data }));
}

/** The headers of the call, from the body that `withoutContext` has made. */
export function headers(payload) {
  const { event, path } = parse(payload);
  return [
    ["X-Feathers-Event", encoder.encode(event)],
    ["X-Feathers-Path", encoder.encode(path)],
  ];
}

function parse(payload) {
  let message;
  try {
    message = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(payload));
  } catch {
    throw failed("the message is not JSON");
  }
  for (const name of ["event", "path"])
    if (typeof message?.[name] !== "string") throw failed(`not a message of feathers-sync: it has no "${name}"`);
  return message;
}
