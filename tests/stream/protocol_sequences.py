"""The hard sequences: known to have broken this protocol or one like it, and too rare for chance to find."""

from __future__ import annotations

import hypothesis.strategies as st
from hypothesis.stateful import rule
from protocol_actors import BLOBS, FAIL, LATER, OK, RETRY, Actors, Client, Worker
from protocol_model import QUEUED

picks = st.integers(0, 5)
kinds = st.sampled_from([OK, OK, FAIL, RETRY, LATER])
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)


class HardSequences(Actors):
    """Rules that play one story from its first to its last line, in whatever state they find the queue."""

    def two_workers(self) -> tuple[Client, Worker, Worker]:
        """A client, and two idle workers on hosts in good standing, with nothing else to fetch."""
        client = self.clients[0]
        self.resync(client)
        first, second = self.add_host(), self.add_host()
        one, other = first.workers[0], second.workers[0]
        self.fetch(second.workers[1], 1000)
        assert not self.model.by_place()[QUEUED], "what is queued cannot be fetched"
        return client, one, other

    def forget_two_hosts(self) -> None:
        """Keep the number of hosts bounded."""
        for host in self.hosts[-2:]:
            self.zombies += host.workers
            self.leave(host)
        del self.hosts[-2:]

    @rule(late=kinds, items=st.integers(1, 3), cap=st.sampled_from([1, -1]), charged=st.booleans())
    def hard_zombie_answers_late(self, late: str, items: int, cap: int, charged: bool) -> None:
        """Declared dead inside an item, which another runs; then the dead one speaks, then the other."""
        client, zombie, other = self.two_workers()
        self.submit(client, [items])
        self.fetch(zombie)
        self.begin(zombie)
        self.crash(zombie, running=charged, cap=cap, zombie=True)
        self.fetch(other)
        self.begin(other)
        self.run(zombie, [late] * items)
        self.run(other, [OK] * items)
        self.forget_two_hosts()

    @rule(late=kinds, thaws_late=st.booleans())
    def hard_frozen_host_thaws(self, late: str, thaws_late: bool) -> None:
        """Reaped while frozen, it thaws and fetches under its dead name before it hears of it."""
        client, frozen, other = self.two_workers()
        home, watcher = self.host_of(frozen), self.host_of(other)
        self.submit(client, [1, 2, 1])
        self.fetch(frozen)
        self.begin(frozen)
        self.reap(home)
        self.beat(watcher)
        self.fetch(other)
        if thaws_late:
            self.run(other, [OK])
        self.run(frozen, [late])
        self.fetch(frozen)
        self.begin(frozen)
        self.beat(watcher)
        self.run(frozen, [late])
        self.beat(home)
        self.fetch(other, 5)
        self.run(other, [OK] * 6)
        self.forget_two_hosts()

    @rule(dies=st.booleans())
    def hard_fetch_reply_is_lost(self, dies: bool) -> None:
        client, worker, other = self.two_workers()
        (n,) = self.submit(client, [2])
        self.fetch(worker, lost=True)
        if dies:
            self.crash(worker, running=False)
            worker = other
        self.fetch(worker)
        self.run(worker, [OK, OK])
        self.read(client)
        assert not client.calls[n].unsettled, "an entry whose delivery was lost is stranded"
        self.forget_two_hosts()

    @rule(kind=kinds, between=st.sampled_from(["", "promoted", "fetched"]))
    def hard_finish_is_repeated(self, kind: str, between: str) -> None:
        client, worker, other = self.two_workers()
        self.submit(client, [1, 3])
        self.fetch(worker, 2)
        for _ in range(2):
            self.run(worker, [kind])
            self.finish(worker, worker.last)
            if between:
                self.beat(self.host_of(other))
            if between == "fetched":
                self.fetch(other, 2)
            self.finish(worker, worker.last)
        self.run(other, [OK] * 2)
        self.run(worker, [OK] * 3)
        self.forget_two_hosts()

    @rule(counts=sizes)
    def hard_submit_is_repeated_after_the_end(self, counts: list[int]) -> None:
        client, worker, _ = self.two_workers()
        numbers = self.submit(client, counts)
        self.fetch(worker, len(counts))
        self.run(worker, [OK] * sum(counts))
        self.read(client)
        self.send(client, numbers, blobs=BLOBS, forged=True)
        self.forget_two_hosts()

    @rule(
        victims=st.lists(st.integers(0, 3), min_size=1, max_size=5),
        reports=st.booleans(),
        between=st.booleans(),
        cap=st.sampled_from([1, 1, -1]),
    )
    def hard_items_of_a_chunk_kill(self, victims: list[int], reports: bool, between: bool, cap: int) -> None:
        """Each kills the worker that runs it, or is the last one run before; nobody else is charged."""
        client, worker, _ = self.two_workers()
        home = self.host_of(worker)
        (n,) = self.submit(client, [4])
        for victim in victims:
            self.fetch(worker)
            if not worker.copies:
                break
            self.run(worker, [OK] * (victim - worker.copies[0].at), report=reports)
            self.crash(worker, cap=cap, between=between)
            worker = home.workers[-1]
        self.fetch(worker)
        self.run(worker, [OK] * 4)
        self.read(client)
        assert not client.calls[n].unsettled
        self.forget_two_hosts()

    @rule(kind=kinds, late=st.booleans())
    def hard_dead_worker_fetches(self, kind: str, late: bool) -> None:
        """Under its dead name, which its own supervisor's next beat must notice."""
        client, worker, other = self.two_workers()
        home = self.host_of(worker)
        self.crash(worker, zombie=True)
        self.submit(client, [2])
        self.fetch(worker)
        self.begin(worker)
        if not late:
            self.run(worker, [kind])
        self.beat(home)
        self.fetch(other)
        self.begin(other)
        self.run(worker, [kind] * 2)
        self.run(other, [OK] * 2)
        self.forget_two_hosts()

    @rule(items=st.integers(1, 2), end=st.sampled_from(["cancelled", "late success", "all lost"]))
    def hard_parked_call_ends(self, items: int, end: str) -> None:
        """While its retry waits."""
        client, zombie, other = self.two_workers()
        (n,) = self.submit(client, [items])
        self.fetch(zombie)
        self.begin(zombie)
        self.crash(zombie, zombie=True)
        self.fetch(other)
        self.run(other, [LATER])
        if end == "cancelled":
            self.cancel(client, [n])
        elif end == "all lost":
            self.lose_everything()
            self.resync(client)
        self.run(zombie, [OK] * items)
        self.run(other, [OK] * items)
        self.forget_two_hosts()

    @rule(reads=st.booleans(), resyncs=st.booleans(), kind=kinds)
    def hard_worker_outlives_the_memory(self, reads: bool, resyncs: bool, kind: str) -> None:
        """Half of a chunk is reported, the server loses everything, then comes the other half."""
        client, worker, other = self.two_workers()
        home = self.host_of(worker)
        self.submit(client, [4])
        self.fetch(worker)
        self.run(worker, [OK, OK])
        if reads:
            self.read(client)
        self.lose_everything()
        if resyncs:
            self.resync(client)
        self.beat(home)
        self.run(worker, [kind])
        self.resync(client)
        self.fetch(other)
        self.run(worker, [kind])
        self.run(other, [OK] * 4)
        self.forget_two_hosts()
