"""The table that a person reads: what it says, that it fits, and that it lives until it is told to stop."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.errors import StartError
from wstunnel.limits import MasterLimits
from wstunnel.server.report import as_json, look, once, render, watch
from wstunnel.server.status import ForkStatus, PoolStatus, SlotStatus, Snapshot, Totals, WorkerStatus

LIMITS = MasterLimits()
NOW_MS = 1_800_000_000_000  # 2027-01-15 08:00 UTC
DAY_MS = 86_400_000
NONE = {"connections": 0, "tunnels": 0, "accepted": 0, "opened": 0, "refused": 0}
NOTHING = {"bytes_in": 0, "bytes_out": 0, "messages_in": 0, "messages_out": 0, "closed": {}}


@pytest.fixture(autouse=True)
def _in_london(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def worker(row: int = 1, **fields: Any) -> WorkerStatus:
    usual = {"row": row, "pid": 4000 + row, "generation": 1, "state": "serving", "started_ms": NOW_MS - 3_600_000}
    return WorkerStatus(**{**NONE, **NOTHING, **usual, "heartbeat_age_ms": 100, **fields})


def slot(name: str = "echo-0", **fields: Any) -> SlotStatus:
    usual = {
        "name": name,
        "address": f"unix:/run/{name}",
        "pid": 4720,
        "state": "running",
        "since_ms": NOW_MS - 725_000,
    }
    counts = {"load": 0, "total": 0, "restarts": 0, "deaths": 0, "last_exit": None}
    return SlotStatus(**{**usual, **counts, **fields})


def idle(number: int, **fields: Any) -> SlotStatus:
    return slot(f"echo-{number}", **{"pid": None, "state": "idle", **fields})


def pool(*slots: SlotStatus, **fields: Any) -> PoolStatus:
    usual = {"name": "echo", "routes": ("/ws/",), "backend": "/usr/bin/echo", "is_spawned": True, "is_retired": False}
    return PoolStatus(**{**usual, "slots": slots, **fields})


def snapshot(**fields: Any) -> Snapshot:
    usual = {
        "version": "1.2.3",
        "pid": 4711,
        "started_ms": NOW_MS - 3 * DAY_MS - 4 * 3_600_000,
        "taken_ms": NOW_MS,
        "generation": 1,
        "state": "serving",
        "listeners": ("127.0.0.1:8081",),
        "totals": Totals(**NONE, **NOTHING),
        "workers": (),
        "pools": (),
        "stdio": (),
        "cgi": (),
    }
    return Snapshot(**{**usual, **fields})


def later(before: Snapshot, by_ms: int, **counts: int) -> Snapshot:
    """The same service a while after, its counters (of the whole, and of its only worker) higher by these."""

    def more(one: Any) -> Any:
        return dataclasses.replace(one, **{name: getattr(one, name) + count for name, count in counts.items()})

    return dataclasses.replace(
        before,
        taken_ms=before.taken_ms + by_ms,
        totals=more(before.totals),
        workers=tuple(map(more, before.workers)),
    )


def lines(now: Snapshot, before: Snapshot | None = None, width: int = 80, **options: Any) -> list[str]:
    return render(now, before, width=width, **options).splitlines()


def row(now: Snapshot, title: str, before: Snapshot | None = None, nth: int = 1, width: int = 120) -> dict[str, str]:
    """A row of the table that starts with this title, by title; values of more than one word are one."""
    table = lines(now, before, width)
    at = next(number for number, line in enumerate(table) if re.match(rf" *{title}\b", line))
    titles = re.split(r"\s{2,}", table[at].strip())
    return dict(zip(titles, re.split(r"\s{2,}", table[at + nth].strip()), strict=False))


FULL = snapshot(
    generation=2,
    listeners=("127.0.0.1:8081", "unix:/run/wstunnel/front.sock"),
    totals=Totals(
        connections=1030,
        tunnels=1023,
        accepted=11_402,
        opened=10_233,
        refused=12,
        bytes_in=1 << 34,
        bytes_out=1 << 33,
        messages_in=24_700_000,
        messages_out=24_600_000,
        closed={"1000": 10_190, "1006": 10, "other": 1},
    ),
    workers=(worker(1, tunnels=512), worker(2, tunnels=511)),
    pools=(
        pool(slot(load=506, total=5120), slot("echo-1", restarts=1, deaths=1, last_exit="killed by SIGKILL")),
        pool(slot("10.0.0.1:5900", pid=None), name="10.0.0.1:5900", is_retired=True, backend="10.0.0.1:5900"),
    ),
    stdio=(ForkStatus(name="clock", routes=("/clock",), running=3, max_forks=1000, forked=4123, failed=0),),
    cgi=(ForkStatus(name="/srv/cgi-bin", routes=("/cgi-bin/",), running=0, max_forks=9, forked=12, failed=2),),
)


# --- the whole


def test_the_whole_table():
    before = dataclasses.replace(
        FULL,
        taken_ms=FULL.taken_ms - 2000,
        totals=dataclasses.replace(FULL.totals, opened=10_208, messages_in=24_600_000, bytes_in=(1 << 34) - 5_000_000),
    )

    assert render(FULL, before, width=80) == (
        "wstunnel 1.2.3  pid 4711  serving  up 3d 4h since 2027-01-12 04:00  generation 2\n"
        "listening on  127.0.0.1:8081  unix:/run/wstunnel/front.sock\n"
        "tunnels   1,023 open  12.5 new/s     10,233 ever  12 refused\n"
        "in       50.0k msg/s   2.4 MiB/s  24.7M messages    16.0 GiB\n"
        "out          0 msg/s       0 B/s  24.6M messages     8.0 GiB\n"
        "closed  1000: 10,190  1006: 10  other: 1\n"
        "\n"
        "WORKER   PID  STATE       UP  TUNNELS  NEW/S  REFUSED  MSG/S      IN/S     OUT/S\n"
        "     1  4001  serving  1h 0m      512      0        0      0       0 B       0 B\n"
        "     2  4002  serving  1h 0m      511      0        0      0       0 B       0 B\n"
        "\n"
        "SLOT              PID  STATE       FOR  LOAD  TOTAL  RESTARTS  LAST EXIT\n"
        "echo  /ws/ -> /usr/bin/echo\n"
        "  echo-0         4720  running  12m 5s   506  5,120         0\n"
        "  echo-1         4720  running  12m 5s     0      0         1  SIGKILL\n"
        "10.0.0.1:5900  (of an earlier configuration)  /ws/ -> 10.0.0.1:5900\n"
        "  10.0.0.1:5900     -  running  12m 5s     0      0         0\n"
        "\n"
        "PER TUNNEL  ROUTES  RUNNING  MAX-FORKS  FORKED  FAILED\n"
        "clock       /clock        3      1,000   4,123       0\n"
        "\n"
        "PER REQUEST   ROUTES     RUNNING  MAX-FORKS  FORKED  FAILED\n"
        "/srv/cgi-bin  /cgi-bin/        0          9      12       2\n"
    )


def test_a_service_without_workers_and_pools_is_its_headline_and_its_sums():
    assert lines(snapshot(state="starting")) == [
        "wstunnel 1.2.3  pid 4711  starting  up 3d 4h since 2027-01-12 04:00",
        "listening on  127.0.0.1:8081",
        "tunnels       0 open     - new/s      0 ever  0 refused",
        "in           - msg/s         -/s  0 messages        0 B",
        "out          - msg/s         -/s  0 messages        0 B",
    ]


# --- rates


def test_rates_are_what_has_come_in_the_time_between_two_looks():
    before = snapshot(workers=(worker(opened=100),))
    now = later(before, 500, opened=6, messages_in=1000, messages_out=2000, bytes_in=4096, bytes_out=10 * 1024 * 1024)

    assert lines(now, before)[2:5] == [
        "tunnels       0 open    12 new/s          6 ever  0 refused",
        "in        2.0k msg/s   8.0 KiB/s  1,000 messages    4.0 KiB",
        "out       4.0k msg/s  20.0 MiB/s  2,000 messages   10.0 MiB",
    ]
    seen = row(now, "WORKER", before)
    assert (seen["NEW/S"], seen["MSG/S"], seen["IN/S"], seen["OUT/S"]) == ("12", "6.0k", "8.0 KiB", "20.0 MiB")


BEFORE = snapshot(workers=(worker(),))


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (None, BEFORE),
        (BEFORE, BEFORE),
        (BEFORE, later(BEFORE, -500, messages_in=9)),
        (BEFORE, dataclasses.replace(later(BEFORE, 500, messages_in=9), pid=4999)),
        (BEFORE, dataclasses.replace(later(BEFORE, 500, messages_in=9), started_ms=NOW_MS)),
    ],
    ids=["nothing before", "no time between", "the clock was put back", "another process", "another start"],
)
def test_there_are_no_rates_without_two_looks_at_the_same_run(before, now):
    assert row(now, "WORKER", before)["MSG/S"] == "-"
    assert "- msg/s" in render(now, before, width=80)


def test_the_next_worker_in_a_row_does_not_inherit_the_counts_of_the_one_before():
    before = snapshot(workers=(worker(1, pid=4001, messages_in=1000), worker(2, messages_in=1000)))
    now = snapshot(taken_ms=NOW_MS + 1000, workers=(worker(1, pid=4009, messages_in=5), worker(2, messages_in=1003)))

    assert row(now, "WORKER", before)["MSG/S"] == "-"
    assert row(now, "WORKER", before, nth=2)["MSG/S"] == "3"


def test_a_counter_that_went_back_is_no_negative_rate():
    before = snapshot(workers=(worker(bytes_in=1000),))

    assert row(later(before, 1000, bytes_in=-900), "WORKER", before)["IN/S"] == "0 B"


# --- workers


def test_a_worker_that_has_not_moved_is_pointed_out():
    ages = {1: 5000, 2: 72_000, 3: None}
    now = snapshot(workers=tuple(worker(row, heartbeat_age_ms=age) for row, age in ages.items()))

    assert [line for line in lines(now) if "moved" in line] == ["worker 2 (pid 4002) has not moved for 1m 12s"]


def test_a_worker_of_an_earlier_configuration_shows_its_generation_and_state():
    old = worker(state="quiet", generation=7, connections=2, tunnels=1, refused=3)
    seen = row(snapshot(workers=(old,)), "WORKER")

    assert [seen[title] for title in ("STATE", "GEN", "CONNS", "TUNNELS", "REFUSED")] == ["quiet", "7", "2", "1", "3"]


# --- pools


def test_a_slot_is_a_line_with_what_one_asks_after():
    now = snapshot(pools=(pool(slot(load=5, total=12_345, restarts=2, last_exit="exited with status 1")),))

    assert row(now, "SLOT", nth=2) == {
        "SLOT": "echo-0",
        "PID": "4720",
        "STATE": "running",
        "FOR": "12m 5s",
        "LOAD": "5",
        "TOTAL": "12,345",
        "RESTARTS": "2",
        "LAST EXIT": "status 1",
    }


@pytest.mark.parametrize(
    ("last_exit", "shown"),
    [("killed by SIGKILL", "SIGKILL"), ("exited with status 3", "status 3"), ("ended", "ended")],
)
def test_the_last_exit_is_short(last_exit, shown):
    assert row(snapshot(pools=(pool(slot(last_exit=last_exit)),)), "SLOT", nth=2)["LAST EXIT"] == shown


def test_a_pool_is_introduced_with_its_routes_and_its_backend():
    text = render(snapshot(pools=(pool(routes=("/ws/", "/chat")), pool(name="old", is_retired=True))), None, width=80)

    assert "\necho  /ws/ /chat -> /usr/bin/echo\n" in text
    assert "\nold  (of an earlier configuration)  /ws/ -> /usr/bin/echo\n" in text


def test_what_has_no_process_and_no_past_shows_neither():
    seen = row(snapshot(pools=(pool(slot(pid=None, since_ms=0)),)), "SLOT", nth=2)

    assert (seen["PID"], seen["FOR"]) == ("-", "-")


def test_many_idle_slots_are_one_line():
    now = snapshot(pools=(pool(slot(), *(idle(number) for number in range(1, 1000))),))

    table = lines(now)

    assert table[-1] == "  999 idle: echo-1 to echo-999"
    assert len(table) == 5 + 1 + 4


def test_few_idle_slots_and_those_with_something_to_say_have_their_own_lines():
    broken = slot("echo-4", state="broken")
    some = (idle(0), idle(1), slot("echo-2"), idle(3), broken, idle(5), idle(6, load=1), idle(7))

    names = [line.split()[0] for line in lines(snapshot(pools=(pool(*some),)))[8:]]

    assert names == [f"echo-{number}" for number in range(8)]


def test_three_idle_slots_are_many():
    assert lines(snapshot(pools=(pool(idle(0), idle(1), idle(2)),)))[-1] == "  3 idle: echo-0 to echo-2"


# --- stdio


def test_a_program_per_tunnel_is_a_line():
    clock = ForkStatus(name="clock", routes=("/a", "/b"), running=3, max_forks=1000, forked=4123, failed=1)

    assert row(snapshot(stdio=(clock,)), "PER TUNNEL") == {
        "PER TUNNEL": "clock",
        "ROUTES": "/a /b",
        "RUNNING": "3",
        "MAX-FORKS": "1,000",
        "FORKED": "4,123",
        "FAILED": "1",
    }


def test_a_folder_of_scripts_is_a_line_of_another_table():
    scripts = ForkStatus(name="/srv/cgi-bin", routes=("/cgi-bin/",), running=2, max_forks=9, forked=4123, failed=1)

    assert row(snapshot(cgi=(scripts,)), "PER REQUEST") == {
        "PER REQUEST": "/srv/cgi-bin",
        "ROUTES": "/cgi-bin/",
        "RUNNING": "2",
        "MAX-FORKS": "9",
        "FORKED": "4,123",
        "FAILED": "1",
    }
    assert "PER TUNNEL" not in render(snapshot(cgi=(scripts,)), None, width=80)


# --- numbers


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-5, "0s"),
        (0, "0s"),
        (59.999, "59s"),
        (60, "1m 0s"),
        (725, "12m 5s"),
        (3599, "59m 59s"),
        (3600, "1h 0m"),
        (86_399, "23h 59m"),
        (86_400, "1d 0h"),
        (273_600, "3d 4h"),
        (400 * 86_400, "400d 0h"),
    ],
)
def test_a_length_of_time_has_two_units(seconds, shown):
    since = NOW_MS - int(seconds * 1000)

    assert row(snapshot(pools=(pool(slot(since_ms=since)),)), "SLOT", nth=2)["FOR"] == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (102_348, "99.9 KiB"),
        (102_400, "100 KiB"),
        (1024 * 1024 - 1, "1.0 MiB"),
        (1 << 30, "1.0 GiB"),
        (1 << 40, "1.0 TiB"),
        (1 << 62, "4.0 EiB"),
    ],
)
def test_bytes_have_binary_units(count, shown):
    now = snapshot(totals=Totals(**NONE, **{**NOTHING, "bytes_in": count}))

    assert lines(now)[3].split("messages")[1].strip() == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (999, "999"),
        (999_999, "999,999"),
        (1_000_000, "1.0M"),
        (12_345_678, "12.3M"),
        (10**18, "1.0E"),
        (10**22, "10000E"),
    ],
)
def test_counts_are_written_out_up_to_a_million(count, shown):
    now = snapshot(totals=Totals(**{**NONE, "opened": count}, **NOTHING))

    assert lines(now)[2].split("new/s")[1].split("ever")[0].strip() == shown


@pytest.mark.parametrize(
    ("per_10s", "shown"),
    [
        (0, "0"),
        (1, "0.1"),
        (123, "12.3"),
        (120, "12"),
        (9_994, "999"),
        (9_999, "1.0k"),
        (123_456, "12.3k"),
        (2e7, "2.0M"),
    ],
)
def test_rates_have_three_digits_or_so(per_10s, shown):
    before = snapshot(workers=(worker(),))

    assert row(later(before, 10_000, messages_in=int(per_10s)), "WORKER", before)["MSG/S"] == shown


# --- fitting


@pytest.mark.parametrize(
    ("title", "gone"),
    [("WORKER", ["GEN", "CONNS", "REFUSED", "UP", "NEW/S"]), ("SLOT", ["TOTAL", "LAST EXIT", "FOR"])],
)
def test_columns_go_one_by_one_where_it_is_narrow_and_what_matters_stays(title, gone):
    now = snapshot(workers=(worker(),), pools=(pool(slot()),))
    widths = range(120, 60 if title == "WORKER" else 44, -1)

    (*shown,) = (next(line for line in lines(now, None, width) if title in line) for width in widths)

    titles = [re.split(r"\s{2,}", line.strip()) for line in dict.fromkeys(shown)]
    assert [set(more) - set(fewer) for more, fewer in itertools.pairwise(titles)] == [{one} for one in gone]


def test_a_long_name_loses_its_middle_and_nothing_else_does():
    now = snapshot(pools=(pool(slot("a-program-with-a-rather-long-name-and-its-number-7", restarts=3)),))

    seen = row(now, "SLOT", nth=2, width=80)

    assert re.fullmatch(r"a-pro.*\.\.\..*ber-7", seen["SLOT"])
    assert seen["RESTARTS"] == "3"
    assert max(map(len, lines(now))) <= 80


def test_a_long_command_loses_its_middle_and_its_pool_keeps_its_name():
    now = snapshot(pools=(pool(backend="/usr/bin/python3 " + "x" * 100 + "/echo.py"),))

    (line,) = [line for line in lines(now) if line.startswith("echo")]

    assert len(line) == 80
    assert line.startswith("echo  /ws/ -> /usr/bin/python3 xx")
    assert line.endswith("x/echo.py")


def test_a_long_address_loses_its_middle():
    path = f"unix:/run/{'x' * 100}/front.sock"

    _, where, *_ = [line for line in lines(snapshot(listeners=(path,))) if "unix:" in line or "listening" in line]

    assert where.startswith("  unix:/run/xxx")
    assert where.endswith("xxx/front.sock")
    assert len(where) == 80


def test_the_last_column_that_can_be_shortened_is_shortened_first():
    clock = ForkStatus(name="n" * 30, routes=("/r" * 20,), running=3, max_forks=9, forked=4, failed=0)

    seen = row(snapshot(stdio=(clock,)), "PER TUNNEL", width=80)

    assert seen["PER TUNNEL"] == "n" * 30
    assert re.fullmatch(r"/r.*\.\.\..*r", seen["ROUTES"])


def test_a_terminal_narrower_than_what_must_stand_there_cuts_it():
    (titles,) = [line for line in lines(snapshot(workers=(worker(),)), None, 30) if "WORKER" in line]

    assert titles == "WORKER   PID  STATE    TUNNELS"


def test_many_listeners_take_more_lines():
    addresses = tuple(f"127.0.0.1:{port}" for port in range(8081, 8091))

    table = lines(snapshot(listeners=addresses))

    assert table[1].startswith("listening on  127.0.0.1:8081  127.0.0.1:8082")
    assert table[2].startswith("  127.0.0.1:")
    assert " ".join(table).count("127.0.0.1") == 10


TEXTS = st.text(max_size=60)
WIDTHS = st.integers(0, 200)


@given(st.builds(pool, st.builds(slot, TEXTS, last_exit=TEXTS), name=TEXTS, backend=TEXTS), WIDTHS, TEXTS)
def test_no_line_is_wider_than_the_terminal_or_moves_its_cursor(some, width, listener):
    clock = ForkStatus(name=listener, routes=(listener,) * 3, running=3, max_forks=1000, forked=10**15, failed=0)
    now = dataclasses.replace(FULL, pools=(*FULL.pools, some), listeners=(listener,) * 5, stdio=(clock,), cgi=(clock,))

    for line in render(now, None, width=width).split("\n"):
        assert len(line) <= max(1, width)
        assert line.isprintable()


def test_letters_that_take_two_columns_or_none_are_not_trusted():
    now = snapshot(listeners=("übersetzer-日本-e\u0301\x1b[2J",))

    assert lines(now)[1] == "listening on  übersetzer-??-e??[2J"


# --- colour


def test_colour_changes_nothing_but_colour():
    plain, painted = (render(FULL, None, width=70, colour=colour) for colour in (False, True))

    assert "\x1b" not in plain
    assert re.sub(r"\x1b\[\d+m", "", painted) == plain


@pytest.mark.parametrize(
    ("state", "style"),
    [("running", 32), ("broken", 31), ("waiting", 33), ("retiring", 33), ("idle", 2), ("stopped", 2)],
)
def test_a_state_has_its_colour(state, style):
    text = render(snapshot(pools=(pool(slot(state=state)),)), None, width=80, colour=True)

    assert f"\x1b[{style}m{state} " in text.replace("\x1b[0m", " ")


# --- asking


def answers(*snapshots: Snapshot) -> Callable[[], dict[str, Any]]:
    waiting = list(snapshots)
    return lambda: {"ok": True, "status": json.loads(json.dumps(waiting.pop(0).to_json()))}


def test_one_report_looks_twice_to_tell_rates():
    before = snapshot()
    slept: list[float] = []

    text = once(answers(before, later(before, 700, messages_in=70)), width=80, sleep=slept.append)

    assert slept == [LIMITS.rates_s]
    assert "100 msg/s" in text


def test_json_is_what_the_master_says_word_for_word():
    told = FULL.to_json() | {"moon": "full"}

    assert json.loads(as_json(lambda: {"ok": True, "status": told})) == json.loads(json.dumps(told))


@pytest.mark.parametrize("asking", [look, as_json])
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"ok": False, "error": "not now"}, "^not now$"),
        ({"ok": False}, "does not say how it is"),
        ({"ok": True}, "does not say how it is"),
        ({"ok": True, "status": "well"}, "does not say how it is"),
    ],
)
def test_a_master_that_does_not_say_is_an_error(asking, answer, why):
    with pytest.raises(StartError, match=why):
        asking(lambda: answer)


def test_a_master_of_another_version_is_called_that():
    with pytest.raises(StartError, match=r"is of another version: status: version is missing"):
        look(lambda: {"ok": True, "status": {}})


# --- watching


class Terminal:
    """What is written to it, and how long is slept; Ctrl-C comes after so many naps."""

    def __init__(self, *, naps: int, columns: int = 80, lines: int = 50) -> None:
        self.pages: list[str] = []
        self.slept: list[float] = []
        self.naps = naps
        self.size = os.terminal_size((columns, lines))

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        if len(self.slept) == self.naps:
            raise KeyboardInterrupt

    def watch(self, ask: Callable[[], dict[str, Any]]) -> int:
        return watch(ask, write=self.pages.append, size=lambda: self.size, sleep=self.sleep)


def test_watching_draws_a_page_again_and_again_until_it_is_interrupted():
    first = snapshot()
    second = later(first, 700, messages_in=70)
    third = later(second, 1000, messages_in=200)
    terminal = Terminal(naps=3)

    code = terminal.watch(answers(first, second, third))

    assert code == 0
    assert terminal.slept == [LIMITS.rates_s, LIMITS.watch_s, LIMITS.watch_s]
    _, one, two, three, *_ = terminal.pages
    assert "- msg/s" in one
    assert "100 msg/s" in two
    assert "200 msg/s" in three


def test_a_page_is_drawn_over_the_one_before_in_one_write():
    terminal = Terminal(naps=2)

    terminal.watch(answers(FULL, snapshot()))

    page = terminal.pages[2]
    assert page.startswith("\x1b[Hwstunnel 1.2.3  ")
    assert page.endswith("\x1b[K\n\x1b[J")
    assert page.count("\n") == page.count("\x1b[K\n") == len(lines(snapshot()))


def test_the_cursor_is_hidden_meanwhile_and_comes_back():
    terminal = Terminal(naps=1)

    terminal.watch(answers(snapshot()))

    assert "\x1b[?25l" in terminal.pages[0]
    assert terminal.pages[-1] == "\x1b[?25h"


def test_a_page_does_not_scroll_and_says_what_is_left_out():
    terminal = Terminal(naps=1, lines=8)

    terminal.watch(answers(FULL))

    shown = terminal.pages[1].splitlines()[:-1]
    assert len(shown) == 7
    missing = len(lines(FULL)) - 6
    assert shown[-1].startswith(f"... and {missing} more lines")


def test_a_terminal_of_any_size_is_drawn_on():
    for height in range(4):
        terminal = Terminal(naps=1, columns=height, lines=height)
        assert terminal.watch(answers(FULL)) == 0
        assert len(terminal.pages[1].splitlines()) == max(1, height - 1) + 1


def test_a_new_size_of_the_terminal_shows_on_the_next_page():
    terminal = Terminal(naps=2)
    ask = answers(FULL, FULL)

    def narrower() -> dict[str, Any]:
        answer = ask()
        terminal.size = os.terminal_size((terminal.size.columns - 20, 50))
        return answer

    terminal.watch(narrower)

    first, second = (re.sub(r"\x1b\[\w", "", page).splitlines() for page in terminal.pages[1:3])
    assert max(map(len, second)) <= 40 < max(map(len, first)) <= 60


def test_a_master_that_goes_away_ends_the_watch_and_leaves_the_last_page():
    terminal = Terminal(naps=9)
    ask = answers(snapshot())

    def gone() -> dict[str, Any]:
        if not terminal.slept:
            return ask()
        raise StartError("unix:/run/w.control: nobody listens there")

    assert terminal.watch(gone) == 1
    assert terminal.pages[-2:] == ["wstunnel: unix:/run/w.control: nobody listens there\n", "\x1b[?25h"]
