"""Chromium over https: the page and its WebSockets are streams of one HTTP/2 connection (RFC 8441)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.authority import Authority
from tests.browser.conftest import chromium, new_page
from tests.browser.test_page import (
    ALL_CAME,
    BLANK_PAGE,
    DEADLINE_S,
    EXAMPLES,
    PREPARE,
    ROOT,
    Program,
    backend,
    close_code,
    counts_to_five,
    open_tunnel,
)

PAGE_PROTOCOL = "performance.getEntriesByType('navigation')[0].nextHopProtocol"
SAME_BYTES = """async () => {
    const got = new Uint8Array(await new Blob(tunnel.got).arrayBuffer());
    return [tunnel.code, got.length === tunnel.sent.length && got.every((byte, at) => byte === tunnel.sent[at])];
}"""
RELOADS = 20


@contextlib.contextmanager
def serving(folder: Path, bin_path: object, *options: object, root: Path | None = None) -> Iterator[Program]:
    """The program with TLS, and with a blank page unless there is another one; it has to end with 0."""
    if root is None:
        root = folder / "www"
        root.mkdir()
        (root / "index.html").write_bytes(BLANK_PAGE)
    files = Authority(folder).files("server")
    program = Program(
        folder,
        *("--path", "/ws/", "--socket", folder / "backend.sock", "--bin-path", bin_path, "--document-root", root),
        *("--tls-cert", files.cert, "--tls-key", files.key),
        *options,
    )
    try:
        yield program
    finally:
        status = program.stop()
    assert (status, program.address[:8], list(folder.glob("*.sock*"))) == (0, "https://", [])


def tunnels(program: Program, count: int) -> list[dict[str, str]]:
    """The fields of every tunnel's line in the log, once there are so many."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        lines = [line for line in program.log.read_text().splitlines() if "tunnel closed: " in line]
        if len(lines) >= count:
            return [dict(re.findall(r" ([a-z_]+)=(\S+)", line)) for line in lines]
        assert time.monotonic() < deadline, f"{len(lines)} tunnels have ended: {lines}"
        time.sleep(0.01)


# --- the counting page, and what carries it


def test_the_page_counts_to_five_over_a_stream_of_its_own_connection(page, tmp_path):
    with serving(tmp_path, EXAMPLES / "echo.pl", root=EXAMPLES / "www") as program:
        counts_to_five(page, program.address)
        assert page.evaluate(PAGE_PROTOCOL) == "h2"
        (ROOT / "artifacts").mkdir(exist_ok=True)
        page.screenshot(path=ROOT / "artifacts" / "page-https.png")
        assert page.complaints == []
        (line,) = tunnels(program, 1)
        assert (line["wire"], line["code"], line["messages_in"]) == ("h2+tls", "1000", "5")


def sessions(net_log: Path) -> dict[int, list[dict[str, str]]]:
    """The requests of each HTTP/2 connection in a net-log: their fields, by the connection."""
    said = json.loads(net_log.read_text())
    kinds = {number: name for name, number in said["constants"]["logEventTypes"].items()}
    found: dict[int, list[dict[str, str]]] = {}
    for event in said["events"]:
        if kinds[event["type"]] == "HTTP2_SESSION_SEND_HEADERS":
            fields = dict(re.fullmatch(r"(:?[^:]*): ?(.*)", field).groups() for field in event["params"]["headers"])
            found.setdefault(event["source"]["id"], []).append(fields)
    return found


def test_chromium_itself_says_that_two_pages_and_their_tunnels_are_streams_of_one_connection(playwright, tmp_path):
    net_log = tmp_path / "net.json"
    flags = (f"--log-net-log={net_log}", "--net-log-capture-mode=IncludeSensitive")
    with serving(tmp_path, EXAMPLES / "raw_echo.py") as program:
        with chromium(playwright, *flags) as browser, new_page(browser) as one:
            two = one.context.new_page()
            for page in (one, two):
                page.goto(program.address)
                open_tunnel(page, program, ["binary"])
            for page, words in ((two, "first"), (one, "second"), (two, "third")):
                page.evaluate("words => { tunnel.got.length = 0; tunnel.socket.send(words); }", words)
                page.wait_for_function("tunnel.got.length")
                assert page.evaluate("new Blob(tunnel.got).text()") == words
            assert one.complaints == []
        lines = tunnels(program, 2)
    assert len({line["peer"] for line in lines}) == 1
    assert [line["wire"] for line in lines] == ["h2+tls"] * 2

    (requests,) = sessions(net_log).values()
    assert [(each[":method"], each[":path"], each.get(":protocol")) for each in requests] == [
        ("GET", "/", None),
        ("CONNECT", "/ws/", "websocket"),
    ] * 2


# --- what a page can send and see


@pytest.mark.parametrize(("protocols", "protocol", "kind"), [(["binary"], "binary", "object"), ([], "", "string")])
def test_the_subprotocol_is_agreed_on(page, tmp_path, protocols, protocol, kind):
    with serving(tmp_path, EXAMPLES / "raw_echo.py") as program:
        page.goto(program.address)
        open_tunnel(page, program, protocols)
        page.evaluate("tunnel.socket.send(new Uint8Array([72, 105, 0, 10])); null")
        page.wait_for_function("tunnel.code !== null || tunnel.got.length")
        assert page.evaluate("[tunnel.code, tunnel.socket.protocol, tunnel.types[0]]") == [None, protocol, kind]


def test_a_message_of_a_mebibyte_comes_back(page, tmp_path):
    with serving(tmp_path, EXAMPLES / "raw_echo.py") as program:
        page.goto(program.address)
        open_tunnel(page, program, ["binary"])
        page.evaluate(PREPARE, 1024 * 1024)
        page.evaluate("tunnel.socket.send(tunnel.sent); null")
        page.wait_for_function(ALL_CAME)
        assert page.evaluate(SAME_BYTES) == [None, True]
        page.evaluate("tunnel.socket.close(1000)")
        assert close_code(page) == [1000, True]


def test_a_page_of_another_origin_is_refused(page, tmp_path):
    with serving(tmp_path, EXAMPLES / "raw_echo.py") as program:
        page.goto(program.address.replace("127.0.0.1", "localhost"))
        assert page.evaluate(PAGE_PROTOCOL) == "h2"
        open_tunnel(page, program)
        assert page.evaluate("[tunnel.opened, tunnel.error, tunnel.code]") == [False, True, 1006]
        assert page.complaints != []

        page.goto(program.address)
        open_tunnel(page, program)
        assert page.evaluate("tunnel.opened")


# --- endings


def test_what_a_backend_said_last_comes_before_the_code(page, tmp_path):
    with serving(tmp_path, backend(tmp_path, "client.sendall(b'last words'); client.close()")) as program:
        page.goto(program.address)
        open_tunnel(page, program)
        assert close_code(page) == [1000, True]
        assert page.evaluate("tunnel.got.join('')") == "last words"


def test_a_backend_that_is_killed_is_an_error_and_the_next_one_is_there(page, tmp_path):
    with serving(tmp_path, backend(tmp_path, "client.sendall(b'%d' % os.getpid()); client.recv(1)")) as program:
        page.goto(program.address)
        pids = []
        for _ in range(2):
            open_tunnel(page, program)
            page.wait_for_function("tunnel.got.length")
            pids.append(int(page.evaluate("tunnel.got.join('')")))
            os.kill(pids[-1], signal.SIGKILL)
            assert close_code(page) == [1011, True]
        assert pids[0] != pids[1]
        assert len({line["peer"] for line in tunnels(program, 2)}) == 1


def test_a_program_that_is_asked_to_end_says_that_it_goes_away(page, tmp_path):
    with serving(tmp_path, EXAMPLES / "raw_echo.py") as program:
        page.goto(program.address)
        open_tunnel(page, program)
        program.process.terminate()
        assert close_code(page) == [1001, True]


def test_a_page_that_is_loaded_again_and_again_leaves_no_tunnel_behind(page, tmp_path):
    with serving(tmp_path, EXAMPLES / "raw_echo.py") as program:
        page.goto(program.address)
        for _ in range(RELOADS):
            open_tunnel(page, program)
            page.evaluate("tunnel.socket.send('x'.repeat(300000)); null")  # some of which is under way
            page.reload()
        lines = tunnels(program, RELOADS)
        assert {(line["wire"], line["closed_by"]) for line in lines} == {("h2+tls", "client")}
        assert len({line["peer"] for line in lines}) == 1

        open_tunnel(page, program)
        page.evaluate("tunnel.socket.send('still here'); null")
        page.wait_for_function("tunnel.got.length")
        assert page.evaluate("tunnel.got") == ["still here"]
        assert len(tunnels(program, RELOADS)) == RELOADS
