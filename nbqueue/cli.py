"""The command line: ``nbqueue demo | worker | status | top | cancel | purge | acl | completion``.

The only room that may knock at both wings. What a command needs is imported when it runs, so that help
comes at once. nbqueue's own errors become one line on stderr, in the words of the command line.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nbqueue import __version__
from nbqueue.errors import NbqueueError

if TYPE_CHECKING:
    from nbqueue.codec.seal import Seal
    from nbqueue.stream.broker import Broker
    from nbqueue.stream.connect import Address
    from nbqueue.stream.keys import Keys

__all__ = ["main"]

FAILED, INTERRUPTED = 1, 130
# What errors say to Python, and what that is here.
_WORDS = (
    (r"^stream_key=", "--queue "),
    (r"^workers=", "--workers "),
    (r"^memory_limit=", ""),
    (r"\bpass insecure=True\b", "say --insecure"),
    (r", correct the address, or call TaskQueue\(\) without a client for a private server", " or correct the address"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 after an error, 2 for a wrong command line, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal that cannot show a sign gets a question mark, not a traceback.
            stream.reconfigure(errors="replace")
    parser = _parser()
    given = parser.parse_args(arguments)
    if given.command is None:
        parser.print_help(sys.stderr)
        return 2
    if "url" in given and given.url is None:
        given.refuse("give a URL, or set NBQUEUE_URL")
    try:
        code: int = given.run(given)
        if sys.stdout is not None:
            sys.stdout.flush()
    except NbqueueError as error:
        print(f"nbqueue: {_in_our_words(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("nbqueue: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`). Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code


def _in_our_words(error: NbqueueError) -> str:
    import re

    text = str(error)
    for theirs, ours in _WORDS:
        text = re.sub(theirs, ours, text)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="nbqueue",
        description="Run a notebook's functions in parallel worker processes, over a Redis stream.",
        epilog="`nbqueue COMMAND --help` tells more about a command.",
    )
    parser.add_argument("--version", action="version", version=f"nbqueue {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")

    demo = commands.add_parser(
        "demo",
        help="parse Python's standard library in parallel, and show what that gains",
        description="Parse every module of this Python's standard library in parallel worker processes, show its "
        "largest modules, longest functions and most complex functions, then do the same in one process and "
        "compare the times.",
    )
    demo.add_argument("-n", "--workers", type=_count, metavar="N", help="worker processes (default: one per core)")
    demo.add_argument("--quick", action="store_true", help="read a twelfth of the modules only")
    demo.set_defaults(run=_demo)

    worker = commands.add_parser(
        "worker",
        help="run worker processes for a queue on a shared Redis server",
        description="Run worker processes on this machine for a queue on a shared Redis or Valkey server, until "
        "stopped. Ctrl-C (or SIGTERM) lets running calls finish; a second one ends them, and they are given to "
        "other workers.",
        epilog="Calls are signed. Workers serve the notebooks that have the same secret: NBQUEUE_SECRET (64 hex "
        "digits), else the file ~/.config/nbqueue/secret, which is made at the first use; copy it from the "
        "notebook's machine.",
    )
    _add_queue(worker)
    worker.add_argument("-n", "--workers", type=_count, metavar="N", help="worker processes (default: one per core)")
    worker.add_argument(
        "--memory-limit",
        type=_size,
        metavar="SIZE",
        help="memory that one worker may use, as 2GB or 2GiB; a task that needs more is ended (default: any)",
    )
    worker.add_argument(
        "--max-tasks-per-worker",
        type=_count,
        metavar="N",
        help="replace a worker after so many tasks, for tasks that leak (default: never)",
    )
    worker.set_defaults(run=_worker)

    status = commands.add_parser(
        "status",
        help="show what is queued, running and done in a queue",
        description="Show what is queued, running and done in a queue on a shared Redis or Valkey server, and its "
        "workers on all machines.",
    )
    _add_queue(status)
    status.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    status.set_defaults(run=_status)

    top = commands.add_parser(
        "top",
        help="watch a queue and its workers, live",
        description="Watch a queue on a shared Redis or Valkey server: what is queued and done, how fast, and what "
        "each worker runs. In a pipe one look is printed, or as many as --looks says.",
    )
    _add_queue(top)
    top.add_argument(
        "--interval", type=_seconds, default=1.0, metavar="S", help="seconds between two looks (default: 1)"
    )
    top.add_argument("--looks", type=_count, default=0, metavar="N", help="leave after so many looks")
    top.set_defaults(run=_top)

    cancel = commands.add_parser(
        "cancel",
        help="cancel the calls in a queue, whoever has made them",
        description="Cancel all calls in a queue on a shared Redis or Valkey server, of all notebooks with your "
        "secret: queued, waiting for a retry, and running. Whoever waits for one gets TaskCancelled. A map is "
        "cancelled whole; those of its items are counted that had been sent.",
    )
    _add_queue(cancel)
    cancel.add_argument("--queued", action="store_true", help="leave alone what workers have begun or fetched")
    cancel.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    cancel.set_defaults(run=_cancel)

    purge = commands.add_parser(
        "purge",
        help="cancel the calls in a queue and delete all that the server keeps of it",
        description="Cancel all calls in a queue on a shared Redis or Valkey server, as `nbqueue cancel` does, and "
        "delete all of its keys: results that nobody has fetched, counters, traces of dead workers. Workers and "
        "notebooks that are there go on; one that sleeps hears for an hour that its calls were cancelled. What is "
        "forgotten needs no purge: keys of a queue that nobody uses end after seven days.",
    )
    _add_queue(purge)
    purge.add_argument("--yes", action="store_true", help="do not ask")
    purge.add_argument("--json", action="store_true", help="print one JSON object, for programs")
    purge.set_defaults(run=_purge)

    acl = commands.add_parser(
        "acl",
        help="print the least rights that a queue needs on a shared Redis server",
        description="Print one line for redis-cli that makes a user of a shared Redis or Valkey server who can use one "
        "queue and nothing else: its keys, whose names hold the fingerprint of your secret, and the commands that "
        "notebooks, workers and status need. What the user was allowed before is taken away. Nothing is sent.",
        epilog="For example, asking for a password and handing the line to the server: "
        "nbqueue acl ana --password | redis-cli -h example.net --tls. Then use rediss://ana:PASSWORD@example.net. "
        "To keep the user, the administrator adds ACL SAVE or CONFIG REWRITE.",
    )
    acl.add_argument("user", metavar="NAME", help="the user's name on the server")
    _add_name(acl)
    acl.add_argument(
        "--password",
        action="store_true",
        help="ask for the user's password (in a pipe: read one line) and print its SHA-256; otherwise the line says "
        "THE PASSWORD, and is refused by the server until both words are replaced",
    )
    acl.add_argument(
        "--fingerprint",
        metavar="HEX",
        help="the secret's fingerprint as `nbqueue worker` shows it, where somebody else holds the secret",
    )
    acl.set_defaults(run=_acl)

    completion = commands.add_parser(
        "completion",
        help="print what lets a shell complete nbqueue's commands and options",
        description="Print a script for your shell. For bash: nbqueue completion bash >> ~/.bashrc. For zsh: nbqueue "
        "completion zsh >> ~/.zshrc. For fish: nbqueue completion fish > ~/.config/fish/completions/nbqueue.fish.",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    completion.set_defaults(run=_completion)
    return parser


def _add_name(command: argparse.ArgumentParser) -> None:
    command.add_argument("--queue", default="tasks", metavar="NAME", help="the queue's name (default: tasks)")


def _add_queue(command: argparse.ArgumentParser) -> None:
    command.set_defaults(refuse=command.error)
    command.add_argument(
        "url",
        metavar="URL",
        nargs="?",
        default=os.environ.get("NBQUEUE_URL") or None,
        help="redis://[user:password@]host[:port][/db], rediss://… for TLS, or unix:///path/to/redis.sock; may be "
        "left out if NBQUEUE_URL holds it, which other users of this machine cannot see",
    )
    _add_name(command)
    command.add_argument(
        "--insecure",
        action="store_true",
        help="allow a server on another host without TLS and password, where the network itself is private",
    )


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number, 1 or more")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of seconds, 0.1 to 3600")
    return seconds


def _size(text: str) -> str:
    from nbqueue.client.sending.options import check_limits

    try:
        check_limits(text, None)
    except NbqueueError as error:
        raise argparse.ArgumentTypeError(_in_our_words(error)) from None
    return text


# Commands


def _demo(given: argparse.Namespace) -> int:
    from nbqueue import demo

    demo.run(workers=given.workers, quick=given.quick)
    return 0


def _worker(given: argparse.Namespace) -> int:
    from dataclasses import asdict

    from nbqueue.client.sending.options import check_limits
    from nbqueue.codec.seal import fingerprint, user_secret
    from nbqueue.stream.broker import Broker
    from nbqueue.stream.connect import Address, Wire, check_server, explaining
    from nbqueue.stream.keys import Keys
    from nbqueue.worker.cores import available_cores
    from nbqueue.worker.descriptors import fill_standard
    from nbqueue.worker.supervisor import Supervisor, make_spec

    fill_standard()
    address = Address.from_url(given.url)
    address.require_safe(insecure=given.insecure)
    secret = user_secret()
    keys = Keys.of(given.queue, fingerprint(secret))
    wire = Wire(address, timeout_s=10.0)
    wire.connect()
    try:
        for warning in check_server(wire):
            print(f"nbqueue: {warning}", file=sys.stderr)
        with explaining(address):
            # A user that may not use this queue hears of it now.
            Broker(wire, keys).counters()
    finally:
        wire.close()
    size = given.workers or available_cores()
    supervisor = Supervisor(None)
    message = {
        "id": keys.prefix,
        "queue": given.queue,
        "prefix": keys.prefix,
        "address": address.to_dict(),
        "secret": secret.hex(),
        "limits": asdict(check_limits(given.memory_limit, given.max_tasks_per_worker)),
    }
    supervisor.add_pool(make_spec(message, size))
    _say_when_ready(given.queue, address, keys, size)
    return supervisor.run()


def _say_when_ready(queue: str, address: Address, keys: Keys, size: int) -> None:
    import socket
    import threading
    import time

    from nbqueue.errors import ServerError
    from nbqueue.stream.broker import Broker
    from nbqueue.stream.connect import CommandError, Wire

    def ready(broker: Broker) -> bool:
        for host in broker.counts().hosts:
            if (host.hostname, host.pid) == (socket.gethostname(), os.getpid()):
                broker.poke(host.host)
                return len(host.workers) >= size and all(w.state != "starting" for w in host.workers)
        return False

    def look() -> None:
        broker = Broker(Wire(address, timeout_s=10.0), keys)
        while True:
            try:
                if not broker.wire.connected:
                    broker.connect()
                if ready(broker):
                    break
            except (ServerError, CommandError):
                # The supervisor, too, tries until the server is there again.
                broker.wire.close()
            time.sleep(0.05)
        broker.wire.close()
        workers = f"{size} worker serves" if size == 1 else f"{size} workers serve"
        fingerprint = keys.prefix.rstrip("}:").rpartition(":")[2]
        print(
            f"nbqueue: {workers} the queue {queue!r} on {address} (secret {fingerprint}). Ctrl-C stops when the "
            "running calls have ended, twice at once.",
            flush=True,
        )

    threading.Thread(target=look, name="nbqueue-ready", daemon=True).start()


def _status(given: argparse.Namespace) -> int:
    import json
    import warnings
    from dataclasses import asdict

    from nbqueue import TaskQueue

    warnings.formatwarning = lambda message, *_: f"nbqueue: {message}\n"
    status = TaskQueue(given.url, given.queue, insecure=given.insecure).status()
    print(json.dumps(asdict(status), indent=2) if given.json else status)
    return 0


def _top(given: argparse.Namespace) -> int:
    from nbqueue import TaskQueue
    from nbqueue.client.top import watch

    queue = TaskQueue(given.url, given.queue, insecure=given.insecure)
    core = queue._here()
    watch(given.queue, str(core.address()), core.link.counts, interval_s=given.interval, looks=given.looks)
    return 0


def _cancel(given: argparse.Namespace) -> int:
    import json

    from nbqueue.client.clearing import cancel_calls

    with _opened(given) as (broker, seal):
        broker.ensure_group()
        ended = cancel_calls(broker, seal, queued_only=given.queued)
    print(json.dumps({"cancelled": ended}) if given.json else f"{_number(ended, 'call')} cancelled")
    return 0


def _purge(given: argparse.Namespace) -> int:
    import json

    from nbqueue.client.clearing import purge

    with _opened(given) as (broker, seal):
        if not given.yes:
            if not sys.stdin.isatty():
                print("nbqueue: purge asks first; in a script, say --yes.", file=sys.stderr)
                return FAILED
            print(f"All of the queue {given.queue!r} on {broker.wire.address} will be deleted.", file=sys.stderr)
            if input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
                print("Nothing was deleted.", file=sys.stderr)
                return FAILED
        ended, keys = purge(broker, seal)
    if given.json:
        print(json.dumps({"cancelled": ended, "deleted": keys}))
    else:
        print(f"{_number(ended, 'call')} cancelled, {_number(keys, 'key')} deleted")
    return 0


def _number(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


@contextmanager
def _opened(given: argparse.Namespace) -> Iterator[tuple[Broker, Seal]]:
    """A connection to the queue's server, and our signature."""
    from nbqueue.codec.seal import Seal, fingerprint, user_secret
    from nbqueue.stream.broker import Broker
    from nbqueue.stream.connect import Address, Wire, explaining
    from nbqueue.stream.keys import Keys

    address = Address.from_url(given.url)
    address.require_safe(insecure=given.insecure)
    secret = user_secret()
    keys = Keys.of(given.queue, fingerprint(secret))
    broker = Broker(Wire(address, timeout_s=30.0), keys)
    with explaining(address):
        broker.wire.connect()
        broker.load_steps()
        try:
            yield broker, Seal(secret, keys.prefix)
        finally:
            broker.wire.close()


def _completion(given: argparse.Namespace) -> int:
    parser = _parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    words = {"": [*commands.choices, *parser._option_string_actions]}
    words |= {name: list(command._option_string_actions) for name, command in commands.choices.items()}
    words["completion"] += ["bash", "zsh", "fish"]
    if given.shell == "fish":
        for name, its in words.items():
            where = "__fish_use_subcommand" if not name else f"__fish_seen_subcommand_from {name}"
            for word in its:
                kind = f"-a {word}" if word[0] != "-" else f"-l {word[2:]}" if word[1] == "-" else f"-s {word[1:]}"
                print(f"complete -c nbqueue -n '{where}' {kind}")
        return 0
    if given.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    cases = "\n".join(f"    {name}) words='{' '.join(its)}' ;;" for name, its in words.items() if name)
    print(
        "_nbqueue() {\n"
        f"  local words='{' '.join(words[''])}'\n"
        f"  [ $COMP_CWORD -gt 1 ] && case ${{COMP_WORDS[1]}} in\n{cases}\n  esac\n"
        '  COMPREPLY=($(compgen -W "$words" -- "${COMP_WORDS[COMP_CWORD]}"))\n'
        "}\n"
        "complete -o default -F _nbqueue nbqueue"
    )
    return 0


def _acl(given: argparse.Namespace) -> int:
    import re

    from nbqueue.codec.seal import fingerprint, user_secret
    from nbqueue.errors import BadOption
    from nbqueue.stream.acl import setuser
    from nbqueue.stream.keys import Keys

    if given.fingerprint is not None and not re.fullmatch(r"[0-9a-f]{8}", given.fingerprint):
        raise BadOption(f"--fingerprint {given.fingerprint!r}: give the eight hex digits that `nbqueue worker` shows.")
    keys = Keys.of(given.queue, given.fingerprint or fingerprint(user_secret()))
    password = None
    if given.password:
        if sys.stdin.isatty():
            import getpass

            password = getpass.getpass(f"Password of {given.user}: ")
        else:
            password = sys.stdin.readline().rstrip("\r\n")
    print(setuser(given.user, keys, password))
    return 0


if __name__ == "__main__":
    sys.exit(main())
