// Says of each call on standard input whether its signature is right: "" or what is wrong.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

// Installed elsewhere, by scripts/standardwebhooks.
const { Webhook } = createRequire(`${process.argv[2]}/`)("standardwebhooks");

const verdict = ({ secret, headers, body }) => {
  try {
    new Webhook(secret).verify(body, headers, { jsonParse: false });
    return "";
  } catch (error) {
    return error.message;
  }
};
console.log(JSON.stringify(JSON.parse(readFileSync(0, "utf8")).map(verdict)));
