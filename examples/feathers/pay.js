// Stands for a payment provider: sends one signed webhook, `node pay.js AMOUNT`. Its body is an event as feathers-sync writes it.
import { Webhook } from "standardwebhooks";

/** Answers with the gateway's response. */
export function pay(gateway, secret, amount, body = { event: "received", path: "payments", data: { amount } }) {
  const [id, time, text] = [`pay_${crypto.randomUUID()}`, new Date(), JSON.stringify(body)];
  const headers = {
    "content-type": "application/json",
    "webhook-id": id,
    "webhook-timestamp": String(Math.floor(time / 1000)),
    "webhook-signature": new Webhook(secret).sign(id, time, text),
  };
  return fetch(gateway, { method: "POST", headers, body: text });
}

if (import.meta.filename === process.argv[1]) {
  const response = await pay(process.env.GATEWAY, process.env.GATEWAY_SECRET, Number(process.argv[2] ?? 1));
  console.log(response.status, await response.text());
}
