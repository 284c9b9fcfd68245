"""The hooks that the relay calls. What they do is in tenant.py, which knows nothing of WebAssembly."""

from functools import cache

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import store
from wit_world.imports.types import HookError_Failed, HookError_Reject, Message

import tenant


# Read at the first call, not at the top level, which runs when the plugin is built. It never changes afterwards.
@cache
def field() -> str:
    return store.get("FIELD") or "tenant"


@cache
def kept() -> list[str]:
    # The field must stay: the subject is made after this payload, and from it.
    return [*(store.get("KEEP") or "id type").split(), field()]


class RelayedPayload(exports.RelayedPayload):
    def transform(self, message: Message) -> bytes:
        return answer(tenant.slim, message.payload, kept())


class RelayedSubject(exports.RelayedSubject):
    def remap(self, message: Message) -> str:
        return answer(tenant.subject, message.payload, message.tail, field())


def answer(function, *arguments):
    """What `function` returns, or why it does not, as the relay is told. Any other exception fails the message too."""
    try:
        return function(*arguments)
    except tenant.Reject as reason:
        raise Err(HookError_Reject(str(reason)))
    except ValueError as reason:
        raise Err(HookError_Failed(str(reason)))
