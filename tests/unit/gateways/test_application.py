"""What is the same for applications by SCGI and by FastCGI: what they are told, and who gets their answer."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from tests.conftest import Run
from tests.exchanges import FakeExchange, request_of
from tests.unit.gateways.applications import KEY, Application, Stand, handshake_of, within
from tests.wire.sockets import eventually, turns
from wstunnel.errors import BackendError, CutAnswerError, LimitError, PeerError
from wstunnel.limits import GatewayLimits
from wstunnel.settings import Gateway

KINDS = ["scgi", "fastcgi"]
BIG = 100 * 1024


def posting(*pieces: bytes | Exception, length: int | None = None, stalls: bool = False) -> FakeExchange:
    """A POST; without a length its body is chunked."""
    return FakeExchange(request_of(method="POST", body_bytes=length), pieces, stalls=stalls)


# --- what the application is told


@pytest.mark.parametrize("kind", KINDS)
def test_an_application_is_told_of_a_request_by_the_variables_of_cgi(run: Run, kind: Gateway):
    async def told() -> dict[str, str]:
        async with Stand(kind) as stand:
            application, _ = await stand.ask(FakeExchange(request_of(path="/cgi/a/b/c", target="/cgi/a/b/c?b")))
            return application.environ

    found = run(told())
    assert (found["SCRIPT_NAME"], found["PATH_INFO"], found["QUERY_STRING"]) == ("/cgi", "/a/b/c", "b")
    assert (found["REQUEST_METHOD"], found["REQUEST_URI"], found["REMOTE_ADDR"]) == ("GET", "/cgi/a/b/c?b", "192.0.2.7")
    assert not found.keys() & {"SCRIPT_FILENAME", "DOCUMENT_ROOT", "PATH_TRANSLATED", "REDIRECT_STATUS"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("route", "path", "script", "info"),
    [
        ({"path": "/cgi"}, "/cgi/a/b", "/cgi", "/a/b"),
        ({"path": "/cgi/"}, "/cgi/a/b", "/cgi", "/a/b"),
        ({"path": "/"}, "/a/b", "", "/a/b"),
        ({"path": None, "suffix": ".php"}, "/x/a.php", "/x/a.php", ""),
    ],
)
def test_a_docroot_says_which_file_is_meant(run: Run, kind: Gateway, route, path, script, info):
    async def told() -> dict[str, str]:
        async with Stand(kind, docroot="/srv", **route) as stand:
            application, _ = await stand.ask(FakeExchange(request_of(path=path)))
            return application.environ

    found = run(told())
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == (script, info)
    assert (found["SCRIPT_FILENAME"], found["DOCUMENT_ROOT"], found["REDIRECT_STATUS"]) == (
        f"/srv{script}",
        "/srv",
        "200",
    )
    assert found.get("PATH_TRANSLATED") == (f"/srv{info}" if info else None)


@pytest.mark.parametrize("kind", KINDS)
def test_with_check_local_only_paths_of_files_are_taken_and_the_file_is_the_script(
    run: Run, kind: Gateway, tmp_path: Any
):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.php").write_bytes(b"")

    async def told() -> None:
        async with Stand(kind, docroot=str(tmp_path), check_local=True, path="/") as stand:
            finds = stand.gateway.finds
            assert [finds(request_of(path=path)) for path in ("/sub/a.php", "/sub/a.php/b/c")] == [True, True]
            assert not any(finds(request_of(path=path)) for path in ("/sub", "/sub/", "/sub/b.php", "/", "/sub//a.php"))
            application, _ = await stand.ask(FakeExchange(request_of(path="/sub/a.php/b/c")))
            found = application.environ
            assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == ("/sub/a.php", "/b/c")
            assert found["SCRIPT_FILENAME"] == os.path.join(tmp_path, "sub", "a.php")
            assert found["PATH_TRANSLATED"] == f"{tmp_path}/b/c"

    run(told())


@pytest.mark.parametrize("kind", KINDS)
def test_without_check_local_nobody_looks_for_a_file(kind: Gateway):
    assert Stand(kind, docroot="/nonexistent").gateway.finds(request_of(path="/cgi/none"))


# --- bodies


@pytest.mark.parametrize("kind", KINDS)
def test_a_body_of_known_length_goes_on_as_it_comes(run: Run, kind: Gateway):
    async def posted() -> None:
        async with Stand(kind) as stand:
            exchange = posting(b"first", b"", length=11, stalls=True)
            exchange.left.pop()
            application, serving = await stand.ask(exchange)
            assert application.environ["CONTENT_LENGTH"] == "11"
            assert await within(application.body()) == b"first"
            exchange.left.append(b"second")
            serving.cancel()

    run(posted())


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunked_body_is_collected_because_its_length_comes_first(run: Run, kind: Gateway):
    async def posted() -> None:
        async with Stand(kind) as stand:
            exchange = posting(b"x" * BIG, b"yz")
            application, serving = await stand.ask(exchange)
            assert application.environ["CONTENT_LENGTH"] == str(BIG + 2)
            assert await within(application.whole_body()) == b"x" * BIG + b"yz"
            await application.say(b"Status: 204\n\n")
            await application.end()
            assert await within(serving) is None
            assert (exchange.status, exchange.is_complete) == (204, True)

    run(posted())


@pytest.mark.parametrize("kind", KINDS)
def test_a_chunked_body_beyond_the_limit_is_refused_and_nobody_is_connected_for_it(run: Run, kind: Gateway):
    async def posted() -> None:
        async with Stand(kind, limits=GatewayLimits(max_collected_bytes=4)) as stand:
            with pytest.raises(LimitError) as refused:
                await stand.serve(posting(b"123", b"45"))
            assert refused.value.status == 413
            assert not stand.leases

    run(posted())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [BIG * 4, None], ids=["known", "chunked"])
def test_an_answer_that_comes_before_the_body_was_taken_does_not_deadlock(run: Run, kind: Gateway, length: int | None):
    async def posted() -> None:
        async with Stand(kind) as stand:
            exchange = posting(*[b"x" * BIG] * 4, length=length)
            application, serving = await stand.ask(exchange)
            await application.say(b"Status: 413\nContent-Length: 2\n\nno")
            await eventually(lambda: exchange.is_complete, "the answer")
            await application.end()
            await within(serving)
            assert (exchange.status, exchange.sent) == (413, b"no")
            assert length is None or exchange.left, "what nobody takes is not read from the client"

    run(posted())


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_body_ends_the_request(run: Run, kind: Gateway):
    async def posted() -> None:
        async with Stand(kind) as stand:
            application, serving = await stand.ask(posting(b"ab", PeerError("no chunk"), length=9))
            with pytest.raises(PeerError, match="no chunk"):
                await within(serving)
            await within(application.wire.gone())

    run(posted())


# --- answers


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_of_unknown_length_ends_with_the_request(run: Run, kind: Gateway):
    async def asked() -> None:
        async with Stand(kind) as stand:
            exchange = FakeExchange()
            application, serving = await stand.ask(exchange)
            await application.say(b"Content-Type: text/x\n\none ")
            await eventually(lambda: exchange.sent == b"one ", "the first piece")
            await application.say(b"two" + b"x" * BIG)
            await application.end()
            assert await within(serving) is None
            assert (exchange.status, exchange.length, exchange.is_complete) == (200, None, True)
            assert exchange.sent == b"one two" + b"x" * BIG

    run(asked())


@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_that_ends_before_its_head_is_a_502(run: Run, kind: Gateway):
    async def asked() -> None:
        async with Stand(kind) as stand:
            application, serving = await stand.ask()
            await application.say(b"Content-Type: te")
            await application.end()
            with pytest.raises(BackendError) as refused:
                await within(serving)
            assert refused.value.status == 502

    run(asked())


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_breaks_off_is_cut(run: Run, kind: Gateway):
    async def asked() -> None:
        async with Stand(kind) as stand:
            exchange = FakeExchange()
            application, serving = await stand.ask(exchange)
            await application.say(b"Content-Length: 5\n\nab")
            application.wire.close()
            with pytest.raises(CutAnswerError):
                await within(serving)
            assert (exchange.sent, exchange.is_complete) == (b"ab", False)

    run(asked())


@pytest.mark.parametrize("kind", KINDS)
def test_no_backend_is_a_503(run: Run, kind: Gateway):
    async def asked() -> None:
        async with Stand(kind, error=BackendError("none")) as stand:
            with pytest.raises(BackendError) as refused:
                await stand.serve(FakeExchange())
            assert refused.value.status == 503

    run(asked())


@pytest.mark.parametrize("kind", KINDS)
def test_silence_for_read_timeout_is_a_504(run: Run, kind: Gateway):
    async def asked() -> None:
        async with Stand(kind, read_timeout_s=0.05) as stand:
            _, serving = await stand.ask()
            with pytest.raises(BackendError) as refused:
                await within(serving)
            assert refused.value.status == 504

    run(asked())


@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_may_be_silent_while_the_body_comes(run: Run, kind: Gateway):
    async def posted() -> None:
        async with Stand(kind, read_timeout_s=0.05) as stand:
            exchange = posting(length=4, stalls=True)
            application, serving = await stand.ask(exchange)
            stand.wheel.advance(asyncio.get_running_loop().time() + 1)
            await turns(5)
            assert not serving.done()
            await application.say(b"Content-Length: 0\n\n")
            await eventually(lambda: exchange.is_complete, "the answer")
            await application.end()
            await within(serving)

    run(posted())


@pytest.mark.parametrize("kind", KINDS)
def test_a_client_that_leaves_takes_its_connection_along(run: Run, kind: Gateway):
    async def left() -> None:
        async with Stand(kind) as stand:
            application, serving = await stand.ask()
            serving.cancel()
            with pytest.raises(asyncio.CancelledError):
                await serving
            await within(application.wire.gone())

    run(left())


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_cannot_be_told_is_refused_and_nobody_is_connected_for_it(run: Run, kind: Gateway):
    async def asked() -> None:
        async with Stand(kind) as stand:
            with pytest.raises(PeerError, match="control character"):
                await stand.serve(FakeExchange(request_of(path="/cgi/a\nb")))
            assert not stand.leases

    run(asked())


# --- upgrades


@pytest.mark.parametrize("kind", KINDS)
def test_an_upgrade_is_passed_on_and_what_stands_behind_it_goes_first(run: Run, kind: Gateway):
    async def upgraded() -> None:
        async with Stand(kind, upgrade=True) as stand, stand.upgrade(b"hello") as (application, _, given):
            assert application.environ["HTTP_UPGRADE"] == "websocket"
            assert application.environ["HTTP_SEC_WEBSOCKET_KEY"] == KEY
            assert given.headers == (("upgrade", "websocket"), ("Connection", "Upgrade"))
            assert given.backend.leftover == b"hello"
            assert (given.lease.name, given.lease.where, given.lease.host_index) == ("app-0", "unix:/run/app-0", 0)

    run(upgraded())


@pytest.mark.parametrize("kind", KINDS)
def test_an_upgraded_backend_is_a_socket_from_and_to_which_bytes_go_as_they_are(run: Run, kind: Gateway):
    async def upgraded() -> None:
        async with Stand(kind, upgrade=True) as stand, stand.upgrade() as (application, near, _):
            for data in (b"a", bytes(range(256)), b"\0" * BIG):
                sending = asyncio.create_task(application.say(data))
                assert await within(near.recv_exactly(len(data))) == data
                await sending
                sending = asyncio.create_task(near.send(data))
                assert await within(heard(application, len(data))) == data
                await sending

    run(upgraded())


async def heard(application: Application, count: int) -> bytes:
    """So many bytes that an upgraded application hears."""
    if application.kind == "scgi":
        return await application.wire.recv_exactly(count)
    found = b""
    while len(found) < count:
        found += await application.body()
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("allows", [False, True])
def test_an_upgrade_that_nobody_asked_for_is_a_502(run: Run, kind: Gateway, allows: bool):
    async def asked() -> None:
        async with Stand(kind, upgrade=allows) as stand:
            application, serving = await stand.ask(FakeExchange(request_of() if allows else handshake_of()))
            assert not application.environ.keys() & {"HTTP_UPGRADE", "HTTP_CONNECTION"}
            await application.say(b"Status: 101\nUpgrade: websocket\n\n")
            with pytest.raises(BackendError) as refused:
                await within(serving)
            assert refused.value.status == 502

    run(asked())


@pytest.mark.parametrize("kind", KINDS)
def test_a_handshake_that_is_none_is_not_passed_on(run: Run, kind: Gateway):
    async def asked() -> None:
        async with Stand(kind, upgrade=True) as stand:
            with pytest.raises(PeerError) as refused:
                await stand.serve(FakeExchange(request_of(wants_websocket=True)))
            assert refused.value.status == 426
            assert not stand.leases

    run(asked())


@pytest.mark.parametrize("kind", KINDS)
def test_an_upgrade_may_be_refused_by_an_ordinary_answer(run: Run, kind: Gateway):
    async def asked() -> None:
        async with Stand(kind, upgrade=True) as stand:
            exchange = FakeExchange(handshake_of())
            application, serving = await stand.ask(exchange)
            await application.say(b"Status: 403\nContent-Length: 0\n\n")
            await application.end()
            assert await within(serving) is None
            assert exchange.status == 403

    run(asked())
