# Says of each call on standard input whether its signature is right: "" or what is wrong.
import json
import sys

from standardwebhooks.webhooks import Webhook, WebhookVerificationError


def verdict(call):
    try:
        Webhook(call["secret"]).verify(call["body"], call["headers"], json_parse=False)
        return ""
    except WebhookVerificationError as error:
        return str(error)


print(json.dumps([verdict(call) for call in json.load(sys.stdin)]))
