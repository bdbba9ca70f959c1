"""What backends write to stderr, as lines in our log."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.limits import SpawnLimits
from wstunnel.supervise.stderr import LineCutter, StderrPipe, printable


def lines_of(stream: bytes, cuts: list[int], limit_bytes: int) -> list[bytes]:
    cutter = LineCutter(limit_bytes)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    lines = [line for start, end in itertools.pairwise(edges) for line in cutter.feed(stream[start:end])]
    return [*lines, cutter.take()]


def test_lines_end_with_a_newline_and_lose_it():
    cutter = LineCutter(100)

    assert cutter.feed(b"one\ntw") == [b"one"]
    assert cutter.feed(b"o\r\n\nthree") == [b"two", b""]
    assert cutter.take() == b"three"
    assert cutter.take() == b""


def test_a_carriage_return_inside_a_line_stays():
    assert LineCutter(100).feed(b"10%\r20%\n") == [b"10%\r20%"]


@pytest.mark.parametrize(
    ("stream", "lines"),
    [
        (b"1234\n", [b"1234", b""]),
        (b"12345\n", [b"1234", b"5", b""]),
        (b"12345678\n9", [b"1234", b"5678", b"9"]),
        (b"12345678", [b"1234", b"5678"]),
    ],
)
def test_a_long_line_comes_in_pieces(stream, lines):
    assert lines_of(stream, [], 4) == lines


@given(st.lists(st.sampled_from([b"a", b"bc", b"\n", b"defgh"])).map(b"".join), st.lists(st.integers(0, 1000)))
def test_the_lines_are_the_same_however_the_stream_is_cut(stream, cuts):
    assert lines_of(stream, cuts, 4) == lines_of(stream, [], 4)


@given(st.lists(st.binary(max_size=50)))
def test_no_more_than_one_piece_is_held(chunks):
    cutter = LineCutter(4)
    for chunk in chunks:
        assert all(len(line) <= 4 for line in cutter.feed(chunk))
    assert len(cutter.take()) <= 4


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (b'plain text, "quoted" and back\\slashed', 'plain text, "quoted" and back\\slashed'),
        ("grüße 日本".encode(), "grüße 日本"),
        (b"\x1b[2Jgone\x07", r"\x1b[2Jgone\x07"),
        (b"tab\there\rthere", r"tab\there\rthere"),
        (b"\xff\xc3", r"\xff\xc3"),
        ("\u202eright to left\u2028".encode(), r"\u202eright to left\u2028"),
        ("\U000e0041".encode(), r"\U000e0041"),
        (b"\0", r"\x00"),
    ],
)
def test_what_could_move_a_cursor_or_hide_text_is_escaped(line, text):
    assert printable(line) == text


@given(st.binary())
def test_whatever_a_program_writes_is_printable(line):
    assert printable(line).isprintable()


def test_a_flush_logs_all_that_the_pipe_holds_and_stops_there(caplog):
    """Somebody who goes on writing cannot keep us here."""
    caplog.set_level(logging.INFO, "wstunnel.backend")

    async def main() -> None:
        pipe = StderrPipe("echo-0", SpawnLimits(log_read_bytes=1000), asyncio.get_running_loop())
        os.set_blocking(pipe.write_fd, False)
        sent = os.write(pipe.write_fd, b"x" * 99 + b"\n") + os.write(pipe.write_fd, b"y" * 5000) + 1
        pipe.flush()
        assert sent == 5101
        assert [len(line) for line in caplog.messages] == [len("echo-0: ") + 99, len("echo-0: ") + 5000]

        caplog.clear()
        read, reads = os.read, []

        def read_and_write(fd: int, limit: int) -> bytes:
            reads.append(limit)
            os.write(pipe.write_fd, b"z" * limit)
            return read(fd, limit)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "read", read_and_write)
            pipe.flush()
            patch.undo()
        assert 60 <= len(reads) <= 70
        pipe.close()

    asyncio.run(main())


def test_the_last_words_of_all_are_logged_when_the_pipe_is_closed(caplog):
    caplog.set_level(logging.INFO, "wstunnel.backend")

    async def main() -> None:
        pipe = StderrPipe("echo-0", SpawnLimits(), asyncio.get_running_loop())
        os.write(pipe.write_fd, b"bye\nfor ever")
        pipe.close()

    asyncio.run(main())

    assert caplog.messages == ["echo-0: bye", "echo-0: for ever"]


def test_the_last_line_that_says_something_is_kept(caplog):
    async def main() -> None:
        pipe = StderrPipe("echo-0", SpawnLimits(), asyncio.get_running_loop())
        assert pipe.last_line == b""
        os.write(pipe.write_fd, b"one\n")
        pipe.flush()
        os.write(pipe.write_fd, b"Can't open x\n\n\n")
        pipe.flush()
        assert pipe.last_line == b"Can't open x"
        os.write(pipe.write_fd, b"unfinished")
        pipe.flush()
        assert pipe.last_line == b"unfinished"
        pipe.close()

    asyncio.run(main())


def test_a_pipe_goes_on_in_another_pair_of_hands(caplog):
    """An upgrade in place: what stands in the pipe, and what its programs write later, is logged there."""
    caplog.set_level(logging.INFO, "wstunnel.backend")

    async def before() -> tuple[int, int]:
        pipe = StderrPipe("echo-0", SpawnLimits(), asyncio.get_running_loop())
        os.write(pipe.write_fd, b"one\n")
        return pipe.fds

    async def after(fds: tuple[int, int]) -> None:
        pipe = StderrPipe("echo-0", SpawnLimits(), asyncio.get_running_loop(), fds)
        assert pipe.fds == fds
        os.write(fds[1], b"two\n")
        pipe.flush()
        pipe.close()

    asyncio.run(after(asyncio.run(before())))

    assert caplog.messages == ["echo-0: one", "echo-0: two"]
