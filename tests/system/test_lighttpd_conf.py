"""A lighttpd.conf as it stands, run by `python -m wstunnel -f`."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Run
from tests.system.programs import ECHO, program
from tests.system.test_control import ROOT, Service, until
from tests.wire.clients import TEXT, Client, Refused, close_frame, frame

NAME = "lighttpd.conf"


def text_of(folder: Path) -> str:
    (argv,) = program(folder, ECHO, "echo.pl")[:1]
    return f"""
        server.document-root = "{folder}"   # no place of its own, as in lighttpd's examples
        server.bind = "127.0.0.1"
        server.port = 0

        server.modules += ("mod_wstunnel")
        include "routes.conf"
        wstunnel.server = (
          var.path => (
            (
              "socket" => "{folder}/echo.sock",
              "bin-path" => "{argv}",
              "max-procs" => 1
            )
          )
        )
        """


async def counts(service: Service, path: str) -> None:
    """The dialogue of the counting page."""
    client = await Client.reach(service.address)
    await client.upgrade(path)
    for number in range(1, 6):
        await client.send(frame(TEXT, f"{number}\n".encode()))
        assert await client.payload(2) == f"{number}\n".encode()
    await client.send(close_frame(1000))
    assert (await client.to_end()).code == 1000
    client.close()


async def is_refused(service: Service, path: str) -> None:
    client = await Client.reach(service.address)
    with pytest.raises(Refused):
        await client.upgrade(path)
    client.close()


def test_it_runs_and_a_reload_reads_it_again_with_what_it_includes(run: Run, tmp_path):
    (tmp_path / "routes.conf").write_text('path = "/ws/"\n')

    async def story(service: Service) -> None:
        await counts(service, "/ws/")
        assert "differs from lighttpd on purpose" in service.log()
        (tmp_path / "routes.conf").write_text('path = "/other/"\n')
        service.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(until, lambda: "generation 2" in service.done("status"), "the reload is done")
        await counts(service, "/other/")
        await is_refused(service, "/ws/")

    with Service(tmp_path, text_of(tmp_path), name=NAME) as service:
        run(story(service))


def test_a_reload_of_an_include_that_cannot_be_used_changes_nothing(run: Run, tmp_path):
    (tmp_path / "routes.conf").write_text('path = "/ws/"\n')

    async def story(service: Service) -> None:
        (tmp_path / "routes.conf").write_text("path = '/ws/'\n")
        service.process.send_signal(signal.SIGHUP)
        await asyncio.to_thread(until, lambda: "routes.conf:1: " in service.log(), "the log says what is wrong")
        await counts(service, "/ws/")

    with Service(tmp_path, text_of(tmp_path), name=NAME) as service:
        run(story(service))


def test_what_convert_prints_runs_as_well(run: Run, tmp_path):
    (tmp_path / "routes.conf").write_text('path = "/ws/"\n')
    (tmp_path / NAME).write_text(text_of(tmp_path))
    words = [sys.executable, "-m", "wstunnel", "convert", NAME]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr

    with Service(tmp_path, done.stdout) as service:
        run(counts(service, "/ws/"))
