"""The shared counters: whose words are whose, what is kept of who is gone, and one at a time where it must be."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from wstunnel.limits import MasterLimits
from wstunnel.supervise.board import Board, SlotColumn, SlotState, WorkerColumn, WorkerState, close_column

LIMITS = MasterLimits(worker_rows=4, slot_rows=5)


@pytest.fixture
def board() -> Iterator[Board]:
    made = Board(LIMITS)
    yield made
    made.close()


def test_every_word_is_there_once(board):
    """Rows and cells are written one after the other, each word with a number of its own; none is overwritten."""
    rows = [board.worker(row) for row in range(4)] + [board.slot(row) for row in range(5)]
    rows += [board.loads(row) for row in range(5)] + [board.totals(row) for row in range(5)]
    number = 0
    for row in rows:
        for index in range(len(row)):
            number += 1
            row[index] = number

    assert [word for row in rows for word in row] == list(range(1, number + 1))
    assert [len(board.loads(0)), len(board.totals(0))] == [4, 4]


def test_each_row_has_a_word_for_each_column(board):
    board.slot(4)[max(SlotColumn)] = 1
    board.worker(3)[close_column(1015)] = 1
    board.worker(3)[close_column(4000)] = 2
    assert board.worker(3)[-2:].tolist() == [1, 2]
    assert close_column(1000) == max(WorkerColumn)


@pytest.mark.parametrize("code", [0, 999, 1016, 3000, 4999])
def test_close_codes_without_a_word_of_their_own_share_one(code):
    assert close_column(code) == close_column(65535)
    assert close_column(code) not in {close_column(known) for known in range(1000, 1016)}


def test_close_codes_of_the_rfc_have_a_word_each():
    assert len({close_column(code) for code in range(1000, 1016)}) == 16


def test_another_process_sees_and_writes_the_same_words(board):
    board.worker(2)[WorkerColumn.ACCEPTED] = -(2**63)
    board.loads(3)[2] = 7
    code = f"""
from wstunnel.limits import MasterLimits
from wstunnel.supervise.board import Board, WorkerColumn
board = Board(MasterLimits(worker_rows=4, slot_rows=5), {board.fd})
assert board.worker(2)[WorkerColumn.ACCEPTED] == -(2**63)
assert board.load(3) == 7
board.worker(2)[WorkerColumn.ACCEPTED] = 2**63 - 1
board.loads(3)[1] = 1
"""
    subprocess.run([sys.executable, "-c", code], pass_fds=[board.fd], check=True)

    assert board.worker(2)[WorkerColumn.ACCEPTED] == 2**63 - 1
    assert board.load(3) == 8


def test_a_board_of_another_size_is_refused(board):
    with pytest.raises(ValueError, match="another size"):
        Board(MasterLimits(worker_rows=4, slot_rows=6), board.fd)


def test_a_board_of_another_layout_is_refused(board):
    os.pwrite(board.fd, b"\0", 0)
    with pytest.raises(ValueError, match="another layout"):
        Board(LIMITS, board.fd)


def test_a_board_is_given_to_nobody_by_accident(board):
    assert not os.get_inheritable(board.fd)


def test_rows_outlive_the_descriptor():
    board = Board(LIMITS)
    row = board.worker(1)
    board.close()
    row[WorkerColumn.OPENED] += 1
    assert board.worker(1)[WorkerColumn.OPENED] == 1


def test_a_board_for_one_process_alone_has_no_descriptor_and_counts_all_the_same():
    before = os.listdir("/proc/self/fd")
    board = Board(LIMITS, is_shared=False)
    assert os.listdir("/proc/self/fd") == before
    board.loads(4)[3] = 1
    assert board.load(4) == 1
    assert (board.free_worker(), board.free_slots(1)) == (1, [0])
    assert is_free(board, 4)
    board.close()


# --- sums


def test_the_load_of_a_slot_is_that_of_all_workers_and_of_no_other_slot(board):
    for slot in range(5):
        for worker in range(4):
            board.loads(slot)[worker] = 10**slot
            board.totals(slot)[worker] = 2 * 10**slot
    assert [board.load(slot) for slot in range(5)] == [4, 40, 400, 4000, 40000]
    assert [board.total(slot) for slot in range(5)] == [8, 80, 800, 8000, 80000]


def test_workers_add_up(board):
    board.worker(1)[WorkerColumn.BYTES_IN] = 3
    board.worker(3)[WorkerColumn.BYTES_IN] = 4
    board.worker(0)[WorkerColumn.BYTES_IN] = 5
    board.worker(3)[close_column(4711)] = 1

    found = board.summed()

    assert found[WorkerColumn.BYTES_IN] == 12
    assert found[close_column(4711)] == 1
    assert sum(found) == 13


def test_nobody_adds_up_to_nothing(board):
    assert board.summed() == [0] * len(board.worker(0))


# --- rows come and go


def test_free_rows_of_workers_begin_at_one_and_end(board):
    found = []
    while (row := board.free_worker()) is not None:
        board.worker(row)[WorkerColumn.STATE] = WorkerState.STARTING
        found.append(row)
    assert found == [1, 2, 3]

    board.clear_worker(2, ())

    assert board.free_worker() == 2


def test_only_rows_that_were_given_out_are_used(board):
    """So that a load is a sum over few words, however many workers there might be."""
    assert board.workers_used == 1
    for row in (1, 2):
        assert board.free_worker() == row
        board.worker(row)[WorkerColumn.STATE] = WorkerState.SERVING
    assert board.workers_used == 3
    board.clear_worker(1, ())
    assert board.free_worker() == 1
    assert board.workers_used == 3
    board.use_worker(1)
    assert board.workers_used == 3
    assert Board(LIMITS, os.dup(board.fd)).workers_used == 3


def test_free_rows_of_slots_are_had_all_or_not_at_all(board):
    board.slot(1)[SlotColumn.STATE] = SlotState.STOPPED
    assert board.free_slots(0) == []
    assert board.free_slots(3) == [0, 2, 3]
    assert board.free_slots(4) == [0, 2, 3, 4]
    assert board.free_slots(5) is None


def test_what_a_worker_that_is_gone_has_counted_is_kept_and_what_it_had_open_is_not(board):
    for row in (1, 2):
        mine = board.worker(row)
        for column in range(len(mine)):
            mine[column] = 100 * row
        board.loads(4)[row] = row
        board.totals(4)[row] = 10 * row
    board.worker(0)[WorkerColumn.OPENED] = 1
    board.totals(4)[0] = 1

    board.clear_worker(1, [4])

    assert not any(board.worker(1))
    assert not any(board.worker(0)[: WorkerColumn.ACCEPTED])
    assert board.worker(0)[WorkerColumn.ACCEPTED :].tolist() == [
        101 if column == WorkerColumn.OPENED else 100 for column in range(WorkerColumn.ACCEPTED, len(board.worker(0)))
    ]
    assert board.summed()[WorkerColumn.OPENED] == 301
    assert board.loads(4).tolist() == [0, 0, 2, 0]
    assert board.totals(4).tolist() == [11, 0, 20, 0]


def test_a_slot_that_is_cleared_is_free_and_empty(board):
    for row in (1, 2):
        for words in (board.slot(row), board.loads(row), board.totals(row)):
            for index in range(len(words)):
                words[index] = 9
    assert board.free_slots(4) is None

    board.clear_slot(1)

    assert board.free_slots(4) == [0, 1, 3, 4]
    assert not any((*board.slot(1), *board.loads(1), *board.totals(1)))
    assert board.slot(2).tolist() == [9] * len(SlotColumn)
    assert board.load(2) == board.total(2) == 36


# --- one at a time


def test_the_least_busy_of_the_other_workers_is_found_as_soon_as_it_serves(board):
    assert board.least_connections(besides=1) is None
    for connections, state in ((5, WorkerState.SERVING), (2, WorkerState.STARTING), (9, WorkerState.SERVING)):
        row = board.worker(board.free_worker())
        row[WorkerColumn.STATE], row[WorkerColumn.CONNECTIONS] = state, connections

    assert [board.least_connections(besides=row) for row in (1, 2, 3)] == [9, 5, 5]
    board.worker(2)[WorkerColumn.STATE] = WorkerState.SERVING
    assert [board.least_connections(besides=row) for row in (1, 2, 3)] == [2, 5, 2]
    board.worker(3)[WorkerColumn.STATE] = WorkerState.QUIET
    assert [board.least_connections(besides=row) for row in (1, 2, 3)] == [2, 5, 2]
    board.clear_worker(2, [])
    assert [board.least_connections(besides=row) for row in (1, 2, 3)] == [None, 5, 5]


class Claimer:
    """Another process, which is inside for a slot."""

    def __init__(self, board: Board, slot: int) -> None:
        code = f"""
from wstunnel.limits import MasterLimits
from wstunnel.supervise.board import Board
with Board(MasterLimits(worker_rows=4, slot_rows=5), {board.fd}).claiming({slot}) as is_mine:
    print(is_mine, flush=True)
    input()
print("left", flush=True)
input()
"""
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[board.fd]
        )
        assert self.said() == b"True\n"

    def said(self) -> bytes:
        assert self._process.stdout is not None
        return self._process.stdout.readline()

    def leave(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        assert self.said() == b"left\n"

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate()


def is_free(board: Board, slot: int) -> bool:
    with board.claiming(slot) as is_mine:
        return is_mine


def test_two_processes_are_never_inside_for_the_same_slot(board):
    other = Claimer(board, 2)
    try:
        assert not is_free(board, 2)
        assert is_free(board, 1)
        assert is_free(board, 3)
        other.leave()
        assert is_free(board, 2)
    finally:
        other.kill()


def test_who_dies_inside_leaves_the_place_free(board):
    other = Claimer(board, 0)
    assert not is_free(board, 0)
    other.kill()
    assert is_free(board, 0)


def test_the_place_is_left_when_what_is_done_inside_fails(board):
    def fail() -> None:
        with board.claiming(3) as is_mine:
            assert is_mine
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    other = Claimer(board, 3)
    other.kill()
