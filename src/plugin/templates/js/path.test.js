import assert from "node:assert/strict";
import { test } from "node:test";
import { withPath } from "./path.js";

const bytes = (text) => new TextEncoder().encode(text);
const text = (bytes) => new TextDecoder().decode(bytes);

test("the path is added", () => {
  assert.equal(text(withPath(bytes('{"id":42}'), "article.42", "/de")), '{"id":42,"path":"/de/article/42"}');
});

test("what is not a JSON object fails", () => {
  for (const payload of ["article", "[42]", "null"]) {
    assert.throws(() => withPath(bytes(payload), "article.42", ""), { tag: "failed" });
  }
});
