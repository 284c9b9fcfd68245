import assert from "node:assert/strict";
import { test } from "node:test";
import { revalidation } from "./revalidation.js";

const config = { secret: "s3cret" };
const bytes = (text) => new TextEncoder().encode(text);
const body = (event, more) => JSON.parse(new TextDecoder().decode(revalidation(bytes(event), { ...config, ...more })));

test("path and secret, and nothing else of the event", () => {
  const event = '{"entity_type":"node","id":"42","path":"/blog/hello","langcode":"en"}';
  assert.deepEqual(body(event), { path: "/blog/hello", secret: "s3cret" });
});

test("the path may be in another field", () => {
  assert.deepEqual(body('{"alias":"/blog/grün"}', { pathField: "alias" }), { path: "/blog/grün", secret: "s3cret" });
});

test("what has no page is not relayed", () => {
  assert.throws(() => body('{"path":null}'), { tag: "reject", val: '"path" is null: nothing to revalidate' });
});

test("what is no path fails", () => {
  for (const event of ["{}", "[]"]) assert.throws(() => body(event), { tag: "failed", val: 'no "path" in the event' });
  for (const event of ['{"path":""}', '{"path":"blog"}', '{"path":"https://cms.example/blog"}', '{"path":7}'])
    assert.throws(() => body(event), { tag: "failed", val: '"path" is not a path that begins with /' });
});

test("what is not a JSON object fails", () => {
  for (const event of ["", "path=/blog", '{"path":"/blog"', "null", "7", '"/blog"'])
    assert.throws(() => body(event), { tag: "failed", val: /the event is not (a )?JSON/ });
  assert.throws(() => revalidation(new Uint8Array([0x22, 0xff, 0x22]), config), { tag: "failed" });
});

test("without a secret nothing is sent", () => {
  for (const secret of [undefined, ""])
    assert.throws(() => body('{"path":"/"}', { secret }), { tag: "failed", val: /SECRET is not set/ });
});
