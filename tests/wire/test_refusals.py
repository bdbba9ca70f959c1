"""What a real Tunnel answers when it does not open a tunnel, one of each; the tables are the unit tests' business."""

from __future__ import annotations

import pytest

from tests.conftest import Run
from tests.wire.backends import echo
from tests.wire.clients import TEXT, Refused, frame


async def refusal(on, *args, **how):
    with pytest.raises(Refused) as caught:
        await (await on.reach()).upgrade(*args, **how)
    return caught.value.response


def test_an_unknown_path_is_404(run: Run, stage):
    async def story():
        async with stage(path="/ws/") as on:
            assert (await refusal(on, "/other/")).status == 404
            assert (await (await on.reach()).request("/other/")).status == 404

    run(story())


def test_a_plain_get_on_a_tunnel_route_is_426_and_the_connection_lives_on(run: Run, stage):
    """Over HTTP/2, where there is nothing to upgrade to, 400."""

    async def story():
        async with stage(path="/ws/") as on:
            client = await on.reach()
            for _ in range(3):
                response = await client.request("/ws/")
                if client.welcome == 101:
                    assert (response.status, response.headers["upgrade"].lower()) == (426, "websocket")
                else:
                    assert response.status == 400
            assert (await client.request("/nothing")).status == 404

    run(story())


def test_a_tunnel_opens_on_a_connection_that_was_used_for_plain_requests(run: Run, stage):
    async def story():
        async with stage(path="/ws/") as on:
            on.backend.serve(echo)
            client = await on.reach()
            assert (await client.request("/nothing")).status == 404
            await client.upgrade("/ws/")
            on.joined += 1
            await client.send(frame(TEXT, b"hello"))
            assert await client.payload(5) == b"hello"

    run(story())


def test_a_foreign_origin_is_403_and_the_backend_is_not_bothered(run: Run, stage):
    async def story():
        async with stage() as on:
            assert (await refusal(on, headers=[("Origin", "https://evil.example")])).status == 403
            with pytest.raises(BlockingIOError):
                on.backend.sock.accept()
            client = await on.client(headers=[("Origin", f"{on.way.scheme}://tunnel.test")])
            assert client.response.status == client.welcome

    run(story())


def test_no_backend_is_503_and_the_next_request_finds_it_back(run: Run, stage, tmp_path):
    async def story():
        async with stage(disable_time_s=0.0) as on:
            path = on.backend.route["socket"]
            (tmp_path / "aside").hardlink_to(path)
            (tmp_path / "b.sock").unlink()
            response = await refusal(on)
            assert response.status == 503
            assert int(response.headers["retry-after"]) >= 1

            (tmp_path / "aside").rename(path)
            on.backend.serve(echo)
            client = await on.client()
            await client.send(frame(TEXT, b"back"))
            assert await client.payload(4) == b"back"

    run(story())
