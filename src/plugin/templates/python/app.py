"""The plugin {{name}}: what the relay calls. README.md says how to build and try it.

Every hook receives a message with `id`, `subject`, `tail`, `headers` (a list of names and values) and `payload` (bytes).
Import modules here at the top, not in functions: the source files no longer exist when the plugin runs.
"""

from functools import cache

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import store
from wit_world.imports.types import HookError_Failed, HookError_Reject, Message

from path import with_path


# Settings do not change, so they are read once, in a hook: the top level runs when the plugin is built.
@cache
def base() -> str:
    # The relay's variable PLUGIN_{{NAME}}_BASE.
    return store.get("BASE") or ""


class WebhookPayload(exports.WebhookPayload):
    """The body of the webhook call."""

    def transform(self, message: Message) -> bytes:
        try:
            return with_path(message.payload, message.tail, base())
        except ValueError as error:
            # `Failed` is an error, and the message goes to the failed subject. `HookError_Reject` drops the message
            # deliberately. Any other exception fails the message too, and is in the relay's log.
            raise Err(HookError_Failed(str(error)))


# class WebhookHeaders(exports.WebhookHeaders):
#     """Headers of the webhook call. They replace those of the same name; others stay."""
#
#     def set(self, message: Message) -> list[tuple[str, bytes]]:
#         return [("x-length", str(len(message.payload)).encode())]


# class RelayedPayload(exports.RelayedPayload):
#     """The payload that is republished for the browsers."""
#
#     def transform(self, message: Message) -> bytes:
#         return b"{}"


# class RelayedSubject(exports.RelayedSubject):
#     """Where below the relayed prefix it is republished."""
#
#     def remap(self, message: Message) -> str:
#         return f"pages.{message.tail}"
