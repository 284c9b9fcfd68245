import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { headers, listOfEvents, withoutContext } from "./feathers.js";

const bytes = (text) => new TextEncoder().encode(text);
const text = (bytes) => new TextDecoder().decode(bytes);
const sample = readFileSync(new URL("event.json", import.meta.url));

test("event, path and data pass, the context does not", () => {
  const body = text(withoutContext(sample, []));
  assert.deepEqual(JSON.parse(body), {
    event: "patched",
    path: "api/articles",
    data: { id: 42, title: "Hello" },
  });
  assert.doesNotMatch(body, /authorization|jane/);
});

test("what is not known does not pass either", () => {
  const message = bytes('{"event":"created","path":"users","data":1,"hook":{"params":{}},"context":{}}');
  assert.equal(text(withoutContext(message, [])), '{"event":"created","path":"users","data":1}');
});

test("the headers name event and path", () => {
  const set = headers(withoutContext(sample, []));
  assert.deepEqual(
    set.map(([name, value]) => [name, text(value)]),
    [
      ["X-Feathers-Event", "patched"],
      ["X-Feathers-Path", "api/articles"],
    ],
  );
});

test("only the configured events pass", () => {
  assert.deepEqual(listOfEvents(" created\tpatched "), ["created", "patched"]);
  assert.deepEqual([listOfEvents(undefined), listOfEvents(" ")], [[], []]);
  assert.ok(withoutContext(sample, ["created", "patched"]));
  assert.throws(() => withoutContext(sample, ["created"]), {
    tag: "reject",
    val: "the event patched is not in EVENTS",
  });
});

test("what is not a message of feathers-sync fails in every hook", () => {
  const malformed = ["", "{", "null", "[]", '"context"', '{"context":{}}', '{"event":"created"}', '{"event":1,"path":"a"}'];
  for (const message of malformed) {
    assert.throws(() => withoutContext(bytes(message), []), { tag: "failed" });
    assert.throws(() => headers(bytes(message)), { tag: "failed" });
  }
});
