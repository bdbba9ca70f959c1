"""The master, with workers played by actors: start, reload, drain, stop, in every order, and nothing left of any."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.authority import Authority
from tests.conftest import Run, children, open_descriptors
from tests.system.programs import ECHO, ECHO_DEAF, program, shell
from tests.wire.crews import Actor, Stage, stage
from tests.wire.sockets import DEADLINE_S, eventually, turns
from wstunnel.errors import ConfigError, StartError
from wstunnel.limits import CertificateLimits, Limits, MasterLimits, RestartLimits, SpawnLimits
from wstunnel.server import master as master_module
from wstunnel.server.certificates import Material, material_of
from wstunnel.server.image import Image
from wstunnel.server.master import Master, worker_count
from wstunnel.server.messages import Cut, Fork, Leave, Quiet
from wstunnel.server.notify import Notifier
from wstunnel.settings import Address, Entrance, Front, Route, Settings, TcpAddress, UnixAddress

__all__ = ["stage"]

LIMITS = Limits(
    restart=RestartLimits(healthy_after_s=0.0),
    spawn=SpawnLimits(start_watch_s=DEADLINE_S, tick_s=0.02),
    master=MasterLimits(worker_rows=8, slot_rows=16, exit_wait_s=0.2),
)


@pytest.fixture(autouse=True)
def _nothing_is_left(_warm_loops: None, tmp_path: Path) -> Iterator[None]:
    fds, processes = descriptors(), children()
    yield
    assert descriptors() == fds
    assert children() == processes
    assert not (tmp_path / "run").exists()


def descriptors() -> set[int]:
    """All that are open, but for the memory of boards, which lasts as long as anybody remembers it."""
    return {fd for fd, what in open_descriptors().items() if "wstunnel-board" not in what}


class Scene:
    """A master, what it reads when it reads its configuration again, and where it serves."""

    def __init__(self, folder: Path, *routes: Route, limits: Limits = LIMITS, **options: Any) -> None:
        usual: dict[str, Any] = {
            "listen": (TcpAddress("127.0.0.1", 0), UnixAddress(str(folder / "front"))),
            "drain_timeout_s": DEADLINE_S,
            "kill_timeout_s": DEADLINE_S,
        }
        self.settings = Settings(routes=routes, limits=limits, **(usual | options))
        self.rereads = 0
        self.error: ConfigError | None = None
        self.control = str(folder / "run" / "control")
        self.served: list[tuple[Address, ...]] = []
        self.image = Image(("/nowhere/python",), ())

    def reread(self, held: Material) -> tuple[Settings, Material]:
        self.rereads += 1
        self.held = held
        if self.error is not None:
            raise self.error
        return self.settings, material_of(self.settings)

    def make(self, control_at: Callable[..., str] | None = None) -> Master:
        self.master = Master(
            self.settings,
            material=material_of(self.settings),
            reread=self.reread,
            control_at=control_at or (lambda _settings, _bound: self.control),
            passed=(),
            notifier=Notifier(None),
            on_serving=lambda addresses: self.served.append(tuple(addresses)),
            image=self.image,
        )
        return self.master

    async def run(self) -> None:
        """Until it has ended; for starts that fail."""
        async with asyncio.timeout(DEADLINE_S):
            await self.make().run()

    @contextlib.asynccontextmanager
    async def starting(self) -> AsyncIterator[asyncio.Task[None]]:
        """It runs inside the block, and is stopped in a hurry behind it."""
        running = asyncio.create_task(self.make().run())
        try:
            yield running
        finally:
            self.master.stop()
            self.master.stop()
            async with asyncio.timeout(DEADLINE_S):
                await running

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[asyncio.Task[None]]:
        async with self.starting() as running:
            await self.serves()
            yield running

    async def serves(self) -> None:
        await eventually(lambda: bool(self.served) and self.state == "serving", "it serves")

    @property
    def state(self) -> str:
        return self.master._state

    async def says(self, command: str) -> dict[str, Any]:
        """What a client of the control socket is answered."""
        reader, writer = await asyncio.open_unix_connection(self.control)
        writer.write(json.dumps({"command": command}).encode() + b"\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer, "there is an answer"
        found: dict[str, Any] = json.loads(answer)
        return found

    def connects(self) -> bool:
        """Does anybody listen where it said?"""
        found = []
        for address in self.served[0]:
            is_unix = isinstance(address, UnixAddress)
            with socket.socket(socket.AF_UNIX if is_unix else socket.AF_INET) as client:
                where = address.path if isinstance(address, UnixAddress) else (address.host, address.port)
                found.append(client.connect_ex(where) == 0)
        assert len(set(found)) == 1
        return found[0]


def heard(actor: Actor) -> list[type]:
    return [type(message) for message in actor.heard]


async def on_stage(stage: Stage, count: int) -> Actor:
    await eventually(lambda: len(stage.actors) >= count, f"actor {count} is on stage")
    return stage.actors[count - 1]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelname in {"WARNING", "ERROR"}]


# --- start


def test_it_serves_at_its_addresses_and_leaves_nothing(run: Run, stage: Stage, tmp_path, caplog):
    async def story() -> None:
        scene = Scene(tmp_path, workers=2)
        async with scene.serving() as running:
            ((tcp, unix),) = scene.served
            assert tcp.port > 0
            assert unix == UnixAddress(str(tmp_path / "front"))
            assert scene.connects()
            assert os.stat(scene.control).st_mode & 0o777 == 0o600
            assert os.stat(os.path.dirname(scene.control)).st_mode & 0o777 == 0o700
            one, two = stage.actors
            assert {each.address for each in one.orders.listeners} == {tcp, unix}
            tcp_fds = [[each.fd for each in actor.orders.listeners if each.address == tcp] for actor in (one, two)]
            assert tcp_fds[0] != tcp_fds[1]
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S):
                await running
        assert [heard(actor) for actor in stage.actors] == [[Leave]] * 2
        assert os.listdir(tmp_path) == []

    run(story())
    assert errors(caplog) == []


def failing_budget(scene: Scene, monkeypatch: pytest.MonkeyPatch, _stage: Stage) -> str:
    def fail(*_: object) -> int:
        raise StartError("too few descriptors")

    monkeypatch.setattr(master_module, "connection_budget", fail)
    return "too few descriptors"


def failing_user(scene: Scene, monkeypatch: pytest.MonkeyPatch, _stage: Stage) -> str:
    def fail(*_: object) -> None:
        raise StartError("only root may")

    monkeypatch.setattr(master_module, "become", fail)
    return "only root may"


def failing_folder(scene: Scene, _monkeypatch: pytest.MonkeyPatch, _stage: Stage) -> str:
    scene.control = "/proc/nowhere/control"
    return "/proc/nowhere"


def failing_worker(_scene: Scene, _monkeypatch: pytest.MonkeyPatch, stage: Stage) -> str:
    stage.part = Actor.die
    return "a worker ended before it was ready"


@pytest.mark.parametrize(
    "prepare", [failing_budget, failing_user, failing_folder, failing_worker], ids=lambda each: each.__name__
)
def test_whichever_step_of_the_start_fails_nothing_is_left(run: Run, stage: Stage, tmp_path, monkeypatch, prepare):
    async def story() -> None:
        scene = Scene(tmp_path, Route(bin_path=program(tmp_path, ECHO), socket=str(tmp_path / "b")))
        text = prepare(scene, monkeypatch, stage)
        with pytest.raises(StartError, match=text):
            await scene.run()
        assert os.listdir(tmp_path) == ["backend"]
        assert scene.served == []

    run(story())


def test_an_address_that_is_taken_leaves_nothing(run: Run, stage: Stage, tmp_path):
    async def story() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = TcpAddress(*taken.getsockname())
            scene = Scene(tmp_path, listen=(UnixAddress(str(tmp_path / "front")), address))
            with pytest.raises(StartError, match="another process listens there"):
                await scene.run()
        assert os.listdir(tmp_path) == []

    run(story())


def test_a_control_socket_that_cannot_be_named_leaves_nothing(run: Run, stage: Stage, tmp_path):
    def control_at(*_: object) -> str:
        raise ConfigError(("control: too long",))

    async def story() -> None:
        scene = Scene(tmp_path)
        with pytest.raises(ConfigError, match="control: too long"):
            await scene.make(control_at).run()
        assert os.listdir(tmp_path) == []

    run(story())


def test_a_control_socket_of_another_one_is_left_alone(run: Run, stage: Stage, tmp_path):
    async def story() -> None:
        first, second = Scene(tmp_path), Scene(tmp_path, listen=(TcpAddress("127.0.0.1", 0),))
        async with first.serving():
            with pytest.raises(StartError, match="another wstunnel is controlled there"):
                await second.run()
            assert (await first.says("status"))["ok"]

    run(story())


def test_a_backend_that_dies_at_the_start_ends_it(run: Run, stage: Stage, tmp_path):
    async def story() -> None:
        argv = shell(tmp_path, "echo no luck >&2; exit 3")
        scene = Scene(tmp_path, Route(bin_path=argv, socket=str(tmp_path / "b")))
        with pytest.raises(StartError, match="no luck"):
            await scene.run()
        assert os.listdir(tmp_path) == ["backend"]

    run(story())


@pytest.mark.parametrize(("processors", "workers"), [(1, 1), (5, 5), (1000, MasterLimits().max_workers)])
def test_auto_is_a_worker_per_processor_that_we_may_use(monkeypatch, processors, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(processors)))
    assert worker_count(Settings(workers="auto")) == workers
    assert worker_count(Settings(workers=3)) == 3


# --- asked to end before it serves

BUSY = "while :; do :; done"
"""Never comes to rest, so that the start watches it."""


def test_a_stop_while_backends_are_being_started_ends_the_start(run: Run, stage: Stage, tmp_path, caplog):
    async def story() -> None:
        scene = Scene(tmp_path, Route(bin_path=shell(tmp_path, BUSY), socket=str(tmp_path / "b")))
        async with scene.starting() as running:
            await eventually(lambda: bool(children()), "the backend runs")
            assert scene.state == "starting"
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S):
                await running
        assert scene.served == []
        assert stage.actors == []
        assert os.listdir(tmp_path) == ["backend"]

    run(story())
    assert errors(caplog) == []


def test_a_second_stop_does_not_wait_for_a_backend_that_ignores_the_first(run: Run, stage: Stage, tmp_path):
    """(kill-timeout is longer than this test may last)"""

    async def story() -> None:
        argv = shell(tmp_path, f"trap '' TERM; : > {tmp_path}/deaf; {BUSY}")
        scene = Scene(tmp_path, Route(bin_path=argv, socket=str(tmp_path / "b")))
        async with scene.starting() as running:
            await eventually((tmp_path / "deaf").exists, "the backend ignores SIGTERM")
            scene.master.stop()
            await turns(3)
            assert not running.done()
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S / 2):
                await running

    run(story())


def test_a_stop_while_workers_are_being_started_ends_them(run: Run, stage: Stage, tmp_path):
    stage.part = lambda actor: None
    stage.is_deaf = True

    async def story() -> None:
        scene = Scene(tmp_path, Route(bin_path=program(tmp_path, ECHO), socket=str(tmp_path / "b")))
        async with scene.starting() as running:
            await on_stage(stage, 1)
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S):
                await running
        assert scene.served == []

    run(story())


def test_what_is_asked_while_it_starts_is_done_behind_the_start(run: Run, stage: Stage, tmp_path):
    stage.part = lambda actor: None

    async def story() -> None:
        scene = Scene(tmp_path, Route(socket="/nowhere"))
        async with scene.starting() as running:
            first = await on_stage(stage, 1)
            scene.master.reload()
            status = (await scene.says("status"))["status"]
            assert (status["state"], status["generation"]) == ("starting", 0)
            assert scene.rereads == 0
            stage.part = Actor.ready
            first.ready()
            await eventually(lambda: scene.rereads == 1 and scene.state == "serving", "it is reloaded")
            assert scene.master._generation == 2
            assert not running.done()

    run(story())


def test_a_drain_while_it_starts_ends_it_behind_the_start(run: Run, stage: Stage, tmp_path):
    stage.part = lambda actor: None

    async def story() -> None:
        scene = Scene(tmp_path)
        async with scene.starting() as running:
            first = await on_stage(stage, 1)
            assert (await scene.says("drain"))["ok"]
            assert not running.done()
            first.ready()
            async with asyncio.timeout(DEADLINE_S):
                await running
            assert heard(first)[0] is Quiet

    run(story())


# --- reload


def test_a_reload_replaces_the_crew_when_the_next_one_is_ready(run: Run, stage: Stage, tmp_path, caplog):
    async def story() -> None:
        scene = Scene(tmp_path)
        async with scene.serving():
            (first,) = stage.actors
            stage.part = lambda actor: None
            scene.master.reload()
            second = await on_stage(stage, 2)
            assert [each.fd for each in first.orders.listeners] == [each.fd for each in second.orders.listeners]
            assert (scene.state, heard(first)) == ("reloading", [])
            second.ready()
            await eventually(lambda: heard(first) == [Quiet], "the first one is told")
            assert second.orders.generation == 2
            await eventually(lambda: len(scene.master._crews) == 1, "its crew is gone")
            assert scene.connects()

    run(story())
    assert errors(caplog) == []


def test_however_often_a_reload_is_asked_for_while_one_is_under_way_one_more_follows(run: Run, stage: Stage, tmp_path):
    async def story() -> None:
        scene = Scene(tmp_path)
        async with scene.serving():
            stage.part = lambda actor: None
            scene.master.reload()
            second = await on_stage(stage, 2)
            for _ in range(100):
                scene.master.reload()
            assert scene.rereads == 1
            stage.part = Actor.ready
            second.ready()
            await eventually(lambda: scene.master._generation == 3, "it is reloaded twice")
            await eventually(lambda: scene.state == "serving", "that was all")
            await turns(5)
            assert scene.rereads == 2

    run(story())


def test_a_file_that_cannot_be_used_changes_nothing_and_the_log_says_why(run: Run, stage: Stage, tmp_path, caplog):
    async def story() -> None:
        scene = Scene(tmp_path)
        async with scene.serving():
            scene.error = ConfigError(("a.toml:1: no", "a.toml:2: never"))
            scene.master.reload()
            await eventually(lambda: errors(caplog) != [], "it is logged")
            assert scene.state == "serving"
            assert (await scene.says("reload")) == {"ok": False, "error": "a.toml:1: no\na.toml:2: never"}
            assert [heard(actor) for actor in stage.actors] == [[]]
            scene.error = None
            assert (await scene.says("reload"))["ok"]
            assert scene.master._generation == 2

    run(story())
    assert errors(caplog) == ["reload: nothing has changed: a.toml:1: no; a.toml:2: never"]


def test_a_reload_whose_workers_fail_changes_nothing(run: Run, stage: Stage, tmp_path):
    async def story() -> None:
        scene = Scene(tmp_path, Route(bin_path=program(tmp_path, ECHO), socket=str(tmp_path / "b")))
        async with scene.serving():
            (first,) = stage.actors
            await scene.says("status")  # for its first stream a loop of uvloop keeps a descriptor
            before = (descriptors(), children(), sorted(os.listdir(tmp_path)))
            stage.part = Actor.die
            scene.settings = Settings(
                listen=(*scene.settings.listen, UnixAddress(str(tmp_path / "more"))),
                routes=(Route(bin_path=program(tmp_path, ECHO, "other"), socket=str(tmp_path / "other.sock")),),
                limits=LIMITS,
                workers=3,
            )
            answer = await scene.says("reload")
            assert answer["ok"] is False
            assert "a worker ended before it was ready" in answer["error"]
            (tmp_path / "other").unlink()
            await eventually(
                lambda: (descriptors(), children(), sorted(os.listdir(tmp_path))) == before, "nothing has changed"
            )
            assert Quiet not in heard(first)
            assert scene.connects()

    run(story())


def test_an_address_that_is_served_no_more_refuses_at_once(run: Run, stage: Stage, tmp_path):
    async def story() -> None:
        scene = Scene(tmp_path)
        async with scene.serving():
            tcp, unix = scene.served[0]
            scene.settings = Settings(listen=(tcp,), limits=LIMITS, drain_timeout_s=DEADLINE_S)
            assert (await scene.says("reload"))["ok"]
            assert scene.master.addresses == (tcp,)
            assert not os.path.exists(unix.path)

    run(story())


def test_a_stop_while_a_reload_is_under_way_ends_both(run: Run, stage: Stage, tmp_path, caplog):
    async def story() -> None:
        scene = Scene(tmp_path, Route(bin_path=program(tmp_path, ECHO), socket=str(tmp_path / "b")))
        async with scene.serving() as running:
            stage.part = lambda actor: None
            stage.is_deaf = True
            scene.settings = Settings(
                listen=(UnixAddress(str(tmp_path / "more")),),
                routes=(Route(bin_path=program(tmp_path, ECHO, "other"), socket=str(tmp_path / "other.sock")),),
                limits=LIMITS,
            )
            asking = asyncio.create_task(scene.says("reload"))
            await on_stage(stage, 2)
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S):
                await running
                assert await asking == {"ok": False, "error": "the reload was cut short: this wstunnel is ending"}
        assert len(stage.actors) == 2
        assert sorted(os.listdir(tmp_path)) == ["backend", "other"]

    run(story())


# --- drain


def test_a_drain_ends_it_with_the_last_worker_and_refuses_clients_meanwhile(run: Run, stage: Stage, tmp_path, caplog):
    stage.is_deaf = True

    async def story() -> None:
        scene = Scene(tmp_path, workers=2)
        async with scene.serving() as running:
            assert (await scene.says("drain"))["ok"]
            await eventually(lambda: all(heard(actor) == [Quiet] for actor in stage.actors), "all are told")
            stage.actors[0].end()
            status = (await scene.says("status"))["status"]
            assert status["state"] == "draining"
            assert scene.master.addresses == ()
            assert not os.path.exists(tmp_path / "front")
            scene.master.drain()
            assert not running.done()
            stage.actors[1].end()
            async with asyncio.timeout(DEADLINE_S):
                await running

    run(story())
    assert errors(caplog) == []


def test_a_drain_of_one_whose_only_worker_is_being_replaced_ends(run: Run, stage: Stage, tmp_path):
    limits = Limits(
        restart=RestartLimits(healthy_after_s=DEADLINE_S, first_wait_s=DEADLINE_S),
        master=MasterLimits(max_restart_wait_s=DEADLINE_S),
    )

    async def story() -> None:
        scene = Scene(tmp_path, limits=limits)
        async with scene.serving() as running:
            stage.actors[0].die()
            await eventually(lambda: not scene.master._crews[0].hands, "he is gone")
            scene.master.drain()
            async with asyncio.timeout(DEADLINE_S / 2):
                await running
        assert len(stage.actors) == 1

    run(story())


def test_a_reload_or_an_upgrade_while_it_drains_is_refused(run: Run, stage: Stage, tmp_path, caplog):
    stage.is_deaf = True

    async def story() -> None:
        scene = Scene(tmp_path)
        async with scene.serving():
            scene.master.drain()
            await eventually(lambda: scene.state == "draining", "it drains")
            answer = await scene.says("reload")
            assert answer["error"] == "a reload is for a wstunnel that is serving, and this one is draining"
            scene.master.upgrade()
            await eventually(lambda: bool(errors(caplog)), "it is logged")
            assert scene.rereads == 0

    run(story())
    assert errors(caplog)[0] == (
        "upgrade: nothing has changed: an upgrade is for a wstunnel that is serving, and this one is draining"
    )


def test_a_drain_while_a_reload_is_under_way_follows_it(run: Run, stage: Stage, tmp_path):
    async def story() -> None:
        scene = Scene(tmp_path)
        async with scene.serving() as running:
            stage.part = lambda actor: None
            scene.master.reload()
            second = await on_stage(stage, 2)
            scene.master.drain()
            await turns(5)
            assert scene.state == "reloading"
            second.ready()
            async with asyncio.timeout(DEADLINE_S):
                await running
        assert [heard(actor)[0] for actor in stage.actors] == [Quiet, Quiet]

    run(story())


def test_a_stop_cuts_a_drain_short(run: Run, stage: Stage, tmp_path):
    stage.is_deaf = True

    async def story() -> None:
        scene = Scene(tmp_path)
        async with scene.serving() as running:
            scene.master.drain()
            await eventually(lambda: heard(stage.actors[0]) == [Quiet], "it drains")
            stage.actors[0].is_deaf = False
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S):
                await running
        assert heard(stage.actors[0])[:2] == [Quiet, Leave]

    run(story())


def test_programs_of_a_crew_that_has_ended_do_not_outlive_the_master(run: Run, stage: Stage, tmp_path):
    """One that ignores its kill signal is still there when the last worker, and with it the drain, has ended."""
    stage.is_deaf = True

    async def story() -> None:
        argv = program(tmp_path, "$SIG{TERM} = 'IGNORE'; print \"deaf\\n\"; close STDOUT; sleep 1000 while 1;")
        scene = Scene(tmp_path, Route(stdio=argv), kill_timeout_s=0.1)
        async with scene.serving() as running:
            (actor,) = stage.actors
            ours, theirs = socket.socketpair()
            actor.channel.send(Fork(1, 0, {}), (theirs,))
            with ours:
                ours.setblocking(False)
                assert await asyncio.get_running_loop().sock_recv(ours, 10) == b"deaf\n"
                scene.master.drain()
                await eventually(lambda: heard(actor)[-1] is Quiet, "it drains")
                actor.end()
                async with asyncio.timeout(DEADLINE_S):
                    await running
            assert children() == set()

    run(story())


# --- stop


def test_workers_that_do_not_end_in_time_are_killed(run: Run, stage: Stage, tmp_path, caplog):
    stage.is_deaf = True

    async def story() -> None:
        limits = Limits(master=MasterLimits(exit_wait_s=0.02))
        scene = Scene(tmp_path, limits=limits, workers=2, drain_timeout_s=0.02)
        async with scene.serving() as running:
            os.kill(stage.actors[0].pid, signal.SIGSTOP)
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S):
                await running

    run(story())
    assert errors(caplog)[0] == "workers that had not ended 0.02 s after they should have are killed"


def test_a_second_stop_is_at_once_even_for_workers_that_do_not_listen(run: Run, stage: Stage, tmp_path):
    stage.is_deaf = True

    async def story() -> None:
        limits = Limits(master=MasterLimits(exit_wait_s=0.02))
        scene = Scene(tmp_path, limits=limits)
        async with scene.serving() as running:
            os.kill(stage.actors[0].pid, signal.SIGSTOP)
            scene.master.stop()
            await turns(3)
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S / 2):
                await running
        assert heard(stage.actors[0])[:2] == [Leave, Cut]

    run(story())


def test_status_answers_until_the_end(run: Run, stage: Stage, tmp_path):
    """Even when the backends that it would tell of are being ended."""

    async def story() -> None:
        argv = program(tmp_path, ECHO_DEAF)
        scene = Scene(tmp_path, Route(bin_path=argv, socket=str(tmp_path / "b")))
        async with scene.serving() as running:
            scene.master.stop()
            await eventually(lambda: not stage.actors[0].channel._is_open, "the worker is gone")
            await eventually(lambda: scene.master._pools._current == {}, "backends are being ended")
            status = (await scene.says("status"))["status"]
            assert status["state"] == "stopping"
            assert not running.done()
            scene.master.reload()
            scene.master.drain()
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S / 2):
                await running
            assert scene.state == "stopping"

    run(story())


# --- upgrade


def test_an_upgrade_to_what_cannot_be_started_changes_nothing(run: Run, stage: Stage, tmp_path, caplog):
    async def story() -> None:
        scene = Scene(tmp_path)
        async with scene.serving():
            scene.master.upgrade()
            await eventually(lambda: bool(errors(caplog)), "it is logged")
            await eventually(lambda: scene.state == "serving", "it serves")
            assert (await scene.says("reload"))["ok"]
            assert scene.connects()

    run(story())
    assert errors(caplog) == [
        "upgrade: nothing has changed: /nowhere/python: cannot be started: No such file or directory"
    ]


def test_a_stop_while_the_next_version_is_tried_out_ends_that_too(run: Run, stage: Stage, tmp_path):
    async def story() -> None:
        scene = Scene(tmp_path)
        scene.image = Image(("/bin/sh", "-c", "exec sleep 1000"), ())
        async with scene.serving() as running:
            before = children()
            scene.master.upgrade()
            await eventually(lambda: len(children()) > len(before), "it is tried out")
            scene.master.stop()
            async with asyncio.timeout(DEADLINE_S / 2):
                await running

    run(story())


# --- certificates

SOON = dataclasses.replace(LIMITS, certificate=CertificateLimits(look_s=0.02))


def serials(stage: Stage, path: str) -> list[bytes]:
    """What each worker that has played takes for the certificate."""
    return [actor.material.pem[path] for actor in stage.actors]


def test_each_listener_has_the_front_that_the_settings_say(run: Run, stage: Stage, tmp_path, authority: Authority):
    files = authority.files("a")

    async def story() -> None:
        scene = Scene(
            tmp_path,
            Route(socket="/nowhere"),
            h2c=True,
            listeners=(
                Entrance(listen=(TcpAddress("127.0.0.1", 0),), tls_cert=(files.both,)),
                Entrance(listen=(TcpAddress("127.0.0.1", 0),), max_streams=7),
            ),
        )
        async with scene.serving():
            orders = stage.actors[0].orders
            plain = Front(h2c=True)
            fronts = [plain, plain, Front(tls_cert=(files.both,)), Front(max_streams=7)]
            assert [each.front for each in orders.listeners] == fronts
            assert len({str(each.address) for each in orders.listeners}) == 4
            assert orders.material.pem.keys() == {files.both}

    run(story())


def test_workers_hear_of_a_new_certificate_and_are_not_replaced(run: Run, stage: Stage, tmp_path, authority: Authority):
    async def story() -> None:
        files = authority.files("a")
        scene = Scene(tmp_path, Route(socket="/nowhere"), tls_cert=(files.both,), workers=2, limits=SOON)
        async with scene.serving():
            authority.files("a")
            new = Path(files.both).read_bytes()
            await eventually(lambda: serials(stage, files.both) == [new, new], "both have it")
            assert scene.master._export()["material"][files.both].encode() == new

    run(story())


def test_a_reload_reads_certificates_and_what_was_read_is_at_hand(
    run: Run, stage: Stage, tmp_path, authority: Authority
):
    async def story() -> None:
        files = authority.files("a")
        scene = Scene(tmp_path, Route(socket="/nowhere"), tls_cert=(files.both,))
        async with scene.serving():
            old = Path(files.both).read_bytes()
            authority.files("a")
            scene.master.reload()
            await eventually(lambda: scene.master._generation == 2, "it is reloaded")
            assert serials(stage, files.both) == [old, Path(files.both).read_bytes()]
            assert scene.held == Material({files.both: old})

    run(story())


def test_after_a_reload_the_files_of_the_new_settings_are_watched(
    run: Run, stage: Stage, tmp_path, authority: Authority
):
    async def story() -> None:
        old, new = authority.files("old"), authority.files("new")
        scene = Scene(tmp_path, Route(socket="/nowhere"), tls_cert=(old.both,), limits=SOON)
        async with scene.serving():
            scene.settings = dataclasses.replace(scene.settings, tls_cert=(new.both,))
            scene.master.reload()
            await eventually(lambda: scene.master._generation == 2, "it is reloaded")
            fronts = [{each.front for each in actor.orders.listeners} for actor in stage.actors]
            assert fronts == [{Front(tls_cert=(old.both,))}, {Front(tls_cert=(new.both,))}]
            authority.files("new")
            fresh = Path(new.both).read_bytes()
            await eventually(lambda: stage.actors[-1].material.pem.get(new.both) == fresh, "it is told")

    run(story())
