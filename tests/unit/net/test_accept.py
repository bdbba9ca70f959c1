"""Accepting within a budget, without descriptors, in turns with other workers, and not at the others' expense."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import Run
from tests.wire.sockets import eventually, turns
from wstunnel import _sockets
from wstunnel.limits import AcceptLimits
from wstunnel.net import accept
from wstunnel.net.accept import Acceptor
from wstunnel.net.listen import Listener, open_listener, open_listeners
from wstunnel.settings import Address, TcpAddress, UnixAddress

LIMITS = AcceptLimits()


class Timer:
    def __init__(self, at_s: float, callback: Callable[[], None]) -> None:
        self.at_s, self.callback, self.is_cancelled = at_s, callback, False

    def cancel(self) -> None:
        self.is_cancelled = True


class Loop:
    """An event loop whose clock and whose turns are the test's."""

    def __init__(self) -> None:
        self.now_s = 50.0
        self.readers: dict[int, Callable[[], None]] = {}
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def add_reader(self, fd: int, callback: Callable[..., None], *args: Any) -> None:
        self.readers[fd] = lambda: callback(*args)

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def call_later(self, delay_s: float, callback: Callable[..., None], *args: Any) -> Timer:
        timer = Timer(self.now_s + delay_s, lambda: callback(*args))
        self.timers.append(timer)
        return timer

    def readable(self, fd: int) -> bool:
        """Somebody waits in that listener's backlog; False if nobody listens to that."""
        if (callback := self.readers.get(fd)) is None:
            return False
        callback()
        return True

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        due = [timer for timer in self.timers if timer.at_s <= self.now_s]
        self.timers = [timer for timer in self.timers if timer.at_s > self.now_s]
        for timer in due:
            if not timer.is_cancelled:
                timer.callback()

    def pause_s(self) -> float | None:
        """What is left of the only pause under way."""
        (left,) = [timer.at_s - self.now_s for timer in self.timers if not timer.is_cancelled] or [None]
        return left


class Backlog:
    """A listening socket: who waits in it, and what `accept` says instead. Empty: nobody."""

    family = socket.AF_INET

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.waiting: list[int | OSError] = []
        self.calls = 0

    def fileno(self) -> int:
        return self.fd

    def getsockopt(self, level: int, option: int) -> int:
        return 1  # it listens

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Taken."""

    def accept(self) -> tuple[int, str] | None:
        self.calls += 1
        if not self.waiting:
            return None
        first = self.waiting.pop(0)
        if isinstance(first, OSError):
            raise first
        near, far = socket.socketpair()
        far.close()
        return near.detach(), "127.0.0.1:2"


class Accepted(list[socket.socket]):
    """What was let in, closed at the end; `backlogs` are accepted from by their descriptors."""

    def __init__(self) -> None:
        self.backlogs: dict[int, Backlog] = {}

    def let_in(self, fd: int, _peer: str, _local: str, _listener: Listener) -> None:
        self.append(socket.socket(fileno=fd))


@pytest.fixture
def accepted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accepted]:
    socks = Accepted()
    monkeypatch.setattr(accept, "accept", lambda fd: socks.backlogs[fd].accept())
    monkeypatch.setattr(accept, "local_name", lambda _fd: "127.0.0.1:1")
    yield socks
    for sock in socks:
        sock.close()


class Stand:
    """An acceptor over fake listeners on a fake loop."""

    def __init__(
        self,
        accepted: Accepted,
        *,
        max_connections: int = 1000,
        listeners: int = 1,
        shared: tuple[int, ...] = (),
    ) -> None:
        self.loop = Loop()
        self.is_our_turn = True
        self.backlogs = [Backlog(100 + index) for index in range(listeners)]
        self.backlog = self.backlogs[0]
        self.accepted = accepted
        accepted.backlogs.update({backlog.fd: backlog for backlog in self.backlogs})
        self.acceptor = Acceptor(
            self.loop,
            [
                Listener(backlog, TcpAddress("127.0.0.1", 1), is_shared=index in shared)
                for index, backlog in enumerate(self.backlogs)
            ],
            max_connections=max_connections,
            limits=LIMITS,
            on_connection=accepted.let_in,
            may_accept=lambda: self.is_our_turn,
        )
        self.acceptor.start()

    @property
    def is_listening(self) -> bool:
        return bool(self.loop.readers)


def no_room(number: int = errno.EMFILE) -> OSError:
    return OSError(number, os.strerror(number))


# --- turns


def test_a_turn_takes_no_more_than_its_share_so_that_tunnels_and_other_listeners_have_theirs(accepted):
    stand = Stand(accepted, listeners=2)
    stand.backlog.waiting = [1] * 100

    stand.loop.readable(stand.backlog.fd)

    assert len(accepted) == stand.acceptor.open_connections == LIMITS.per_turn
    stand.backlogs[1].waiting = [1]
    stand.loop.readable(stand.backlogs[1].fd)
    assert len(accepted) == LIMITS.per_turn + 1


def test_a_turn_ends_when_nobody_waits_any_more(accepted):
    stand = Stand(accepted)
    stand.backlog.waiting = [1, 1]

    stand.loop.readable(stand.backlog.fd)

    assert len(accepted) == 2
    assert stand.backlog.calls == 3
    assert stand.is_listening


@pytest.mark.parametrize(
    "number",
    [
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    ],
    ids=errno.errorcode.get,
)
def test_a_connection_that_failed_in_the_backlog_is_passed_over(accepted, number):
    """accept(2) wants every pending network error of the new socket treated like EAGAIN."""
    stand = Stand(accepted)
    stand.backlog.waiting = [no_room(number), 1]

    stand.loop.readable(stand.backlog.fd)

    assert len(accepted) == 1
    assert stand.acceptor.open_connections == 1
    assert stand.is_listening


def test_connections_that_fail_one_after_the_other_do_not_hold_the_loop(accepted):
    stand = Stand(accepted)
    stand.backlog.waiting = [no_room(errno.ECONNABORTED) for _ in range(1000)]

    stand.loop.readable(stand.backlog.fd)

    assert stand.backlog.calls == LIMITS.per_turn


def test_an_error_that_nobody_foresaw_is_not_hidden(accepted):
    stand = Stand(accepted)
    stand.backlog.waiting = [no_room(errno.EINVAL)]

    with pytest.raises(OSError, match="Invalid argument"):
        stand.loop.readable(stand.backlog.fd)


# --- the budget


def test_at_max_connections_no_listener_is_listened_to_until_one_has_gone(accepted, caplog):
    stand = Stand(accepted, max_connections=3, listeners=2)
    stand.backlog.waiting = [1] * 5
    stand.backlogs[1].waiting = [1]

    stand.loop.readable(stand.backlog.fd)

    assert len(accepted) == 3
    assert not stand.is_listening
    stand.acceptor.release()
    assert set(stand.loop.readers) == {100, 101}
    stand.loop.readable(stand.backlogs[1].fd)
    stand.loop.readable(stand.backlog.fd)
    assert len(accepted) == 4
    assert not stand.is_listening


def test_max_connections_is_logged_once(accepted, caplog):
    stand = Stand(accepted, max_connections=1)
    stand.backlog.waiting = [1] * 50
    for _ in range(20):
        stand.loop.readable(stand.backlog.fd)
        stand.acceptor.release()

    (line,) = [record for record in caplog.records if "max-connections" in record.getMessage()]
    assert line.levelno == logging.WARNING
    assert len(accepted) >= 10


def test_a_place_that_was_given_back_is_taken_again_and_never_two(accepted):
    stand = Stand(accepted, max_connections=2)
    stand.backlog.waiting = [1] * 10
    for gone in range(1, 6):
        stand.loop.readable(stand.backlog.fd)
        stand.loop.readable(stand.backlog.fd)
        assert stand.acceptor.open_connections == 2
        assert len(accepted) == 1 + gone
        stand.acceptor.release()


def test_a_full_budget_costs_no_turn_of_the_loop(run: Run, monkeypatch):
    """Disarmed means disarmed: a backlog that stays readable wakes nobody."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        listener = open_listener(TcpAddress("127.0.0.1", 0), backlog=16)
        calls: list[int] = []
        monkeypatch.setattr(accept, "accept", lambda fd: calls.append(fd) or _sockets.accept(fd))
        held = Accepted()
        acceptor = Acceptor(
            loop,
            [listener],
            max_connections=1,
            limits=LIMITS,
            on_connection=held.let_in,
        )
        acceptor.start()
        clients = [socket.create_connection((listener.address.host, listener.address.port)) for _ in range(3)]
        try:
            await eventually(lambda: len(held) == 1, "the first connection")
            await turns(20)
            before = len(calls)
            await turns(50)
            assert len(calls) == before

            held.pop().close()
            acceptor.release()

            await eventually(lambda: len(held) == 1, "the second connection")
            assert acceptor.open_connections == 1
        finally:
            acceptor.stop()
            for sock in (*clients, *held):
                sock.close()
            listener.close()

    run(check())


# --- no descriptors


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM], ids=errno.errorcode.get)
def test_without_descriptors_or_memory_all_listeners_rest_and_then_go_on(accepted, number):
    stand = Stand(accepted, listeners=2)
    stand.backlog.waiting = [1, no_room(number), 1]

    stand.loop.readable(stand.backlog.fd)

    assert len(accepted) == 1
    assert not stand.is_listening
    assert stand.loop.pause_s() == pytest.approx(0.1)
    stand.loop.wait(0.05)
    assert not stand.is_listening
    stand.loop.wait(0.06)
    assert len(stand.loop.readers) == 2
    stand.loop.readable(stand.backlog.fd)
    assert len(accepted) == 2


def test_the_pause_doubles_up_to_a_second_and_begins_anew_after_a_success(accepted):
    stand = Stand(accepted)
    pauses = []
    for _ in range(6):
        stand.backlog.waiting = [no_room()]
        stand.loop.readable(stand.backlog.fd)
        pauses.append(stand.loop.pause_s())
        stand.loop.wait(pauses[-1])
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])

    stand.backlog.waiting = [1, no_room()]
    stand.loop.readable(stand.backlog.fd)

    assert stand.loop.pause_s() == pytest.approx(0.1)


def test_missing_descriptors_are_logged_at_most_once_in_ten_seconds(accepted, caplog):
    stand = Stand(accepted)
    logged_at: list[float] = []
    began_s = stand.loop.now_s
    while stand.loop.now_s < began_s + 25.0:
        before = len(caplog.records)
        stand.backlog.waiting = [no_room()]
        stand.loop.readable(stand.backlog.fd)
        if len(caplog.records) > before:
            logged_at.append(stand.loop.now_s - began_s)
        stand.loop.wait(stand.loop.pause_s())

    assert len(logged_at) == 3
    assert all(later - earlier >= 10.0 for earlier, later in itertools.pairwise(logged_at))
    text = caplog.records[0].getMessage()
    assert "Too many open files" in text
    assert "ulimit -n" in text


def test_a_connection_that_goes_during_the_pause_does_not_shorten_it(accepted):
    """Its descriptors may be needed by those that are open; and release comes from anywhere."""
    stand = Stand(accepted)
    stand.backlog.waiting = [1, 1, no_room()]
    stand.loop.readable(stand.backlog.fd)

    stand.acceptor.release()

    assert not stand.is_listening
    stand.loop.wait(0.11)
    assert stand.is_listening


def test_a_pause_that_ends_with_the_budget_used_up_does_not_let_anybody_in(accepted):
    stand = Stand(accepted, max_connections=1)
    stand.backlog.waiting = [1]
    stand.loop.readable(stand.backlog.fd)
    stand.backlog.waiting = [1]
    stand.loop.readable(stand.backlog.fd)
    stand.loop.wait(10.0)
    stand.loop.readable(stand.backlog.fd)

    assert len(accepted) == 1
    assert not stand.is_listening


# --- a listener that several workers share


def test_a_shared_listener_is_left_to_less_busy_workers_for_a_moment(accepted):
    stand = Stand(accepted, shared=(0,))
    stand.is_our_turn = False
    stand.backlog.waiting = [1, 1]

    stand.loop.readable(stand.backlog.fd)

    assert accepted == []
    assert stand.backlog.calls == 0
    assert not stand.is_listening, "it would spin"
    stand.is_our_turn = True
    stand.loop.wait(LIMITS.yield_s)
    stand.loop.readable(stand.backlog.fd)
    assert len(accepted) == 2


def test_whose_turn_it_is_is_asked_before_each_connection(accepted):
    """The first worker that wakes up would take all that have come at once."""
    stand = Stand(accepted, shared=(0,))
    stand.acceptor._may_accept = lambda: len(accepted) < 3
    stand.backlog.waiting = [1] * 10

    stand.loop.readable(stand.backlog.fd)

    assert len(accepted) == 3
    assert not stand.is_listening


def test_a_listener_of_our_own_is_nobody_elses_turn(accepted):
    stand = Stand(accepted, listeners=2, shared=(1,))
    stand.is_our_turn = False
    for backlog in stand.backlogs:
        backlog.waiting = [1]
        stand.loop.readable(backlog.fd)

    assert len(accepted) == 1
    assert stand.backlogs[1].waiting == [1]
    assert set(stand.loop.readers) == {100}


def left_alone(stand: Stand) -> int:
    """How many times in a row somebody waits in vain."""
    times = 0
    before = len(stand.accepted)
    while len(stand.accepted) == before:
        assert stand.loop.readable(stand.backlog.fd)
        if len(stand.accepted) == before:
            times += 1
        stand.loop.wait(LIMITS.yield_s)
    return times


def test_a_connection_that_no_other_worker_takes_is_taken_in_the_end_and_only_one(accepted):
    """The less busy worker may hang, and its load stays low."""
    stand = Stand(accepted, shared=(0,))
    stand.is_our_turn = False
    stand.backlog.waiting = [1, 1, 1]

    assert left_alone(stand) == LIMITS.max_yields
    assert len(accepted) == 1
    assert left_alone(stand) == LIMITS.max_yields - 1, "the next one has waited as long, but for one pause"


def test_others_that_do_take_them_are_trusted_again(accepted):
    stand = Stand(accepted, shared=(0,))
    stand.is_our_turn = False
    for _ in range(3 * LIMITS.max_yields):
        stand.backlog.waiting = [1]
        stand.loop.readable(stand.backlog.fd)
        stand.backlog.waiting = []  # another worker was quicker
        stand.loop.wait(LIMITS.yield_s)
        stand.loop.wait(LIMITS.yield_s * 2)

    assert accepted == []


def test_a_budget_that_is_used_up_leaves_alone_what_is_left_alone(accepted):
    stand = Stand(accepted, max_connections=1, listeners=2, shared=(0,))
    stand.is_our_turn = False
    stand.loop.readable(stand.backlog.fd)
    stand.backlogs[1].waiting = [1, 1]
    stand.loop.readable(stand.backlogs[1].fd)
    assert not stand.is_listening

    stand.acceptor.release()
    assert set(stand.loop.readers) == {101}
    stand.loop.wait(LIMITS.yield_s)
    assert set(stand.loop.readers) == {100, 101}


def test_a_moment_that_ends_while_the_budget_is_used_up_lets_nobody_in(accepted):
    stand = Stand(accepted, max_connections=1, listeners=2, shared=(0,))
    stand.is_our_turn = False
    stand.loop.readable(stand.backlog.fd)
    stand.backlogs[1].waiting = [1, 1]
    stand.loop.readable(stand.backlogs[1].fd)

    stand.loop.wait(LIMITS.yield_s)

    assert not stand.is_listening
    stand.acceptor.release()
    assert set(stand.loop.readers) == {100, 101}


def test_stop_ends_the_moment_too(accepted):
    stand = Stand(accepted, shared=(0,))
    stand.is_our_turn = False
    stand.loop.readable(stand.backlog.fd)

    stand.acceptor.stop()
    assert stand.loop.pause_s() is None
    stand.loop.wait(1.0)

    assert not stand.is_listening


def test_workers_that_share_a_listener_take_the_same_number(run: Run, tmp_path):
    """Each has a descriptor of its own for the one socket, as after an exec."""

    async def check() -> None:
        loop = asyncio.get_running_loop()
        listener = open_listener(UnixAddress(str(tmp_path / "s")), backlog=256)
        held = (Accepted(), Accepted())
        acceptors = []
        for mine in held:
            own = Listener(listener.socket.dup(), listener.address, is_shared=True)
            acceptors.append(
                Acceptor(
                    loop,
                    [own],
                    max_connections=999,
                    limits=LIMITS,
                    on_connection=mine.let_in,
                    may_accept=lambda mine=mine: len(mine) <= min(map(len, held)),
                )
            )
            acceptors[-1].start()
        clients = []
        for _ in range(200):
            clients.append(socket.socket(socket.AF_UNIX))
            clients[-1].connect(listener.address.path)
            if len(clients) % 10 == 0:
                await turns(1)
        await eventually(lambda: sum(map(len, held)) == len(clients), "all connections")
        assert abs(len(held[0]) - len(held[1])) <= 20
        for acceptor in acceptors:
            acceptor.stop()
            for own in acceptor._listeners:
                own.socket.close()
        for sock in (*clients, *held[0], *held[1]):
            sock.close()
        listener.close()

    run(check())


def test_a_listener_that_does_not_listen_yet_begins_with_the_worker(run: Run):
    """A reload with more workers adds a socket; nobody waits in its backlog before there is somebody to take him."""

    async def check() -> None:
        (both,) = open_listeners([TcpAddress("127.0.0.1", 0)], count=1, backlog=256)
        both.grow(2)
        (added,) = both.share(1, 2)
        held = Accepted()
        acceptor = Acceptor(
            asyncio.get_running_loop(), [added], max_connections=99, limits=LIMITS, on_connection=held.let_in
        )
        assert not added.is_listening
        acceptor.start()
        assert added.is_listening
        clients = [socket.create_connection((both.address.host, both.address.port)) for _ in range(40)]
        await eventually(lambda: bool(held), "a connection")
        acceptor.stop()
        for sock in (*clients, *held):
            sock.close()
        both.close()

    run(check())


# --- stop


def test_after_stop_nobody_is_let_in_and_nothing_starts_it_again(accepted):
    stand = Stand(accepted, max_connections=1)
    stand.backlog.waiting = [1, 1]
    stand.loop.readable(stand.backlog.fd)

    stand.acceptor.stop()
    stand.acceptor.stop()
    stand.acceptor.release()

    assert not stand.is_listening
    assert stand.acceptor.open_connections == 0


def test_stop_during_a_pause_ends_the_pause(accepted):
    stand = Stand(accepted)
    stand.backlog.waiting = [no_room()]
    stand.loop.readable(stand.backlog.fd)

    stand.acceptor.stop()
    assert stand.loop.pause_s() is None
    stand.loop.wait(10.0)

    assert not stand.is_listening


# --- the accepted socket


@contextmanager
def one_accepted(address: Address, client_to: Callable[[Any], Any]) -> Iterator[tuple[int, str, str, socket.socket]]:
    """The descriptor and the names that the server gets of a client, and the client's own socket."""
    loop = Loop()
    listener = open_listener(address, backlog=16)
    found: list[tuple[int, str, str, Listener]] = []
    acceptor = Acceptor(
        loop, [listener], max_connections=9, limits=LIMITS, on_connection=lambda *each: found.append(each)
    )
    acceptor.start()
    with socket.socket(listener.socket.family) as client:
        client.connect(client_to(listener.address))
        loop.readable(listener.socket.fileno())
        ((fd, peer, local, by),) = found
        assert by is listener
        try:
            yield fd, peer, local, client
        finally:
            os.close(fd)
            listener.close()


@pytest.mark.parametrize(("host", "shown"), [("127.0.0.1", "{}:{}"), ("::1", "[{}]:{}"), ("0.0.0.0", "{}:{}")])
def test_an_accepted_tcp_socket_is_ready_for_the_loop_and_both_its_ends_have_names(host, shown):
    def to(address: TcpAddress) -> tuple[str, int]:
        return "127.0.0.1" if host == "0.0.0.0" else host, address.port

    with one_accepted(TcpAddress(host, 0), to) as (fd, peer, local, client), socket.socket(fileno=os.dup(fd)) as sock:
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert peer == shown.format(*client.getsockname()[:2])
        assert local == shown.format(*client.getpeername()[:2])


def test_an_accepted_unix_socket_is_ready_for_the_loop_and_has_the_names_that_there_are(tmp_path):
    address = UnixAddress(str(tmp_path / "s"))

    with one_accepted(address, lambda _: address.path) as (fd, peer, local, _client):
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        assert (peer, local) == ("unix:", "unix:")
