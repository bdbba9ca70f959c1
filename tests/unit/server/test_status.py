"""What `status` says: read from the counters, written as JSON, read again."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.limits import MasterLimits
from wstunnel.server.status import (
    Facts,
    ForkStatus,
    PoolFacts,
    PoolStatus,
    SlotStatus,
    Snapshot,
    Totals,
    WorkerStatus,
    take,
)
from wstunnel.settings import TcpAddress, UnixAddress
from wstunnel.supervise.board import Board, SlotColumn, SlotState, WorkerColumn, WorkerState, close_column
from wstunnel.supervise.child import ExitStatus
from wstunnel.supervise.place import SlotPlace

NOW_MS = 1_800_000_000_000
NOBODY = Facts(
    version="1.2.3",
    pid=4711,
    started_ms=NOW_MS - 60_000,
    generation=2,
    state="serving",
    listeners=("127.0.0.1:8081",),
    workers=(),
    pools=(),
    stdio=(),
    cgi=(),
)
ECHO = PoolFacts(
    name="echo",
    routes=("/ws/", "/chat"),
    backend="/bin/echo -n",
    is_spawned=True,
    is_retired=False,
    places=(SlotPlace("echo-0", UnixAddress("/run/echo-0"), 5), SlotPlace("echo-1", TcpAddress("::1", 7), 3)),
)


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board(MasterLimits(worker_rows=4, slot_rows=8))
    yield board
    board.close()


def look(board: Board, **facts: Any) -> Snapshot:
    return take(board, dataclasses.replace(NOBODY, **facts), NOW_MS)


def slot_of(board: Board, **words: int) -> SlotStatus:
    for name, word in words.items():
        board.slot(5)[SlotColumn[name]] = word
    return look(board, pools=(ECHO,)).pools[0].slots[0]


# --- the whole


def test_a_service_without_anything_is_told_too(board):
    assert look(board) == Snapshot(
        version="1.2.3",
        pid=4711,
        started_ms=NOW_MS - 60_000,
        taken_ms=NOW_MS,
        generation=2,
        state="serving",
        listeners=("127.0.0.1:8081",),
        totals=Totals(
            connections=0,
            tunnels=0,
            accepted=0,
            opened=0,
            refused=0,
            bytes_in=0,
            bytes_out=0,
            messages_in=0,
            messages_out=0,
            closed={},
        ),
        workers=(),
        pools=(),
        stdio=(),
        cgi=(),
    )


def test_programs_per_tunnel_are_told_as_they_come(board):
    clock = ForkStatus(name="clock", routes=("/clock",), running=1, max_forks=9, forked=4, failed=2)

    assert look(board, stdio=(clock,)).stdio == (clock,)


def test_scripts_per_request_are_told_as_they_come_and_apart(board):
    scripts = ForkStatus(name="/srv/cgi-bin", routes=("/cgi-bin/",), running=1, max_forks=9, forked=4, failed=2)

    seen = look(board, cgi=(scripts,))

    assert (seen.stdio, seen.cgi) == ((), (scripts,))


# --- workers


def test_every_word_of_a_workers_row_is_told_under_its_name(board):
    row = board.worker(2)
    for column in WorkerColumn:
        row[column] = 100 + column
    row[WorkerColumn.STATE] = WorkerState.QUIET
    row[WorkerColumn.HEARTBEAT_MS] = NOW_MS - 1234

    (worker,) = look(board, workers=(2,)).workers

    assert worker == WorkerStatus(
        row=2,
        pid=100,
        generation=101,
        state="quiet",
        started_ms=103,
        heartbeat_age_ms=1234,
        connections=105,
        tunnels=106,
        accepted=107,
        opened=108,
        refused=109,
        bytes_in=110,
        bytes_out=111,
        messages_in=112,
        messages_out=113,
        closed={"1000": 114},
    )


@pytest.mark.parametrize(
    ("code", "key"), [(1000, "1000"), (1006, "1006"), (1015, "1015"), (1016, "other"), (3000, "other"), (0, "other")]
)
def test_tunnels_that_ended_are_counted_by_code(board, code, key):
    board.worker(1)[close_column(code)] += 3

    snapshot = look(board, workers=(1,))

    assert snapshot.workers[0].closed == snapshot.totals.closed == {key: 3}


def test_workers_come_in_the_order_that_the_master_gives_them(board):
    for row in (1, 2, 3):
        board.worker(row)[WorkerColumn.PID] = 4000 + row

    assert [worker.pid for worker in look(board, workers=(3, 1)).workers] == [4003, 4001]


@pytest.mark.parametrize("state", WorkerState)
def test_each_state_of_a_worker_has_a_word(board, state):
    board.worker(1)[WorkerColumn.STATE] = state

    assert look(board, workers=(1,)).workers[0].state == state.name.lower()


@pytest.mark.parametrize(("beat_ms", "age_ms"), [(0, None), (NOW_MS, 0), (NOW_MS + 5000, 0), (NOW_MS - 9000, 9000)])
def test_the_age_of_a_heartbeat_is_never_negative_and_unknown_before_the_first(board, beat_ms, age_ms):
    board.worker(1)[WorkerColumn.HEARTBEAT_MS] = beat_ms

    assert look(board, workers=(1,)).workers[0].heartbeat_age_ms == age_ms


def test_totals_are_of_all_workers_and_of_those_that_are_gone(board):
    for row in (1, 2):
        board.worker(row)[WorkerColumn.STATE] = WorkerState.SERVING
        board.worker(row)[WorkerColumn.TUNNELS] = row
        board.worker(row)[WorkerColumn.BYTES_OUT] = 10 * row
        board.worker(row)[close_column(1001)] = row
    board.clear_worker(2, [])

    totals = look(board, workers=(1,)).totals

    assert (totals.tunnels, totals.bytes_out, totals.closed) == (1, 30, {"1001": 3})


# --- pools and slots


def test_a_pool_is_told_with_its_slots_in_their_order(board):
    board.slot(5)[SlotColumn.STATE] = SlotState.RUNNING
    board.slot(5)[SlotColumn.PID] = 4720
    board.slot(5)[SlotColumn.SINCE_MS] = NOW_MS - 7
    board.slot(5)[SlotColumn.STARTS] = 3
    board.slot(5)[SlotColumn.DEATHS] = 2
    board.slot(5)[SlotColumn.EXIT] = ExitStatus(signal=signal.SIGKILL).word
    board.slot(5)[SlotColumn.EXIT_KNOWN] = 1
    board.slot(3)[SlotColumn.STATE] = SlotState.IDLE
    board.use_worker(3)
    for row, load, total in ((0, 0, 100), (1, 2, 20), (3, 3, 3)):
        board.loads(5)[row] = load
        board.totals(5)[row] = total

    assert look(board, pools=(ECHO,)).pools == (
        PoolStatus(
            name="echo",
            routes=("/ws/", "/chat"),
            backend="/bin/echo -n",
            is_spawned=True,
            is_retired=False,
            slots=(
                SlotStatus(
                    name="echo-0",
                    address="unix:/run/echo-0",
                    pid=4720,
                    state="running",
                    since_ms=NOW_MS - 7,
                    load=5,
                    total=123,
                    restarts=2,
                    deaths=2,
                    last_exit="killed by SIGKILL",
                ),
                SlotStatus(
                    name="echo-1",
                    address="[::1]:7",
                    pid=None,
                    state="idle",
                    since_ms=0,
                    load=0,
                    total=0,
                    restarts=0,
                    deaths=0,
                    last_exit=None,
                ),
            ),
        ),
    )


@pytest.mark.parametrize("state", SlotState)
def test_each_state_of_a_slot_has_a_word(board, state):
    assert slot_of(board, STATE=state).state == state.name.lower()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"DEATHS": 0}, None),
        ({"DEATHS": 1}, "ended"),
        ({"DEATHS": 1, "EXIT_KNOWN": 1}, "exited with status 0"),
        ({"DEATHS": 1, "EXIT_KNOWN": 1, "EXIT": 3}, "exited with status 3"),
        ({"DEATHS": 1, "EXIT_KNOWN": 1, "EXIT": -15}, "killed by SIGTERM"),
    ],
)
def test_the_last_exit_is_told_in_words(board, words, said):
    assert slot_of(board, **words).last_exit == said


@pytest.mark.parametrize(("starts", "restarts"), [(0, 0), (1, 0), (4, 3)])
def test_the_first_start_is_no_restart(board, starts, restarts):
    assert slot_of(board, STARTS=starts).restarts == restarts


def test_marks_of_a_pool_are_kept(board):
    marked = dataclasses.replace(ECHO, is_spawned=False, is_retired=True, places=())

    (pool,) = look(board, pools=(marked,)).pools

    assert (pool.is_spawned, pool.is_retired) == (False, True)


# --- JSON

COUNTS = st.integers(0, 2**63 - 1)
TEXTS = st.text(max_size=12)
CODES = st.dictionaries(st.sampled_from(["1000", "1006", "other"]), COUNTS)
SNAPSHOTS = st.builds(
    Snapshot,
    totals=st.builds(Totals, closed=CODES),
    workers=st.lists(st.builds(WorkerStatus, closed=CODES), max_size=2).map(tuple),
    pools=st.lists(st.builds(PoolStatus, slots=st.lists(st.builds(SlotStatus), max_size=2).map(tuple)), max_size=2).map(
        tuple
    ),
)


@given(SNAPSHOTS)
def test_what_is_written_is_read_again(snapshot):
    assert Snapshot.from_json(json.loads(json.dumps(snapshot.to_json()))) == snapshot


def test_the_keys_are_what_they_always_were(board):
    """Machines read them: a new key may come, none goes and none changes its name."""
    clock = ForkStatus(name="clock", routes=("/clock",), running=1, max_forks=9, forked=4, failed=2)
    told = look(board, workers=(1,), pools=(ECHO,), stdio=(clock,), cgi=(clock,)).to_json()

    counts = "connections tunnels accepted opened refused bytes_in bytes_out messages_in messages_out closed"
    assert " ".join(told) == (
        "version pid started_ms taken_ms generation state listeners totals workers pools stdio cgi"
    )
    assert " ".join(told["totals"]) == counts
    assert " ".join(told["workers"][0]) == f"{counts} row pid generation state started_ms heartbeat_age_ms"
    assert " ".join(told["pools"][0]) == "name routes backend is_spawned is_retired slots"
    assert " ".join(told["pools"][0]["slots"][0]) == (
        "name address pid state since_ms load total restarts deaths last_exit"
    )
    for programs in ("stdio", "cgi"):
        assert " ".join(told[programs][0]) == "name routes running max_forks forked failed"


def test_what_a_newer_version_adds_is_left_out(board):
    told = look(board, workers=(1,)).to_json()
    told["workers"][0]["mood"] = "good"
    told["moon"] = "full"

    assert Snapshot.from_json(told) == look(board, workers=(1,))


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        (("pid",), "4711", r"status\.pid: '4711' is of another kind"),
        (("pid",), True, r"status\.pid: True is of another kind"),
        (("pid",), None, r"status\.pid: None"),
        (("state",), "asleep", r"status\.state: 'asleep'"),
        (("listeners",), "127.0.0.1:80", r"status\.listeners: "),
        (("listeners",), [7], r"status\.listeners: 7"),
        (("totals",), [], r"status\.totals: \[\]"),
        (("totals", "closed"), {"1000": "1"}, r"status\.totals\.closed: '1'"),
        (("workers", 0, "heartbeat_age_ms"), 1.5, r"status\.workers\.heartbeat_age_ms: 1\.5"),
        (("pools", 0, "is_retired"), 0, r"status\.pools\.is_retired: 0"),
        (("pools", 0, "slots", 0, "last_exit"), 0, r"status\.pools\.slots\.last_exit: 0"),
    ],
)
def test_what_is_not_of_its_kind_is_named(board, path, value, why):
    told = look(board, workers=(1,), pools=(ECHO,)).to_json()
    told = json.loads(json.dumps(told))
    holder: Any = told
    for step in path[:-1]:
        holder = holder[step]
    holder[path[-1]] = value

    with pytest.raises(ValueError, match=why):
        Snapshot.from_json(told)


def test_what_is_missing_is_named(board):
    told = look(board, pools=(ECHO,)).to_json()
    del told["pools"][0]["slots"][1]["load"]

    with pytest.raises(ValueError, match=r"^status\.pools\.slots: load is missing$"):
        Snapshot.from_json(told)


@pytest.mark.parametrize("value", [None, [], "status", 7])
def test_what_is_no_status_at_all_is_refused(value):
    with pytest.raises(ValueError, match=r"^status: "):
        Snapshot.from_json(value)
