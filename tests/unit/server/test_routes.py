"""Which request goes where, and what is said to those that go nowhere."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace
from typing import Any

import pytest

from wstunnel.errors import BackendError, PeerError
from wstunnel.limits import Limits
from wstunnel.proto.request import Request
from wstunnel.server.routes import HttpRoute, OpenPipe, OpenTunnel, Router, TunnelRoute
from wstunnel.settings import Condition, Host, Route
from wstunnel.supervise.board import WORKER_WORDS, WorkerColumn

PLAIN = Request(
    method="GET", target="/", path="/", query="", host="here.test", headers=(("host", "here.test"),), peer="[::1]:4711"
)
UPGRADE = replace(
    PLAIN,
    wants_websocket=True,
    headers=(
        ("host", "here.test"),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ),
)


class Exchange:
    """Keeps what the router answers."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.is_started = False
        self.refusal: tuple[int, str, tuple[tuple[str, str], ...]] | None = None

    def refuse(self, status: int, text: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.refusal = (status, text, headers)


class Gateway:
    """A backend that is there, or not; what it hands over is itself, as connection and as claim."""

    def __init__(self, error: BackendError | None = None) -> None:
        self.error = error
        self.connects = 0
        self.requests: list[Request] = []
        self.host_index = 0

    @property
    def lease(self) -> Gateway:
        return self

    async def connect(self, request: Request) -> Any:
        self.connects += 1
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        return self


class Http:
    """Something that answers requests, or makes of one what it was given."""

    def __init__(
        self, *, upgraded: Any = None, error: BackendError | None = None, finds: bool = True, starts: bool = False
    ) -> None:
        self.served: list[Request] = []
        self._upgraded, self._error, self._finds, self._starts = upgraded, error, finds, starts

    def finds(self, request: Request) -> bool:
        return self._finds

    async def serve(self, exchange: Any) -> Any:
        self.served.append(exchange.request)
        exchange.is_started = self._starts
        if self._error is not None:
            raise self._error
        return self._upgraded


class Static(Http):
    def finds(self, request: Request) -> bool:
        return not request.wants_websocket


class Stand:
    """A router over routes that all have a backend, and what became of one request."""

    def __init__(self, *routes: Route, static: Static | None = None, error: BackendError | None = None) -> None:
        self.routes: list[Any] = [TunnelRoute(route, Gateway(error)) for route in routes]
        self.static = static
        if static is not None:
            self.routes.append(HttpRoute(Route(gateway="static"), static))
        self.opened: list[OpenTunnel] = []
        self.piped: list[OpenPipe] = []
        self.row = memoryview(bytearray(8 * WORKER_WORDS)).cast("q")
        self.router = Router(self.routes, limits=Limits(), tunnel=self._open, pipe=self._pipe, row=self.row)

    async def _open(self, opening: OpenTunnel) -> None:
        self.opened.append(opening)

    async def _pipe(self, opening: OpenPipe) -> None:
        self.piped.append(opening)

    def serve(self, request: Request) -> Exchange:
        exchange = Exchange(request)
        asyncio.run(self.router.serve(exchange))
        return exchange

    def counted(self) -> dict[int, int]:
        """The words of the worker's row that are not 0."""
        return {column: word for column, word in enumerate(self.row) if word}

    def taken(self, path: str) -> int | None:
        """The number of the route that a WebSocket to `path` reaches."""
        self.opened.clear()
        try:
            self.serve(replace(UPGRADE, path=path, target=path))
        except PeerError:
            return None
        return [route.gateway for route in self.routes].index(self.opened[0].connected)


# --- which route


def test_the_first_route_that_fits_is_taken_however_well_a_later_one_would():
    stand = Stand(Route(path="/a"), Route(path="/a/b"), Route(path="/"))
    assert stand.taken("/a/b") == 0
    assert stand.taken("/b") == 2


@pytest.mark.parametrize(
    ("prefix", "path", "fits"),
    [
        ("/", "/", True),
        ("/", "/anything", True),
        ("/ws", "/ws", True),
        ("/ws", "/wsx", True),  # as in lighttpd
        ("/ws", "/ws/x", True),
        ("/ws/", "/ws", False),
        ("/ws/", "/ws/", True),
        ("/ws", "/WS", False),
        ("/ws", "/x/ws", False),
    ],
)
def test_a_prefix_fits_as_in_lighttpd(prefix, path, fits):
    assert Stand(Route(path=prefix)).taken(path) == (0 if fits else None)


@pytest.mark.parametrize(
    ("suffix", "path", "fits"),
    [
        (".ws", "/echo.ws", True),
        (".ws", "/a/b/echo.ws", True),
        (".ws", "/echo.ws/", False),
        (".ws", "/echo.wsx", False),
        ("/echo", "/a/echo", True),
        (".ws", "/echo.WS", False),
    ],
)
def test_a_suffix_fits_the_end_of_the_path(suffix, path, fits):
    assert Stand(Route(path=None, suffix=suffix)).taken(path) == (0 if fits else None)


def test_the_query_is_no_part_of_what_a_suffix_fits():
    stand = Stand(Route(path=None, suffix=".ws"))
    stand.serve(replace(UPGRADE, path="/echo.ws", query="a=b", target="/echo.ws?a=b"))
    assert len(stand.opened) == 1


# --- what is no WebSocket


def test_a_plain_get_on_a_tunnel_route_is_served_from_the_document_root():
    stand = Stand(Route(path="/"), static=Static())
    stand.serve(PLAIN)
    assert stand.static.served == [PLAIN]
    assert stand.routes[0].gateway.connects == 0


def test_a_plain_get_on_a_tunnel_route_is_426_without_a_document_root():
    stand = Stand(Route(path="/"))
    with pytest.raises(PeerError) as raised:
        stand.serve(PLAIN)
    assert raised.value.status == 426
    assert ("Upgrade", "websocket") in raised.value.headers
    assert stand.routes[0].gateway.connects == 0


def test_a_post_on_a_tunnel_route_is_405_without_a_document_root():
    with pytest.raises(PeerError) as raised:
        Stand(Route(path="/")).serve(replace(PLAIN, method="POST"))
    assert raised.value.status == 405
    assert raised.value.headers == (("Allow", "GET"),)


def test_a_post_is_the_document_roots_to_refuse_where_there_is_one():
    stand = Stand(Route(path="/"), static=Static())
    stand.serve(replace(PLAIN, method="POST"))
    assert len(stand.static.served) == 1


@pytest.mark.parametrize("request_", [PLAIN, UPGRADE, replace(PLAIN, method="POST")])
def test_a_path_without_a_route_is_404_without_a_document_root(request_):
    with pytest.raises(PeerError) as raised:
        Stand(Route(path="/ws")).serve(request_)
    assert raised.value.status == 404


def test_a_plain_path_without_a_route_is_the_document_roots():
    stand = Stand(Route(path="/ws"), static=Static())
    stand.serve(replace(PLAIN, path="/index.html"))
    assert len(stand.static.served) == 1


def test_a_websocket_without_a_route_is_404_and_never_a_file():
    stand = Stand(Route(path="/ws"), static=Static())
    with pytest.raises(PeerError) as raised:
        stand.serve(replace(UPGRADE, path="/index.html"))
    assert raised.value.status == 404
    assert stand.static.served == []


# --- policy


def test_a_tunnel_gets_the_policy_and_the_answer_of_its_route():
    route = Route(path="/", frame_type="binary", ping_interval_s=7.0, subprotocols=("binary",))
    stand = Stand(route)
    stand.serve(UPGRADE)
    (opening,) = stand.opened
    assert opening.policy is stand.routes[0].policies[0]
    assert (opening.policy.is_binary, opening.policy.ping_interval_s) == (True, 7.0)
    assert opening.connected is stand.routes[0].gateway
    assert opening.answer.subprotocol is None
    assert not opening.is_binary


def test_every_timing_of_a_route_reaches_its_policy():
    route = Route(
        path="/",
        frame_type="text",
        ping_interval_s=1.0,
        ping_timeout_s=2.0,
        max_read_idle_s=3.0,
        max_write_idle_s=4.0,
        close_timeout_s=5.0,
        read_timeout_s=6.0,
        write_timeout_s=7.0,
        tcp_fin_propagate=False,
    )
    (policy,) = TunnelRoute(route, Gateway()).policies
    assert (
        policy.is_binary,
        policy.ping_interval_s,
        policy.ping_timeout_s,
        policy.max_read_idle_s,
        policy.max_write_idle_s,
        policy.close_timeout_s,
        policy.read_timeout_s,
        policy.write_timeout_s,
        policy.fin_propagate,
    ) == (False, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, False)


def test_a_tunnel_gets_the_policy_of_the_host_that_it_reached():
    hosts = tuple(Host(port=port, read_timeout_s=port, tcp_fin_propagate=port != 2) for port in (1, 2, 3))
    stand = Stand(Route(path="/", ping_interval_s=7.0, read_timeout_s=99.0, hosts=hosts))
    for stand.routes[0].gateway.host_index in (1, 0, 2):
        stand.serve(UPGRADE)
    policies = [opening.policy for opening in stand.opened]
    assert [policy.read_timeout_s for policy in policies] == [2.0, 1.0, 3.0]
    assert [policy.fin_propagate for policy in policies] == [False, True, True]
    assert [policy.ping_interval_s for policy in policies] == [7.0] * 3


def test_a_program_per_tunnel_has_the_policy_of_its_route():
    stand = Stand(Route(path="/", stdio=("/bin/cat",), ping_interval_s=7.0, write_timeout_s=8.0))
    stand.serve(UPGRADE)
    assert (stand.opened[0].policy.ping_interval_s, stand.opened[0].policy.write_timeout_s) == (7.0, 8.0)


def test_the_gateway_is_told_what_was_asked():
    stand = Stand(Route(path="/"))
    stand.serve(UPGRADE)
    assert stand.routes[0].gateway.requests == [UPGRADE]


def test_the_subprotocol_binary_makes_frames_binary_and_another_does_not():
    stand = Stand(Route(path="/", subprotocols=("chat", "binary")))
    for offered in ("binary", "chat"):
        stand.serve(replace(UPGRADE, headers=(*UPGRADE.headers, ("sec-websocket-protocol", offered))))
    assert [opening.is_binary for opening in stand.opened] == [True, False]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ((("origin", "https://elsewhere.test"),), 403),
        ((("sec-websocket-key", "a second one"),), 400),
    ],
)
def test_a_refused_handshake_connects_no_backend(headers, status):
    stand = Stand(Route(path="/"))
    with pytest.raises(PeerError) as raised:
        stand.serve(replace(UPGRADE, headers=(*UPGRADE.headers, *headers)))
    assert raised.value.status == status
    assert stand.routes[0].gateway.connects == 0


def test_origins_are_the_routes_own():
    headers = (*UPGRADE.headers, ("origin", "https://friend.test"))
    stand = Stand(Route(path="/open", origins=("friend.test",)), Route(path="/"))
    stand.serve(replace(UPGRADE, path="/open", headers=headers))
    with pytest.raises(PeerError):
        stand.serve(replace(UPGRADE, path="/", headers=headers))
    assert len(stand.opened) == 1


# --- no backend


@pytest.mark.parametrize("status", [502, 503, 504])
def test_without_a_backend_the_client_is_told_when_to_come_again_and_nothing_of_why(status, caplog):
    caplog.set_level(logging.INFO, "wstunnel")
    stand = Stand(Route(path="/"), error=BackendError("unix:/run/secret.sock: Connection refused", status=status))

    exchange = stand.serve(UPGRADE)

    assert exchange.refusal == (status, "no backend can be had", (("Retry-After", "1"),))
    assert stand.opened == []
    (line,) = caplog.messages
    assert "unix:/run/secret.sock: Connection refused" in line
    assert str(status) in line


# --- counting


@pytest.mark.parametrize(
    "request_",
    [PLAIN, replace(PLAIN, method="POST"), replace(UPGRADE, path="/elsewhere"), replace(UPGRADE, headers=())],
)
def test_a_refusal_is_counted(request_):
    stand = Stand(Route(path="/ws"))
    for count in (1, 2):
        with pytest.raises(PeerError):
            stand.serve(request_)
        assert stand.counted() == {WorkerColumn.REFUSED: count}


def test_a_client_that_gets_no_backend_is_counted_once():
    stand = Stand(Route(path="/"), error=BackendError("none"))
    stand.serve(UPGRADE)
    assert stand.counted() == {WorkerColumn.REFUSED: 1}


def test_what_is_served_is_not_counted_as_refused():
    stand = Stand(Route(path="/"), static=Static())
    stand.serve(PLAIN)
    stand.serve(UPGRADE)
    assert stand.counted() == {}


# --- the log


@pytest.mark.parametrize("request_", [replace(PLAIN, path="/ws"), PLAIN, replace(PLAIN, path="/ws", method="POST")])
def test_a_refusal_is_one_line_that_names_the_peer_and_the_path(request_, caplog):
    caplog.set_level(logging.INFO, "wstunnel")
    with pytest.raises(PeerError) as raised:
        Stand(Route(path="/ws")).serve(request_)

    (line,) = caplog.messages
    assert "[::1]:4711" in line
    assert f'"{request_.path}"' in line
    assert str(raised.value.status) in line


def test_peer_bytes_in_a_refusal_are_escaped_and_cut(caplog):
    caplog.set_level(logging.INFO, "wstunnel")
    path = '/"\x1b[31m\r\nforged line ' + "x" * 4000
    with pytest.raises(PeerError):
        Stand(Route(path="/ws")).serve(replace(PLAIN, path=path))

    (line,) = caplog.messages
    assert line.isprintable()
    assert line.isascii()
    assert len(line) < 300
    assert '\\"\\x1b[31m\\r\\nforged line' in line


def test_what_is_served_is_not_logged(caplog):
    caplog.set_level(logging.INFO, "wstunnel")
    stand = Stand(Route(path="/"), static=Static())
    stand.serve(PLAIN)
    stand.serve(UPGRADE)
    assert caplog.messages == []


# --- backends that speak of requests


def http(stand: Stand, route: Route, gateway: Http) -> Http:
    """Put a route in front of all others."""
    stand.routes.insert(0, HttpRoute(route, gateway))
    return gateway


@pytest.mark.parametrize("request_", [PLAIN, replace(PLAIN, method="POST", body_bytes=5), UPGRADE])
def test_a_backend_that_speaks_http_gets_every_request_of_its_path(request_):
    stand = Stand(Route(path="/"))
    gateway = http(stand, Route(path="/", gateway="proxy"), Http())
    stand.serve(request_)
    assert gateway.served == [request_]
    assert not stand.piped
    assert not stand.opened


def test_what_a_gateway_does_not_find_is_for_the_next_route():
    stand = Stand(Route(path="/"))
    gateway = http(stand, Route(path="/", gateway="cgi"), Http(finds=False))
    assert stand.taken("/") == 1
    assert gateway.served == []


def test_a_plain_request_passes_a_tunnel_by():
    stand = Stand(Route(path="/"))
    gateway = Http()
    stand.routes.append(HttpRoute(Route(path="/", gateway="proxy"), gateway))
    stand.serve(PLAIN)
    stand.serve(UPGRADE)
    assert gateway.served == [PLAIN]
    assert len(stand.opened) == 1


class Upgraded:
    """A backend that has agreed."""

    def __init__(self) -> None:
        self.lease = Gateway()


def test_an_upgrade_that_a_backend_agreed_to_is_piped_with_the_policy_of_its_host():
    stand = Stand()
    hosts = (Host(port=1, read_timeout_s=1.0), Host(port=2, read_timeout_s=2.0))
    upgraded = Upgraded()
    upgraded.lease.host_index = 1
    http(stand, Route(path="/", gateway="proxy", upgrade=True, hosts=hosts), Http(upgraded=upgraded))
    stand.serve(UPGRADE)
    (opening,) = stand.piped
    assert opening.upgraded is upgraded
    assert (opening.policy.read_timeout_s, opening.policy.ping_interval_s) == (2.0, 0.0)


def test_a_page_of_another_origin_opens_no_pipe_but_may_ask():
    stand = Stand()
    gateway = http(stand, Route(path="/", gateway="proxy", upgrade=True), Http())
    strange = (*UPGRADE.headers, ("origin", "https://evil.test"))
    with pytest.raises(PeerError) as raised:
        stand.serve(replace(UPGRADE, headers=strange))
    assert raised.value.status == 403
    assert gateway.served == []
    stand.serve(replace(PLAIN, headers=(*PLAIN.headers, ("origin", "https://evil.test"))))
    assert len(gateway.served) == 1


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (502, "the backend gave no answer that could be passed on"),
        (503, "no backend can be had"),
        (504, "the backend did not answer in time"),
    ],
)
def test_a_backend_that_fails_is_told_by_its_status_and_counted(status, text):
    stand = Stand()
    http(stand, Route(path="/", gateway="proxy"), Http(error=BackendError("secret", status=status)))
    assert stand.serve(PLAIN).refusal == (status, text, (("Retry-After", str(Limits().spawn.retry_after_s)),))
    assert stand.counted() == {WorkerColumn.REFUSED: 1}


def test_a_backend_that_fails_behind_the_head_of_its_answer_is_not_told_again():
    stand = Stand()
    http(stand, Route(path="/", gateway="proxy"), Http(error=BackendError("broke off", status=502), starts=True))
    with pytest.raises(BackendError, match="broke off"):
        stand.serve(PLAIN)


# --- conditions


def test_a_route_is_taken_only_where_all_its_conditions_hold():
    when = (Condition("host", "==", "here.test"), Condition("url", "=~", r"\.ws$"))
    stand = Stand(Route(path="/a", when=when), Route(path="/"))
    assert stand.taken("/a/x.ws") == 0
    assert stand.taken("/a/x") == 1
    assert stand.taken("/b.ws") == 1
