"""Adversarial actors that drive the real steps on a real server, and compare each answer with the model.

One thread. Clients lose replies and send again; workers die, answer late and fetch under dead names; hosts
freeze, are declared dead and thaw; connections end between two commands; strangers write; time passes; the
server is full, or loses everything. After every rule the server's state is held
against `protocol_model`; at the end an honest crew drains the queue, and nothing may be left.
"""

from __future__ import annotations

import sys
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from protocol_actors import BLOBS, FAIL, LATER_S, OK, Host, Worker
from protocol_model import STREAMS
from protocol_sequences import HardSequences, bundles, cuts, needed, picks, runs, sizes, strange, streams

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

    def busy(self, w: int) -> Worker:
        """A worker that holds something, if there is one."""
        workers = [worker for worker in self.working if worker.copies] or self.working
        return workers[w % len(workers)]

    # Rules: everyday work

    @initialize(counts=sizes, stream=streams, together=bundles)
    def something_to_do(self, counts: list[int], stream: str, together: int) -> None:
        self.submit(self.clients[0], counts, 3, stream=stream, together=together)

    @rule(
        c=picks,
        counts=sizes,
        kind=picks,
        fate=st.sampled_from(["", "", "reply lost", "never arrived"]),
        reach=needed,
        stream=streams,
        together=bundles,
    )
    def client_submits(
        self, c: int, counts: list[int], kind: int, fate: str, reach: list[int], stream: str, together: int
    ) -> None:
        self.submit(self.clients[c % len(self.clients)], counts, kind, fate, reach, stream, together)

    @rule(c=picks, number=st.integers(2, 6), kind=picks, stream=streams, together=st.integers(2, 4))
    def client_submits_short_calls(self, c: int, number: int, kind: int, stream: str, together: int) -> None:
        self.submit(self.clients[c % len(self.clients)], [1] * number, kind, stream=stream, together=together)

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
    @rule(c=picks, s=picks, together=bundles)
    def client_repeats_a_submit(self, c: int, s: int, together: int) -> None:
        """The words are old and must count for nothing: they are told from the first by forged values."""
        client = self.clients[c % len(self.clients)]
        if client.submits:
            epoch, numbers, needs = client.submits[s % len(client.submits)]
            self.send(client, numbers, blobs=BLOBS, epoch=epoch, forged=True, needs=needs, together=together)

    @rule(c=picks, k=picks, many=st.integers(1, 2))
    def client_cancels(self, c: int, k: int, many: int) -> None:
        client = self.clients[c % len(self.clients)]
        numbers = [n for n, sent in client.calls.items() if sent.unsettled]
        if numbers and not client.unsure:
            self.cancel(client, numbers[k % len(numbers) :][:many])

    @precondition(lambda self: self.working)
    @rule(w=picks, count=st.integers(1, 3), fate=st.sampled_from(["", "", "lost", "cut"]), reads=st.integers(1, 3))
    def worker_fetches(self, w: int, count: int, fate: str, reads: int) -> None:
        self.fetch(self.working[w % len(self.working)], count, reads=reads, lost=fate == "lost", cut=fate == "cut")

    @precondition(lambda self: self.working)
    @rule(w=picks, outcomes=runs, report=st.booleans(), away=st.booleans(), gathers=st.booleans())
    def worker_runs(self, w: int, outcomes: list[str], report: bool, away: bool, gathers: bool) -> None:
        worker = self.busy(w)
        worker.gathers = gathers
        if not worker.copies:
            self.fetch(worker)
        self.run(worker, outcomes, report=report and not away, away=away)

    @precondition(lambda self: self.working)
    @rule(w=picks, outcomes=runs, count=st.integers(1, 3), fate=cuts, gathers=st.booleans())
    def worker_reports_and_fetches(self, w: int, outcomes: list[str], count: int, fate: str, gathers: bool) -> None:
        worker = self.busy(w)
        worker.gathers = gathers
        self.run(worker, outcomes, report=False, away=True)
        self.report_and_fetch(worker, count, fate)

    @precondition(lambda self: self.working)
    @rule(w=picks, outcomes=runs, fate=st.sampled_from(["reply lost", "never arrived"]), gathers=st.booleans())
    def worker_gets_no_answer_to_a_finish(self, w: int, outcomes: list[str], fate: str, gathers: bool) -> None:
        worker = self.busy(w)
        worker.gathers = gathers
        self.run(worker, outcomes, report=False, away=True)
        self.report(worker, fate=fate)

    @rule(w=picks)
    def worker_repeats_a_finish(self, w: int) -> None:
        told = [worker for worker in self.working + self.zombies if worker.last]
        if told:
            worker = told[w % len(told)]
            self.repeat(worker)

    @precondition(lambda self: self.working)
    @rule(w=picks)
    def worker_releases(self, w: int) -> None:
        self.release(self.busy(w))

    @precondition(lambda self: self.working)
    @rule(w=picks)
    def worker_refuses_a_call(self, w: int) -> None:
        self.refuse(self.busy(w))

    @precondition(lambda self: self.awake)
    @rule(h=picks)
    def host_beats(self, h: int) -> None:
        self.beat(self.awake[h % len(self.awake)])

    @rule(w=picks, message=st.binary(max_size=3))
    def worker_announces(self, w: int, message: bytes) -> None:
        busy = [worker for worker in self.working + self.zombies if worker.copies] or self.working[:1]
        if busy:
            worker = busy[w % len(busy)]
            if not worker.copies:
                # Most stories end when all their work is done.
                self.submit(self.clients[0], [1])
                self.fetch(worker)
            for copy in worker.copies[:1]:
                self.announce(copy.got, message)

    @precondition(lambda self: self.awake)
    @rule(h=picks)
    def somebody_asks_a_host(self, h: int) -> None:
        self.ask(self.awake[h % len(self.awake)])

    @precondition(lambda self: self.awake)
    @rule(h=picks)
    def host_hears_its_inbox(self, h: int) -> None:
        self.hear(self.awake[h % len(self.awake)])

    @rule()
    def somebody_looks_on(self) -> None:
        self.what_is_told_agrees()

    # Rules: faults

    @precondition(lambda self: self.working)
    @rule(
        w=picks,
        how=st.sampled_from(["idle", "running", "between", "loading", "beside"]),
        cap=st.sampled_from([1, 1, -1]),
        zombie=st.booleans(),
    )
    def worker_dies(self, w: int, how: str, cap: int, zombie: bool) -> None:
        worker = self.working[w % len(self.working)]
        self.crash(worker, how=how, cap=cap, zombie=zombie)

    @precondition(lambda self: self.zombies)
    @rule(z=picks, outcomes=runs, fetches=st.booleans(), gathers=st.booleans())
    def zombie_answers_late(self, z: int, outcomes: list[str], fetches: bool, gathers: bool) -> None:
        zombie = self.zombies[z % len(self.zombies)]
        zombie.gathers = gathers
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

    @precondition(lambda self: self.awake)
    @rule(h=picks)
    def host_leaves_and_does_not_know(self, h: int) -> None:
        """Its last word was told twice, with a new start between; its next beat hears of it."""
        self.leave(self.awake[h % len(self.awake)])

    @precondition(lambda self: len(self.hosts) < 4)
    @rule()
    def host_joins(self) -> None:
        self.add_host()

    @rule(dice=st.integers(0, 15))
    def server_loses_everything(self, dice: int) -> None:
        if dice < 6:
            self.lose_everything(restart=dice == 0)

    @rule(seconds=st.sampled_from([45.0, 2000.0, 300_000.0, 700_000.0]))
    def time_passes(self, seconds: float) -> None:
        """What has a lifetime dies when it is over, and with it nothing that is needed."""
        self.pass_time(seconds)

    @rule(c=picks)
    def record_is_lost(self, c: int) -> None:
        self.lose_record(self.clients[c % len(self.clients)])

    @rule(stream=st.sampled_from(STREAMS), what=strange, c=picks, n=picks)
    def stranger_writes(self, stream: str, what: str, c: int, n: int) -> None:
        self.intrude(stream, what, self.clients[c % len(self.clients)].name, str(n))

    @rule(c=picks, w=picks, outcomes=runs, together=bundles, gathers=st.booleans())
    def memory_is_full(self, c: int, w: int, outcomes: list[str], together: int, gathers: bool) -> None:
        """New calls are refused. All else goes on, or the memory would stay full."""
        client = self.clients[c % len(self.clients)]
        self.resync(client)
        call = self.broker.wire.call
        call("CONFIG", "SET", "maxmemory", "1")
        try:
            (n,) = self.make_calls(client, [1])
            # Its type differs from version to version.
            with pytest.raises(CommandError, match="used memory > 'maxmemory'"):
                self.send(client, [n], together=together)
            del client.calls[n]
            self.connect()
            self.resync(client)
            self.read(client, trim=True)
            newest = self.add_host()
            self.ask(newest)
            self.beat(self.hosts[0])
            for worker in self.working[w % len(self.working) :][:1]:
                worker.gathers = gathers
                self.fetch(worker, 2)
                self.run(worker, outcomes)
                self.release(worker)
                self.refuse(worker)
                self.crash(worker)
            self.fetch(newest.workers[0], 2)
            self.begin(newest.workers[0])
            self.cancel(client, [n for n, sent in client.calls.items() if sent.unsettled][:1])
            self.hosts.remove(newest)
            self.leave(newest)
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
        for _ in range(200):
            self.pass_time(LATER_S)
            self.beat(crew[0])
            self.fetch(worker, 100)
            worker.gathers = not worker.gathers
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
            self.flush(zombie)
            while zombie.copies:
                self.run(zombie, [FAIL])
        self.server_and_model_agree()
        self.nothing_is_left(crew[0])

    def nothing_is_left(self, host: Host) -> None:
        keys, call = self.broker.keys, self.broker.wire.call
        self.beat(host)
        for stream in keys.streams:
            assert call("XLEN", stream) == 0
            assert call("XPENDING", stream, GROUP)[0] == 0
            consumers = {row[1].decode() for row in call("XINFO", "CONSUMERS", stream, GROUP)}
            assert consumers <= {worker.name for worker in host.workers}
        assert None not in self.model.lifetimes().values()
        self.server_and_model_agree()
        self.what_is_told_agrees()


def machine_on(server: PrivateServer, **changes: Any) -> type[ProtocolMachine]:
    return type("ProtocolMachine", (ProtocolMachine,), {"server": server, **changes})
