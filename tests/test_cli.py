"""The command line: help that comes at once, exit codes, and a worker that serves and stops."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import nbqueue
from nbqueue import TaskQueue
from nbqueue.codec.seal import fingerprint

NBQUEUE = [sys.executable, "-m", "nbqueue.cli"]


def run(*arguments: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*NBQUEUE, *arguments],
        env={**os.environ, "COLUMNS": "100", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def one_line(text: str) -> str:
    assert text.count("\n") == 1, text
    return text.strip()


# Help


def test_help_names_every_command() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for command in ("demo", "worker", "status", "top", "cancel", "purge", "acl", "completion"):
        assert re.search(rf"^ +{command}\s+\w", shown.stdout, re.MULTILINE)
        assert run(command, "--help").stdout.startswith(f"usage: nbqueue {command}")


def test_help_loads_neither_redis_nor_rich_nor_the_package_proper() -> None:
    code = (
        "import sys; from nbqueue.cli import main\n"
        "try: main(['worker', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'redis', 'rich', 'IPython', 'cloudpickle', 'psutil', 'asyncio', 'nbqueue.client.queue'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_the_version_is_the_packages() -> None:
    assert run("--version").stdout == f"nbqueue {nbqueue.__version__}\n"


# Exit codes


def test_no_command_shows_help_on_stderr_and_exits_2() -> None:
    shown = run()
    assert (shown.returncode, shown.stdout) == (2, "")
    assert shown.stderr.startswith("usage: nbqueue ")


@pytest.mark.parametrize("number", ["0", "-1", "four", "1.5", "²"])
def test_a_wrong_number_of_workers_exits_2_and_says_what_to_give(number: str) -> None:
    shown = run("worker", "redis://localhost", f"--workers={number}")
    assert shown.returncode == 2
    assert "give a whole number, 1 or more" in shown.stderr


@pytest.mark.parametrize("command", ["worker", "status"])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost", "is not a Redis URL"),
        ("unix:///nowhere/redis.sock", "No Redis server answers at"),
        ("redis://192.0.2.1", "without TLS and a password"),
    ],
)
def test_an_error_of_ours_is_one_line_on_stderr_and_exits_1(command: str, url: str, words: str) -> None:
    shown = run(command, url)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert re.match("nbqueue: .*" + re.escape(words), one_line(shown.stderr))


def test_a_wrong_queue_name_exits_1(redis_server: Any) -> None:
    shown = run("worker", redis_server.url, "--queue", "no spaces")
    assert shown.returncode == 1
    assert "1 to 200 characters" in one_line(shown.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (
            ["status", "unix:///nowhere/redis.sock", "--queue", "ta sks"],
            1,
            "--queue 'ta sks': a queue's name is 1 to 200 characters without spaces or braces.",
        ),
        (
            ["cancel", "redis://192.0.2.1"],
            1,
            "redis://192.0.2.1:6379/0 is on another host and would be used without TLS and a password. Use "
            "rediss://user:password@host:port, or say --insecure if the network itself is private.",
        ),
        (
            ["top", "unix:///nowhere/redis.sock"],
            1,
            "No Redis server answers at unix:///nowhere/redis.sock: [Errno 2] No such file or directory. Start one "
            "there or correct the address.",
        ),
        (["purge", "--queue", "jobs"], 2, "error: give a URL, or set NBQUEUE_URL"),
        (
            ["worker", "unix:///nowhere/redis.sock", "--memory-limit", "few"],
            2,
            "error: argument --memory-limit: 'few': give bytes, at least 50 MB, as 2_000_000_000 or '2 GB'.",
        ),
    ],
)
def test_errors_speak_of_options_as_the_command_line_has_them(arguments: list[str], code: int, error: str) -> None:
    shown = run(*arguments, NBQUEUE_URL="")
    assert (shown.returncode, shown.stdout) == (code, "")
    told = shown.stderr.splitlines()[-1]
    assert told == (f"nbqueue: {error}" if code == 1 else f"nbqueue {arguments[0]}: {error}")
    # That it may be left out, usage shows in brackets.
    assert code == 1 or "[URL]" in shown.stderr


def test_a_missing_server_says_how_to_install_one() -> None:
    shown = run("demo", "--quick", NBQUEUE_REDIS_SERVER="/nowhere/redis-server")
    assert shown.returncode == 1
    assert one_line(shown.stderr).startswith("nbqueue: NBQUEUE_REDIS_SERVER='/nowhere/redis-server'")


# Least rights


def test_acl_prints_one_line_for_the_owner_of_the_secret() -> None:
    shown = run("acl", "ana", "--queue", "jobs", NBQUEUE_SECRET="ab" * 32)
    assert (shown.returncode, shown.stderr) == (0, "")
    line = one_line(shown.stdout)
    expected = fingerprint(bytes.fromhex("ab" * 32))
    start = f"ACL SETUSER ana reset on >THE PASSWORD resetchannels resetkeys ~nbq:{{jobs:{expected}}}:* -@all +"
    assert line.startswith(start)
    assert "ab" * 32 not in line


def test_acl_needs_no_secret_where_its_fingerprint_is_known(tmp_path: Path) -> None:
    shown = run("acl", "ana", "--fingerprint", "0a1b2c3d", XDG_CONFIG_HOME=str(tmp_path))
    assert "~nbq:{tasks:0a1b2c3d}:* " in one_line(shown.stdout)
    assert list(tmp_path.iterdir()) == []


def test_acl_shows_only_the_hash_of_a_password_that_it_was_given() -> None:
    program = [*NBQUEUE, "acl", "ana", "--password", "--fingerprint", "0a1b2c3d"]
    shown = subprocess.run(program, input="my secret\n", capture_output=True, text=True, timeout=30, check=True)
    assert "secret" not in shown.stdout
    assert f" #{hashlib.sha256(b'my secret').hexdigest()} " in one_line(shown.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["default"], "choose a name"),
        (["a b"], "letters, digits"),
        (["ana", "--queue", "a b"], "without spaces"),
        (["ana", "--fingerprint", "0a1b"], "eight hex digits"),
        (["ana", "--password"], "empty password"),
    ],
)
def test_acl_refuses_what_cannot_be_meant(arguments: list[str], words: str) -> None:
    shown = run("acl", *arguments)
    assert (shown.returncode, shown.stdout) == (1, "")
    assert words in one_line(shown.stderr)


# Demo


def test_the_demo_shows_what_it_found_and_both_times_in_a_pipe() -> None:
    shown = run("demo", "--quick", "--workers", "2", timeout=120)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    assert "\x1b" not in shown.stdout
    for title in ("Largest modules", "Longest functions", "Most complex functions"):
        assert title in shown.stdout
    times = dict(re.findall(r"^(serial|parallel|speed-up) +([\d.]+) ", shown.stdout, re.MULTILINE))
    serial, parallel, speed_up = (float(times[word]) for word in ("serial", "parallel", "speed-up"))
    assert speed_up == pytest.approx(serial / parallel, abs=0.05, rel=0.05)
    assert "2 workers" in shown.stdout
    assert "with the same results" in shown.stdout


def test_a_terminal_without_unicode_gets_question_marks_not_a_traceback() -> None:
    shown = run("demo", "--quick", timeout=120, PYTHONIOENCODING="ascii")
    assert shown.returncode == 0, shown.stderr
    assert run("worker", "--help", PYTHONIOENCODING="ascii").returncode == 0


def test_ctrl_c_ends_the_demo_with_130_and_leaves_nothing(wait_until: Any, session_home: Path) -> None:
    def directories() -> set[Path]:
        return set((session_home / "run").glob("nbqueue-*"))

    before = directories()
    program = subprocess.Popen(
        [*NBQUEUE, "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert program.stdout is not None
    assert program.stdout.readline().startswith("Parsing")
    wait_until(lambda: directories() - before, timeout=30)
    os.killpg(program.pid, signal.SIGINT)
    _, errors = program.communicate(timeout=20)
    assert program.returncode == 130
    assert errors.endswith("nbqueue: interrupted\n")
    assert directories() <= before


# Worker and status


class Served:
    """A worker program on a server of its own, with a home of its own."""

    def __init__(self, url: str, home: Path) -> None:
        self.url = url
        # Not the session's: the secret is made and found where a user's is.
        self.env = {k: v for k, v in os.environ.items() if k not in ("XDG_CONFIG_HOME", "NBQUEUE_SECRET")}
        self.env["HOME"] = str(home)
        self.program = self._start("worker", url, "-n", "2", "--queue", "jobs")
        assert self.program.stdout is not None
        self.ready = self.program.stdout.readline()

    def _start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*NBQUEUE, *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def status(self, *options: str) -> str:
        program = self._start("status", self.url, "--queue", "jobs", *options)
        out, errors = program.communicate(timeout=20)
        assert program.returncode == 0, errors
        return out

    def counts(self) -> dict[str, Any]:
        counts: dict[str, Any] = json.loads(self.status("--json"))
        return counts

    def notebook(self, code: str) -> subprocess.Popen[str]:
        head = f"from nbqueue import TaskQueue\nqueue = TaskQueue({self.url!r}, 'jobs')\n"
        return subprocess.Popen([sys.executable, "-c", head + code], env=self.env, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def served(redis_server: Any, tmp_path: Path) -> Iterator[Served]:
    served = Served(redis_server.url, tmp_path)
    # Whoever waits for a line of it waits no longer.
    end = threading.Timer(90, served.program.kill)
    end.start()
    yield served
    end.cancel()
    end.join()
    if served.program.poll() is None:
        served.program.kill()
    served.program.communicate()


def test_a_worker_says_when_it_is_ready_and_serves_a_queue(served: Served, tmp_path: Path) -> None:
    assert re.match(r"nbqueue: 2 workers serve the queue 'jobs' on unix://\S+ \(secret [0-9a-f]{8}\)\.", served.ready)
    secret = tmp_path / ".config" / "nbqueue" / "secret"
    assert secret.stat().st_mode & 0o777 == 0o600
    out, _ = served.notebook("print(queue.map(pow, range(5), range(5)).results())").communicate(timeout=30)
    assert out == "[1, 1, 4, 27, 256]\n"
    assert len(served.counts()["workers"]) == 2
    assert served.counts()["done"] == 5
    assert re.search(r"0 queued · 0 running · 5 done.*\n  worker 0 \(pid \d+\): idle, \d+ MB\n", served.status())


def test_a_worker_lets_running_calls_finish_when_it_is_told_to_stop(served: Served, wait_until: Any) -> None:
    code = "import time\nf = queue.submit(lambda: time.sleep(1.5) or 'finished')\nprint(f.result())"
    notebook = served.notebook(code)
    wait_until(lambda: any(worker["task"] for worker in served.counts()["workers"]), timeout=30)
    # As a terminal does it: the workers are in the same process group.
    os.killpg(served.program.pid, signal.SIGINT)
    assert notebook.communicate(timeout=30)[0] == "finished\n"
    assert served.program.wait(20) == 0
    assert served.counts()["workers"] == []


def test_a_second_signal_stops_a_worker_at_once_and_its_call_goes_back(served: Served, wait_until: Any) -> None:
    notebook = served.notebook("import time\nqueue.submit(time.sleep, 300).result()")
    try:
        wait_until(lambda: any(worker["task"] for worker in served.counts()["workers"]), timeout=30)
        served.program.send_signal(signal.SIGTERM)
        wait_until(lambda: len(served.counts()["workers"]) == 1, timeout=30)
        served.program.send_signal(signal.SIGTERM)
        assert served.program.wait(10) == 0
        assert served.counts()["queued"] == 1
    finally:
        notebook.kill()
        notebook.communicate()


def test_a_worker_says_that_it_has_lost_its_server_and_that_it_has_it_again(served: Served, redis_server: Any) -> None:
    redis_server.stop()
    said = served.program.stderr.readline()
    assert said.startswith("nbqueue: the queue 'jobs' cannot be served now, and will be as soon as it can: No Redis ")
    redis_server.start()
    assert served.program.stderr.readline() == "nbqueue: the queue 'jobs' is served again.\n"
    out, _ = served.notebook("print(queue.submit(abs, -3).result())").communicate(timeout=30)
    assert out == "3\n"


def test_a_worker_whose_user_may_not_use_the_queue_exits_1_and_says_so_later_too(
    served: Served, redis_server: Any
) -> None:
    program, path = served.program, redis_server.path
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-hgetall")
        refused = run("worker", f"unix://{path}", "--queue", "jobs")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert re.fullmatch(rf"nbqueue: .*{path} refused.*NOPERM.*hgetall.*\n", refused.stderr)
        # It is no news to it as long as nothing is asked.
        client.execute_command("ACL", "SETUSER", "default", "-evalsha")
        assert re.search(r"'jobs' cannot be served now, .* NOPERM .*evalsha", program.stderr.readline())
        client.execute_command("ACL", "SETUSER", "default", "+@all")
        assert program.stderr.readline() == "nbqueue: the queue 'jobs' is served again.\n"


def test_a_worker_that_was_started_without_standard_output_serves_as_any_other(
    redis_server: Any, new_key: str, wait_until: Any
) -> None:
    """What tasks print went into the slot board: no worker was seen any more."""
    queue = TaskQueue(redis_server.url, new_key)
    command = [*NBQUEUE, "worker", redis_server.url, "-n", "1", "--queue", new_key]
    program = subprocess.Popen(["sh", "-c", 'exec "$@" >&-', "sh", *command], start_new_session=True)
    try:
        wait_until(lambda: len(queue.status().workers) == 1, timeout=30)
        assert queue.submit(print, "out " * 50, flush=True).result(timeout=20) is None
        assert len(queue.status().workers) == 1
        program.terminate()
        assert program.wait(20) == 0
    finally:
        program.kill()
        program.wait()


def test_a_reader_that_has_enough_is_no_error(redis_server: Any) -> None:
    program = f"{sys.executable} -m nbqueue.cli status {redis_server.url} | true"
    shown = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert shown.stderr == ""
