"""Workers that are played by the test: a process that does nothing, and its end of the channel."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator

import pytest

from wstunnel.limits import MasterLimits
from wstunnel.server import crew as crew_module
from wstunnel.server.certificates import Material
from wstunnel.server.channel import Channel
from wstunnel.server.messages import Cut, Leave, Message, Quiet, Ready, Renew
from wstunnel.server.orders import Orders
from wstunnel.supervise.child import Child

__all__ = ["Actor", "Stage", "stage"]

Part = Callable[["Actor"], None]


class Actor:
    """One worker. It does what the test says, and ends when it is told to unless it `is_deaf`."""

    def __init__(self, orders: Orders, *, is_deaf: bool) -> None:
        self.orders = orders
        self.is_deaf = is_deaf
        self.heard: list[Message] = []
        self.material = orders.material
        """The certificates that it serves with."""
        self.is_orphan = False
        self._process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, process_group=0)
        self.pid = self._process.pid
        self.channel = Channel(
            socket.socket(fileno=os.dup(orders.channel_fd)),
            MasterLimits(),
            on_message=self._hear,
            on_closed=self._orphaned,
        )
        self.child = Child.of(self._process)

    def ready(self) -> None:
        self.channel.send(Ready())

    def end(self) -> None:
        """Exit well."""
        self.channel.close()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def die(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Be killed."""
        self.channel.close()
        os.kill(self.pid, number)
        self.leave_stage()

    def leave_stage(self) -> None:
        """Whatever the test has come to."""
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _hear(self, message: Message, fds: list[int]) -> None:
        self.heard.append(message)
        if isinstance(message, Renew):
            self.material = Material.read(fds.pop())
        for fd in fds:
            os.close(fd)
        if isinstance(message, (Quiet, Leave, Cut)) and not self.is_deaf:
            self.end()

    def _orphaned(self) -> None:
        self.is_orphan = True


class Stage:
    """Everybody who has ever played, in their order."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.part: Part = Actor.ready
        """What each does first."""
        self.is_deaf = False
        """Whether those who come do what they are told."""
        self.error: OSError | None = None
        """Why nobody can be started."""

    def start(self, orders: Orders) -> Child:
        if self.error is not None:
            raise self.error
        actor = Actor(orders, is_deaf=self.is_deaf)
        self.actors.append(actor)
        self.part(actor)
        return actor.child


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """Crews are staffed with actors."""
    made = Stage()
    monkeypatch.setattr(crew_module, "_exec_worker", made.start)
    yield made
    for actor in made.actors:
        actor.leave_stage()
