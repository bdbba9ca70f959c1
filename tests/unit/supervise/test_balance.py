"""Which host and which slot take the next connection, and who waits or is sent away when none may."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any

import pytest

from wstunnel.errors import BackendError
from wstunnel.limits import Limits, MasterLimits, SpawnLimits
from wstunnel.settings import Balance, Host, LoadPolicy, UnixAddress
from wstunnel.supervise.balance import BalanceKey, Balancer, HostSlots
from wstunnel.supervise.board import Board, SlotColumn, SlotState
from wstunnel.supervise.lease import Lease
from wstunnel.supervise.place import SlotPlace
from wstunnel.supervise.slot import Slot

KEY = BalanceKey("here.test", "/ws", "127.0.0.1")
STATES = {
    "r": SlotState.RUNNING,
    "i": SlotState.IDLE,
    "w": SlotState.WAITING,
    "t": SlotState.RETIRING,
    "b": SlotState.BROKEN,
    "s": SlotState.STOPPED,
    "n": SlotState.NONE,
}
DEADLINE_S = 20.0
OTHER_WORKER = 3


class Stand:
    """The hosts of one route, as worker 1 sees them; slots are named by number, counted through all hosts.

    in      hosts    one word for each host, with a letter of STATES for each of its slots
            options  of every host
    """

    def __init__(
        self,
        *hosts: str,
        loads: Sequence[int] = (),
        kind: Balance = "least-connection",
        max_queue: int = 8,
        queue_poll_s: float = 0.001,
        **options: Any,
    ) -> None:
        self.limits = Limits(
            master=MasterLimits(worker_rows=4, slot_rows=32),
            spawn=SpawnLimits(max_queue=max_queue, queue_poll_s=queue_poll_s),
        )
        self.board = Board(self.limits.master)
        self.board.use_worker(OTHER_WORKER)
        self.now_s = 1000.0
        self.looks = 0
        self.slots: list[Slot] = []
        self.hosts: list[HostSlots] = []
        for number, states in enumerate(hosts):
            first = len(self.slots)
            for row, letter in enumerate(states, first):
                self.slots.append(self.slot(row, worker=1))
                self.enter(row, letter)
            self.hosts.append(HostSlots(Host(socket=f"/run/{number}", **options), self.slots[first:]))
        for row, load in enumerate(loads):
            self.board.loads(row)[OTHER_WORKER] = load
        self.balancer = self.balance(self.hosts, kind)

    def slot(self, row: int, worker: int) -> Slot:
        return Slot(SlotPlace(str(row), UnixAddress(f"/run/{row}"), row), self.board, worker, self.limits)

    def balance(self, hosts: Sequence[HostSlots], kind: Balance) -> Balancer:
        return Balancer(hosts, kind, limits=self.limits, clock=self.clock)

    def clock(self) -> float:
        self.looks += 1
        return self.now_s

    async def looked(self) -> None:
        """The queue has been looked through a few times more."""
        enough = self.looks + 5
        await eventually(lambda: self.looks >= enough)

    def enter(self, row: int, letter: str) -> None:
        self.board.slot(row)[SlotColumn.STATE] = STATES[letter]

    async def take(self, key: BalanceKey = KEY, *avoid: int) -> str | None:
        """The name of the slot that is leased, for ever."""
        lease = await self.balancer.lease(key, [self.slots[row] for row in avoid])
        return None if lease is None else lease.name

    def taken(self, *avoid: int, key: BalanceKey = KEY) -> str | None:
        return asyncio.run(self.take(key, *avoid))

    def mine(self) -> list[int]:
        """The leases of worker 1."""
        return [self.board.loads(row)[1] for row in range(len(self.slots))]


MakeStand = Callable[..., Stand]


@pytest.fixture
def make() -> Iterator[MakeStand]:
    made: list[Stand] = []

    def make_one(*hosts: str, **named: Any) -> Stand:
        made.append(Stand(*hosts, **named))
        return made[-1]

    yield make_one
    for stand in made:
        stand.board.close()


async def eventually(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_so():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)


async def within(awaited: Awaitable[Any]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        return await awaited


# --- inside a host


@pytest.mark.parametrize(
    ("states", "loads", "taken"),
    [
        ("rrr", (2, 1, 3), "1"),
        ("rrr", (1, 1, 1), "0"),
        ("rrr", (2, 1, 1), "1"),
        ("r", (0,), "0"),
        ("ri", (3, 0), "0"),  # it has room: no other process is needed
        ("ir", (0, 3), "1"),
        ("ri", (4, 0), "1"),  # it has not: a connection starts another one
        ("rii", (9, 1, 0), "2"),
        ("rw", (9, 0), "0"),  # what is down has no connections because it fails
        ("rr", (9, 8), "1"),
        ("ri", (9, 5), "1"),  # it is being started, and many wait there
        ("ri", (5, 9), "0"),
        ("ww", (3, 2), "1"),
        ("wi", (0, 3), "1"),
        ("wwr", (0, 0, 99), "2"),
        ("wr", (9, 99), "1"),
    ],
)
def test_room_goes_first_then_a_process_to_be_started_then_the_least_load_then_one_that_is_down(
    make, states, loads, taken
):
    assert make(states, loads=loads, max_load_per_proc=4).taken() == taken


@pytest.mark.parametrize("letter", "tbsn")
def test_what_is_ending_broken_or_gone_takes_nothing(make, letter):
    assert make(letter).taken() is None
    assert make(letter + "r", loads=(0, 9)).taken() == "1"


def test_a_slot_to_avoid_is_not_taken(make):
    assert make("rrr", loads=(0, 2, 1)).taken(0) == "2"
    assert make("rr").taken(0, 1) is None


def test_a_route_without_slots_has_nothing_to_take(make):
    assert make().taken() is None
    assert make("").taken() is None


def test_connections_spread_evenly(make):
    async def main() -> None:
        assert [await stand.take() for _ in range(7)] == list("0120120")

    stand = make("rrr")
    asyncio.run(main())


def test_a_lease_knows_its_host_and_counts_for_its_worker(make):
    async def main() -> None:
        lease = await stand.balancer.lease(KEY)
        assert lease is not None
        assert (lease.host_index, lease.name) == (1, "2")
        assert stand.balancer.host(lease) is stand.hosts[1].host
        assert stand.mine() == [0, 0, 1]
        lease.release()
        assert stand.mine() == [0, 0, 0]

    stand = make("bb", "r")
    asyncio.run(main())


# --- disable-time


def test_a_slot_that_could_not_be_connected_is_left_alone_for_disable_time(make):
    async def main() -> None:
        lease = await stand.balancer.lease(KEY)
        assert lease is not None
        stand.balancer.disable(lease)
        lease.release()

        assert await stand.take() == "1"
        stand.now_s += 4.75
        assert await stand.take() == "1"
        stand.now_s += 0.25
        assert await stand.take() == "0"

    stand = make("rr", disable_time_s=5.0)
    asyncio.run(main())


def test_nothing_can_be_had_while_all_are_left_alone_and_it_is_said_why(make):
    async def main() -> None:
        lease = await stand.balancer.lease(KEY)
        assert lease is not None
        stand.balancer.disable(lease)
        assert await stand.take() is None
        assert stand.balancer.why_not() == "0 could not be connected less than disable-time ago"

    stand = make("r")
    asyncio.run(main())


@pytest.mark.parametrize(
    ("states", "why"), [("sb", "the processes of 1 die as soon as they are started"), ("t", "no slot"), ("", "no slot")]
)
def test_why_there_is_nothing_is_said_in_words(make, states, why):
    assert make(states).balancer.why_not() == why


# --- between hosts


def test_the_host_with_the_fewest_connections_of_all_workers_is_taken(make):
    assert make("rr", "rr", "r", loads=(2, 3, 4, 0, 5)).taken() == "3"
    assert make("rr", "r", loads=(0, 3, 3)).taken() == "0"


def test_round_robin_goes_round_whatever_the_loads(make):
    async def main() -> None:
        assert [await stand.take() for _ in range(7)] == list("0120120")

    stand = make("r", "r", "r", loads=(9, 0, 5), kind="round-robin")
    asyncio.run(main())


def test_round_robin_passes_over_what_cannot_be_had(make):
    async def main() -> None:
        assert [await stand.take() for _ in range(4)] == list("0202")
        stand.enter(1, "r")
        assert [await stand.take() for _ in range(4)] == list("0120")

    stand = make("r", "b", "r", kind="round-robin")
    asyncio.run(main())


@pytest.mark.parametrize("kind", ["least-connection", "round-robin", "hash", "sticky"])
def test_a_host_that_has_nothing_to_offer_is_passed_over(make, kind):
    stand = make("bs", "t", "r", "b", kind=kind)
    for number in range(20):
        assert stand.taken(key=BalanceKey("a", f"/{number}", str(number))) == "3"


@pytest.mark.parametrize("kind", ["least-connection", "round-robin", "hash", "sticky"])
def test_a_host_whose_processes_are_down_comes_last(make, kind):
    stand = make("w", "i", "w", kind=kind)
    for number in range(20):
        assert stand.taken(key=BalanceKey("a", f"/{number}", str(number))) == "1"
    assert stand.taken(1) in {"0", "2"}


def test_of_hosts_that_are_all_down_the_first_in_order_is_taken(make):
    assert make("w", "w").taken() == "0"


def keys(count: int) -> list[BalanceKey]:
    return [
        BalanceKey(f"{number % 3}.test", f"/{number}", f"10.0.{number >> 8}.{number & 255}") for number in range(count)
    ]


def placed(stand: Stand, wanted: Sequence[BalanceKey]) -> list[str | None]:
    async def main() -> list[str | None]:
        return [await stand.take(key) for key in wanted]

    return asyncio.run(main())


@pytest.mark.parametrize(("kind", "known"), [("hash", "0322203003203132"), ("sticky", "2100123300102320")])
def test_a_key_has_the_same_host_in_every_worker_and_in_every_run(make, kind, known):
    assert "".join(map(str, placed(make("r", "r", "r", "r", kind=kind), keys(16)))) == known


def test_hash_is_of_host_and_path_and_of_nothing_else(make):
    stand = make("r", "r", "r", "r", "r", "r", "r", "r", kind="hash")
    assert len(set(placed(stand, [BalanceKey("a", "/x", str(number)) for number in range(50)]))) == 1
    assert len(set(placed(stand, [BalanceKey("a", f"/{number}", "1") for number in range(50)]))) > 4
    assert len(set(placed(stand, [BalanceKey(f"{number}", "/x", "1") for number in range(50)]))) > 4


def test_sticky_is_of_the_client_and_of_nothing_else(make):
    stand = make("r", "r", "r", "r", "r", "r", "r", "r", kind="sticky")
    assert len(set(placed(stand, [BalanceKey(f"{number}", f"/{number}", "10.0.0.1") for number in range(50)]))) == 1
    assert len(set(placed(stand, [BalanceKey("a", "/x", f"10.0.0.{number}") for number in range(50)]))) > 4


@pytest.mark.parametrize("kind", ["hash", "sticky"])
def test_keys_are_spread_over_the_hosts(make, kind):
    found = Counter(placed(make("r", "r", "r", "r", kind=kind), keys(2000)))
    assert sorted(found) == ["0", "1", "2", "3"]
    assert min(found.values()) > 400


@pytest.mark.parametrize("kind", ["hash", "sticky"])
def test_a_host_that_goes_away_moves_nobody_elses_clients(make, kind):
    stand = make("r", "r", "r", "r", kind=kind)
    before = placed(stand, keys(400))
    stand.enter(1, "b")
    down = placed(stand, keys(400))
    stand.enter(1, "r")
    stand.balancer = stand.balance([stand.hosts[3], stand.hosts[0], stand.hosts[2]], kind)
    removed = placed(stand, keys(400))

    assert [now for now, then in zip(down, before, strict=True) if then != "1"] == [was for was in before if was != "1"]
    assert {now for now, then in zip(down, before, strict=True) if then == "1"} == {"0", "2", "3"}
    assert removed == down


def test_hosts_that_the_settings_do_not_tell_apart_share_all_the_same(make):
    stand = make("r", "r", kind="hash")
    twice = Host(host="127.0.0.1", port=0)
    stand.balancer = stand.balance([HostSlots(twice, stand.slots[:1]), HostSlots(twice, stand.slots[1:])], "hash")
    assert set(placed(stand, keys(50))) == {"0", "1"}


def test_a_host_without_an_address_is_told_by_its_program(make):
    hosts = [Host(bin_path=("/bin/echo", name)) for name in "ab"]
    stand = make("r", "r")
    stand.balancer = stand.balance(
        [HostSlots(host, [slot]) for host, slot in zip(hosts, stand.slots, strict=True)], "hash"
    )
    before = placed(stand, keys(50))
    stand.balancer = stand.balance(
        [HostSlots(host, [slot]) for host, slot in zip(hosts[::-1], stand.slots[::-1], strict=True)], "hash"
    )
    assert placed(stand, keys(50)) == before


def test_a_socket_path_may_be_any_bytes(make):
    stand = make("r")
    stand.balancer = stand.balance([HostSlots(Host(socket="/run/\udcff"), stand.slots)], "hash")
    assert stand.taken() == "0"


@pytest.mark.parametrize("text", ["\udce4", "\U0001f600", "\0", ""])
def test_any_text_can_be_hashed(make, text):
    assert make("r", "r", kind="hash").taken(key=BalanceKey(text, text, text)) is not None
    assert make("r", "r", kind="sticky").taken(key=BalanceKey(text, text, text)) is not None


# --- max-load-policy = refuse


def test_more_than_may_be_are_refused_and_a_place_that_is_free_again_is_given(make):
    async def main() -> None:
        held = [await stand.balancer.lease(KEY) for _ in range(4)]
        assert stand.mine() == [2, 2]
        with pytest.raises(BackendError, match="every process has max-load-per-proc connections") as raised:
            await stand.balancer.lease(KEY)
        assert raised.value.status == 503
        assert stand.mine() == [2, 2]
        held[2].release()
        assert await stand.take() == "0"

    stand = make("rr", max_load_per_proc=2, max_load_policy="refuse")
    asyncio.run(main())


@pytest.mark.parametrize(
    ("states", "loads", "taken"),
    [("rr", (1, 0), "1"), ("ri", (1, 0), "1"), ("iw", (1, 0), "1"), ("bri", (0, 1, 0), "2"), ("w", (0,), "0")],
)
@pytest.mark.parametrize("policy", ["refuse", "queue"])
def test_a_strict_host_gives_what_has_room(make, states, loads, taken, policy):
    assert make(states, loads=loads, max_load_policy=policy).taken() == taken


@pytest.mark.parametrize("letter", "riw")
def test_a_strict_limit_is_never_passed_whatever_the_state(make, letter):
    with pytest.raises(BackendError):
        make(letter, loads=(1,), max_load_policy="refuse").taken()


def test_what_is_not_there_is_not_called_busy(make):
    assert make("b", max_load_policy="refuse").taken() is None
    assert make("b", max_load_policy="queue").taken() is None


def test_a_host_that_is_full_is_passed_over_for_one_that_is_not(make):
    stand = make("r", "r", kind="round-robin", loads=(1, 0), max_load_policy="refuse")
    assert stand.taken() == "1"


def test_two_workers_take_the_last_place_one_after_the_other(make):
    """The other one, a process of its own, is between its look and its lease."""

    async def main() -> None:
        leasing = asyncio.ensure_future(stand.balancer.lease(KEY))
        await stand.looked()
        assert not leasing.done()
        assert stand.mine() == [0]
        other.communicate(b"\n")
        with pytest.raises(BackendError, match="is to refuse more"):
            await within(leasing)
        assert stand.mine() == [0]

    stand = make("r", max_load_policy="refuse")
    code = f"""
from wstunnel.limits import MasterLimits
from wstunnel.supervise.board import Board
board = Board(MasterLimits(worker_rows=4, slot_rows=32), {stand.board.fd})
with board.claiming(0) as is_mine:
    print(is_mine, flush=True)
    input()
    board.loads(0)[{OTHER_WORKER}] = 1
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[stand.board.fd]
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"True\n"
        asyncio.run(main())


def test_a_slot_that_another_worker_is_at_is_left_for_another_slot(make, monkeypatch):
    @contextlib.contextmanager
    def claiming(board: Board, row: int) -> Iterator[bool]:
        yield row != 0

    monkeypatch.setattr(Board, "claiming", claiming)
    assert make("rr", max_load_policy="refuse").taken() == "1"


def test_the_load_counts_that_is_seen_when_nobody_else_can_change_it(make, monkeypatch):
    """Another worker was at it between our first look and the claim."""

    @contextlib.contextmanager
    def claiming(board: Board, row: int) -> Iterator[bool]:
        board.loads(row)[OTHER_WORKER] = 1
        yield True

    stand = make("rr", max_load_policy="refuse")
    monkeypatch.setattr(Board, "claiming", claiming)
    with pytest.raises(BackendError, match="is to refuse more"):
        stand.taken()
    assert stand.mine() == [0, 0]


# --- max-load-policy = queue


def queueing(stand: Stand, count: int, *avoid: int) -> list[asyncio.Task[Lease | None]]:
    slots = [stand.slots[row] for row in avoid]
    return [asyncio.ensure_future(stand.balancer.lease(KEY, slots)) for _ in range(count)]


async def turns(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_who_waits_is_served_at_once_by_a_release_and_in_order(make):
    async def main() -> None:
        held = await stand.balancer.lease(KEY)
        waiting = queueing(stand, 3)
        await turns()
        for number in range(3):
            assert [task.done() for task in waiting] == [index < number for index in range(3)]
            held.release()
            await turns()
            held = waiting[number].result()
            assert stand.mine() == [1]

    stand = make("r", max_load_policy="queue", queue_poll_s=1000.0)
    asyncio.run(main())


def test_who_waits_sees_what_another_worker_releases(make):
    async def main() -> None:
        (waiting,) = queueing(stand, 1)
        await stand.looked()
        assert not waiting.done()
        stand.board.loads(0)[OTHER_WORKER] = 0
        assert (await within(waiting)).name == "0"

    stand = make("r", loads=(1,), max_load_policy="queue")
    asyncio.run(main())


@pytest.mark.parametrize("letter", "ri")
def test_who_waits_sees_a_process_that_comes_up(make, letter):
    async def main() -> None:
        (waiting,) = queueing(stand, 1)
        await turns()
        stand.enter(1, letter)
        assert (await within(waiting)).name == "1"

    stand = make("rb", loads=(1,), max_load_policy="queue")
    asyncio.run(main())


def test_who_waits_is_told_when_there_is_nothing_left_to_wait_for(make):
    async def main() -> None:
        waiting = queueing(stand, 2)
        await turns()
        stand.enter(0, "b")
        assert await within(asyncio.gather(*waiting)) == [None, None]

    stand = make("r", loads=(1,), max_load_policy="queue")
    asyncio.run(main())


def test_nobody_waits_longer_than_connect_timeout(make):
    async def main() -> None:
        early = queueing(stand, 2)
        await turns()
        stand.now_s += 7.0
        (late,) = queueing(stand, 1)
        await stand.looked()
        assert not any(task.done() for task in (*early, late))
        stand.now_s += 1.0
        for task in early:
            with pytest.raises(BackendError, match="within connect-timeout") as raised:
                await within(task)
            assert raised.value.status == 503
        assert not late.done()
        stand.board.loads(0)[OTHER_WORKER] = 0
        assert (await within(late)).name == "0"

    stand = make("r", loads=(1,), max_load_policy="queue", connect_timeout_s=8.0)
    asyncio.run(main())


def test_a_place_that_is_free_in_the_last_moment_is_given(make):
    async def main() -> None:
        (waiting,) = queueing(stand, 1)
        await turns()
        stand.now_s += 8.0
        stand.board.loads(0)[OTHER_WORKER] = 0
        assert (await within(waiting)).name == "0"

    stand = make("r", loads=(1,), max_load_policy="queue", connect_timeout_s=8.0)
    asyncio.run(main())


def test_no_more_than_max_queue_wait(make):
    async def main() -> None:
        waiting = queueing(stand, 3)
        await turns()
        with pytest.raises(BackendError, match="as many as may already wait") as raised:
            await stand.balancer.lease(KEY)
        assert raised.value.status == 503
        waiting.pop().cancel()
        await turns()
        waiting += queueing(stand, 1)
        await turns()
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

    stand = make("r", loads=(1,), max_load_policy="queue", max_queue=3)
    asyncio.run(main())


def test_who_comes_later_does_not_overtake(make):
    """A place is free that those who wait have not yet seen."""

    async def main() -> None:
        (first,) = queueing(stand, 1)
        await turns()
        stand.board.loads(0)[OTHER_WORKER] = 0
        (second,) = queueing(stand, 1)
        assert (await within(first)).name == "0"
        await turns()
        assert not second.done()
        first.result().release()
        assert (await within(second)).name == "0"

    stand = make("r", loads=(1,), max_load_policy="queue")
    asyncio.run(main())


def test_a_client_that_leaves_while_it_waits_leaves_no_trace(make):
    async def main() -> None:
        held = await stand.balancer.lease(KEY)
        first, second = queueing(stand, 2)
        await turns()
        first.cancel()
        held.release()  # before the queue has heard of it
        await turns()
        assert first.cancelled()
        assert second.result().name == "0"
        assert stand.mine() == [1]
        second.result().release()
        assert stand.mine() == [0]
        assert await stand.take() == "0"

    stand = make("r", max_load_policy="queue", queue_poll_s=1000.0)
    asyncio.run(main())


def test_a_client_that_leaves_just_when_it_is_served_leaves_its_place_to_the_next(make):
    async def main() -> None:
        held = await stand.balancer.lease(KEY)
        first, second = queueing(stand, 2)
        await turns()
        held.release()
        first.cancel()  # it has a lease, and does not know it
        await turns()
        assert first.cancelled()
        assert second.result().name == "0"
        assert stand.mine() == [1]

    stand = make("r", max_load_policy="queue", queue_poll_s=1000.0)
    asyncio.run(main())


@pytest.mark.parametrize("now_s", [1000.0, 2000.0])
def test_a_client_that_leaves_just_when_the_queue_is_looked_at_is_passed_over(make, now_s):
    async def main() -> None:
        first, second = queueing(stand, 2)
        await turns()
        first.cancel()
        stand.now_s = now_s
        stand.balancer._poll()
        await turns()
        assert first.cancelled()
        assert second.done() is (now_s == 2000.0)
        second.cancel()
        await asyncio.wait((second,))

    stand = make("r", loads=(1,), max_load_policy="queue", queue_poll_s=1000.0)
    asyncio.run(main())


def test_who_waits_for_another_slot_than_the_one_it_could_not_connect_holds_nobody_up(make):
    async def main() -> None:
        held = [await stand.balancer.lease(KEY) for _ in range(2)]
        (picky,) = queueing(stand, 1, 0)
        (any_,) = queueing(stand, 1)
        await turns()
        held[0].release()
        await turns()
        assert any_.result().name == "0"
        assert not picky.done()
        held[1].release()
        await turns()
        assert picky.result().name == "1"

    stand = make("rr", max_load_policy="queue", queue_poll_s=1000.0)
    asyncio.run(main())


def test_an_empty_queue_keeps_nothing_running(make):
    async def main() -> None:
        (waiting,) = queueing(stand, 1)
        await turns()
        stand.board.loads(0)[OTHER_WORKER] = 0
        await within(waiting)
        await eventually(lambda: stand.balancer._timer is None)
        # and it runs again for the next one
        (waiting,) = queueing(stand, 1)
        await turns()
        stand.board.loads(0)[1] = 0
        assert (await within(waiting)).name == "0"

    stand = make("r", loads=(1,), max_load_policy="queue")
    asyncio.run(main())


@pytest.mark.parametrize("policies", [("refuse", "queue"), ("queue", "refuse")])
def test_one_host_to_wait_for_is_enough_to_wait(make, policies: tuple[LoadPolicy, ...]):
    async def main() -> None:
        (waiting,) = queueing(stand, 1)
        await turns()
        assert not waiting.done()
        stand.now_s += 100.0
        with pytest.raises(BackendError, match="within connect-timeout"):
            await within(waiting)

    stand = make("r", "r", loads=(1, 1))
    stand.balancer = stand.balance(
        [
            HostSlots(Host(socket=f"/run/{number}", max_load_policy=policy), [stand.slots[number]])
            for number, policy in enumerate(policies)
        ],
        "round-robin",
    )
    asyncio.run(main())
