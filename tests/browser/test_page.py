"""A real browser, the system's Chromium, against the real program: the counting page, and what a page can see."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
DEADLINE_S = 30.0
BLANK_PAGE = b'<!doctype html><html lang="en"><title>blank</title><link rel="icon" href="data:,">'

# A socket that a test can talk through and look into, as `window.tunnel`.
OPEN = """([url, protocols]) => {
    const tunnel = window.tunnel = {
        got: [], types: [], length: 0,
        opened: false, error: false, code: null, clean: null,
    };
    const socket = tunnel.socket = new WebSocket(url, protocols);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => { tunnel.opened = true; };
    socket.onerror = () => { tunnel.error = true; };
    socket.onclose = (event) => { tunnel.code = event.code; tunnel.clean = event.wasClean; };
    socket.onmessage = (event) => {
        tunnel.got.push(event.data);
        tunnel.types.push(typeof event.data);
        tunnel.length += event.data.length ?? event.data.byteLength;
    };
}"""
# Bytes that nobody could guess, in `tunnel.sent`.
PREPARE = """(size) => {
    tunnel.sent = new Uint8Array(size);
    for (let at = 0; at < size; at += 65536) crypto.getRandomValues(tunnel.sent.subarray(at, at + 65536));
}"""
ALL_CAME = "tunnel.code !== null || tunnel.length >= tunnel.sent.length"


class Program:
    """`python -m wstunnel` in a process of its own, until `stop`."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.log = folder / "wstunnel.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "wstunnel", "--listen", "127.0.0.1:0", *map(str, arguments)],
                cwd=ROOT,
                env={**os.environ, "RUNTIME_DIRECTORY": str(folder / "run")},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], DEADLINE_S)
        line = self.process.stdout.readline().decode() if ready else ""
        match = re.search(r"listening on (https?://(127\.0\.0\.1:[0-9]+)/)", line)
        if match is None:
            self.process.kill()
            self.process.communicate()
            pytest.fail(f"no address in {line!r}; its log: {self.log.read_text()}")
        self.address, self.authority = match.groups()

    def stop(self) -> int:
        """Ask it to end as a service manager does; its exit status."""
        self.process.terminate()
        try:
            self.process.communicate(timeout=DEADLINE_S)
        finally:
            self.process.kill()
        return self.process.returncode


@pytest.fixture
def page(serve, page):
    """The page goes before the programs that it talks to."""
    return page


@pytest.fixture
def serve(tmp_path):
    """`serve(options...)`: the program with a blank page, and what else is asked for; it has to end with 0."""
    folder = tmp_path / "www"
    folder.mkdir()
    (folder / "index.html").write_bytes(BLANK_PAGE)
    programs = []

    def start(*arguments, root=folder):
        options = ("--path", "/ws/", "--socket", tmp_path / "backend.sock", "--document-root", root)
        programs.append(Program(tmp_path, *options, *arguments))
        return programs[-1]

    yield start
    assert [program.stop() for program in programs] == [0] * len(programs)
    assert list(tmp_path.glob("*.sock*")) == []


def backend(folder, body):
    """A program of a few lines that does `body` with each client, one after the other."""
    script = folder / "backend.py"
    accepting = (
        "import os, socket\nlistener = socket.socket(fileno=0)\nwhile True:\n    client, _ = listener.accept()\n"
    )
    script.write_text(f"{accepting}    {body}\n")
    return f"{sys.executable} {script}"


def open_tunnel(page, program, protocols=()):
    page.evaluate(OPEN, [f"{program.address.replace('http', 'ws', 1)}ws/", list(protocols)])
    page.wait_for_function("tunnel.opened || tunnel.code !== null")


def close_code(page):
    page.wait_for_function("tunnel.code !== null")
    return page.evaluate("[tunnel.code, tunnel.clean]")


# --- the counting page


def counts_to_five(page, address):
    """The page of this address sends 1 to 5, each when the one before has come back, and shows so."""
    page.goto(address)
    page.wait_for_selector("#state[data-code]")

    rows = page.eval_on_selector_all("#log li", "rows => rows.map(row => [row.className, row.lastChild.textContent])")
    counted = [[kind, str(number)] for number in range(1, 6) for kind in ("sent", "received")]
    assert rows == [["note", "open"], *counted, ["note", "closed with code 1000"]]
    assert page.eval_on_selector_all("#steps .back", "steps => steps.map(step => step.textContent)") == list("12345")
    assert page.inner_text("#state") == "closed 1000"


def test_the_page_counts_to_five_through_a_backend_that_was_spawned(page, tmp_path):
    socket = tmp_path / "echo.sock"
    options = ("--path", "/ws/", "--socket", socket, "--bin-path", "examples/echo.pl")
    program = Program(tmp_path, *options, "--document-root", "examples/www")
    try:
        counts_to_five(page, program.address)
        (ROOT / "artifacts").mkdir(exist_ok=True)
        page.screenshot(path=ROOT / "artifacts" / "page.png")
        assert page.complaints == []
    finally:
        status = program.stop()
    assert (status, list(tmp_path.glob("echo.sock*"))) == (0, [])


def test_a_line_of_ones_own_is_shown_as_it_is_and_opens_the_tunnel_again(page, serve):
    program = serve("--bin-path", EXAMPLES / "echo.pl", root=EXAMPLES / "www")
    page.goto(program.address)
    page.wait_for_selector("#state[data-code='1000']")

    for line in ("<b>not bold</b> \N{WAVING HAND SIGN}", "5"):
        page.fill("#text", line)
        page.press("#text", "Enter")
        page.wait_for_function(
            "line => document.querySelector('#log').lastChild.lastChild.textContent === line", arg=line
        )
        page.wait_for_selector("#log .received:last-child")
    assert page.get_attribute("#state", "data-state") == "open"
    assert page.complaints == []


def test_the_page_says_so_when_the_tunnel_ends_beneath_it(page, serve, tmp_path):
    program = serve(
        "--bin-path",
        backend(tmp_path, "client.recv(9); client.sendall(b'0\\nnot a number'); client.close()"),
        root=EXAMPLES / "www",
    )
    page.goto(program.address)
    page.wait_for_selector("#state[data-code='1000']")
    assert page.inner_text("#log li:nth-last-child(2) span") == "not a number"


# --- what a page can send and see


def test_characters_cut_by_the_backend_arrive_whole(page, serve):
    """A raw backend cuts after each 1,000th byte, and 1,000 bytes are never a whole number of these characters."""
    program = serve("--bin-path", f"{EXAMPLES / 'raw_echo.py'} 1000")
    page.goto(program.address)
    open_tunnel(page, program)
    page.evaluate(
        "tunnel.sent = 'x' + '\N{SLIGHTLY SMILING FACE}é€'.repeat(20000); tunnel.socket.send(tunnel.sent); null"
    )

    page.wait_for_function(ALL_CAME)

    assert page.evaluate("[tunnel.code, tunnel.got.join('') === tunnel.sent]") == [None, True]
    assert page.evaluate("tunnel.got.length") > 1
    assert page.complaints == []


def test_a_message_of_a_mebibyte_comes_back(page, serve):
    program = serve("--bin-path", EXAMPLES / "raw_echo.py")
    page.goto(program.address)
    open_tunnel(page, program)
    page.evaluate(PREPARE, 1024 * 1024)
    page.evaluate("""() => {
        tunnel.sent = Array.from(tunnel.sent, (n) => String.fromCharCode(32 + n % 95)).join("");
        tunnel.socket.send(tunnel.sent);
    }""")

    page.wait_for_function(ALL_CAME)

    assert page.evaluate("[tunnel.code, tunnel.got.join('') === tunnel.sent]") == [None, True]
    page.evaluate("tunnel.socket.close(1000)")
    assert close_code(page) == [1000, True]


@pytest.mark.parametrize(("protocols", "protocol", "kind"), [(["binary"], "binary", "object"), ([], "", "string")])
def test_binary_frames_come_where_the_page_asked_for_them(page, serve, protocols, protocol, kind):
    program = serve("--bin-path", EXAMPLES / "raw_echo.py")
    page.goto(program.address)
    open_tunnel(page, program, protocols)
    page.evaluate("tunnel.socket.send(new Uint8Array([72, 105, 0, 10])); null")

    page.wait_for_function("tunnel.code !== null || tunnel.got.length")

    assert page.evaluate("[tunnel.code, tunnel.socket.protocol, tunnel.types[0]]") == [None, protocol, kind]


def test_any_bytes_come_back_in_binary_frames(page, serve):
    program = serve("--bin-path", f"{EXAMPLES / 'raw_echo.py'} 1000")
    page.goto(program.address)
    open_tunnel(page, program, ["binary"])
    page.evaluate(PREPARE, 256 * 1024)
    page.evaluate("""() => {
        for (let at = 0; at < tunnel.sent.length; at += 9999) tunnel.socket.send(tunnel.sent.subarray(at, at + 9999));
    }""")
    page.wait_for_function(ALL_CAME)

    assert page.evaluate("""async () => {
        const got = new Uint8Array(await new Blob(tunnel.got).arrayBuffer());
        return [tunnel.code, got.length, got.every((byte, at) => byte === tunnel.sent[at])];
    }""") == [None, 256 * 1024, True]


# --- origins


class _Elsewhere(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(BLANK_PAGE)))
        self.end_headers()
        self.wfile.write(BLANK_PAGE)

    def log_message(self, *args):
        pass


@pytest.fixture
def elsewhere():
    """A page that another server serves, on another port of the same host: another origin."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_page_of_another_origin_is_refused(page, serve, elsewhere):
    program = serve("--bin-path", EXAMPLES / "raw_echo.py")
    page.goto(elsewhere)
    open_tunnel(page, program)
    assert page.evaluate("[tunnel.opened, tunnel.error, tunnel.code]") == [False, True, 1006]
    assert any("403" in complaint for complaint in page.complaints)

    page.goto(program.address)
    open_tunnel(page, program)
    assert page.evaluate("tunnel.opened")


def test_a_page_of_another_origin_is_let_in_where_it_is_listed(page, serve, elsewhere):
    program = serve("--bin-path", EXAMPLES / "raw_echo.py", "--origins", elsewhere)
    page.goto(elsewhere)
    open_tunnel(page, program)
    assert page.evaluate("[tunnel.opened, tunnel.error, tunnel.code]") == [True, False, None]


# --- endings


def test_a_backend_that_ends_is_a_normal_closure_after_its_last_words(page, serve, tmp_path):
    program = serve("--bin-path", backend(tmp_path, "client.sendall(b'last words'); client.close()"))
    page.goto(program.address)
    open_tunnel(page, program)
    assert close_code(page) == [1000, True]
    assert page.evaluate("tunnel.got.join('')") == "last words"


def test_a_backend_that_is_killed_is_an_error_and_the_next_one_is_there(page, serve, tmp_path):
    program = serve("--bin-path", backend(tmp_path, "client.sendall(b'%d' % os.getpid()); client.recv(1)"))
    page.goto(program.address)
    pids = []
    for _ in range(2):
        open_tunnel(page, program)
        page.wait_for_function("tunnel.got.length")
        pids.append(int(page.evaluate("tunnel.got.join('')")))
        os.kill(pids[-1], signal.SIGKILL)
        assert close_code(page) == [1011, True]
    assert pids[0] != pids[1]


def test_a_program_that_is_asked_to_end_says_that_it_goes_away(page, serve):
    program = serve("--bin-path", EXAMPLES / "raw_echo.py")
    page.goto(program.address)
    open_tunnel(page, program)
    program.process.terminate()
    assert close_code(page) == [1001, True]
