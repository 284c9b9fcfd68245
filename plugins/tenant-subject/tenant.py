"""Tenants: where their messages go, and what of them."""

import json


class Reject(Exception):
    """The message is not to be relayed, and that is right so."""


def subject(payload: bytes, tail: str, field: str) -> str:
    """The tail below the tenant's token."""
    tenant = look_up(parse(payload), field)
    if tenant is None:
        raise Reject(f'no "{field}" in the message: it belongs to no tenant')
    if isinstance(tenant, int) and not isinstance(tenant, bool):
        tenant = str(tenant)
    # isprintable() is false for control characters and for all white space but the blank.
    if not isinstance(tenant, str) or not tenant or not tenant.isprintable() or set(tenant) & set(" .*>"):
        raise ValueError(f'"{field}" is not one token of a subject: {json.dumps(tenant)[:80]}')
    return f"{tenant}.{tail}"


def slim(payload: bytes, fields: list[str]) -> bytes:
    """The payload with nothing but these fields, of which those that it does not have are left out."""
    message, kept = parse(payload), {}
    for field in fields:
        value = look_up(message, field)
        if value is not None:
            *parents, last = field.split(".")
            place = kept
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
    return json.dumps(kept, separators=(",", ":"), allow_nan=False).encode()


def look_up(value, field: str):
    """The value at a dotted path such as `site.tenant`, else None."""
    for name in field.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def parse(payload: bytes) -> dict:
    try:
        message = json.loads(payload.decode())
    except ValueError:
        raise ValueError("the message is not JSON") from None
    if not isinstance(message, dict):
        raise ValueError("the message is not a JSON object")
    return message
