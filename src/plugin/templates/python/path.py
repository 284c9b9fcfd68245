"""What the plugin does, without WebAssembly: test_path.py tests it."""

import json


def with_path(payload: bytes, tail: str, base: str) -> bytes:
    """Adds the page's path to a JSON object: `"path":"/article/42"` for the subject `cms.cache.article.42`."""
    try:
        event = json.loads(payload)
    except ValueError:
        raise ValueError("the payload is not JSON") from None
    if not isinstance(event, dict):
        raise ValueError("the payload is not a JSON object")
    event["path"] = base + "/" + tail.replace(".", "/")
    return json.dumps(event, separators=(",", ":")).encode()
