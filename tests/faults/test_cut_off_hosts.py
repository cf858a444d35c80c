"""Two hosts do one batch on a server behind TLS and a password, and the link of one goes down in the middle.

::

    host 1  10.0.1.2 ── 10.0.1.1 ┐
                                 ├ hub: redis-server, and the notebook
    host 2  10.0.2.2 ── 10.0.2.1 ┘

Each is a network namespace with links of its own, which nobody else can see: there is nothing between hosts and server
but real connections, and what the system makes of them when a link is down.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nbqueue.codec.seal import fingerprint
from nbqueue.stream.keys import Keys
from nbqueue.stream.records import HostState
from nbqueue.stream.server import find_executable

PASSWORD, SECRET, PORT = "opensesame", "5a" * 32, 6380
HOSTS = (1, 2)
# Shorter than a user's, so that the test is; long enough for a host that is only slow.
LEASE_S = 3.0


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@dataclass(frozen=True)
class Network:
    """Namespaces whose names begin with `name`."""

    name: str

    def hub(self) -> str:
        return f"{self.name}-hub"

    def host(self, n: int) -> str:
        return f"{self.name}-{n}"

    def within(self, namespace: str) -> tuple[str, ...]:
        """Before a command: there it runs."""
        return ("ip", "netns", "exec", namespace)

    def told(self, n: int) -> str:
        """How a process there knows its namespace."""
        return f"net:[{os.stat(f'/run/netns/{self.host(n)}').st_ino}]"

    def try_out(self) -> None:
        """Raises OSError where namespaces are not permitted."""
        _ip("netns", "add", self.hub())
        _ip("netns", "exec", self.hub(), "true")
        _ip("-n", self.hub(), "link", "set", "lo", "up")

    def make(self) -> None:
        for n in HOSTS:
            _ip("netns", "add", self.host(n))
            veth = ("type", "veth", "peer", "name", f"to{n}", "netns", self.hub())
            _ip("-n", self.host(n), "link", "add", "eth0", *veth)
            for namespace, link, end in ((self.host(n), "eth0", 2), (self.hub(), f"to{n}", 1)):
                _ip("-n", namespace, "addr", "add", f"10.0.{n}.{end}/24", "dev", link)
                _ip("-n", namespace, "link", "set", link, "up")

    def cut(self, n: int) -> None:
        _ip("-n", self.host(n), "link", "set", "eth0", "down")

    def mend(self, n: int) -> None:
        _ip("-n", self.host(n), "link", "set", "eth0", "up")

    def remove(self) -> None:
        """With their links. Whatever there is: it may have been made in part only."""
        there = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.split()
        for namespace in (self.hub(), *map(self.host, HOSTS)):
            if namespace in there:
                _ip("netns", "delete", namespace)


@pytest.fixture
def network() -> Iterator[Network]:
    if os.getuid() or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the command ip (Debian: iproute2)")
    network = Network(f"nbq{os.getpid()}")
    try:
        try:
            network.try_out()
        except OSError as error:
            pytest.skip(f"network namespaces are not permitted here: {error}")
        network.make()
        yield network
    finally:
        network.remove()


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """The server's certificate, which signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("a certificate needs the command openssl")
    cert, key = tmp_path / "server.crt", tmp_path / "server.key"
    names = ",".join(f"IP:10.0.{n}.1" for n in HOSTS)
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "1", "-subj", "/CN=the server of a test", "-addext", f"subjectAltName={names}"]
    command += ["-addext", "keyUsage=critical,digitalSignature,keyCertSign", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


@pytest.fixture
def server(network: Network, certificate: tuple[Path, Path], make_server: Callable[..., Any]) -> Any:
    """In the hub. From the network only TLS is answered, and nobody without the password."""
    said = subprocess.run([find_executable(), "--tls-port", "none"], capture_output=True, text=True, check=False)
    if "Bad directive" in said.stdout + said.stderr:
        pytest.skip("this redis-server was built without TLS")
    cert, key = map(str, certificate)
    options = ["--tls-port", str(PORT), "--tls-cert-file", cert, "--tls-key-file", key, "--tls-auth-clients", "no"]
    return make_server(*options, "--requirepass", PASSWORD, within=network.within(network.hub()))


NOTEBOOK = """
import json, os, time
from pathlib import Path
from nbqueue import TaskQueue

queue = TaskQueue(os.environ["NBQUEUE_URL"], os.environ["KEY"])
held, again = Path(os.environ["NOTES"], "held"), Path(os.environ["NOTES"], "again")

def here():
    return os.readlink("/proc/self/ns/net")

@queue.task(chunksize=1)
def square(i):
    if i >= 20:
        (held / f"{i} {here()}").touch()
        while not (held / "go").exists():
            time.sleep(0.01)
    return i * i, here()

@queue.task(chunksize=1)
def meet(i):
    # Until all four workers of both hosts are here.
    (again / str(i)).touch()
    while len(list(again.iterdir())) < 5:
        time.sleep(0.01)
    return here()

print("results", json.dumps(square.map(range(60)).results()), flush=True)
while not (again / "go").exists():
    time.sleep(0.01)
print("met", json.dumps(meet.map(range(4)).results()), flush=True)
"""


@pytest.mark.apart
def test_a_host_whose_link_goes_down_in_the_middle_of_a_batch_loses_nothing_and_joins_again(
    network: Network,
    server: Any,
    certificate: tuple[Path, Path],
    start_host: Callable[..., Any],
    start_script: Callable[..., Any],
    new_key: str,
    tmp_path: Path,
    wait_until: Callable[..., Any],
) -> None:
    held, again = tmp_path / "held", tmp_path / "again"
    held.mkdir()
    again.mkdir()

    def environ(n: int) -> dict[str, str]:
        url = f"rediss://:{PASSWORD}@10.0.{n}.1:{PORT}?ssl_ca_certs={certificate[0]}"
        return {"NBQUEUE_URL": url, "NBQUEUE_SECRET": SECRET, "KEY": new_key, "NOTES": str(tmp_path)}

    hosts = {
        n: start_host(None, new_key, lease_s=LEASE_S, env=environ(n), argv=network.within(network.host(n)))
        for n in HOSTS
    }
    for host in hosts.values():
        host.line("nbqueue: 2 workers serve")
    notebook = start_script(NOTEBOOK, env=environ(1), argv=network.within(network.hub()))
    keys = Keys.of(new_key, fingerprint(bytes.fromhex(SECRET)))
    with server.client(password=PASSWORD) as client:

        def registered() -> dict[int, HostState]:
            """What hosts have published, by their supervisor."""
            known = {host.decode() for host in client.hkeys(keys.beats)}
            states = map(HostState.from_json, client.hvals(keys.pool))
            return {state.pid: state for state in states if state.host in known}

        def running() -> dict[int, str]:
            """Which item is held where."""
            return {int(i): where for i, where in (path.name.split(" ") for path in held.glob("* *"))}

        both = {network.told(n): 2 for n in HOSTS}
        wait_until(lambda: Counter(running().values()) == both, timeout=60)
        at_the_cut = running()
        before = registered()
        network.cut(1)
        (held / "go").touch()

        # All that the lost host was running has been run by the other, and all results are there.
        found = json.loads(notebook.line("results", timeout=60))
        assert [value for value, _ in found] == [i * i for i in range(60)]
        lost = [i for i, where in at_the_cut.items() if where == network.told(1)]
        assert len(lost) == 2
        assert {found[i][1] for i in lost} == {network.told(2)}
        assert {where for _, where in found[:20]} == set(both), "both have had their part"
        assert set(registered()) == {hosts[2].process.pid}

        # When its link is back, it learns that it was given up, and is there again under another name, with fresh
        # workers: the others still ran what was given away.
        network.mend(1)
        first, second = (hosts[n].process.pid for n in HOSTS)
        old = {worker.pid for worker in before[first].workers}

        def is_back() -> bool:
            state = registered().get(first)
            fresh = [w for w in state.workers if w.state == "idle" and w.pid not in old] if state else []
            return len(fresh) == 2

        wait_until(is_back, timeout=60)
        after = registered()
        assert after[first].host != before[first].host
        assert after[second].host == before[second].host
        (again / "go").touch()
        assert Counter(json.loads(notebook.line("met", timeout=60))) == both
        notebook.end()
