"""A call that did not succeed, kept so that it can be shown and run again: here, where a debugger sees it.

Always true here: arguments are kept only until their call has succeeded, and each run gets fresh ones.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from nbqueue import context
from nbqueue.client.results.frames import user_frames_only
from nbqueue.client.sending.listener import OpenCall
from nbqueue.client.sending.recipe import Holding, Prepared, items_of, latest
from nbqueue.codec.blobs import are_put, load_keywords
from nbqueue.codec.frames import load_frame
from nbqueue.codec.glimpse import glimpse_arguments, glimpse_keywords, glimpse_values
from nbqueue.codec.inputs import holding
from nbqueue.codec.seeds import Rng, generator
from nbqueue.errors import NbqueueError, NotSendable
from nbqueue.stream.keys import value_name

__all__ = ["Kept", "replay"]


@dataclass(frozen=True, slots=True)
class Kept:
    """What a call is made of. `keywords` are pickled, for `arguments` that are plain or where they are sent apart;
    `attempts` is how often an exception of its own may end it, `rng` what gives it its random numbers, `inputs` the
    futures among its arguments that were open when it was made, by the names of their values."""

    fn: Callable[..., Any]
    arguments: Prepared
    keywords: bytes = b""
    attempts: int = 1
    rng: Rng | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, fn: Callable[..., Any], call: OpenCall, item: int = 0) -> Kept:
        """From a call's sealed message, which is of our own making."""
        body = call.body()
        rng = None if body.rng is None else (*body.rng[:2], body.rng[2] + item)
        inputs: dict[str, Any] = {}
        if call.node is not None:
            inputs.update(call.node.items)
            for source in call.node.inputs:
                future: Any = source.sink
                inputs[value_name(future._link.client, source.call.n)] = future
        return cls(fn, items_of(call)[item], body.common, body.retries + 1, rng, inputs)

    @property
    def _pickled(self) -> bytes | None:
        """The arguments, unless they are plain or were never sent."""
        if isinstance(self.arguments, Holding):
            return self.arguments.frame
        return self.arguments if isinstance(self.arguments, bytes) else None

    def load(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fresh arguments. Runs users' unpickling code."""
        if isinstance(self.arguments, tuple):
            return self.arguments, load_keywords(self.keywords) if self.keywords else {}
        with holding({name: future.result for name, future in self.inputs.items()}):
            args, kwargs = load_frame(self._pickled or b"")
        return args, load_keywords(self.keywords) if are_put(self.keywords) else kwargs

    def glimpse(self) -> str:
        """The arguments in a few words, by the parameters' names; runs no user's code. Empty where nothing is known."""
        if isinstance(self.arguments, tuple):
            seen: Any = self.arguments, glimpse_keywords(self.keywords)
        else:
            seen = glimpse_values(self._pickled or b"")
        if seen is None:
            return ""
        args, kwargs = seen
        if are_put(self.keywords):
            kwargs = glimpse_keywords(self.keywords)
        return glimpse_arguments(args, kwargs or {}, _parameters(self.fn))


def replay(name: str, kept: Kept | None) -> Any:
    """Call the function as it is now with fresh arguments, in this process and thread.

    Raises
    ------
    NbqueueError
        If the arguments are not there.
    Exception
        Whatever the function raises: its own frame is the last one, and none of ours comes after.
    """
    if kept is None:
        raise NbqueueError(
            f"`{name}` cannot be replayed: arguments are kept only until a call has succeeded. Call the task's "
            "`.local(…)` with the same ones."
        )
    if kept.arguments is None or isinstance(kept.arguments, NotSendable):
        raise NbqueueError(f"`{name}` cannot be replayed: it was never sent, so its arguments are not known here.")
    fn = latest(kept.fn)
    before = context.current()
    if before is None:
        # So that a bare call of a task in it runs right here, as it does in a worker.
        context.set_current(_standing_in(name))
    try:
        with user_frames_only:
            args, kwargs = kept.load()
            if kept.rng is not None:
                name, seed, index = kept.rng
                kwargs = {**kwargs, name: generator(seed, index)}
                if before is None:
                    context.seed_item(seed, index)
            value = fn(*args, **kwargs)
            return _awaited(value) if inspect.iscoroutine(value) else value
    finally:
        context.set_current(before)


def _awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine to its end: in a thread where a loop runs already, as in a notebook."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    ours = contextvars.copy_context()
    with ThreadPoolExecutor(1, thread_name_prefix="nbqueue-replay") as thread:
        return thread.submit(ours.run, asyncio.run, coroutine).result()


def _standing_in(name: str) -> context.TaskContext:
    return context.TaskContext(
        name=name,
        attempt=1,
        queue="",
        address={},
        secret=b"",
        begin_wait=lambda: None,
        end_wait=lambda: None,
        post=lambda kind, key, details: None,
    )


def _parameters(fn: Callable[..., Any]) -> list[str]:
    """Names of the parameters that take positional arguments, up to a starred one."""
    names = []
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (ValueError, TypeError):
        # Compiled, and silent about what it takes.
        return []
    for each in parameters:
        if each.kind not in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD):
            break
        names.append(each.name)
    return names
