"""The bench measures what it says: content, counts, whose CPU, and results that are whole. Not how fast anything is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived
from h2.settings import SettingCodes, Settings

from bench.load import bars, publish, table
from bench.load.__main__ import arguments
from bench.load.measure import Bench, FailedError
from bench.load.peers import NAMES, Peer, peer_named
from bench.load.processes import Cpus, Process, free_port, memory_bytes
from bench.load.programs import ROOT, Programs, compiler
from bench.load.scenarios import FULL, PROXY_FLAGS, QUICK, SCENARIOS, WIRES, Memory, Plan, Row

pytestmark = pytest.mark.skipif(
    compiler() is None and "CI" not in os.environ,
    reason="the load client is a C program: apt-get install gcc libc6-dev",
)

BOTH = ("wstunnel", "lighttpd")
PROXY = f"wstunnel {PROXY_FLAGS}"
DEADLINE_S = 20.0
SHORT = Plan(rounds=2, seconds=0.05, warm_up=0.02, rows=(), memory=())


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    built = Programs(str(tmp_path_factory.mktemp("bench")))
    built.build()
    return built


def measured(
    programs: Programs, peers: list[Peer], *rows: Row, memory: tuple[Memory, ...] = ()
) -> list[dict[str, Any]]:
    """The results of a checked run; they are JSON, and nobody failed but who is meant to."""
    plan = replace(SHORT, rows=tuple((row,) for row in rows), memory=memory)
    bench = Bench(programs, plan, peers, finished=lambda result: None, checks=True)
    results = bench.run()
    return json.loads(json.dumps(results))


@pytest.fixture
def backend(programs: Programs, tmp_path: Path) -> Iterator[Callable[..., tuple[int, Path]]]:
    """`backend(mode)`: the port of one that runs, and its counters."""
    with ExitStack() as stack:

        def start(mode: str) -> tuple[int, Path]:
            port, counters = free_port(), tmp_path / f"{mode}-counters"
            process = Process(
                [programs.backend, mode, str(port), str(counters)],
                cpu=Cpus().load,
                log=str(tmp_path / "log"),
                pipes=True,
            )
            stack.callback(process.stop)
            assert process.stdout.readline() == "ready\n", process.last_words()
            return port, counters

        yield start


def client(programs: Programs, port: int, *arguments: str) -> dict[str, Any]:
    """What the client reports of a run without a server between it and whoever listens at that port."""
    program = programs.tls_client if "--tls" in arguments else programs.client
    command = [program, "--to", str(port), "--seconds", "0.05", "--warm-up", "0.01", *arguments]
    done = subprocess.run(command, input="go\n", capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout.splitlines()[-1])


def test_peers_carry_checked_content_and_their_results_are_whole(programs: Programs):
    peers = [peer_named("floor"), peer_named("wstunnel")]
    rows = (
        Row("echo", "echo", 3, 70_000, in_flight=3),
        Row("upload", "upload", 2, 5000),
        Row("download", "download", 2, 5000),
        Row("churn", "churn", 2, 64),
        Row("fair", "echo", 3, 64, greedy=1),
    )
    idle = Memory("idle", "idle", "hold", "echo", (2, 5))
    stalled = Memory("stall", "stalled", "flood", "deaf", (2,), (0.01, 0.02))

    results = measured(programs, peers, *rows, memory=(idle, stalled))

    assert [result["scenario"] for result in results] == [
        "echo",
        "upload",
        "download",
        "churn",
        "fair",
        "idle",
        "stall",
    ]
    for result in results:
        assert result["failed"] == {}
        if result["kind"] == "memory":
            assert {peer: len(looks) for peer, looks in result["looks"].items()} == {"floor": 3, "wstunnel": 3}
            assert all(look["bytes"] > 0 for looks in result["looks"].values() for look in looks)
            continue
        for peer in ("floor", "wstunnel"):
            runs = result["runs"][peer]
            assert len(runs) == SHORT.rounds
            for run in runs:
                assert run["lost"] == 0
                assert min(run["server_cpu_ns"], run["client_cpu_ns"], run["backend_cpu_ns"], run["wall_ns"]) > 0
                assert run["open"] == result["connections"] + result["greedy"] or result["mode"] == "churn"
                assert run["sunk_bytes"] > 0 or result["mode"] == "download"
        names, lines = table.figures(result, ["floor", "wstunnel"])
        assert [len(line) for line in lines] == [len(names)] * 2
        text = table.markdown(result, ["floor", "wstunnel"])
        assert text.count("\n") == 5
    echo, *_, fair, idle_result, _ = results
    for run in (*echo["runs"]["floor"], *echo["runs"]["wstunnel"]):
        assert set(run["latency_us"]) == {"p50", "p90", "p99", "p99.9", "max"}
        assert run["latency_us"]["p50"] <= run["latency_us"]["p99"] <= run["latency_us"]["max"]
    assert all(run["greedy_bytes"] > 0 for run in fair["runs"]["wstunnel"])
    assert [look["tunnels"] for look in idle_result["looks"]["wstunnel"]] == [0, 2, 5]
    assert {bar.verdict for bar in bars.bars(results)} <= {"reached", "beyond", "NOT REACHED"}
    assert any("against the floor" in bar.what for bar in bars.bars(results))


def test_pipes_and_answers_of_a_proxy_carry_checked_content_and_are_held_against_the_others(programs: Programs):
    peers = [peer_named("wstunnel"), replace(peer_named(PROXY), is_guest=True)]
    pipe = Row("pipe", "echo", 3, 70_000, in_flight=3, only=("wstunnel", PROXY))
    get = Row("get", "get", 3, 1024, only=(PROXY,))

    piped, got = measured(programs, peers, pipe, get)

    assert (piped["failed"], got["failed"]) == ({}, {})
    for result, names in ((piped, {"wstunnel", PROXY}), (got, {PROXY})):
        assert set(result["runs"]) == names
        for run in (run for runs in result["runs"].values() for run in runs):
            assert run["lost"] == 0
            assert run["open"] == 3
            assert run["messages"] > 0
    assert [bar.bar for bar in bars.bars([piped, got])] == [1.0]
    beside_nginx = got | {"runs": got["runs"] | {"nginx": got["runs"][PROXY]}}
    assert [(bar.found, bar.bar) for bar in bars.bars([beside_nginx])] == [(1.0, 2.0)]
    assert "| peer" in table.markdown(got, [PROXY])
    assert "µs per request" in table.markdown(got, [PROXY])


@pytest.mark.parametrize("name", ["nginx", "haproxy-http"])
def test_other_proxies_answer_with_the_backends_content(programs: Programs, name: str):
    peer = peer_named(name)
    if (missing := peer.missing()) is not None:
        pytest.skip(missing)

    (got,) = measured(programs, [peer], Row("get", "get", 40, 1024, only=(name,)))

    assert got["failed"] == {}
    assert all(run["messages"] > 0 for run in got["runs"][name])


def test_answers_to_get_are_what_was_asked_for_and_not_another_content(programs: Programs, backend):
    port, _ = backend("http")
    zeros = b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + bytes(1024)

    right = client(programs, port, "--mode", "get", "--size", "1024", "--check")
    with answering(zeros) as port_of_zeros:
        wrong = client(programs, port_of_zeros, "--mode", "get", "--size", "1024", "--check")
    with answering(zeros) as port_of_zeros:
        too_short = client(programs, port_of_zeros, "--mode", "get", "--size", "1025")

    assert right["lost"] == 0
    assert right["messages"] > 0
    assert wrong["first_loss"].startswith("content differs")
    assert too_short["first_loss"].startswith("answered with HTTP/1.1 200 OK")


def test_a_mirrored_frame_is_taken_from_a_pipe_and_from_nobody_else(programs: Programs, backend):
    port, _ = backend("http")

    mirrored = client(programs, port, "--mode", "echo", "--size", "70000", "--mirrored", "--check")
    refused = client(programs, port, "--mode", "echo", "--size", "70000")

    assert mirrored["lost"] == 0
    assert mirrored["messages"] > 0
    assert refused["first_loss"] == "not a frame that was expected: 82 ff"


def need_tls(programs: Programs, *packages: Path) -> None:
    """Skip where OpenSSL's headers are missing, or one of these files, but in CI, where that would fail."""
    if "CI" not in os.environ and not all(path.exists() for path in (Path(programs.tls_client), *packages)):
        pytest.skip("apt-get install libssl-dev lighttpd-mod-openssl")


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("wire", ["tls", "h2c", "h2tls"])
def test_tunnels_over_tls_and_http2_carry_checked_content(programs: Programs, wire: str, name: str):
    peer = peer_named(name)
    if (missing := peer.missing()) is not None:
        pytest.skip(missing)
    if WIRES[wire].front == "tls":
        need_tls(programs, *([Path("/usr/lib/lighttpd/mod_openssl.so")] if name == "lighttpd" else []))
    tunnels = 2 if "h2" in wire else 1
    rows = (
        Row(wire, "echo", 4, 5000, in_flight=2, wire=wire, tunnels=tunnels, only=(name,)),
        Row("handshake", "churn", 2, 64, wire=wire, only=(name,)),
    )
    idle = Memory("tlsidle", "idle", "hold", "echo", (2, 6), wire=wire, tunnels=tunnels, only=(name,))

    echo, churn, kept = measured(programs, [peer], *rows, memory=(idle,))

    assert (echo["failed"], churn["failed"], kept["failed"]) == ({}, {}, {})
    assert all(run["lost"] == 0 and run["messages"] > 0 for run in (*echo["runs"][name], *churn["runs"][name]))
    assert [run["open"] for run in echo["runs"][name]] == [4] * SHORT.rounds
    assert [look["tunnels"] for look in kept["looks"][name]] == [0, 2, 6]
    assert WIRES[wire].what in echo["title"]
    assert "| peer" in table.markdown(kept, [name])


@pytest.mark.parametrize("stalled_by", ["client", "backend"])
def test_a_tunnel_that_stands_still_does_so_while_others_are_measured(programs: Programs, stalled_by: str):
    row = Row("h2stall", "echo", 5, 64, wire="h2c", tunnels=5, stalled_by=stalled_by, only=("wstunnel",))

    (result,) = measured(programs, [peer_named("wstunnel")], row)

    assert result["failed"] == {}
    for run in result["runs"]["wstunnel"]:
        assert (run["lost"], run["stalled_bytes"], run["open"]) == (0, 0, 6)
        assert run["messages"] > 0


@contextmanager
def http2_echo(*, window: int = 65535, streams: int = 100, takes_tunnels: bool = True) -> Iterator[int]:
    """The port of a server that sends all DATA back, on one connection, by a library that minds both sides' windows."""
    codes = {
        SettingCodes.ENABLE_CONNECT_PROTOCOL: int(takes_tunnels),
        SettingCodes.INITIAL_WINDOW_SIZE: window,
        SettingCodes.MAX_CONCURRENT_STREAMS: streams,
    }
    faults: list[Exception] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            wire = H2Connection(H2Configuration(client_side=False))
            wire.local_settings = Settings(client=False, initial_values=codes)
            wire.initiate_connection()
            owed: dict[int, bytearray] = {}
            with connection:
                connection.sendall(wire.data_to_send())
                try:
                    while heard := connection.recv(65536):
                        echo(wire, wire.receive_data(heard), owed)
                        connection.sendall(wire.data_to_send())
                except ConnectionError:
                    pass  # the client ends in the middle of whatever there is
                except Exception as fault:
                    faults.append(fault)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(DEADLINE_S)
        assert not thread.is_alive()
        assert faults == []


def echo(wire: H2Connection, events: list[Any], owed: dict[int, bytearray]) -> None:
    for event in events:
        if isinstance(event, RequestReceived):
            assert (b":protocol", b"websocket") in event.headers
            wire.send_headers(event.stream_id, [(":status", "200")])
        elif isinstance(event, DataReceived):
            owed.setdefault(event.stream_id, bytearray()).extend(event.data)
    for stream, due in owed.items():
        while size := min(len(due), wire.local_flow_control_window(stream), wire.max_outbound_frame_size):
            wire.send_data(stream, bytes(due[:size]))
            wire.acknowledge_received_data(size, stream)
            del due[:size]


@pytest.mark.parametrize(("window", "size"), [(100, 10_000), (65535, 1_200_000)])
def test_a_client_of_http2_minds_windows_and_carries_checked_content(programs: Programs, window: int, size: int):
    flags = ("--h2", "--mirrored", "--check", "--connections", "3", "--tunnels", "3", "--in-flight", "2")

    with http2_echo(window=window) as port:
        run = client(programs, port, "--mode", "echo", *flags, "--size", str(size))

    assert (run["first_loss"], run["open"]) == ("", 3)
    assert run["messages"] > 0


def test_a_client_that_stalls_a_stream_leaves_it_without_a_window(programs: Programs):
    flags = ("--h2", "--mirrored", "--check", "--connections", "2", "--tunnels", "2", "--stalled", "1")

    with http2_echo(window=10_000) as port:
        run = client(programs, port, "--mode", "echo", *flags, "--stalled-by", "client")

    assert (run["first_loss"], run["open"], run["stalled_bytes"]) == ("", 3, 0)
    assert run["messages"] > 0


def test_who_takes_no_tunnels_over_http2_or_too_few_is_named(programs: Programs):
    with http2_echo(takes_tunnels=False) as port:
        none = client(programs, port, "--mode", "echo", "--h2")
    with http2_echo(streams=2) as port:
        few = client(programs, port, "--mode", "echo", "--h2", "--connections", "3", "--tunnels", "3")

    assert none["first_loss"] == "takes no CONNECT for WebSocket"
    assert few["first_loss"] == "takes no more than 2 streams"


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


@pytest.mark.parametrize(
    ("answer", "loss"),
    [
        (frame(1, 4, 1, b"\x8d"), "answered with HEADERS, flags 04, that begin with 8d"),  # :status 404
        (frame(1, 4, 1, b"\x3f\xe1\x1f\x88") + frame(0, 0, 1, b"\x82\x40" + bytes(64)), "content differs"),
        (frame(1, 4, 1, b"\x88") + frame(0, 8, 1, b"\x00\x82\x01x"), "a frame of type 0, flags 08, 4 bytes"),
        (frame(1, 4, 1, b"\x88") + frame(0, 1, 1, b""), "stream ended after 0 bytes"),
        (frame(1, 4, 1, b"\x88") + frame(3, 0, 1, bytes([0, 0, 0, 2])), "stream 1 reset with 2"),
        (frame(7, 0, 0, bytes([0, 0, 0, 0, 0, 0, 0, 11])), "sent away with 11"),
    ],
)
def test_a_client_of_http2_says_what_it_was_answered(programs: Programs, answer: bytes, loss: str):
    settings = frame(4, 0, 0, bytes([0, 8, 0, 0, 0, 1]))

    with answering(settings + answer) as port:
        run = client(programs, port, "--mode", "echo", "--h2", "--check")

    assert run["lost"] == 1
    assert run["first_loss"].startswith(loss)


def test_a_server_without_tls_is_none_with_it(programs: Programs, backend):
    need_tls(programs)
    port, _ = backend("echo")

    run = client(programs, port, "--mode", "echo", "--tls")

    assert run["first_loss"].startswith("TLS: error:")


def test_without_openssl_rows_over_tls_are_named_with_their_remedy(programs: Programs):
    row = Row("tls", "echo", 1, 64, wire="tls")
    plain = Programs(os.path.join(programs.folder, "plain"))

    (result,) = measured(plain, [peer_named("wstunnel")], row)

    assert result["failed"] == {"wstunnel": "missing: apt-get install libssl-dev"}


@contextmanager
def answering(answer: bytes) -> Iterator[int]:
    """The port of a server that says this on a connection as soon as it has heard something."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(answer)
                connection.recv(4096)  # until the client is gone

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(DEADLINE_S)
        assert not thread.is_alive()


@pytest.mark.parametrize("arguments", [(), ("--raw",)])
def test_a_client_that_checks_notices_content_that_is_not_its_own(programs: Programs, backend, arguments):
    port, _ = backend("pour")

    if not arguments:
        said = client(programs, port, "--mode", "echo")
        assert "an answer without an end" in said["first_loss"]
    else:
        said = client(programs, port, "--mode", "echo", "--check", *arguments)
        assert "content differs" in said["first_loss"]
    assert said["lost"] == 1


def test_a_backend_notices_an_upload_that_is_not_the_stream(programs: Programs, backend):
    port, counters = backend("sink")

    def wrong_bytes() -> int:
        return int.from_bytes(counters.read_bytes()[24:32], sys.byteorder)

    deadline_s = time.monotonic() + DEADLINE_S
    # on a busy machine the backend may have no turn at all within the run
    while not client(programs, port, "--mode", "upload", "--raw", "--check", "--counters", str(counters))["sunk_bytes"]:
        assert time.monotonic() < deadline_s
    assert wrong_bytes() == 0

    client(programs, port, "--mode", "upload", "--raw")  # unchecked: the same piece over and over
    while wrong_bytes() == 0:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_every_message_that_is_counted_went_through_the_backend(programs: Programs, backend):
    port, counters = backend("echo")

    run = client(programs, port, "--mode", "echo", "--raw", "--check", "--size", "100", "--in-flight", "4")

    received, sent = (int.from_bytes(counters.read_bytes()[at : at + 8], sys.byteorder) for at in (8, 16))
    assert run["messages"] * 106 <= received
    assert run["payload_bytes"] <= sent <= received
    assert run["messages"] > 0


def test_a_server_that_goes_away_fails_the_run_and_not_the_bench(programs: Programs):
    dies = replace(peer_named("floor"), name="dies", command=lambda place: ["false"])
    row = Row("echo", "echo", 1, 64)

    (result,) = measured(programs, [dies, peer_named("floor")], row)

    assert result["failed"]["dies"].startswith("did not start")
    assert len(result["runs"]["floor"]) == SHORT.rounds


def test_a_peer_that_is_missing_is_named_with_its_remedy(programs: Programs):
    absent = replace(peer_named("lighttpd"), missing=lambda: "apt-get install it")

    (result,) = measured(programs, [absent], Row("echo", "echo", 1, 64))

    assert "| lighttpd | missing: apt-get install it |" in table.markdown(result, ["lighttpd"])


def test_a_peer_is_not_given_more_tunnels_than_it_can_have(programs: Programs):
    small = replace(peer_named("floor"), name="small", most_connections=2, why="is small")
    rows = (Row("echo", "echo", 2, 64), Row("echo", "echo", 3, 64))

    fits, too_many = measured(programs, [small], *rows)

    assert len(fits["runs"]["small"]) == SHORT.rounds
    assert too_many["failed"] == {"small": "not with more than 2 connections: it is small"}


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended
        return b""


def test_master_and_workers_are_both_accounted_and_backends_are_not(programs: Programs):
    bench = Bench(programs, SHORT, [], finished=lambda result: None)

    with bench._served(peer_named("wstunnel --workers 2"), "echo") as server:
        deadline_s = time.monotonic() + DEADLINE_S
        while True:  # the port is open before the workers run
            pids = server.pids()
            commands = [command_of(pid) for pid in pids]
            if sum(b"wstunnel.server.carrier" in command for command in commands) == 2:
                break
            assert time.monotonic() < deadline_s, commands
            time.sleep(0.01)
        assert len(pids) == 3, commands
        assert server.backend is not None
        assert server.backend.pid not in pids
        assert memory_bytes(pids) > memory_bytes(pids[:1]) > 0
        assert {frozenset(os.sched_getaffinity(pid)) for pid in pids} == {frozenset({bench.cpus.server})}


def test_a_peer_of_some_rows_does_not_run_in_the_others(programs: Programs):
    guest = replace(peer_named("floor"), name="guest", is_guest=True)
    rows = (Row("echo", "echo", 1, 64), Row("workers", "echo", 1, 64, only=("guest",)))

    without, only = measured(programs, [peer_named("floor"), guest], *rows)

    assert set(without["runs"]) == {"floor"}
    assert set(only["runs"]) == {"guest"}


def test_nobody_to_connect_is_a_failed_run(programs: Programs):
    bench = Bench(programs, SHORT, [], finished=lambda result: None)

    with bench._served(peer_named("floor"), "echo") as server:
        server.process.stop()
        with pytest.raises(FailedError, match=r"clients cannot connect.*refused; the server ended"):
            bench._measured(server, Row("echo", "echo", 1, 64))


def test_figures_take_the_place_of_older_ones_in_the_page(programs: Programs, tmp_path: Path):
    (result,) = measured(programs, [peer_named("floor")], Row("echo", "echo", 1, 64))
    machine = dict.fromkeys(("at", "cpus", "cpu", "kernel", "python"), "?") | {"load_average": 0.5}
    peers = {"floor": {"what": "bare C", "version": "1", "missing": None}}
    peers["lighttpd"] = {"what": "lighttpd", "version": None, "missing": "apt-get install it"}
    found = {"machine": machine, "plan": {"rounds": 2, "seconds": 0.05}, "peers": peers, "results": [result]}
    page = tmp_path / "page.md"
    page.write_text(Path(publish.PAGE).read_text(encoding="utf-8"), encoding="utf-8")
    before = page.read_text(encoding="utf-8").partition("<!-- figures")

    for _ in range(2):
        publish.write_page(found, ["x/size.svg"], str(page))

    after = page.read_text(encoding="utf-8").partition("<!-- figures")
    assert after[0] == before[0]
    assert after[2].count("**echo: 1 x 64 B x 1**") == 1
    assert "![size.svg](performance/size.svg)" in after[2]
    assert "| lighttpd | lighttpd | missing: apt-get install it |" in after[2]
    page.write_text("nothing", encoding="utf-8")
    with pytest.raises(ValueError, match="have to stand there once"):
        publish.write_page(found, [], str(page))


def test_results_are_written_as_they_are_and_plots_are_not_asked_for(tmp_path: Path):
    found = {"results": [], "machine": {"cpu": "µ"}}

    written = publish.write(found, str(tmp_path / "out"), pictures=False)

    assert written == [str(tmp_path / "out" / "results.json")]
    assert json.loads(Path(written[0]).read_text(encoding="utf-8")) == found


def test_promises_are_held_against_the_same_round_and_say_what_is_not_reached():
    def run(cpu_us: int, p99: float) -> dict[str, Any]:
        return {"server_cpu_ns": cpu_us * 1000, "messages": 1, "latency_us": {"p50": 1.0, "p99": p99}}

    row = {"kind": "load", "scenario": "echo", "title": "t", "mode": "echo", "size": 64, "in_flight": 1, "greedy": 0}
    runs = {"wstunnel": [run(12, 5.0)], "floor": [run(10, 1.0)], "lighttpd": [run(24, 10.0)]}
    fair = row | {"scenario": "fair", "connections": 100}
    looks = [{"tunnels": n, "after_s": 0.0, "bytes": 2048 * n} for n in (0, 10, 20)]
    idle = {"kind": "memory", "scenario": "idle", "title": "idle", "looks": {"wstunnel": looks}}
    results = [
        row | {"connections": 1000, "runs": runs},
        fair | {"runs": {"wstunnel": [run(1, 5.0)]}},
        fair | {"greedy": 1, "runs": {"wstunnel": [run(1, 9.0)]}},
        idle,
    ]

    found = {bar.what: (round(bar.found, 6), bar.verdict) for bar in bars.bars(results)}

    assert found == {
        "echo t: CPU against the floor": (1.2, "NOT REACHED"),
        "echo t: times cheaper than lighttpd": (2.0, "reached"),
        "echo t: p99 latency against lighttpd": (0.5, "reached"),
        "fair t: p99 against alone": (1.8, "reached"),
        "idle idle: memory of each": (2.0, "reached"),
    }


def test_promises_over_tls_and_http2_are_held_against_lighttpd_and_against_the_same_server():
    def run(cpu_us: int, wall_us: int = 1000) -> dict[str, Any]:
        return {"server_cpu_ns": cpu_us * 1000, "wall_ns": wall_us * 1000, "messages": 1}

    load = {
        "kind": "load",
        "mode": "echo",
        "connections": 100,
        "size": 64,
        "in_flight": 1,
        "greedy": 0,
        "stalled_by": "",
    }
    h2c = load | {"scenario": "h2c", "wire": "h2c", "title": "h2", "runs": {"wstunnel": [run(3)], "lighttpd": [run(2)]}}
    tls = load | {"scenario": "tls", "wire": "tls", "title": "s", "runs": {"wstunnel": [run(3)], "lighttpd": [run(4)]}}
    alone = load | {"scenario": "h2stall", "wire": "h2c", "title": "alone", "runs": {"wstunnel": [run(1, 900)]}}
    results = [
        h2c | {"wire": "h1", "title": "h1", "runs": {"wstunnel": [run(4)]}},
        h2c,
        tls,
        tls | {"size": 65536, "title": "large"},
        alone,
        alone | {"stalled_by": "client", "title": "beside", "runs": {"wstunnel": [run(1, 1200)]}},
    ]

    found = {bar.what: (round(bar.found, 6), bar.bar, bar.verdict) for bar in bars.bars(results)}

    assert found == {
        "h2c h2: CPU against lighttpd": (1.5, 1.0, "NOT REACHED"),
        "h2c h2: CPU against HTTP/1.1": (0.75, 1.5, "reached"),
        "tls s: CPU against lighttpd": (0.75, 1.0, "reached"),
        "tls large: CPU against lighttpd": (0.75, 0.5, "NOT REACHED"),
        "h2stall beside: messages per second against alone": (0.75, 0.9, "NOT REACHED"),
    }


def test_a_ratio_is_of_the_same_round():
    cheap, dear = {"server_cpu_ns": 1000, "messages": 1}, {"server_cpu_ns": 8000, "messages": 1}
    result = {"mode": "echo", "runs": {"a": [dear, cheap, dear], "floor": [dear, cheap, dear]}}

    assert table.ratio(result, "a", "floor") == 1
    assert table.ratio(result, "a", "absent") is None


def test_memory_of_each_tunnel_is_the_slope_and_not_what_the_server_needs_alone():
    looks = [{"tunnels": n, "after_s": 0.0, "bytes": 50_000 + 300 * n} for n in (10, 20, 40)]
    none = {"tunnels": 0, "after_s": 0.0, "bytes": 9}

    assert table.slope_bytes([none, *looks]) == pytest.approx(300)


def test_every_scenario_and_peer_is_explained_and_can_be_chosen():
    done = subprocess.run(
        [sys.executable, "-m", "bench.load", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert all(f"  {name} " in done.stdout for name in (*SCENARIOS, *NAMES))
    used = {group[0].scenario for group in FULL.rows} | {kept.scenario for kept in FULL.memory}
    assert used == set(SCENARIOS)
    assert QUICK.rounds >= 3
    assert FULL.rounds >= 5
    with pytest.raises(ValueError, match="take one of floor, wstunnel"):
        peer_named("apache")


@pytest.mark.parametrize("said", [["--scenario", "pipe", "get"], ["--scenario", "pipe", "--scenario", "get"]])
def test_scenarios_may_be_named_after_one_flag_or_after_several(said: list[str]):
    assert arguments().parse_args(said).scenario == ["pipe", "get"]


def test_a_client_reaches_nothing_but_this_machine(programs: Programs):
    done = subprocess.run(
        [programs.client, "--mode", "echo", "--to", "80/elsewhere"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "take unix:PATH or a TCP port" in done.stderr
