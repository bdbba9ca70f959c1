"""Workers as their master sees them, played by actors: started, replaced, sent home, and what they ask for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tests.conftest import Run, children, open_descriptors
from tests.wire.crews import Actor, Stage, stage
from tests.wire.sockets import DEADLINE_S, eventually, turns
from wstunnel.errors import StartError
from wstunnel.limits import Limits, MasterLimits, RestartLimits
from wstunnel.proto.close import CloseCode
from wstunnel.server.certificates import Material
from wstunnel.server.crew import Crew
from wstunnel.server.messages import Cut, Death, Exited, Fork, Forked, Leave, Quiet, Ready, Release, Reopen, Unforked
from wstunnel.server.service import forks_of
from wstunnel.settings import Route, Settings
from wstunnel.supervise.board import Board, WorkerColumn, WorkerState, close_column

__all__ = ["stage"]

QUICK = Limits(
    restart=RestartLimits(healthy_after_s=DEADLINE_S, first_wait_s=0.002, max_wait_s=1.0),
    master=MasterLimits(worker_rows=4, slot_rows=8, max_restart_wait_s=0.005, exit_wait_s=DEADLINE_S),
)
"""No run is healthy; replacements come soon."""

HEALTHY = Limits(restart=RestartLimits(healthy_after_s=0.0), master=QUICK.master)


def limits_with(**master: Any) -> Limits:
    values = {"worker_rows": 4, "slot_rows": 8, "max_restart_wait_s": 0.005, "exit_wait_s": DEADLINE_S}
    return Limits(restart=QUICK.restart, master=MasterLimits(**(values | master)))


@pytest.fixture(autouse=True)
def _nothing_is_left(_warm_loops: None) -> Iterator[None]:
    fds, processes = descriptors(), children()
    yield
    assert descriptors() == fds
    assert children() == processes


def descriptors() -> set[int]:
    """All that are open, but for the memory of boards, which lasts as long as anybody remembers it."""
    return {fd for fd, what in open_descriptors().items() if "wstunnel-board" not in what}


class Scene:
    """A crew, and when it told that it has ended."""

    def __init__(self, workers: int, limits: Limits, routes: tuple[Route, ...]) -> None:
        settings = Settings(limits=limits, routes=routes, kill_timeout_s=DEADLINE_S)
        self.board = Board(limits.master)
        self.ended = 0
        self.crew = Crew(
            settings,
            number=7,
            board=self.board,
            places=((),) * len(routes),
            listeners=[()] * workers,
            material=Material(),
            forks=forks_of(settings),
            slot_rows=lambda: [1, 3],
            on_ended=self._note_ended,
        )

    def _note_ended(self, crew: Crew) -> None:
        assert crew is self.crew
        self.ended += 1

    def states(self) -> list[int]:
        """Of the worker rows from 1 on."""
        return [self.board.worker(row)[WorkerColumn.STATE] for row in range(1, 4)]


@contextlib.asynccontextmanager
async def scene(
    workers: int = 1, limits: Limits = QUICK, stdio: tuple[str, ...] = (), routes: tuple[Route, ...] = ()
) -> AsyncIterator[Scene]:
    made = Scene(workers, limits, (Route(stdio=stdio),) if stdio else routes)
    try:
        yield made
    finally:
        async with asyncio.timeout(DEADLINE_S):
            made.crew.cut(CloseCode.GOING_AWAY)
            await made.crew.gone()
            made.crew.forks.abort()
            await made.crew.forks.stop()
        made.board.close()


async def alone(stage: Stage, count: int) -> Actor:
    """The actor who has come as number `count`."""
    await eventually(lambda: len(stage.actors) >= count, f"actor {count} is on stage")
    return stage.actors[count - 1]


# --- certificates


def test_new_certificates_reach_every_worker_and_those_who_come_later(run: Run, stage: Stage):
    async def story() -> None:
        async with scene(2) as it:
            await it.crew.start()
            material = Material({"/a.pem": b"\xffPEM" * 100_000})  # more than a message may have
            it.crew.renew(material)
            await eventually(lambda: [each.material for each in stage.actors] == [material] * 2, "they have them")
            stage.actors[0].die()
            assert (await alone(stage, 3)).orders.material == material

    run(story())


# --- the start


def test_every_worker_gets_its_orders(run: Run, stage: Stage):
    async def story() -> None:
        async with scene(2) as it:
            await it.crew.start()
            first, second = stage.actors
            assert (first.orders.row, second.orders.row) == (1, 2)
            assert first.orders.generation == 7
            assert first.orders.settings is it.crew.settings
            assert first.orders.board_fd == it.board.fd
            assert sorted(it.crew.hands) == [0, 1]
            assert it.states() == [WorkerState.STARTING, WorkerState.STARTING, WorkerState.NONE]
            assert not it.crew.is_gone

    run(story())


def test_it_has_started_when_all_are_ready(run: Run, stage: Stage):
    stage.part = lambda actor: None

    async def story() -> None:
        async with scene(2) as it:
            starting = asyncio.create_task(it.crew.start())
            await alone(stage, 2)
            stage.actors[1].ready()
            await eventually(lambda: it.crew.hands[1].is_ready, "one is ready")
            await turns(3)
            assert not starting.done()
            stage.actors[0].ready()
            await starting

    run(story())


def test_one_who_dies_before_he_is_ready_ends_the_start_and_all_the_others(run: Run, stage: Stage):
    stage.part = lambda actor: actor.ready() if actor.orders.row == 1 else actor.die()

    async def story() -> None:
        async with scene(2) as it:
            with pytest.raises(StartError, match="a worker ended before it was ready; what it logged says why"):
                await it.crew.start()
            assert it.crew.is_gone
            assert it.states() == [WorkerState.NONE] * 3
            await turns(3)
            assert it.ended == 0

    run(story())


def test_one_who_is_not_ready_in_time_ends_the_start(run: Run, stage: Stage):
    stage.part = lambda actor: actor.ready() if actor.orders.row == 1 else None

    async def story() -> None:
        async with scene(2, limits_with(ready_timeout_s=0.05)) as it:
            with pytest.raises(StartError, match=r"a worker was not ready within 0\.05 s"):
                await it.crew.start()
            assert it.crew.is_gone

    run(story())


def test_a_start_that_is_cancelled_leaves_nobody(run: Run, stage: Stage):
    stage.part = lambda actor: None

    async def story() -> None:
        async with scene(2) as it:
            starting = asyncio.create_task(it.crew.start())
            await alone(stage, 2)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert it.crew.is_gone
            await turns(3)
            assert it.ended == 0

    run(story())


def test_a_program_that_cannot_be_started_ends_the_start_with_its_name(run: Run, stage: Stage):
    stage.error = PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    async def story() -> None:
        async with scene(2) as it:
            with pytest.raises(StartError, match=r"a worker cannot be started with .*python.*: Permission denied"):
                await it.crew.start()

    run(story())


def test_without_descriptors_nobody_can_be_started(run: Run, stage: Stage, monkeypatch: pytest.MonkeyPatch):
    def none(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def story() -> None:
        async with scene() as it:
            with monkeypatch.context() as patch:
                patch.setattr(socket, "socketpair", none)
                with pytest.raises(StartError, match="a worker cannot be started: Too many open files"):
                    await it.crew.start()

    run(story())


def test_there_are_no_more_workers_than_rows(run: Run, stage: Stage):
    async def story() -> None:
        async with scene(4) as it:
            with pytest.raises(StartError, match="too many workers of earlier configurations"):
                await it.crew.start()
            assert it.states() == [WorkerState.NONE] * 3

    run(story())


# --- deaths


def test_one_who_dies_is_replaced_and_what_he_counted_stays(run: Run, stage: Stage, caplog):
    async def story() -> None:
        async with scene(2) as it:
            await it.crew.start()
            row = it.board.worker(1)
            row[WorkerColumn.TUNNELS], row[WorkerColumn.OPENED], row[close_column(1000)] = 5, 9, 4
            it.board.loads(3)[1] = 5
            stage.actors[0].die()
            replacement = await alone(stage, 3)
            assert replacement.orders.row == 1
            assert replacement.orders.listeners == stage.actors[0].orders.listeners
            await eventually(lambda: it.crew.hands[0].is_ready, "he is ready")
            assert (row[WorkerColumn.TUNNELS], row[WorkerColumn.OPENED], it.board.load(3)) == (0, 0, 0)
            assert it.board.summed()[WorkerColumn.OPENED] == 9
            assert it.board.summed()[close_column(1000)] == 4
            assert stage.actors[1].heard == []
            assert it.ended == 0

    run(story())
    (line,) = caplog.messages
    assert re.fullmatch(
        r"worker 0 \(pid \d+\) killed by SIGKILL after 0\.\d s, and its tunnels with it; replaced in 0\.0 s", line
    )


def test_one_who_has_run_well_is_replaced_at_once(run: Run, stage: Stage, caplog):
    async def story() -> None:
        async with scene(limits=HEALTHY) as it:
            await it.crew.start()
            for count in range(2, 5):
                stage.actors[-1].end()  # however well he ends, nobody has told him to
                await alone(stage, count)
                await eventually(lambda: it.crew.hands[0].is_ready, "he is ready")

    run(story())
    assert [line.rpartition("; ")[2] for line in caplog.messages] == ["replaced now"] * 3


def test_who_dies_again_and_again_is_waited_for_ever_longer_up_to_a_bound(run: Run, stage: Stage):
    """(healthy after: never; waits double from 2 ms to 5 ms)"""

    async def story() -> None:
        async with scene() as it:
            await it.crew.start()
            stage.part = Actor.die  # before he is ready
            stage.actors[0].die()
            await alone(stage, 6)
            assert it.crew._waits_s == [0.005]
            stage.part = Actor.ready
            await eventually(lambda: 0 in it.crew.hands and it.crew.hands[0].is_ready, "one comes through")

    run(story())


def test_a_replacement_that_cannot_be_started_is_tried_again(run: Run, stage: Stage, caplog):
    async def story() -> None:
        async with scene() as it:
            await it.crew.start()
            stage.error = BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            stage.actors[0].die()
            await eventually(lambda: len(caplog.messages) >= 3, "it was tried twice")
            assert not it.crew.is_gone
            stage.error = None
            await alone(stage, 2)

    run(story())
    assert caplog.messages[1].endswith(": Resource temporarily unavailable")


def test_a_replacement_that_hangs_before_it_is_ready_is_replaced_itself(run: Run, stage: Stage, caplog):
    async def story() -> None:
        async with scene(limits=limits_with(ready_timeout_s=0.05)) as it:
            await it.crew.start()
            stage.part = lambda actor: None
            stage.actors[0].die()
            await alone(stage, 2)
            stage.part = Actor.ready
            third = await alone(stage, 3)
            await eventually(lambda: it.crew.hands[0].is_ready, "he is ready")
            await asyncio.sleep(0.1)  # for which one who is ready is not killed
            assert it.crew.hands[0].child.pid == third.pid

    run(story())
    assert "was not ready within 0.05 s and is killed" in caplog.messages[1]


def test_one_who_closes_his_channel_and_lives_on_is_killed(run: Run, stage: Stage):
    async def story() -> None:
        async with scene(limits=limits_with(exit_wait_s=0.01)) as it:
            await it.crew.start()
            stage.actors[0].channel.close()
            await alone(stage, 2)

    run(story())


# --- going


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (lambda crew: crew.quiet(), Quiet()),
        (lambda crew: crew.leave(CloseCode.SERVICE_RESTART, 2.5), Leave(1012, 2.5)),
        (lambda crew: crew.cut(CloseCode.GOING_AWAY), Cut(1001)),
    ],
    ids=["quiet", "leave", "cut"],
)
def test_all_are_told_to_go_and_nobody_is_replaced(run: Run, stage: Stage, order, message, caplog):
    async def story() -> None:
        async with scene(2) as it:
            await it.crew.start()
            order(it.crew)
            await it.crew.gone()
            assert [actor.heard for actor in stage.actors] == [[message]] * 2
            assert it.states() == [WorkerState.NONE] * 3
            assert it.ended == 1
            order(it.crew)  # there is nobody to hear it
            await turns(3)
            assert it.ended == 1

    run(story())
    assert caplog.messages == []


def test_one_who_dies_while_he_is_going_is_missed_and_not_replaced(run: Run, stage: Stage, caplog):
    stage.is_deaf = True

    async def story() -> None:
        async with scene(2) as it:
            await it.crew.start()
            it.crew.quiet()
            stage.actors[0].die(signal.SIGTERM)
            await eventually(lambda: len(it.crew.hands) == 1, "he is gone")
            assert it.ended == 0
            stage.actors[1].end()
            await it.crew.gone()
            assert it.ended == 1

    run(story())
    (line,) = caplog.messages
    assert re.fullmatch(r"worker 0 \(pid \d+\) killed by SIGTERM while it was ending", line)
    assert len(stage.actors) == 2


@pytest.mark.parametrize(
    "order",
    [
        lambda crew: crew.quiet(),
        lambda crew: crew.leave(CloseCode.SERVICE_RESTART, 2.5),
        lambda crew: crew.cut(CloseCode.GOING_AWAY),
    ],
    ids=["quiet", "leave", "cut"],
)
def test_a_crew_whose_last_worker_waits_for_his_replacement_is_gone_when_told_to_go(run: Run, stage: Stage, order):
    async def story() -> None:
        async with scene(limits=limits_with(max_restart_wait_s=DEADLINE_S)) as it:
            await it.crew.start()
            it.crew._waits_s[0] = DEADLINE_S
            stage.actors[0].die()
            await eventually(lambda: not it.crew.hands, "he is gone")
            assert not it.crew.is_gone
            order(it.crew)
            assert it.crew.is_gone
            await eventually(lambda: it.ended == 1, "it is told that nobody is left")
            await it.crew.gone()

    run(story())
    assert len(stage.actors) == 1


def test_one_who_does_not_go_is_killed_by_the_end(run: Run, stage: Stage):
    stage.is_deaf = True

    async def story() -> None:
        async with scene(2) as it:
            await it.crew.start()
            os.kill(stage.actors[0].pid, signal.SIGSTOP)
            it.crew.leave(CloseCode.GOING_AWAY, 0)
            await it.crew.end()
            assert it.crew.is_gone

    run(story())


def test_all_hear_of_deaths_and_of_a_new_log_file(run: Run, stage: Stage):
    async def story() -> None:
        async with scene(2) as it:
            await it.crew.start()
            it.crew.tell_death(17)
            it.crew.reopen()
            for actor in stage.actors:
                await eventually(lambda actor=actor: len(actor.heard) == 2, "he has heard both")
                assert actor.heard == [Death(17), Reopen()]

    run(story())


# --- programs per tunnel


async def heard(actor: Actor, count: int) -> list[Any]:
    await eventually(lambda: len(actor.heard) >= count, f"{count} messages are heard; so far {actor.heard}")
    return actor.heard


def test_a_program_runs_for_a_worker_and_how_it_ended_is_told_behind_that(run: Run, stage: Stage):
    async def story() -> None:
        async with scene(stdio=("sh", "-c", 'read line; echo "$HTTP_A $line"; echo why >&2; exit 3')) as it:
            await it.crew.start()
            (actor,) = stage.actors
            ours, theirs = socket.socketpair()
            with ours:
                ours.setblocking(False)
                actor.channel.send(Fork(5, 0, {"HTTP_A": "hello"}), (theirs,))
                forked, *_ = await heard(actor, 1)
                assert isinstance(forked, Forked)
                assert it.crew.forks.running(0) == 1
                ours.send(b"you\n")
                loop = asyncio.get_running_loop()
                assert await loop.sock_recv(ours, 100) == b"hello you\n"
                assert (await heard(actor, 2))[1] == Exited(5, 3, "why")
                assert await loop.sock_recv(ours, 100) == b""  # nobody else has the other end
                actor.channel.send(Release(5))
                await eventually(lambda: it.crew.forks.running(0) == 0, "nothing is left")

    run(story())


def test_a_program_is_ended_when_its_tunnel_is_over(run: Run, stage: Stage):
    async def story() -> None:
        async with scene(stdio=("sleep", "1000")) as it:
            await it.crew.start()
            (actor,) = stage.actors
            ours, theirs = socket.socketpair()
            with ours:
                actor.channel.send(Fork(5, 0, {}), (theirs,))
                actor.channel.send(Release(4))  # of another one, who is gone
                await heard(actor, 1)
                assert it.crew.forks.running(0) == 1
                actor.channel.send(Release(5))
                assert (await heard(actor, 2))[1] == Exited(5, -signal.SIGTERM)

    run(story())


def test_programs_of_a_worker_who_dies_are_ended(run: Run, stage: Stage):
    async def story() -> None:
        async with scene(stdio=("sleep", "1000")) as it:
            await it.crew.start()
            (actor,) = stage.actors
            streams = [socket.socketpair() for _ in range(3)]
            for request, (_, theirs) in enumerate(streams):
                actor.channel.send(Fork(request, 0, {}), (theirs,))
            await heard(actor, 3)
            actor.die()
            await eventually(lambda: it.crew.forks.running(0) == 0, "nothing is left")
            for ours, _ in streams:
                ours.close()

    run(story())


def test_a_program_that_cannot_be_started_is_told_with_the_reason(run: Run, stage: Stage, tmp_path):
    program = tmp_path / "gone"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)

    async def story() -> None:
        async with scene(stdio=(str(program),)) as it:
            await it.crew.start()
            (actor,) = stage.actors
            program.unlink()
            ours, theirs = socket.socketpair()
            with ours:
                actor.channel.send(Fork(5, 0, {}), (theirs,))
                (unforked,) = await heard(actor, 1)
                assert isinstance(unforked, Unforked)
                assert (unforked.request, unforked.status) == (5, 502)
                assert "does not exist" in unforked.why

    run(story())


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (Fork(5, 0, {}, "../outside.sh"), 404),
        (Fork(5, 0, {}, "link.sh"), 404),
        (Fork(5, 0, {}, "text"), 404),
        (Fork(5, 0, {}, "/bin/sh"), 404),
        (Fork(5, 0, {}), 404),
        (Fork(5, 0, {"LD_PRELOAD": "/evil.so"}, "a.sh"), 502),
        (Fork(5, 1, {}, "a.sh"), 502),
        (Fork(5, 2, {}, "a.sh"), 502),
        (Fork(5, 3, {}, "a.sh"), 502),
    ],
)
def test_a_worker_that_lies_does_not_get_anything_run(run: Run, stage: Stage, tmp_path, asked, status):
    """What was taken over by a client may say whatever it likes to the master: only a route's own scripts are run."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a.sh", "text", "../outside.sh"):
        (root / name).write_text("exec sleep 1000")
    (root / "link.sh").symlink_to("../outside.sh")

    async def story() -> None:
        routes = (
            Route(gateway="cgi", docroot=str(root), cgi_assign=((".sh", "/bin/sh"),)),
            Route(stdio=("cat",)),
            Route(socket="/run/a"),
        )
        async with scene(routes=routes) as it:
            await it.crew.start()
            (actor,) = stage.actors
            ours, theirs = socket.socketpair()
            with ours:
                actor.channel.send(asked, (theirs,))
                (unforked,) = await heard(actor, 1)
                assert isinstance(unforked, Unforked)
                assert (unforked.request, unforked.status) == (5, status)
                assert not children() - {hand.child.pid for hand in it.crew.hands.values()}

    run(story())


def test_a_script_runs_for_a_worker(run: Run, stage: Stage, tmp_path):
    (tmp_path / "a.sh").write_text("echo $PATH_INFO")

    async def story() -> None:
        route = Route(gateway="cgi", docroot=str(tmp_path), cgi_assign=((".sh", "/bin/sh"),))
        async with scene(routes=(route,)) as it:
            await it.crew.start()
            (actor,) = stage.actors
            ours, theirs = socket.socketpair()
            with ours:
                ours.setblocking(False)
                actor.channel.send(Fork(5, 0, {"PATH_INFO": "/x"}, "a.sh"), (theirs,))
                assert isinstance((await heard(actor, 1))[0], Forked)
                assert await asyncio.get_running_loop().sock_recv(ours, 100) == b"/x\n"
                assert (await heard(actor, 2))[1] == Exited(5, 0)
                actor.channel.send(Release(5))
                await eventually(lambda: it.crew.forks.running(0) == 0, "nothing is left")

    run(story())


def test_a_request_that_came_without_its_stream_is_refused(run: Run, stage: Stage):
    """The master had no descriptor left to take it."""

    async def story() -> None:
        async with scene(stdio=("cat",)) as it:
            await it.crew.start()
            (actor,) = stage.actors
            actor.channel.send(Fork(5, 0, {}))
            (unforked,) = await heard(actor, 1)
            assert (unforked.request, unforked.status) == (5, 503)
            assert "no descriptor left" in unforked.why

    run(story())


def test_what_is_not_for_masters_is_logged(run: Run, stage: Stage, caplog):
    async def story() -> None:
        async with scene() as it:
            await it.crew.start()
            ours, theirs = socket.socketpair()
            stage.actors[0].channel.send(Quiet(), (theirs,))
            stage.actors[0].channel.send(Ready())
            with ours:
                ours.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(ours, 1) == b""  # and its socket closed

    run(story())
    assert caplog.messages == ["worker 0 said Quiet, which is not for masters"]


# --- an upgrade


def test_a_crew_goes_on_in_the_next_image_with_its_programs(run: Run, stage: Stage, caplog):
    async def story() -> None:
        async with scene(2, stdio=("cat",)) as it:
            await it.crew.start()
            first, second = stage.actors
            ours, theirs = socket.socketpair()
            first.channel.send(Fork(5, 0, {}), (theirs,))
            (forked,) = await heard(first, 1)
            exported = it.crew.export()
            assert set(exported["fds"]) <= open_descriptors().keys()
            loop = asyncio.get_running_loop()
            for fd in exported["fds"]:  # what an exec does to the loop
                loop.remove_reader(fd)
            ended: list[Crew] = []
            crew = Crew.adopt(exported, it.crew.settings, board=it.board, slot_rows=list, on_ended=ended.append)
            assert (crew.number, sorted(crew.hands), crew.forks.running(0)) == (7, [0, 1], 1)
            with ours:
                ours.send(b"still there\n")
                ours.setblocking(False)
                assert await loop.sock_recv(ours, 100) == b"still there\n"
            assert (await heard(first, 2))[1] == Exited(5, 0)
            first.channel.send(Release(5))
            await eventually(lambda: crew.forks.running(0) == 0, "the program is gone")
            second.die()
            await eventually(lambda: len(crew.hands) == 1, "he is gone")
            crew.quiet()
            await crew.gone()
            assert ended == [crew]
            assert len(stage.actors) == 2  # nobody was replaced
            # nothing is left for the crew of the image before
            for hand in it.crew.hands.values():
                hand._channel._socket.detach()
                for task in hand._tasks:
                    task.cancel()
            it.crew.hands.clear()
            for kind in it.crew.forks._kinds.values():
                kind.forks.clear()
            assert forked == Forked(5, forked.pid)

    run(story())


def test_an_adopted_crew_of_which_nobody_was_left_is_gone_when_told_to_go(run: Run, stage: Stage):
    async def story() -> None:
        async with scene() as it:
            exported = it.crew.export()
            ended: list[Crew] = []
            crew = Crew.adopt(exported, it.crew.settings, board=it.board, slot_rows=list, on_ended=ended.append)
            crew.quiet()
            await eventually(lambda: ended == [crew], "it is told that nobody is left")

    run(story())
