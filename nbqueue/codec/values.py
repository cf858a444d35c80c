"""Values ↔ bytes: what a task returns."""

from __future__ import annotations

import types

from nbqueue.codec.functions import LARGEST_BYTES, dump_frame
from nbqueue.codec.segments import Shelf
from nbqueue.errors import ResultNotSendable

__all__ = ["LARGEST_BYTES", "LONG_BYTES", "dump_value"]

# A value that is longer goes through shared memory where there is some: to sign it twice and to pass it through the
# server takes longer.
LONG_BYTES = 64_000


def dump_value(value: object, name: str, shelf: Shelf | None = None) -> bytes:
    """Pickle what the task `name` returned; what is large is put on the `shelf`, if there is one.

    Raises
    ------
    ResultNotSendable
        If it cannot be pickled, or is larger than 500 MB when it is.
    """
    try:
        data = dump_frame(value, None, shelf, LONG_BYTES)
    except Exception as error:
        if isinstance(value, types.CoroutineType):
            raise ResultNotSendable(
                f"`{name}` ran to its end, but returned a coroutine, which nobody has awaited. Make the task an "
                f"`async def` and await it there, or return asyncio.run({value.__name__}(…))."
            ) from error
        # Some errors are sentences of their own, with a full stop.
        why = str(error).removesuffix(".")
        raise ResultNotSendable(
            f"`{name}` ran to its end, but its result ({_type_name(value)}) cannot be pickled: {why}. Return plain "
            "data from the task."
        ) from error
    if len(data) > LARGEST_BYTES:
        raise ResultNotSendable(
            f"`{name}` ran to its end, but its result ({_type_name(value)}) is {len(data):,} bytes when pickled; "
            f"the limit is {LARGEST_BYTES:,}. Write it to a file and return the path."
        )
    return data


def _type_name(value: object) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
