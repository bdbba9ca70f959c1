"""Full is not broken: who does not fit waits in the backlog and is served later; who is served notices nothing."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import pytest

from tests.conftest import IO, Run
from tests.wire.backends import Backend, echo
from tests.wire.clients import TEXT, Client, Refused, close_frame, frame, silent
from tests.wire.sockets import DEADLINE_S
from wstunnel import Settings, TcpAddress

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


async def speaks(client: Client, word: bytes = b"hello") -> None:
    await client.send(frame(TEXT, word))
    assert await client.payload(len(word)) == word


async def leaves(client: Client) -> None:
    await client.send(close_frame(1000))
    assert (await client.to_end()).code == 1000
    client.close()


def full_settings(count: int) -> Settings:
    return Settings(listen=(TcpAddress("127.0.0.1", 0),), max_connections=count)


@pytest.mark.over("h1", "h1+tls", because="connections are counted, not streams")
def test_beyond_max_connections_a_client_waits_in_the_backlog_and_is_served_when_there_is_room(run: Run, stage):
    async def story():
        async with stage(settings=full_settings(4)) as on:
            on.backend.serve(echo)
            served = [await on.client() for _ in range(4)]
            waiting = [await on.reach() for _ in range(3)]  # connected by the kernel, not by us
            asking = [asyncio.create_task(client.upgrade()) for client in waiting]

            done, _ = await asyncio.wait(asking, timeout=0.5)
            assert not done, "answered, reset or refused while the house was full"
            for client in served:
                await speaks(client)

            for client in served:
                await leaves(client)
            await asyncio.gather(*asking)
            on.joined += 3
            for client in waiting:
                await speaks(client)

    run(story())


@pytest.mark.over("h1", "h1+tls", because="connections are counted, not streams")
def test_a_full_house_that_empties_one_by_one_serves_everybody_in_the_end(run: Run, stage):
    async def story():
        async with stage(settings=full_settings(10)) as on:
            on.backend.serve(echo)

            async def visit():
                client = await on.client()
                await speaks(client)
                await leaves(client)

            await asyncio.gather(*(visit() for _ in range(100)))
            assert len(on.lines) == 100

    run(story())


@pytest.mark.over("h1", "h1+tls", because="connections are counted, not streams")
def test_plain_requests_count_as_connections_while_they_last(run: Run, stage):
    """Connections that say nothing fill the house too, and make room when they go."""

    async def story():
        async with stage(settings=full_settings(3)) as on:
            on.backend.serve(echo)
            idle = [await on.reach() for _ in range(3)]
            late = await on.reach()
            asking = asyncio.create_task(late.upgrade())
            done, _ = await asyncio.wait([asking], timeout=0.5)
            assert not done
            for client in idle:
                client.close()
            await asking
            on.joined += 1
            await speaks(late)

    run(story())


class Starved:
    """The process of starved.py."""

    def __init__(self, backend: Backend, spare: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.wire.starved", backend.route["socket"], str(spare), IO.get()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )

    async def line(self) -> list[float]:
        assert self.process.stdout is not None
        text = await asyncio.get_running_loop().run_in_executor(None, self.process.stdout.readline)
        assert text, f"it died, exit code {self.process.wait()}"
        return [float(word) for word in text.split()]

    async def ask(self) -> tuple[float, int]:
        """CPU seconds used so far, and log lines about descriptors."""
        assert self.process.stdin is not None
        self.process.stdin.write("?\n")
        self.process.stdin.flush()
        cpu_s, lines = await self.line()
        return cpu_s, int(lines)

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            assert self.process.wait(DEADLINE_S) == 0
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


@pytest.mark.over("h1", because="its listener is plain")
@pytest.mark.parametrize("spare", [9, 10])
def test_running_out_of_descriptors_harms_nobody_who_is_served_and_passes(run: Run, tmp_path, spare):
    """Three tunnels take six descriptors; of 30 more clients each waits, or hears 503, and none costs CPU."""

    async def story():
        backend = Backend(str(tmp_path / "b.sock"))
        backend.serve(echo)
        starved = Starved(backend, spare)
        clients: list[Client] = []
        try:
            address = TcpAddress("127.0.0.1", int((await starved.line())[0]))

            async def visit() -> None:
                client = await Client.reach(address)
                clients.append(client)
                try:
                    await client.upgrade()
                    await speaks(client)
                    await leaves(client)
                except Refused as refused:
                    assert refused.response.status == 503  # noqa: PT017
                finally:
                    client.close()

            served = [await Client.reach(address) for _ in range(3)]
            clients += served
            for client in served:
                await client.upgrade()
                await speaks(client)

            idle = [await Client.reach(address) for _ in range(30)]  # they say nothing, and keep what they get
            clients += idle
            visits = [asyncio.create_task(visit()) for _ in range(30)]
            await asyncio.wait(visits, timeout=0.5)
            cpu_before, _ = await starved.ask()
            await asyncio.wait(visits, timeout=1.0)
            cpu_after, lines = await starved.ask()
            assert cpu_after - cpu_before < 0.4, "it burns while it waits"
            assert lines == 1, "it says so, once"
            for client in served:
                await speaks(client, b"unharmed")

            for client in idle:
                client.close()
            await asyncio.gather(*visits)
            for client in served:
                await speaks(client, b"still unharmed")
                await leaves(client)

            late = await Client.reach(address)
            clients.append(late)
            await late.upgrade()
            await speaks(late, b"as if nothing had been")
        finally:
            for client in clients:
                client.close()
            await backend.stop()
            await asyncio.get_running_loop().run_in_executor(None, starved.end)

    run(story())


def test_a_burst_of_connections_is_served_in_full(run: Run, stage, tmp_path):
    async def story():
        async with stage(backend=Backend(str(tmp_path / "b.sock"), backlog=1024)) as on:
            on.backend.serve(echo)
            clients = await asyncio.gather(*(on.client() for _ in range(300)))
            await asyncio.gather(*(speaks(client) for client in clients))
            assert await silent(clients[0], for_s=0.01)

    run(story())
