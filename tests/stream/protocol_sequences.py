"""The hard sequences: known to have broken this protocol or one like it, and too rare for chance to find."""

from __future__ import annotations

import json

import hypothesis.strategies as st
from hypothesis.stateful import rule
from protocol_actors import BLOBS, FAIL, LATER, LATER_S, OK, RETRY, Actors, Client, Parcel, Worker
from protocol_model import INBOX_S, QUEUED, STREAMS

from nbqueue.stream.broker import entry_of, given_back
from nbqueue.stream.records import Several

picks = st.integers(0, 5)
kinds = st.sampled_from([OK, OK, FAIL, RETRY, LATER])
runs = st.lists(kinds, min_size=1, max_size=4)
cuts = st.sampled_from(["", "cut", "fetch lost", "both lost", "scripts forgotten"])
ends = st.sampled_from(["idle", "running"])
STEPS = ("hello", "submit", "finish", "cancel", "register", "beat", "leave", "reap", "reclaim", "release", "prepare")
STEPS += ("announce", "values")
strange = st.sampled_from(["words", "like a call", "forged", "a bundle"])
sizes = st.lists(st.integers(1, 4), min_size=1, max_size=4)
needed = st.lists(st.integers(1, 3), max_size=2)
streams = st.sampled_from(["0", "1", "1", "2"])
bundles = st.sampled_from([0, 0, 2, 3, 32])
# What becomes of a call of a bundle. The last three are about whatever comes next.
ways = st.sampled_from([OK, OK, FAIL, RETRY, LATER, "cancelled", "refused", "released", "its worker dies"])


class HardSequences(Actors):
    """Rules that play one story from its first to its last line, in whatever state they find the queue."""

    def two_workers(self, *, gather: bool = False) -> tuple[Client, Worker, Worker]:
        """A client, and two idle workers on hosts in good standing, with nothing else to fetch."""
        client = self.clients[0]
        self.resync(client)
        first, second = self.add_host(), self.add_host()
        one, other = first.workers[0], second.workers[0]
        one.gathers = other.gathers = gather
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
        self.crash(zombie, how="running" if charged else "idle", cap=cap, zombie=True)
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
            self.crash(worker, how="idle")
            worker = other
        self.fetch(worker)
        self.run(worker, [OK, OK])
        self.read(client)
        assert not client.calls[n].unsettled, "an entry whose delivery was lost is stranded"
        self.forget_two_hosts()

    @rule(
        kind=kinds,
        between=st.sampled_from(["", "promoted", "fetched"]),
        together=bundles,
        gather=st.booleans(),
    )
    def hard_finish_is_repeated(self, kind: str, between: str, together: int, gather: bool) -> None:
        """Those of its bundle that have not run stay where they are."""
        client, worker, other = self.two_workers(gather=gather)
        self.submit(client, [1, 1, 1, 3] if together else [1, 3], together=together)
        self.fetch(worker, 2)
        for _ in range(2):
            self.run(worker, [kind])
            self.repeat(worker)
            if between:
                self.beat(self.host_of(other))
            if between == "fetched":
                self.fetch(other, 2)
            self.repeat(worker)
        self.run(other, [OK] * 2)
        self.run(worker, [OK] * 3)
        self.forget_two_hosts()

    @rule(counts=sizes, more=st.booleans(), together=bundles)
    def hard_submit_is_repeated_after_the_end(self, counts: list[int], more: bool, together: int) -> None:
        """Also of one that needed another."""
        client, worker, _ = self.two_workers()
        numbers = self.submit(client, counts, together=together)
        if more:
            (first,) = self.submit(client, [1])
            numbers = self.submit(client, [1], reach=[1])
        for _ in range(2):
            self.fetch(worker, len(counts) + 1)
            self.run(worker, [OK] * (sum(counts) + 1))
        self.read(client)
        needs = {n: (str(first),) if more else () for n in numbers}
        self.send(client, numbers, blobs=BLOBS, forged=True, needs=needs, together=together)
        self.forget_two_hosts()

    @rule(
        victims=st.lists(st.integers(0, 3), min_size=1, max_size=5),
        reports=st.booleans(),
        how=st.sampled_from(["running", "between", "loading"]),
        cap=st.sampled_from([1, 1, 2, -1]),
        kind=kinds,
    )
    def hard_items_of_a_chunk_kill(self, victims: list[int], reports: bool, how: str, cap: int, kind: str) -> None:
        """Each kills the worker that runs it, or is the last one run before; nobody else is charged."""
        client, worker, _ = self.two_workers()
        home = self.host_of(worker)
        (n,) = self.submit(client, [4])
        for victim in victims:
            self.fetch(worker)
            if not worker.copies:
                break
            self.run(worker, [OK] * (victim - worker.copies[0].at), report=reports)
            self.crash(worker, cap=cap, how=how)
            worker = home.workers[-1]
        self.fetch(worker)
        self.run(worker, [kind] + [OK] * 3)
        self.beat(home)
        self.fetch(worker, 1000)
        while worker.copies:
            self.run(worker, [OK])
        self.read(client)
        assert kind == LATER or not client.calls[n].unsettled
        self.forget_two_hosts()

    @rule(
        items=st.lists(st.sampled_from([1, 1, 2]), min_size=2, max_size=4),
        caps=st.lists(st.sampled_from([1, 1, -1]), min_size=1, max_size=3),
        reports=st.booleans(),
        together=bundles,
    )
    def hard_several_run_at_its_death(
        self, items: list[int], caps: list[int], reports: bool, together: int
    ) -> None:
        """Calls that run beside each other: each is charged, over its own cap it ends, and what was reported is not."""
        client, worker, _ = self.two_workers()
        home = self.host_of(worker)
        self.submit(client, items, together=together)
        for cap in caps:
            self.fetch(worker, len(items))
            if reports:
                self.run(worker, [OK])
            self.crash(worker, how="beside", cap=cap)
            worker = home.workers[-1]
        self.fetch(worker, 1000)
        while worker.copies:
            self.run(worker, [OK])
        self.read(client)
        assert not any(sent.unsettled for sent in client.calls.values() if sent.n in self.last_of(client, len(items)))
        self.forget_two_hosts()

    @staticmethod
    def last_of(client: Client, number: int) -> list[int]:
        return sorted(client.calls)[-number:]

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

    @rule(heard=st.sampled_from(["resyncs", "resyncs", "reads", "both", "nothing"]), kind=kinds)
    def hard_worker_outlives_the_memory(self, heard: str, kind: str) -> None:
        """Half of a chunk is reported, the server loses everything, then comes the other half."""
        client, worker, other = self.two_workers()
        home = self.host_of(worker)
        self.submit(client, [4])
        self.fetch(worker)
        self.run(worker, [OK, OK])
        if heard in ("reads", "both"):
            self.read(client)
        self.lose_everything()
        if heard in ("resyncs", "both"):
            self.resync(client)
        self.beat(home)
        self.run(worker, [kind])
        self.resync(client)
        self.fetch(other)
        self.run(worker, [kind])
        self.run(other, [OK] * 4)
        self.forget_two_hosts()

    @rule(
        outcomes=runs,
        fate=st.sampled_from(["reply lost", "never arrived"]),
        dies=st.booleans(),
        together=bundles,
        gather=st.booleans(),
    )
    def hard_finish_has_no_answer(
        self, outcomes: list[str], fate: str, dies: bool, together: int, gather: bool
    ) -> None:
        """The worker keeps its report, and sends it before it asks what is still its own."""
        client, worker, other = self.two_workers(gather=gather)
        home = self.host_of(worker)
        self.submit(client, [1, 1, 1] if together else [2, 1, 1], together=together)
        self.fetch(worker, 3)
        self.run(worker, outcomes, report=False, away=True)
        self.report(worker, fate=fate)
        if dies:
            self.crash(worker, how="between", zombie=True)
        self.fetch(worker)
        self.run(worker, [OK] * 4)
        self.beat(home)
        self.fetch(other, 5)
        self.run(other, [OK] * 4)
        self.forget_two_hosts()

    @rule(outcomes=runs, fate=cuts, dies=st.booleans(), together=bundles, gather=st.booleans())
    def hard_pipeline_is_interrupted(
        self, outcomes: list[str], fate: str, dies: bool, together: int, gather: bool
    ) -> None:
        """Reports and the next fetch leave together; what comes back ends somewhere between."""
        client, worker, other = self.two_workers(gather=gather)
        numbers = self.submit(client, [1, 1, 1, 1, 2, 1] if together else [1, 2, 1, 1], together=together)
        self.fetch(worker, 2)
        self.run(worker, outcomes, report=False, away=True)
        self.report_and_fetch(worker, 2, fate)
        if dies:
            self.crash(worker, how="idle")
        left = (other,) if dies else (worker, other)
        for _ in range(3):
            self.beat(self.host_of(other))
            for each in left:
                self.fetch(each, 5)
                self.run(each, [OK] * 6)
        # A beat may have brought back what hosts had that are long silent, and before these.
        for each in left:
            self.fetch(each, 1000)
            self.run(each, [OK] * 1000)
        self.read(client)
        late = any(client.calls[n].unsettled for n in numbers)
        assert not late or LATER in outcomes, "an entry is stranded"
        self.forget_two_hosts()

    @rule(
        ends=st.lists(kinds, min_size=2, max_size=2),
        before=st.integers(0, 2),
        reads=st.booleans(),
        fate=st.sampled_from(["", "", "all lost", "an hour", "dies", "refused", "cancelled", "no answer"]),
        chain=st.booleans(),
        stream=streams,
        together=bundles,
        gather=st.booleans(),
    )
    def hard_call_needs_others(
        self,
        ends: list[str],
        before: int,
        reads: bool,
        fate: str,
        chain: bool,
        stream: str,
        together: int,
        gather: bool,
    ) -> None:
        """Two may end before or after a third is sent, which needs them. A fourth needs that one, or the same two."""
        client, worker, other = self.two_workers(gather=gather)
        home = self.host_of(worker)
        second = self.submit(client, [1, 1], together=together)[1]
        self.fetch(worker, 2)
        self.run(worker, ends[:before])
        (n,) = self.submit(client, [1], 0, "never arrived" if fate == "no answer" else "", [1, 2], stream)
        (fourth,) = self.submit(client, [1], 1, "", [1] if chain else [2, 3])
        self.server_and_model_agree()
        if reads:
            self.read(client)
        if fate == "all lost":
            self.lose_everything()
            self.resync(client)
        elif fate == "an hour":
            self.pass_time(LATER_S)
        elif fate == "dies":
            self.crash(worker, cap=-1, zombie=True)
        elif fate == "refused":
            self.refuse(worker)
        elif fate == "cancelled" and client.calls[second].unsettled:
            self.cancel(client, [second])
        self.server_and_model_agree()
        self.run(worker, ends[before:])
        self.server_and_model_agree()
        self.beat(home)
        for _ in range(3):
            self.fetch(other, 1000)
            while other.copies:
                self.run(other, [OK])
        self.resync(client)
        if {*ends, fate} <= {OK, ""}:
            # An input that was read no longer counts: the fourth may need an earlier call in its place.
            sure = {second - 1, second, n}.issuperset(client.calls[fourth].inputs)
            for m in (n, fourth) if sure else (n,):
                assert client.calls[m].outcomes[0][0] == OK, "a call whose inputs are there does not run"
        self.forget_two_hosts()

    @rule(
        ways=st.lists(ways, min_size=2, max_size=6),
        together=st.integers(2, 6),
        stream=streams,
        gather=st.booleans(),
        at_once=st.booleans(),
        cap=st.sampled_from([1, -1]),
        beside=st.booleans(),
    )
    def hard_calls_leave_a_bundle(
        self, ways: list[str], together: int, stream: str, gather: bool, at_once: bool, cap: int, beside: bool
    ) -> None:
        """One after the other, each on its own way; what was given back or taken back is fetched again."""
        client, worker, other = self.two_workers(gather=gather)
        home = self.host_of(worker)
        numbers = self.submit(client, [1] * len(ways), stream=stream, together=together)
        for n, way in zip(numbers, ways, strict=True):
            self.fetch(worker, 3)
            if way == "cancelled":
                self.cancel(client, [n])
            elif way == "refused":
                self.refuse(worker)
            elif way == "released":
                self.begin(worker)
                self.release(worker)
            elif way == "its worker dies":
                self.crash(worker, cap=cap, how="beside" if beside else "running", zombie=True)
                worker = home.workers[-1]
                worker.gathers = gather
            else:
                self.run(worker, [way], report=at_once)
            self.server_and_model_agree()
        for _ in range(3):
            for each in (worker, other):
                self.fetch(each, 1000)
                self.run(each, [OK] * 1000)
            self.beat(home)
        self.read(client)
        assert LATER in ways or not any(client.calls[n].unsettled for n in numbers), "a call of a bundle is stranded"
        self.forget_two_hosts()

    @rule(
        number=st.integers(2, 5),
        taken=st.integers(1, 5),
        sizes=st.lists(bundles, min_size=2, max_size=2),
        ran=st.booleans(),
    )
    def hard_bundle_was_taken_in_part(self, number: int, taken: int, sizes: list[int], ran: bool) -> None:
        """What it was sent with before, in other bundles or alone, is not taken again."""
        client, worker, _ = self.two_workers()
        numbers = self.make_calls(client, [1] * number)
        self.send(client, numbers[:taken], together=sizes[0])
        if ran:
            self.fetch(worker, 5)
            self.run(worker, [OK] * 3)
        self.send(client, numbers, together=sizes[1])
        self.server_and_model_agree()
        self.fetch(worker, 10)
        self.run(worker, [OK] * number)
        self.read(client)
        assert not any(client.calls[n].unsettled for n in numbers)
        self.forget_two_hosts()

    @rule(
        late=st.lists(kinds, min_size=1, max_size=3),
        how=st.sampled_from(["idle", "running", "beside", "between"]),
        cap=st.sampled_from([1, -1]),
        first=st.booleans(),
        gather=st.booleans(),
        again=st.booleans(),
    )
    def hard_dead_worker_tells_of_a_bundle(
        self, late: list[str], how: str, cap: int, first: bool, gather: bool, again: bool
    ) -> None:
        """Whose calls are another's by now, in other bundles, or parked."""
        client, zombie, other = self.two_workers(gather=gather)
        self.submit(client, [1, 1, 1], together=3)
        self.fetch(zombie)
        if first:
            self.run(zombie, [OK])
        self.begin(zombie)
        self.crash(zombie, how=how, cap=cap, zombie=True)
        self.fetch(other)
        self.begin(other)
        if again:
            self.run(other, late[:1])
        self.run(zombie, late, report=False, away=True)
        self.flush(zombie)
        self.server_and_model_agree()
        self.repeat(zombie)
        self.run(other, [OK] * 3)
        self.fetch(other, 3)
        self.run(other, [OK] * 3)
        self.forget_two_hosts()

    @rule(number=st.integers(2, 4), held=st.booleans(), heard=st.booleans(), left=st.integers(0, 3))
    def hard_bundle_is_cancelled(self, number: int, held: bool, heard: bool, left: int) -> None:
        """All of it at once, or but for some."""
        client, worker, other = self.two_workers()
        numbers = self.submit(client, [1] * number, together=number)
        if held:
            self.fetch(worker)
            self.begin(worker)
        self.cancel(client, numbers[left:])
        self.server_and_model_agree()
        if heard:
            self.hear(self.host_of(worker))
        self.fetch(other)
        self.release(worker)
        for each in (worker, other):
            self.fetch(each, 10)
            self.run(each, [OK] * number)
        self.read(client)
        assert not any(client.calls[n].unsettled for n in numbers)
        self.forget_two_hosts()

    @rule(
        number=st.integers(2, 4),
        seconds=st.sampled_from([45.0, 700_000.0]),
        end=st.sampled_from(["cancelled", "run", "given back", "all lost"]),
        together=st.integers(1, 3),
    )
    def hard_bundle_waits_for_a_week(self, number: int, seconds: float, end: str, together: int) -> None:
        """And is told from a call alone after it, and counted, as before."""
        client, worker, other = self.two_workers()
        numbers = self.submit(client, [1] * number, together=number)
        if end == "given back":
            self.fetch(worker)
        self.pass_time(seconds)
        if end == "cancelled":
            self.cancel(client, numbers[1:])
        elif end == "given back":
            # From its place in the stream: by a name that is no call's.
            entries = [entry_of(copy.got.entry) for copy in worker.copies[:1]]
            assert self.broker.release(worker.name, entries) == self.model.release(worker.name, entries)
            worker.copies.clear()
        elif end == "all lost":
            self.lose_everything()
            client.resends = together - 1
            self.resync(client)
        self.server_and_model_agree()
        self.fetch(other, 10)
        self.run(other, [OK] * number)
        self.what_is_told_agrees()
        self.forget_two_hosts()

    @rule(gather=st.booleans(), ended=st.integers(0, 2), parked=st.booleans())
    def hard_some_of_several_no_longer_count(self, gather: bool, ended: int, parked: bool) -> None:
        """One message tells of some that have ended meanwhile, or wait for a retry."""
        client, zombie, other = self.two_workers(gather=gather)
        numbers = self.submit(client, [1, 1, 1, 1], together=3)
        self.fetch(zombie, 2)
        self.run(zombie, [OK] * 4, report=False, away=True)
        self.crash(zombie, how="idle", zombie=True)
        self.fetch(other, 2)
        self.run(other, [OK] * ended + [LATER] * parked)
        told = tuple(report.call for report in zombie.outbox)
        values = {call.n: f"{client.name}/{call.n}/0" for call in told}
        several = Several(told, json.dumps(values).encode())
        # Two attempts of one may come to lie side by side.
        twice = Several(told + told[:1], several.message)
        self.tell([Parcel([*zombie.outbox, zombie.outbox[0]], twice)])
        self.tell([Parcel(list(zombie.outbox), several)])
        self.read(client)
        assert not any(client.calls[n].unsettled for n in numbers)
        self.forget_two_hosts()

    @rule(
        what=strange,
        stream=st.sampled_from(STREAMS),
        cut=st.booleans(),
        end=st.sampled_from(["dies", "leaves", "is swept", "goes on", "releases"]),
        is_open=st.booleans(),
    )
    def hard_stranger_writes(self, what: str, stream: str, cut: bool, end: str, is_open: bool) -> None:
        """Whoever fetches it may be gone before it is refused, or may not hear that it was."""
        client, worker, other = self.two_workers()
        home = self.host_of(worker)
        (n,) = self.submit(client, [1])
        self.fetch(home.workers[1])
        if not is_open:
            self.run(home.workers[1], [OK])
        entry = self.intrude(stream, what, client.name, str(n))
        self.fetch(worker, cut=cut, lost=not cut)
        if end == "dies":
            self.crash(worker, how="idle")
        elif end == "leaves":
            self.leave(home)
        elif end == "is swept":
            self.reap(home)
            self.beat(self.host_of(other))
        else:
            if end == "releases" and what == "forged":
                assert self.broker.release(worker.name, [entry]) == self.model.release(worker.name, [entry]) == 0
            self.fetch(worker)
            self.run(worker, [OK])
        assert entry not in self.model.foreign, "what a stranger wrote is stranded"
        self.forget_two_hosts()

    @rule(done=st.integers(0, 2), retried=st.booleans(), other_holds=st.booleans())
    def hard_call_is_refused(self, done: int, retried: bool, other_holds: bool) -> None:
        """A chunk of which a part has ended, or is parked; perhaps by a worker that no longer holds it."""
        client, worker, other = self.two_workers()
        (n,) = self.submit(client, [3])
        self.fetch(worker)
        self.run(worker, [RETRY if retried else OK] * min(done, 1) + [OK] * (done - 1))
        self.crash(worker, how="idle", zombie=other_holds)
        self.fetch(other)
        if other_holds:
            self.refuse(worker)
        self.refuse(other)
        self.read(client)
        assert not client.calls[n].unsettled
        self.forget_two_hosts()

    @rule(counts=sizes, together=bundles)
    def hard_worker_releases_what_another_holds(self, counts: list[int], together: int) -> None:
        client, worker, other = self.two_workers()
        self.submit(client, counts, together=together)
        self.fetch(worker, len(counts))
        entries = given_back(copy.got for copy in worker.copies)
        assert self.broker.release(other.name, entries) == self.model.release(other.name, entries) == 0
        self.run(worker, [OK] * sum(counts))
        self.forget_two_hosts()

    @rule(counts=sizes, together=bundles, gather=st.booleans())
    def hard_record_is_lost(self, counts: list[int], together: int, gather: bool) -> None:
        """Alone, while the replies to its last calls wait to be read."""
        client, worker, _ = self.two_workers(gather=gather)
        # A record with open calls has no lifetime, and is not lost alone.
        self.cancel(client, [n for n, sent in client.calls.items() if sent.unsettled])
        self.submit(client, counts, together=together)
        self.fetch(worker, len(counts))
        self.run(worker, [OK] * sum(counts))
        self.lose_record(client)
        self.resync(client)
        self.fetch(worker, len(counts))
        self.run(worker, [OK] * sum(counts))
        self.forget_two_hosts()

    @rule(outcomes=st.lists(kinds, min_size=3, max_size=3), hears=st.booleans(), seconds=st.sampled_from([0, 45, 90]))
    def hard_running_call_is_cancelled(self, outcomes: list[str], hears: bool, seconds: float) -> None:
        """With some of its items done, and some that wait to run again."""
        client, worker, other = self.two_workers()
        home = self.host_of(worker)
        (n,) = self.submit(client, [4])
        self.fetch(worker)
        self.run(worker, outcomes)
        self.begin(worker)
        self.cancel(client, [n])
        self.pass_time(seconds)
        if hears:
            self.hear(home)
            assert seconds > INBOX_S or not worker.copies, "a host was not told what was cancelled"
        self.run(worker, [OK])
        self.beat(home)
        self.fetch(other, 5)
        self.forget_two_hosts()

    @rule(stream=streams, kind=st.sampled_from([RETRY, LATER]), chunk=st.booleans(), how=ends, together=bundles)
    def hard_call_comes_back(self, stream: str, kind: str, chunk: bool, how: str, together: int) -> None:
        """In every way that there is: given back, its worker's death, a retry. What is low stays so."""
        client, worker, other = self.two_workers()
        home = self.host_of(other)
        self.submit(client, [1 + chunk] * 3, stream=stream, together=together)
        self.fetch(worker, 3)
        self.release(worker)
        self.crash(worker, how=how)
        self.fetch(other, 3)
        self.run(other, [kind, OK, kind, OK])
        self.pass_time(LATER_S)
        self.beat(home)
        self.fetch(other, 5)
        self.run(other, [OK] * 6)
        self.forget_two_hosts()

    @rule(blobs=st.booleans())
    def hard_submit_after_a_week(self, blobs: bool) -> None:
        """All that keeps the queue alive is one retry that waits; streams and blobs are gone."""
        client, worker, _ = self.two_workers()
        self.submit(client, [1])
        self.fetch(worker)
        self.run(worker, [LATER])
        self.read(client)
        self.pass_time(700_000.0)
        self.submit(client, [1, 2], 0 if blobs else 2)
        if not blobs:
            # It comes again an hour later, when nothing of it is open, nor anything else.
            self.cancel(client, [n for n, sent in client.calls.items() if sent.unsettled])
            self.pass_time(3600.0)
            epoch, numbers, needs = client.submits[-1]
            self.send(client, numbers, epoch=epoch, forged=True, needs=needs)
        self.forget_two_hosts()

    @rule(cap=st.sampled_from([1, -1]), again=st.sampled_from(["loading", "between", "running"]), near=st.booleans())
    def hard_ended_item_seems_to_run(self, cap: int, again: str, near: bool) -> None:
        """It ended out of turn; then, `near` it or before, a worker dies that has not gone past it."""
        client, worker, _ = self.two_workers()
        home = self.host_of(worker)
        self.submit(client, [3])
        self.fetch(worker)
        self.run(worker, [OK], report=False)
        self.begin(worker)
        self.crash(worker, cap=-1)
        worker = home.workers[-1]
        self.fetch(worker)
        self.run(worker, [OK], report=near)
        self.crash(worker, how="idle")
        worker = home.workers[-1]
        self.fetch(worker)
        self.crash(worker, cap=cap, how=again)
        worker = home.workers[-1]
        self.fetch(worker)
        self.run(worker, [OK, OK])
        self.read(client)
        self.forget_two_hosts()

    @rule(fate=st.sampled_from(["an hour", "a week", "loss", "empty streams are lost"]), step=st.sampled_from(STEPS))
    def hard_one_step_after(self, fate: str, step: str) -> None:
        """Nothing but one step by somebody after a pause, or after everything was lost: is all there again, and
        until when?"""
        client, host = self.clients[0], self.hosts[0]
        worker = host.workers[0]
        if fate == "loss":
            self.lose_everything()
        elif fate == "empty streams are lost":
            self.lose_empty_streams()
        else:
            self.pass_time(2000.0 if fate == "an hour" else 700_000.0)
        if step == "hello":
            self.resync(client)
        elif step == "submit" and client.submits:
            epoch, numbers, needs = client.submits[-1]
            self.send(client, numbers, blobs=BLOBS, epoch=epoch, forged=True, needs=needs)
        elif step == "finish" and worker.last:
            self.repeat(worker)
        elif step == "cancel":
            self.cancel(client, [])
        elif step == "register":
            self.register(host)
        elif step == "beat":
            self.beat(host)
        elif step == "leave":
            self.leave(host)
        elif step == "reap":
            self.reap(host)
        elif step == "reclaim":
            self.crash(worker, how="idle")
        elif step == "release":
            assert self.broker.release(worker.name, ["1/1-1"]) == self.model.release(worker.name, ["1/1-1"]) == 0
        elif step == "prepare":
            self.prepare()
        elif step == "values" and worker.last and worker.last[-1].several:
            self.repeat(worker)
        elif step == "announce":
            self.submit(client, [1])
            self.fetch(worker)
            for copy in worker.copies[-1:]:
                self.announce(copy.got, b"")
