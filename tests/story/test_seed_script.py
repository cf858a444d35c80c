"""The article that nbqueue grew from has a script; it runs here word for word.

Its first two imports are replaced, and Python 3.11 and later must be allowed to print such long numbers. It
speaks to ``redis.Redis()``, a server on port 6379 of this machine: it gets one in a network namespace of its
own, or on the real port where that is free.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SCRIPT = """
import sys; sys.set_int_max_str_digits(0)
import time
from nbqueue import TaskQueue
import redis
db = redis.Redis()
queue = TaskQueue(db)

@queue.task
def sleep(n):
    print('going to sleep for %s seconds' % n)
    time.sleep(n)
    print('woke up after %s seconds' % n)

@queue.task
def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return b

# Start the queue with four worker processes.
queue.run(4)

# Send four "sleep" tasks.
sleep(2)
sleep(3)
sleep(4)
sleep(5)

# Send four tasks to compute large fibonacci numbers. We will then print the
# last 6 digits of each computed number (showing how result storage works):
v100k = fib(100000)
v200k = fib(200000)
v300k = fib(300000)
v400k = fib(400000)

# Calling the result wrapper will block until its value becomes available:
print('100kth fib number starts ends with: %s' % str(v100k())[-6:])
print('200kth fib number starts ends with: %s' % str(v200k())[-6:])
print('300kth fib number starts ends with: %s' % str(v300k())[-6:])
print('400kth fib number starts ends with: %s' % str(v400k())[-6:])

# We can shutdown and restart the consumer.
queue.shutdown()
print('all workers have stopped.')

queue.run(4)
print('workers are running again.')

# Enqueue another "sleep" task.
sleep(2)

# Calling shutdown now will block until the above sleep task
# has finished, after which all workers will stop.
queue.shutdown()
print('done!')
"""


@pytest.fixture
def at_home() -> Iterator[list[str]]:
    """A command prefix under which localhost:6379 is a redis-server of this test's own."""
    from nbqueue.stream.server import find_executable, tie_to_parent

    server = [find_executable(), "--port", "6379", "--bind", "127.0.0.1", "--save", ""]
    folder = Path(tempfile.mkdtemp(prefix="nbqt-seed-", dir="/tmp"))
    prefix: list[str] = []
    isolated = shutil.which("unshare") and shutil.which("nsenter") and shutil.which("ip")
    if isolated and subprocess.run(["unshare", "-n", "true"], capture_output=True, check=False).returncode == 0:
        server = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *server]
    else:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", 6379)) == 0:
                pytest.skip("port 6379 is somebody else's, and no network namespace can be made here")
    process = subprocess.Popen(server, cwd=folder, stdout=subprocess.PIPE, text=True, preexec_fn=tie_to_parent())
    try:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "Ready to accept connections" in line:
                break
        else:
            pytest.fail("the server did not start:\n" + "".join(seen))
        if server[0] == "unshare":
            prefix = ["nsenter", "-n", "-t", str(process.pid)]
        yield prefix
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder)


def test_the_articles_script_runs_word_for_word(at_home: list[str], tmp_path: Path) -> None:
    path = tmp_path / "article.py"
    path.write_text(SCRIPT)
    done = subprocess.run(
        [*at_home, sys.executable, str(path)], capture_output=True, text=True, timeout=120, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for digits, number in (("537501", 100), ("590626", 200), ("800001", 300), ("337501", 400)):
        assert f"{number}kth fib number starts ends with: {digits}" in lines
    # What the tasks print themselves, each once, the last before shutdown included.
    slept = [line for line in lines if "sleep for" in line]
    assert sorted(slept) == sorted(f"going to sleep for {n} seconds" for n in (2, 2, 3, 4, 5))
    woken = [line for line in lines if "woke" in line]
    assert sorted(woken) == sorted(f"woke up after {n} seconds" for n in (2, 2, 3, 4, 5))
    stopped, again, end = (lines.index(x) for x in ("all workers have stopped.", "workers are running again.", "done!"))
    assert stopped < again < end == len(lines) - 1
    assert lines[again + 1 : end] == ["going to sleep for 2 seconds", "woke up after 2 seconds"]
    assert done.stderr == ""
