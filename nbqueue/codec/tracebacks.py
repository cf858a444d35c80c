"""An exception and its frames → bytes → the same exception.

The worker dumps what a task raised, the kernel loads it and raises it from ``result()``. What arrives keeps
its type, attributes, notes, causes and a real traceback: the user's frames and a library's, none of ours,
with the positions that source lines and carets are drawn from. Nothing here fails because an exception is
badly made: what cannot be rebuilt arrives as a `RemoteError` that tells the same story.
"""

from __future__ import annotations

import linecache
import pickle
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from nbqueue.codec import functions
from nbqueue.codec.messages import said_of
from nbqueue.codec.standins import Frame, frames_of, is_library, is_ours, lend_source, traceback_of
from nbqueue.errors import NbqueueError, RemoteError

__all__ = ["Gist", "dump_exception", "gist_of", "load_exception"]

# Far more than anyone reads; a failed task group of thousands must not make a reply of megabytes.
_EXCEPTIONS = 200
# What is left of a text where the whole is too large to be sent.
_CUT = 1000
_TEXT_CHARACTERS = 10_000
# Of the message, where a line must do.
_GIST_CHARACTERS = 200

# Sent on their own; and the object of an AttributeError may be anything, of any size.
_NOT_SENT = {
    ("BaseException", "args"),
    ("BaseExceptionGroup", "message"),
    ("BaseExceptionGroup", "exceptions"),
    ("AttributeError", "obj"),
}


@dataclass(frozen=True, slots=True)
class _Link:
    """One exception of a chain; ``cause``, ``context`` and ``members`` are indexes into the list of links."""

    type_name: str
    text: str
    message: str  # of the RemoteError, where there will be one
    body: bytes | None = None  # None: only the text travels
    frames: tuple[Frame, ...] = ()
    cause: int | None = None
    context: int | None = None
    suppress_context: bool = False
    members: tuple[int, ...] = ()
    left_out: int = 0
    frames_left_out: int = 0


class Gist(NamedTuple):
    """An exception in a line: its type and message, and where in the user's own code it came from, if anywhere."""

    type_name: str
    text: str
    filename: str = ""
    line: int = 0
    function: str = ""
    source: str = ""


def dump_exception(exc: BaseException, raiser: str = "the task") -> bytes:
    """Bytes of an exception with its traceback, causes and, for a group, members.

    SystemExit, KeyboardInterrupt and their like travel as text only, so that no kernel is ended by them.
    """
    sources: dict[str, dict[int, str]] = {}
    try:
        links = _links(exc, sources, raiser)
        data = _pack_links(links, sources)
    except BaseException as error:  # noqa: BLE001 - what a class can override may raise; the task still ends
        name = said_of(type(exc), "__name__")
        links = [_Link(name, "", f"{name} (its traceback is lost: {_last_words(error)})")]
        data = _pack_links(links, {})
    if len(data) > functions.LARGEST_BYTES:
        why = f"(cut: {len(data):,} bytes when pickled; the limit is {functions.LARGEST_BYTES:,})"
        links = [
            replace(link, text=link.text[:_CUT], message=f"{link.message[:_CUT]} {why}", body=None) for link in links
        ]
        data = _pack_links(links, sources)
    return data


def gist_of(data: bytes) -> Gist:
    """What `load_exception` would give, without rebuilding it: runs no user's code, and takes microseconds.

    Raises what ``pickle.loads`` does, or TypeError, for bytes that make no sense.
    """
    found = pickle.loads(data)
    if isinstance(found, NbqueueError):
        return Gist(_type_name(type(found)), str(found).partition("\n")[0][:_GIST_CHARACTERS])
    return Gist(*found[0])


def load_exception(data: bytes) -> BaseException:
    """Rebuild what `dump_exception` made; a `RemoteError` where its type or content cannot be had here.

    Takes an error of ours that was pickled plainly, too.

    Whatever comes is an `Exception`. It may be a StopIteration, which must not be raised inside a generator
    nor set on an asyncio future.
    """
    try:
        found = pickle.loads(data)
        if isinstance(found, NbqueueError):
            return found
        links, sources = pickle.loads(found[1])
        for filename, lines in sources.items():
            lend_source(filename, lines)
        return _rebuild_chain(links)
    except Exception as error:  # noqa: BLE001 - a task's exception must end its future, whatever it holds
        failure = RemoteError("The task raised an exception that could not be read here.")
        failure.__cause__ = error
        return failure


# ---- the worker's side


def _pack_links(links: list[_Link], sources: dict[str, dict[int, str]]) -> bytes:
    # In two layers, so that the gist of thousands can be read in a moment.
    gist = tuple(_gist(links[0], sources))
    return pickle.dumps((gist, pickle.dumps((links, sources), protocol=functions.PROTOCOL)), functions.PROTOCOL)


def _gist(link: _Link, sources: dict[str, dict[int, str]]) -> Gist:
    text = " ".join(link.text[: 2 * _GIST_CHARACTERS].split())[:_GIST_CHARACTERS]
    own = [frame for frame in link.frames if not is_library(frame.filename)]
    if not link.frames:
        return Gist(link.type_name, text)
    frame = (own or link.frames)[-1]
    source = sources.get(frame.filename, {}).get(frame.line, "").strip()[:_GIST_CHARACTERS]
    return Gist(link.type_name, text, frame.filename, frame.line, frame.qualname, source)


def _links(exc: BaseException, sources: dict[str, dict[int, str]], raiser: str) -> list[_Link]:
    order = [exc]
    index = {id(exc): 0}
    for each in order:  # grows as it goes; a cycle ends because each is entered once
        for other in (each.__cause__, _context(each), *_members(each)):
            if other is not None and id(other) not in index and len(order) < _EXCEPTIONS:
                index[id(other)] = len(order)
                order.append(other)
    raised = {id(exc), *(id(member) for each in order for member in _members(each))}
    return [
        _link(each, index, sources, left_by=raiser if id(each) in raised and _leaves(each) else "") for each in order
    ]


def _leaves(exc: BaseException) -> bool:
    """Whether it would end a program that has ``except Exception``. A group is as harmless as its members."""
    return not isinstance(exc, Exception | BaseExceptionGroup)


def _link(
    exc: BaseException, index: Mapping[int, int], sources: dict[str, dict[int, str]], *, left_by: str
) -> _Link:
    type_name, text = _type_name(type(exc)), _text(exc)
    members = [index[id(member)] for member in _members(exc) if id(member) in index]
    frames, frames_left_out = frames_of(exc.__traceback__, sources)
    return _Link(
        type_name=type_name,
        text=text,
        message=_message_of_leaving(exc, text, left_by) if left_by else _summary(type_name, text),
        body=None if left_by else _body(exc),
        frames=frames,
        cause=index.get(id(exc.__cause__)),
        context=index.get(id(_context(exc))),
        suppress_context=exc.__suppress_context__,
        members=tuple(members),
        left_out=len(_members(exc)) - len(members),
        frames_left_out=frames_left_out,
    )


def _context(exc: BaseException) -> BaseException | None:
    """What was being handled, unless that began and ended in code of ours: what its recursion ran into, say."""
    context = exc.__context__
    for _ in range(_EXCEPTIONS):  # a cycle ends, too
        if context is None or not _is_ours_alone(context.__traceback__):
            break
        context = context.__context__
    return context


def _is_ours_alone(tb: types.TracebackType | None) -> bool:
    if tb is None:
        return False
    while tb is not None:
        if not is_ours(tb):
            return False
        tb = tb.tb_next
    return True


def _members(exc: BaseException) -> Sequence[BaseException]:
    return exc.exceptions if isinstance(exc, BaseExceptionGroup) else ()


def _message_of_leaving(exc: BaseException, text: str, raiser: str) -> str:
    if isinstance(exc, SystemExit):
        return f"{raiser} called sys.exit({'' if exc.code is None else _repr(exc.code)})"
    return f"{raiser} raised {_summary(_type_name(type(exc)), text)}"


def _body(exc: BaseException) -> bytes | None:
    """The pickled exception or the parts to make it from, whichever was seen to load again; None: neither."""
    if not isinstance(exc, BaseExceptionGroup) and _has_own_reduce(type(exc)):
        try:
            whole = functions.dumps((exc, list(getattr(exc, "__notes__", ()))))
            if type(_make(pickle.loads(whole), ())) is type(exc):
                return whole
        except Exception:  # noqa: BLE001, S110 - then by its parts
            pass
    cls, members = type(exc), _members(exc)
    args: tuple[Any, ...] = (exc.message,) if isinstance(exc, BaseExceptionGroup) else exc.args
    state = {**_slots(exc), **exc.__dict__}
    body = _pack((cls, args, state), members)
    if body is None:
        for name in [name for name, value in state.items() if not _travels(value)]:
            del state[name]
            note = f"(its attribute `{name}` could not be pickled)"
            state["__notes__"] = [*state.get("__notes__", ()), note]
        body = _pack((cls, tuple(arg if _travels(arg) else _repr(arg) for arg in args), state), members)
    return body


def _has_own_reduce(cls: type[BaseException]) -> bool:
    """Whether a class says how it is pickled. What BaseException says would call ``cls(*args)``, which fails
    or gives something else where ``__init__`` hands other arguments on to ``super().__init__``."""
    reduce = cls.__reduce__
    builtin = isinstance(reduce, types.MethodDescriptorType) and reduce.__objclass__.__module__ == "builtins"
    return not builtin or cls.__reduce_ex__ is not object.__reduce_ex__


def _pack(parts: tuple[Any, ...], members: Sequence[BaseException]) -> bytes | None:
    try:
        body = functions.dumps(parts)
        _make(pickle.loads(body), members)
    except Exception:  # noqa: BLE001 - runs users' __reduce__ and __setstate__
        return None
    return body


def _travels(value: object) -> bool:
    try:
        pickle.loads(functions.dumps(value))
    except Exception:  # noqa: BLE001 - runs users' __reduce__ and __setstate__
        return False
    return True


def _slots(exc: BaseException) -> dict[str, Any]:
    """Attributes outside ``__dict__``: errno and filename of an OSError, ``__slots__`` of a user's class."""
    found: dict[str, Any] = {}
    for cls in reversed(said_of(type(exc), "__mro__")):
        for name, slot in said_of(cls, "__dict__").items():
            if not isinstance(slot, types.MemberDescriptorType | types.GetSetDescriptorType):
                continue
            if name.startswith("__") or (said_of(cls, "__name__"), name) in _NOT_SENT:
                continue
            try:
                value = slot.__get__(exc, cls)
            except AttributeError:
                continue  # never set
            # A strerror that is set to None would change what str() gives.
            if value is not None:
                found[name] = value
    return found


def _type_name(cls: type) -> str:
    module, name = said_of(cls, "__module__"), said_of(cls, "__qualname__")
    return name if module in {"builtins", "__main__"} else f"{module}.{name}"


def _text(exc: BaseException) -> str:
    try:
        return str(exc)[:_TEXT_CHARACTERS]
    except Exception:  # noqa: BLE001 - a user's __str__
        return "<its str() failed>"


def _last_words(error: BaseException) -> str:
    """Of what a class raised while it was asked about itself, which may be as bad."""
    try:
        return str(error)[:_CUT]
    except BaseException:  # noqa: BLE001 - as above
        return "?"


def _repr(value: object) -> str:
    try:
        return repr(value)[:_TEXT_CHARACTERS]
    except Exception:  # noqa: BLE001 - a user's __repr__
        return f"<{_type_name(type(value))}>"


def _summary(type_name: str, text: str) -> str:
    return f"{type_name}: {text}" if text else type_name


# ---- the kernel's side


def _rebuild_chain(links: list[_Link]) -> BaseException:
    made: dict[int, BaseException] = {}

    def make(number: int) -> BaseException:
        if number not in made:
            link = links[number]
            members = [make(member) for member in link.members]
            if link.left_out:
                members.append(RemoteError(f"and {link.left_out} more exceptions that were not sent"))
            made[number] = _make_or_explain(link, members)
            if link.frames_left_out:
                _add_note(made[number], f"({link.frames_left_out:,} frames in the middle are not shown)")
        return made[number]

    for number, link in enumerate(links):
        exc = make(number)
        # Past any __setattr__ of the class: a frozen dataclass may be an exception.
        assign = object.__setattr__
        assign(exc, "__cause__", None if link.cause is None else make(link.cause))
        assign(exc, "__context__", None if link.context is None else make(link.context))
        assign(exc, "__suppress_context__", link.suppress_context)
        assign(exc, "__traceback__", traceback_of(link.frames))
    return made[0]


def _add_note(exc: BaseException, note: str) -> None:
    try:
        # Past any method of the class with this name.
        BaseException.add_note(exc, note)
    except Exception:  # noqa: BLE001, S110 - a class that allows no new attribute
        pass


def _make_or_explain(link: _Link, members: Sequence[BaseException]) -> BaseException:
    why = ""
    if link.body is not None:
        try:
            return _make(pickle.loads(link.body), members)
        except Exception as error:  # noqa: BLE001 - a module that is only there, a user's __setstate__
            why = _summary(type(error).__name__, _text(error))
    if members:
        group = BaseExceptionGroup(link.message, members)
        group.add_note(f"({link.type_name} could not be rebuilt here: {why})")
        return group
    explained = RemoteError(
        link.message, type_name=link.type_name, traceback_text=_traceback_text(link.frames, link)
    )
    if why:
        explained.add_note(f"(its type could not be rebuilt here: {why})")
    return explained


def _make(body: tuple[Any, ...], members: Sequence[BaseException]) -> BaseException:
    if len(body) == 2:
        whole: BaseException
        whole, notes = body
        if notes:
            whole.__dict__.setdefault("__notes__", notes)
        return whole
    cls, args, state = body
    exc: BaseException
    exc = _blank_group(cls, args[0], members) if issubclass(cls, BaseExceptionGroup) else _blank(cls, args)
    for name, value in state.items():
        # A class of a cell has its __slots__ in the kernel, not in a worker: cloudpickle leaves them out.
        if isinstance(getattr(cls, name, None), types.MemberDescriptorType | types.GetSetDescriptorType):
            try:
                object.__setattr__(exc, name, value)
            except AttributeError:
                continue  # read-only: set from args by its own type
        else:
            exc.__dict__[name] = value
    return exc


def _blank(cls: type[BaseException], args: tuple[Any, ...]) -> BaseException:
    """An instance as the class's builtin base would have made it, without running a user's ``__init__``."""
    heap_type = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement
    base: Any = next(each for each in cls.__mro__ if not each.__flags__ & heap_type)
    exc: BaseException = base.__new__(cls, *args)
    try:
        base.__init__(exc, *args)
    except (TypeError, ValueError):
        pass  # not what this base takes; the user's own __init__ set args
    object.__setattr__(exc, "args", args)
    return exc


def _blank_group(cls: type[Any], message: str, members: Sequence[BaseException]) -> BaseException:
    if not issubclass(cls, Exception) and all(isinstance(member, Exception) for member in members):
        cls = ExceptionGroup  # what could have ended the kernel is a RemoteError by now
    group: BaseException = BaseExceptionGroup.__new__(cls, message, members)
    return group


def _traceback_text(frames: Sequence[Frame], link: _Link) -> str:
    lines = ["Traceback (most recent call last):"]
    for frame in frames:
        lines.append(f'  File "{frame.filename}", line {frame.line}, in {frame.qualname.rpartition(".")[2]}')
        if source := linecache.getline(frame.filename, frame.line).strip():
            lines.append(f"    {source}")
    return "\n".join([*lines, _summary(link.type_name, link.text)])
