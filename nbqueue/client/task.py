"""`Task`: a function whose calls run elsewhere. It is handed what submits, and knows no queue."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from nbqueue import context
from nbqueue.client.results.frames import user_frames_only
from nbqueue.client.sending.feeding import AtHand, OneByOne
from nbqueue.client.sending.options import Options, TaskOptions, fitted
from nbqueue.client.sending.seeds import check_rng, with_generator
from nbqueue.codec.wrappers import OF_DISPATCH, is_dispatch
from nbqueue.errors import BadCall

if TYPE_CHECKING:
    from nbqueue.client.results.batch import Batch
    from nbqueue.client.results.future import TaskFuture

__all__ = ["Submitter", "Task"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])
_AT_HAND = frozenset({list, tuple, range, dict, set, frozenset, str, bytes})


class Submitter(Protocol):
    """What a task is handed by its queue."""

    def submit_call(
        self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], options: Options
    ) -> TaskFuture[Any]: ...

    def submit_items(
        self,
        fn: Callable[..., Any],
        items: Iterable[tuple[Any, ...]],
        total: int | None,
        kwargs: dict[str, Any],
        options: Options,
    ) -> Batch[Any]: ...


def _plain(method: F) -> F:
    """Shift-Tab would show ``*args: 'P.args'``, which tells nothing: that of the task itself is the function's."""
    shown = inspect.signature(method)
    bare = [parameter.replace(annotation=parameter.empty) for parameter in shown.parameters.values()]
    method.__signature__ = shown.replace(parameters=bare)  # type: ignore[attr-defined]
    return method


class Task(Generic[P, R]):
    """A function whose calls run in worker processes. Made by ``@queue.task``.

    Calling it returns a `TaskFuture` at once. Inside a task, calling it runs the
    function there and returns its value, so recursion and helpers that happen to
    be tasks work; `submit` and `map` send work from there too. Futures among the
    arguments stand for their values, see `TaskFuture`. Where the function is an
    async one, calling it there gives its coroutine, to be awaited.

    In a class body it is a method, whose instance travels as the first argument.

    Examples
    --------
    >>> @queue.task(retries=2, timeout=60)
    ... def power(base, exponent=2):
    ...     return base**exponent
    >>> power(3).result()
    9
    >>> power.map(range(4), exponent=3).results()
    [0, 1, 8, 27]
    """

    def __init__(self, fn: Callable[P, R], submitter: Submitter, options: Options) -> None:
        self._fn = fn
        self._submitter = submitter
        self._options = options
        self._bound: tuple[Any, ...] = ()
        functools.update_wrapper(self, fn)

    @_plain
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        with user_frames_only:
            if context.in_task():
                return cast("TaskFuture[R]", self.local(*args, **kwargs))
            return self._submitter.submit_call(self._fn, (*self._bound, *args), kwargs, self._options)

    @_plain
    def submit(self, *args: P.args, **kwargs: P.kwargs) -> TaskFuture[R]:
        """Send one call, also from inside a task.

        Returns
        -------
        TaskFuture
            At once; the call is on its way.

        Raises
        ------
        NotSendable
            If the function or an argument cannot be pickled; the message names it.

        Examples
        --------
        >>> @queue.task
        ... def total(numbers):
        ...     if len(numbers) < 3:
        ...         return sum(numbers)
        ...     left = total.submit(numbers[:2])           # another worker
        ...     return total(numbers[2:]) + left.result()  # right here
        >>> total.submit([1, 2, 3, 4]).result()
        10
        """
        with user_frames_only:
            return self._submitter.submit_call(self._fn, (*self._bound, *args), kwargs, self._options)

    @_plain
    def local(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the undecorated function here and now, in this process, and return its value.

        Of an async function that is its coroutine: ``await task.local(…)``.

        Examples
        --------
        >>> import os
        >>> @queue.task
        ... def where():
        ...     return os.getpid()
        >>> where.local() == os.getpid(), where().result() == os.getpid()
        (True, False)
        """
        with user_frames_only:
            given: dict[str, Any] = kwargs
            if self._options.rng is not None:
                given = with_generator(self._fn, self._options, (*self._bound, *args), kwargs)
            return self._fn(*self._bound, *args, **given)

    @user_frames_only
    def map(self, *iterables: Iterable[Any], **kwargs: Any) -> Batch[R]:
        """Call the task with the first items of all `iterables`, then the second, …; all keywords go to it.

        Parameters
        ----------
        *iterables : iterable
            One for each parameter; the shortest ends it. A generator is drawn while
            results come back.
        **kwargs
            Of the function, the same for all items, and sent once. Options of the map
            come before it: ``task.options(chunksize=1).map(…)``.

        Returns
        -------
        Batch
            Results that are still arriving, in order.

        Raises
        ------
        BadCall
            If one of them is not iterable, or a keyword is an option that the function
            does not take.
        NotSendable
            If the function or a keyword cannot be pickled. An item that cannot be is
            an error of that item.

        Examples
        --------
        >>> @queue.task
        ... def scale(x, by):
        ...     return x * by
        >>> scale.map([1, 2, 3], by=10).results()
        [10, 20, 30]
        """
        return self._map(zip_arguments(iterables, self._bound), length_of(iterables), kwargs)

    @user_frames_only
    def starmap(self, arguments: Iterable[Iterable[Any]], **kwargs: Any) -> Batch[R]:
        """Call the task with ``*a`` for each `a` of `arguments`; all keywords go to it. As `map` otherwise.

        Examples
        --------
        >>> @queue.task
        ... def scale(x, by):
        ...     return x * by
        >>> scale.starmap([(1, 10), (2, 100)]).results()
        [10, 200]
        """
        given = require_iterable(arguments, "starmap")
        items = ((*self._bound, *require_iterable(a, f"item {i} of starmap")) for i, a in enumerate(given))
        return self._map(items, length_of((arguments,)), kwargs)

    def _map(self, items: Iterable[tuple[Any, ...]], total: int | None, kwargs: dict[str, Any]) -> Batch[R]:
        self._check_keywords(kwargs)
        return cast("Batch[R]", self._submitter.submit_items(self._fn, items, total, kwargs, self._options))

    def _check_keywords(self, kwargs: dict[str, Any]) -> None:
        """Raises BadCall for an option that was meant for us: all keywords go to the function."""
        names = kwargs.keys() & {field.name for field in dataclasses.fields(Options)}
        if not names:
            return
        try:
            parameters = inspect.signature(self._fn).parameters
        except (ValueError, TypeError):
            # Compiled, and silent about what it takes.
            return
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in sorted(names - parameters.keys()) if not takes_any else ():
            raise BadCall(
                f"`{self._options.name}` takes no keyword {name!r}. Options of a map are given before it: "
                f"{self._options.name}.options({name}={kwargs[name]!r:.20}).map(…)."
            )

    @user_frames_only
    def options(self, **changes: Unpack[TaskOptions]) -> Task[P, R]:
        """The same task with other options, those of `TaskQueue.task`: name, retries, timeout, chunksize, …

        Returns
        -------
        Task
            Another one; this one stays as it is.

        Raises
        ------
        BadOption
            For an option that does not exist or cannot be meant.

        Examples
        --------
        >>> @queue.task
        ... def power(base, exponent=2):
        ...     return base**exponent
        >>> quick = power.options(timeout=5, name="quick power")
        >>> quick(3)
        <TaskFuture quick power ...>
        """
        options = fitted(self._fn, self._options.with_(**changes))
        check_rng(self._fn, options)
        return self._copy(options=options)

    def _copy(self, *, options: Options | None = None, bound: tuple[Any, ...] | None = None) -> Task[P, R]:
        task: Task[P, R] = Task(self._fn, self._submitter, options or self._options)
        task._bound = self._bound if bound is None else bound
        return task

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Task[P, R]: ...
    @overload
    def __get__(
        self: Task[Concatenate[Any, Q], R], instance: object, owner: type | None = None
    ) -> Task[Q, R]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Task[..., R]:
        """A task in a class body is a method: the instance travels as its first argument."""
        if instance is None:
            return self
        return self._copy(bound=(instance,))

    def __repr__(self) -> str:
        try:
            signature = str(inspect.signature(self._fn))
        except (ValueError, TypeError):
            signature = "(…)"
        return f"<Task {self._options.name}{signature}>"

    # A task travels as names: its function, its options and its queue's name, never a socket or a secret. In
    # two steps, because its function may reach the task itself.
    def __reduce__(self) -> tuple[Any, ...]:
        state = self.__dict__
        if is_dispatch(self._fn):
            state = {key: value for key, value in state.items() if key not in OF_DISPATCH}
        return _blank, (), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _blank() -> Task[..., Any]:
    return Task.__new__(Task)


def require_iterable(value: Any, what: str = "map") -> Iterable[Any]:
    """Raises BadCall where `value` cannot be iterated over."""
    try:
        iter(value)
    except TypeError:
        kind = type(value).__name__
        raise BadCall(f"{what} needs something to iterate over, not {kind} ({value!r:.80}).") from None
    return cast("Iterable[Any]", value)


def check_options(fn: Callable[..., Any], options: Iterable[str], filled: int) -> None:
    """Raises BadCall for an option of a map that may be meant for `fn`: one of its parameters, behind the first
    `filled`, has the same name. What `rng` gives is the name of one."""
    try:
        open_ones = list(inspect.signature(fn).parameters)[filled:]
    except (ValueError, TypeError):
        # Compiled, and silent about what it takes.
        return
    for option in options:
        if option in open_ones and option != "rng":
            function = getattr(fn, "__name__", type(fn).__name__)
            raise BadCall(
                f"{option}= is an option of the map, and `{function}` has a parameter of that name. For the function: "
                f"functools.partial({function}, {option}=…); for the map: queue.task({function}).options({option}=…)"
                ".map(…)."
            )


def options_only(method: Callable[P, R]) -> Callable[P, R]:
    """A map of the queue's for any function: by a keyword that is no option one of the function's own was meant."""

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        known = [field.name for field in dataclasses.fields(Options)]
        unknown = sorted(kwargs.keys() - {"fn", *known})
        if not unknown or len(args) < 2:
            return method(*args, **kwargs)
        fn, (name, *_) = args[1], unknown
        function = fn._options.name if isinstance(fn, Task) else getattr(fn, "__name__", type(fn).__name__)
        way = function if isinstance(fn, Task) else f"queue.task({function})"
        raise BadCall(
            f"There is no option {name!r}; a keyword of `{function}` itself goes through a task: "
            f"{way}.map(…, {name}=…). The options are {', '.join(known)}."
        )

    return checked


def zip_arguments(iterables: tuple[Iterable[Any], ...], bound: tuple[Any, ...] = ()) -> Iterable[tuple[Any, ...]]:
    """Argument tuples, made as they are asked for. Raises BadCall at once."""
    if not iterables:
        raise BadCall("map needs at least one iterable of arguments.")
    for iterable in iterables:
        require_iterable(iterable)
    if bound:
        return ((*bound, *items) for items in zip(*iterables, strict=False))
    if all(type(iterable) in _AT_HAND for iterable in iterables):
        return AtHand(*iterables)
    return OneByOne(iterables[0]) if len(iterables) == 1 else zip(*iterables, strict=False)


def length_of(iterables: tuple[Iterable[Any], ...]) -> int | None:
    """How many items a map over `iterables` has, None where that is not known before."""
    try:
        return min(len(iterable) for iterable in iterables)  # type: ignore[arg-type]
    except TypeError:
        return None
