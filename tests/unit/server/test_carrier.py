"""The worker process, with the test for a master: what it is given, what it does when told, and what when nobody is."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Run, children, open_descriptors
from tests.wire.backends import Backend, echo
from tests.wire.clients import TEXT, Client, close_frame, frame
from tests.wire.sockets import DEADLINE_S, eventually
from wstunnel import cli
from wstunnel.limits import Limits, MasterLimits
from wstunnel.net.listen import open_listener
from wstunnel.server.channel import Channel
from wstunnel.server.messages import Cut, Leave, Message, Quiet, Ready, Reopen
from wstunnel.server.orders import ListenerOrder, Orders
from wstunnel.settings import Address, Route, Settings, TcpAddress, UnixAddress
from wstunnel.supervise.board import Board, SlotColumn, SlotState, WorkerColumn, WorkerState
from wstunnel.supervise.place import SlotPlace

ROOT = Path(cli.__file__).parent.parent
LIMITS = Limits(master=MasterLimits(worker_rows=4, slot_rows=4))
Story = Callable[["Master"], Coroutine[Any, Any, None]]


@pytest.fixture(autouse=True)
def _nothing_is_left(_warm_loops: None) -> Iterator[None]:
    fds, processes = descriptors(), children()
    yield
    assert descriptors() == fds
    assert children() == processes


def descriptors() -> set[int]:
    """All that are open, but for the memory of boards, which lasts as long as anybody remembers it."""
    return {fd for fd, what in open_descriptors().items() if "wstunnel-board" not in what}


class Master:
    """One worker process in row 2, with a page and an echo to serve."""

    def __init__(self, folder: Path, log_file: str | None) -> None:
        self.backend = Backend(str(folder / "backend"))
        self.backend.serve(echo)
        self.board = Board(LIMITS.master)
        self.board.slot(1)[SlotColumn.STATE] = SlotState.RUNNING
        self.row = self.board.worker(2)
        self.heard: list[Message] = []
        self.is_left = False
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener = open_listener(TcpAddress("127.0.0.1", 0), backlog=16)
        self.address: Address = listener.address
        backend = UnixAddress(str(folder / "backend"))
        orders = Orders(
            settings=Settings(
                routes=(Route(path="/ws", socket=backend.path),),
                document_root=str(folder),
                drain_timeout_s=DEADLINE_S,
                log_file=log_file,
                limits=LIMITS,
            ),
            places=(((SlotPlace("echo", backend, 1),),),),
            listeners=(ListenerOrder(listener.socket.fileno(), listener.address, False),),
            board_fd=self.board.fd,
            channel_fd=theirs.fileno(),
            row=2,
            generation=7,
        )
        orders_fd = orders.write()
        fds = (orders_fd, orders.board_fd, orders.channel_fd, listener.socket.fileno())
        self.process = subprocess.Popen(
            (sys.executable, "-m", "wstunnel.server.carrier", str(orders_fd)),
            cwd=ROOT,
            pass_fds=fds,
            stderr=self._log,
        )
        os.close(orders_fd)
        theirs.close()
        listener.close()  # the worker alone listens
        self.channel = Channel(ours, LIMITS.master, on_message=self._hear, on_closed=self._note_left)

    def _hear(self, message: Message, _fds: list[int]) -> None:
        self.heard.append(message)

    def _note_left(self) -> None:
        self.is_left = True

    async def ready(self) -> None:
        await eventually(lambda: self.heard == [Ready()], f"it is ready; it has said {self.log()}")

    async def client(self) -> Client:
        client = await Client.reach(self.address)
        await client.upgrade("/ws")
        return client

    async def refuses(self) -> None:
        """Until nobody listens there any more."""

        def refused() -> bool:
            assert isinstance(self.address, TcpAddress)
            with socket.socket() as probe:
                return probe.connect_ex((self.address.host, self.address.port)) != 0

        await eventually(refused, "clients are refused")

    async def ended(self) -> int:
        """Its exit code, when it has ended."""
        await eventually(lambda: self.process.poll() is not None, "it ends")
        return int(self.process.returncode)

    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    async def close(self) -> None:
        self.channel.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        await self.backend.stop()
        self._log.close()
        self.board.close()


@contextlib.asynccontextmanager
async def master_in(folder: Path, log_file: str | None = None) -> AsyncIterator[Master]:
    (folder / "index.html").write_text("a page")
    made = Master(folder, log_file)
    try:
        await made.ready()
        yield made
    finally:
        await made.close()


@pytest.fixture
def perform(tmp_path: Path) -> Callable[[Story], None]:
    """Tells a story of a worker that is ready."""

    async def whole(story: Story) -> None:
        async with master_in(tmp_path) as master:
            await story(master)

    return lambda story: Run("uvloop")(whole(story))


async def echoes(client: Client, word: bytes = b"hello") -> None:
    await client.send(frame(TEXT, word))
    assert await client.payload(len(word)) == word


async def leaves(client: Client, code: int) -> None:
    """The client is asked to leave with this code, and does."""
    assert (await client.to_end(answer=True)).code == code
    client.close()


def test_it_serves_what_it_was_ordered_and_shows_itself_on_the_board(perform):
    async def story(master: Master) -> None:
        row = master.row
        pid = master.process.pid
        assert (row[WorkerColumn.PID], row[WorkerColumn.GENERATION]) == (pid, 7)
        assert row[WorkerColumn.STATE] == WorkerState.SERVING
        assert row[WorkerColumn.HEARTBEAT_MS] >= row[WorkerColumn.STARTED_MS] > 0
        assert Path(f"/proc/{pid}/comm").read_text() == "wstunnel-w2\n"
        visitor = await Client.reach(master.address)
        assert (await visitor.request("/")).body == b"a page"
        visitor.close()
        client = await master.client()
        await echoes(client)
        assert (row[WorkerColumn.TUNNELS], master.board.load(1)) == (1, 1)
        await client.send(close_frame(1000))
        assert (await client.to_end()).code == 1000
        client.close()
        await eventually(lambda: (row[WorkerColumn.TUNNELS], master.board.load(1)) == (0, 0), "it is counted")

    perform(story)


def test_it_has_nothing_open_that_a_program_could_inherit(perform):
    async def story(master: Master) -> None:
        folder = Path(f"/proc/{master.process.pid}")
        links = {int(each.name): os.readlink(each) for each in (folder / "fd").iterdir()}
        assert not any("wstunnel-orders" in link for link in links.values())
        inheritable = {
            fd
            for fd in links
            for line in (folder / "fdinfo" / str(fd)).read_text().splitlines()
            if line.startswith("flags:") and not int(line.split()[1], 8) & os.O_CLOEXEC
        }
        assert inheritable == {0, 1, 2}

    perform(story)


def test_when_quiet_it_refuses_new_clients_serves_its_tunnels_to_their_end_and_exits(perform):
    async def story(master: Master) -> None:
        client = await master.client()
        master.channel.send(Quiet())
        await master.refuses()
        assert master.row[WorkerColumn.STATE] == WorkerState.QUIET
        master.channel.send(Quiet())
        await echoes(client)
        assert master.process.poll() is None
        await client.send(close_frame(1000))
        assert (await client.to_end()).code == 1000
        client.close()
        assert await master.ended() == 0

    perform(story)


@pytest.mark.parametrize("is_quiet", [False, True], ids=["serving", "quiet"])
def test_told_to_leave_it_asks_its_clients_with_the_code_and_exits(perform, is_quiet):
    async def story(master: Master) -> None:
        client = await master.client()
        if is_quiet:
            master.channel.send(Quiet())
        master.channel.send(Leave(1012, DEADLINE_S))
        await leaves(client, 1012)
        assert await master.ended() == 0
        assert master.is_left

    perform(story)


def test_while_it_leaves_it_refuses_new_clients(perform):
    async def story(master: Master) -> None:
        client = await master.client()
        master.channel.send(Leave(1012, DEADLINE_S))
        await master.refuses()
        assert master.row[WorkerColumn.STATE] == WorkerState.LEAVING
        master.channel.send(Leave(1001, 0))  # too late to be anything else
        await leaves(client, 1012)
        assert await master.ended() == 0

    perform(story)


@pytest.mark.parametrize("before", [(), (Leave(1012, 1000.0),), (Quiet(),)], ids=["serving", "leaving", "quiet"])
def test_when_cut_it_waits_for_nobody(perform, before):
    async def story(master: Master) -> None:
        client = await master.client()
        for message in before:
            master.channel.send(message)
        master.channel.send(Cut(1001))
        assert await master.ended() == 0  # the client has answered nothing
        client.close()

    perform(story)


def test_without_its_master_it_accepts_no_more_serves_its_tunnels_to_their_end_and_exits(perform):
    async def story(master: Master) -> None:
        client = await master.client()
        master.channel.close()
        await master.refuses()
        await echoes(client)
        await client.send(close_frame(1000))
        assert (await client.to_end()).code == 1000
        client.close()
        assert await master.ended() == 0
        assert "the master is gone; this worker serves its tunnels to their end" in master.log()

    perform(story)


def test_asked_by_a_signal_it_leaves_and_signals_for_masters_are_not_for_it(perform):
    async def story(master: Master) -> None:
        client = await master.client()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            master.process.send_signal(number)
        await echoes(client)
        master.process.send_signal(signal.SIGTERM)
        await leaves(client, 1001)
        assert await master.ended() == 0

    perform(story)


def test_what_is_not_for_workers_is_logged_and_does_no_harm(perform):
    async def story(master: Master) -> None:
        master.channel.send(Ready())
        await eventually(lambda: "the master said Ready, which is not for workers" in master.log(), "it is logged")
        await echoes(client := await master.client())
        client.close()

    perform(story)


def test_its_log_goes_on_in_a_new_file_when_told(tmp_path):
    async def whole() -> None:
        log = tmp_path / "log"
        async with master_in(tmp_path, str(log)) as master:
            log.rename(tmp_path / "log.1")
            master.channel.send(Reopen())
            await eventually(log.exists, "there is a new file")
            master.channel.close()
            assert await master.ended() == 0
        assert "the master is gone" in log.read_text()
        assert "the master is gone" not in (tmp_path / "log.1").read_text()

    Run("uvloop")(whole())


def test_it_runs_where_it_cannot_write_its_name():
    """A container may have a /proc that is only to be read."""
    program = (
        "import builtins, sys\n"
        "from wstunnel.server import carrier\n"
        "opened = builtins.open\n"
        "def open(name, *more, **given):\n"
        "    if name == '/proc/self/comm': raise OSError(30, 'Read-only file system')\n"
        "    return opened(name, *more, **given)\n"
        "builtins.open = open\n"
        "asked = []\n"
        "async def carry(orders): asked.append(orders.row)\n"
        "carrier._carry = carry\n"
        "assert carrier.main([sys.argv[1]]) == 0\n"
        "assert asked == [2]\n"
    )
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    orders_fd = Orders(Settings(), (), (), fds[0], fds[1], 2, 7).write()
    try:
        subprocess.run(
            [sys.executable, "-c", program, str(orders_fd)],
            cwd=ROOT,
            pass_fds=(orders_fd, *fds),
            check=True,
            timeout=60,
        )
    finally:
        for fd in (orders_fd, *fds):
            os.close(fd)
