"""Peers in turn under the same load, round by round, and what the kernel says it cost."""

from __future__ import annotations

import contextlib
import json
import os
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.load.certificate import Certificate, make_certificate
from bench.load.peers import Peer, Place
from bench.load.processes import Cpus, Process, cpu_s, descriptors, free_port, memory_bytes
from bench.load.programs import ROOT, MissingError, Programs
from bench.load.scenarios import WIRES, Memory, Plan, Row

__all__ = ["Bench", "FailedError"]

_TUNNEL_SHARE = 0.89  # of the descriptors are for tunnels: lighttpd stops accepting at nine tenths
_DESCRIPTORS_PER_TUNNEL = 2
_COUNTERS = struct.Struct("=4Q")
_READY_WITHIN_S = 10.0
_SETTLED_WITHIN_S = 3.0
_LOOK_EVERY_S = 0.01
_QUIET_SHARE = 0.1


class FailedError(Exception):
    """A run that gave no figures; the text says why."""


@dataclass
class Server:
    """A running peer with its backend."""

    peer: Peer
    place: Place
    process: Process
    backend: Process | None  # None if the peer starts a program per tunnel
    counters: str

    def pids(self) -> list[int]:
        return self.process.tree(but=self.place.programs.backend)

    def backend_pids(self) -> list[int]:
        return [self.backend.pid] if self.backend is not None else []

    def accepted(self) -> int:
        """Tunnels that ever reached the backend."""
        return self._counted()[0]

    def wrong_bytes(self) -> int:
        """Bytes that reached the backend and were not what the clients said."""
        return self._counted()[3]

    def wait_for_backend(self, accepted: int) -> None:
        """Wait until so many tunnels have reached the backend: some servers say 101 before they start a program.

        raises  FailedError if they do not
        """
        if not _happens(lambda: self.accepted() >= accepted, _READY_WITHIN_S):
            raise FailedError(f"{accepted - self.accepted()} tunnels did not reach the backend")

    def settle(self) -> None:
        """Wait until it has done what a run left to do, such as ending programs, lest the next peer pays for it."""
        before_s = cpu_s(self.process.tree(but=""))

        def is_quiet() -> bool:
            nonlocal before_s
            now_s = cpu_s(self.process.tree(but=""))
            used_s, before_s = now_s - before_s, now_s
            return abs(used_s) < _QUIET_SHARE * _LOOK_EVERY_S

        _happens(is_quiet, _SETTLED_WITHIN_S)

    def _counted(self) -> tuple[int, ...]:
        with open(self.counters, "rb") as file:
            return _COUNTERS.unpack(file.read(_COUNTERS.size))


@dataclass
class Bench:
    """Measures each row of the plan; `finished` gets every result as soon as there is one."""

    programs: Programs
    plan: Plan
    peers: Sequence[Peer]
    finished: Callable[[dict[str, Any]], None]
    checks: bool = False
    cpus: Cpus = field(default_factory=Cpus)
    _ports: set[int] = field(default_factory=set)
    _made: Certificate | None = None

    def run(self) -> list[dict[str, Any]]:
        """All results, in the order of the plan."""
        results = []
        for group in self.plan.rows:
            results += self._group(group)
        for kept in self.plan.memory:
            results.append(self._memory(kept))
            self.finished(results[-1])
        return results

    # -- load that runs for a time

    def _group(self, group: Sequence[Row]) -> list[dict[str, Any]]:
        results = [_blank(row) for row in group]
        only = group[0].only
        wanted = [peer for peer in self.peers if (peer.name in only if only else not peer.is_guest)]
        with contextlib.ExitStack() as stack:
            servers = []
            for peer in wanted:
                unfit = peer.unfit(group[0].scenario, max(row.connections for row in group))
                if unfit:
                    _skip(results, peer, unfit)
                    continue
                try:
                    servers.append(stack.enter_context(self._served(peer, group[-1].backend, group[-1].front)))
                except FailedError as failure:
                    _skip(results, peer, str(failure))
            for turn in range(self.plan.rounds):
                for server in _rotated(servers, turn):
                    for row, result in zip(group, results, strict=True):
                        self._round(server, row, result)
        for result in results:
            self.finished(result)
        return results

    def _round(self, server: Server, row: Row, result: dict[str, Any]) -> None:
        name = server.peer.name
        if name in result["failed"]:
            return
        try:
            result["runs"].setdefault(name, []).append(self._measured(server, row))
        except FailedError as failure:
            result["failed"][name] = str(failure)

    def _measured(self, server: Server, row: Row) -> dict[str, Any]:
        wrong_before, accepted_before = server.wrong_bytes(), server.accepted()
        arguments = ["--in-flight", str(row.in_flight), "--greedy", str(row.greedy)]
        arguments += ["--seconds", str(self.plan.seconds), "--warm-up", str(self.plan.warm_up)]
        if row.stalled_by:
            arguments += ["--stalled", "1", "--stalled-by", row.stalled_by]
        with self._client(server, row, row.connections, *arguments) as client:
            _expect_connected(client, server)
            if row.mode not in {"churn", "get"}:
                server.wait_for_backend(accepted_before + row.connections + row.greedy + bool(row.stalled_by))
            self._write(client, f"go {_joined(server.pids())} / {_joined(server.backend_pids())}\n")
            run = _report(client)
        server.settle()
        if run["lost"]:
            raise FailedError(_why(run, server))
        if self.checks and row.mode == "upload" and server.wrong_bytes() != wrong_before:
            raise FailedError("what the backend got is not what the clients sent")
        if run["stalled_bytes"]:
            raise FailedError(f"{run['stalled_bytes']} bytes of a tunnel that stands still")
        if not run["messages"] and row.mode in {"echo", "churn", "get"}:
            raise FailedError("not one message came back")
        return run

    # -- tunnels that are kept

    def _memory(self, kept: Memory) -> dict[str, Any]:
        result: dict[str, Any] = {
            "kind": "memory",
            "scenario": kept.scenario,
            "title": kept.title,
            "looks": {},
            "failed": {},
        }
        for peer in self.peers:
            if peer.name not in kept.only if kept.only else peer.is_guest:
                continue
            try:
                with self._served(peer, kept.backend, WIRES[kept.wire].front) as server:
                    result["looks"][peer.name] = self._looks(server, kept)
            except FailedError as failure:
                result["failed"][peer.name] = str(failure)
        return result

    def _looks(self, server: Server, kept: Memory) -> list[dict[str, float]]:
        """Memory of the server with none of the tunnels, then with more and more of them, or as time goes by."""
        most = min(server.peer.most_connections or server.place.connections, server.place.connections)
        steps = sorted({min(step, most) for step in kept.steps})
        with self._client(
            server, replace(kept, mode="hold"), kept.tunnels
        ) as client:  # whatever is loaded late is loaded now
            _expect_connected(client, server)
            client.stdin.close()
            _report(client)
        base = memory_bytes(server.pids())
        looks: list[dict[str, float]] = [{"tunnels": 0, "after_s": 0.0, "bytes": base}]
        with contextlib.ExitStack() as stack:
            clients, open_now = [], 0
            for step in steps:
                clients.append(stack.enter_context(self._client(server, kept, step - open_now)))
                _expect_connected(clients[-1], server)
                open_now = step
                if not kept.looks_s:
                    time.sleep(0.2)
                    looks.append({"tunnels": step, "after_s": 0.0, "bytes": memory_bytes(server.pids())})
            begun_s = time.monotonic()
            for after_s in kept.looks_s:
                time.sleep(max(0.0, begun_s + after_s - time.monotonic()))
                looks.append({"tunnels": open_now, "after_s": after_s, "bytes": memory_bytes(server.pids())})
            for client in clients:
                client.stdin.close()
                said = _report(client)
                if said["lost"]:
                    raise FailedError(_why(said, server))
        return looks

    # -- processes

    @contextlib.contextmanager
    def _served(self, peer: Peer, mode: str, front: str = "") -> Iterator[Server]:
        missing = peer.missing()
        if missing:
            raise FailedError(f"missing: {missing}")
        try:
            certificate = self._certificate() if front == "tls" else None
        except MissingError as error:
            raise FailedError(f"missing: {error}") from None
        mode = "http" if peer.is_http else mode
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-"))
            os.chmod(folder, 0o755)
            counters, backend_path = f"{folder}/counters", f"{folder}/backend"
            place = Place(
                folder=folder,
                port=self._port(),
                backend=backend_path,
                stdio_backend=(self.programs.backend, mode, "--stdio", counters, str(self.cpus.load)),
                programs=self.programs,
                connections=int(descriptors() * _TUNNEL_SHARE) // _DESCRIPTORS_PER_TUNNEL,
                takes_h2c=front == "h2c",
                certificate=certificate,
            )
            backend = Process(
                [self.programs.backend, mode, f"unix:{backend_path}", counters],
                cpu=self.cpus.load,
                log=f"{folder}/backend.log",
                pipes=True,
            )
            stack.callback(backend.stop)
            if backend.stdout.readline() != "ready\n":
                raise FailedError(f"the backend did not start: {backend.last_words()}")
            process = Process(
                peer.command(place),
                cpu=self.cpus.server,
                log=f"{folder}/log",
                environment={"PYTHONPATH": ROOT, "PYTHONWARNINGS": "ignore"},
                cwd=ROOT,
            )
            stack.callback(process.stop)
            if not process.listens_within(place.port):
                raise FailedError(f"did not start: {process.last_words() or 'and said nothing'}")
            yield Server(peer, place, process, backend, counters)

    @contextlib.contextmanager
    def _client(self, server: Server, load: Row | Memory, connections: int, *arguments: str) -> Iterator[Process]:
        flags = WIRES[load.wire].flags
        command = [self.programs.tls_client if "--tls" in flags else self.programs.client, *flags, "--mode", load.mode]
        command += ["--to", str(server.place.port), "--connections", str(connections), "--size", str(load.size)]
        command += ["--tunnels", str(load.tunnels), "--counters", server.counters, *arguments]
        if server.peer.is_raw:
            command.append("--raw")
        if server.peer.is_http:
            command.append("--mirrored")
        if self.checks:
            command.append("--check")
        client = Process(command, cpu=self.cpus.load, log=f"{server.place.folder}/client.log", pipes=True)
        try:
            yield client
        finally:
            client.stop()

    def _certificate(self) -> Certificate:
        """The one that all servers have.

        raises  MissingError without what it takes to make it, or to speak TLS at all
        """
        self.programs.need_tls()
        if self._made is None:
            self._made = make_certificate(self.programs.folder)
        return self._made

    def _port(self) -> int:
        while (port := free_port()) in self._ports:
            pass
        self._ports.add(port)
        return port

    @staticmethod
    def _write(client: Process, line: str) -> None:
        client.stdin.write(line)
        client.stdin.flush()


def _blank(row: Row) -> dict[str, Any]:
    return {
        "kind": "load",
        "scenario": row.scenario,
        "title": row.title,
        "mode": row.mode,
        "connections": row.connections,
        "size": row.size,
        "in_flight": row.in_flight,
        "greedy": row.greedy,
        "wire": row.wire,
        "tunnels": row.tunnels,
        "stalled_by": row.stalled_by,
        "runs": {},
        "failed": {},
    }


def _skip(results: Sequence[dict[str, Any]], peer: Peer, why: str) -> None:
    for result in results:
        result["failed"][peer.name] = why


def _rotated(servers: Sequence[Server], turn: int) -> list[Server]:
    """Another one begins in every round, so that none is always the one after the same neighbour."""
    if not servers:
        return []
    at = turn % len(servers)
    return [*servers[at:], *servers[:at]]


def _happens(what: Callable[[], bool], within_s: float) -> bool:
    deadline_s = time.monotonic() + within_s
    while time.monotonic() < deadline_s:
        time.sleep(_LOOK_EVERY_S)
        if what():
            return True
    return False


def _joined(pids: Sequence[int]) -> str:
    return " ".join(map(str, pids))


def _expect_connected(client: Process, server: Server) -> None:
    line = client.stdout.readline()
    if line != "connected\n":
        raise FailedError(f"clients cannot connect: {_why(_parsed(line, client), server)}")


def _report(client: Process) -> dict[str, Any]:
    return _parsed(client.stdout.readline(), client)


def _parsed(line: str, client: Process) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(line)
    except ValueError:
        raise FailedError(f"the client ended: {client.last_words() or line.strip() or 'and said nothing'}") from None
    return found


def _why(run: dict[str, Any], server: Server) -> str:
    why = f"{run['lost']} connections lost, the first one: {run['first_loss']}"
    return why if server.process.is_running else f"{why}; the server ended: {server.process.how_it_ended()}"
