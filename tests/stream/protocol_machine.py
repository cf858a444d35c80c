"""Adversarial actors that drive the real steps on a real server, and compare each answer with the model.

One thread. Clients lose replies and send again; workers die, answer late and fetch under dead names; hosts
freeze, are declared dead and thaw; the server loses everything. After every rule the server's state is held
against `protocol_model`; at the end an honest crew drains the queue, and nothing may be left.
"""

from __future__ import annotations

import sys
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from protocol_actors import BLOBS, FAIL, OK, Host
from protocol_model import PARKED
from protocol_sequences import HardSequences, kinds, picks, sizes

from nbqueue.stream.connect import CommandError
from nbqueue.stream.keys import GROUP
from nbqueue.stream.server import PrivateServer


class ProtocolMachine(HardSequences, RuleBasedStateMachine):
    """Make one for a server with `machine_on`."""

    def __init__(self) -> None:
        RuleBasedStateMachine.__init__(self)
        HardSequences.__init__(self)
        self.handled = sys.exc_info()[1]

    @invariant()
    def agreement(self) -> None:
        self.server_and_model_agree()

    # Rules: everyday work

    @initialize(counts=sizes)
    def something_to_do(self, counts: list[int]) -> None:
        self.submit(self.clients[0], counts, 3)

    @rule(c=picks, counts=sizes, kind=picks, fate=st.sampled_from(["", "", "reply lost", "never arrived"]))
    def client_submits(self, c: int, counts: list[int], kind: int, fate: str) -> None:
        self.submit(self.clients[c % len(self.clients)], counts, kind, fate)

    @rule(c=picks, trim=st.booleans())
    def client_reads(self, c: int, trim: bool) -> None:
        client = self.clients[c % len(self.clients)]
        if not client.unsure:
            self.read(client, trim=trim)

    @rule(c=picks)
    def client_reconnects(self, c: int) -> None:
        self.resync(self.clients[c % len(self.clients)])

    @precondition(lambda self: len(self.clients) < 3)
    @rule()
    def client_joins(self) -> None:
        self.add_client()

    @precondition(lambda self: any(client.submits for client in self.clients))
    @rule(c=picks, s=picks)
    def client_repeats_a_submit(self, c: int, s: int) -> None:
        """The words are old and must count for nothing: they are told from the first by forged values."""
        client = self.clients[c % len(self.clients)]
        if client.submits:
            epoch, numbers = client.submits[s % len(client.submits)]
            self.send(client, numbers, blobs=BLOBS, epoch=epoch, forged=True)

    @rule(c=picks, k=picks, many=st.integers(1, 2))
    def client_cancels(self, c: int, k: int, many: int) -> None:
        client = self.clients[c % len(self.clients)]
        numbers = [n for n, sent in client.calls.items() if sent.unsettled]
        if numbers and not client.unsure:
            self.cancel(client, numbers[k % len(numbers) :][:many])

    @precondition(lambda self: self.working)
    @rule(w=picks, count=st.integers(1, 3), lost=st.sampled_from([False, False, True]))
    def worker_fetches(self, w: int, count: int, lost: bool) -> None:
        self.fetch(self.working[w % len(self.working)], count, lost=lost)

    @precondition(lambda self: self.working)
    @rule(w=picks, outcomes=st.lists(kinds, min_size=1, max_size=4), report=st.booleans())
    def worker_runs(self, w: int, outcomes: list[str], report: bool) -> None:
        busy = [worker for worker in self.working if worker.copies] or self.working
        worker = busy[w % len(busy)]
        if not worker.copies:
            self.fetch(worker)
        self.run(worker, outcomes, report=report)

    @precondition(lambda self: self.working)
    @rule(w=picks)
    def worker_loses_the_answer_to_a_finish(self, w: int) -> None:
        worker = self.working[w % len(self.working)]
        self.run(worker, [OK], report=False)
        self.report(worker, lost=True)

    @rule(w=picks)
    def worker_repeats_a_finish(self, w: int) -> None:
        told = [worker for worker in self.working + self.zombies if worker.last]
        if told:
            worker = told[w % len(told)]
            self.finish(worker, worker.last)

    @precondition(lambda self: self.working)
    @rule(w=picks)
    def worker_releases(self, w: int) -> None:
        self.release(self.working[w % len(self.working)])

    @precondition(lambda self: self.awake)
    @rule(h=picks)
    def host_beats(self, h: int) -> None:
        self.beat(self.awake[h % len(self.awake)])

    @rule(w=picks, message=st.binary(max_size=3))
    def worker_announces(self, w: int, message: bytes) -> None:
        busy = [worker for worker in self.working + self.zombies if worker.copies]
        if busy:
            got = busy[w % len(busy)].copies[0].got
            told = self.broker.announce(got.client, got.n, got.entry, message)
            assert told == self.model.is_current(got)
            self.model.replies[got.client] += told

    # Rules: faults

    @precondition(lambda self: self.working)
    @rule(
        w=picks,
        how=st.sampled_from(["idle", "running", "between"]),
        cap=st.sampled_from([1, 1, -1]),
        zombie=st.booleans(),
    )
    def worker_dies(self, w: int, how: str, cap: int, zombie: bool) -> None:
        worker = self.working[w % len(self.working)]
        self.crash(worker, running=how != "idle", between=how == "between", cap=cap, zombie=zombie)

    @precondition(lambda self: self.zombies)
    @rule(z=picks, outcomes=st.lists(kinds, min_size=1, max_size=4), fetches=st.booleans())
    def zombie_answers_late(self, z: int, outcomes: list[str], fetches: bool) -> None:
        zombie = self.zombies[z % len(self.zombies)]
        if fetches:
            self.fetch(zombie)
        self.run(zombie, outcomes)

    @precondition(lambda self: self.awake)
    @rule(h=picks)
    def host_freezes(self, h: int) -> None:
        self.awake[h % len(self.awake)].frozen = True

    @precondition(lambda self: len(self.awake) < len(self.hosts))
    @rule()
    def host_thaws(self) -> None:
        next(host for host in self.hosts if host.frozen).frozen = False

    @rule(h=picks)
    def host_is_declared_dead(self, h: int) -> None:
        """Also one that is not: whoever judges by a clock may be wrong."""
        self.reap(self.hosts[h % len(self.hosts)])

    @precondition(lambda self: len(self.hosts) > 1)
    @rule(h=picks, zombies=st.booleans())
    def host_leaves(self, h: int, zombies: bool) -> None:
        host = self.hosts.pop(h % len(self.hosts))
        self.leave(host)
        self.zombies += host.workers if zombies else []

    @precondition(lambda self: len(self.hosts) < 4)
    @rule()
    def host_joins(self) -> None:
        self.add_host()

    @rule(dice=st.integers(0, 15))
    def server_loses_everything(self, dice: int) -> None:
        if dice < 6:
            self.lose_everything(restart=dice == 0)

    @rule()
    def an_hour_passes(self) -> None:
        """Blobs without an open call die, and with them nothing that is needed."""
        self.delete_mortal_keys(3600)
        self.model.blobs &= set(self.model.refs())

    @rule()
    def a_week_passes(self) -> None:
        """In which no host beats. Clients have read their replies: those die too."""
        for client in self.clients:
            self.resync(client)
        self.delete_mortal_keys(8 * 86400)
        self.model.blobs &= set(self.model.refs())
        self.model.hosts.clear()
        self.model.memory = ""
        self.model.replies.clear()
        self.model.counts.clear()
        for client in self.clients:
            if not self.model.open_of(client.name):
                self.model.records.pop(client.name, None)

    @rule(c=picks, w=picks, outcomes=st.lists(kinds, min_size=1, max_size=4))
    def memory_is_full(self, c: int, w: int, outcomes: list[str]) -> None:
        """New calls are refused. All else goes on, or the memory would stay full."""
        client = self.clients[c % len(self.clients)]
        self.resync(client)
        call = self.broker.wire.call
        call("CONFIG", "SET", "maxmemory", "1")
        try:
            (n,) = self.make_calls(client, [1])
            # Its type differs from version to version.
            with pytest.raises(CommandError, match="used memory > 'maxmemory'"):
                self.send(client, [n])
            del client.calls[n]
            self.broker.connect()
            self.resync(client)
            self.read(client, trim=True)
            self.add_host()
            self.beat(self.hosts[0])
            for worker in self.working[w % len(self.working) :][:1]:
                self.fetch(worker)
                self.run(worker, outcomes)
                self.release(worker)
                self.crash(worker)
            self.leave(self.hosts.pop())
        finally:
            call("CONFIG", "SET", "maxmemory", "0")

    # The end

    def teardown(self) -> None:
        try:
            # Hypothesis calls this after a failure as well, which is then on its way.
            if sys.exc_info()[1] is self.handled:
                self.drain()
        finally:
            self.broker.wire.close()

    def drain(self) -> None:
        """An honest crew takes over; whatever the zombies still hold comes when all is over."""
        for host in self.hosts:
            host.frozen = False
            self.zombies += host.workers
        crew = [self.add_host()]
        for host in self.hosts[:-1]:
            self.leave(host)
        self.hosts = crew
        worker = crew[0].workers[0]
        for client in self.clients:
            self.resync(client)
        for _ in range(20):
            for member in self.broker.wire.call("ZRANGE", self.broker.keys.delayed, 0, -1):
                self.broker.wire.call("ZADD", self.broker.keys.delayed, "XX", 0, member)
            for call in self.model.open.values():
                call.due = call.where == PARKED
            self.beat(crew[0])
            self.fetch(worker, 100)
            while worker.copies:
                self.run(worker, [OK])
            for client in self.clients:
                self.read(client)
            if not any(sent.unsettled for client in self.clients for sent in client.calls.values()):
                break
        for client in self.clients:
            self.resync(client)
            for sent in client.calls.values():
                assert not sent.unsettled, f"{client.name}/{sent.n}: items {sent.unsettled} never ended"
        self.beat(crew[0])
        self.fetch(worker, 100)
        while worker.copies:
            # What a client no longer waits for, because an older attempt's success arrived.
            self.run(worker, [OK])
        assert not self.model.open
        for zombie in self.zombies:
            while zombie.copies:
                self.run(zombie, [FAIL])
        self.server_and_model_agree()
        self.nothing_is_left(crew[0])

    def nothing_is_left(self, host: Host) -> None:
        keys, call = self.broker.keys, self.broker.wire.call
        self.beat(host)
        for stream in (keys.first, keys.normal):
            assert call("XLEN", stream) == 0
            assert call("XPENDING", stream, GROUP)[0] == 0
            consumers = {row[1].decode() for row in call("XINFO", "CONSUMERS", stream, GROUP)}
            assert consumers <= {worker.name for worker in host.workers}
        for key in call("KEYS", keys.prefix + "*"):
            assert call("TTL", key) > 0, f"{key} has no lifetime"
        counts = self.broker.counts()
        told = {"done": counts.done, "failed": counts.failed, "cancelled": counts.cancelled}
        told |= {"retried": counts.retried, "refused": counts.refused}
        assert told == {name: self.model.counts[name] for name in told}


def machine_on(server: PrivateServer, **changes: Any) -> type[ProtocolMachine]:
    return type("ProtocolMachine", (ProtocolMachine,), {"server": server, **changes})
