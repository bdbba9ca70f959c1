"""Frames over the wire, both ways: what is passed on, what is refused, and that nothing waits for a whole frame."""

from __future__ import annotations

import asyncio
import codecs
import os

import pytest
from websockets.frames import Frame
from wsproto import frame_protocol as wsproto

from tests.conftest import Run
from tests.wire.clients import BINARY, CONT, NO_STATUS, PING, PONG, TEXT, close_frame, crooked, frame, silent
from tests.wire.sockets import eventually, quiet, rss_kib

SIZES = (0, 1, 125, 126, 127, 65535, 65536, 65537, 1 << 20)


def payload_of(opcode, size):
    """`size` bytes that are their own order check; whole characters for text."""
    return (b"0123456789abcdefghijklmnopq" * (size // 27 + 1))[:size] if opcode is TEXT else os.urandom(size)


# --- client to backend, and the echo of it


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_message_of_any_size_reaches_the_backend_and_its_echo_comes_back(run: Run, stage, opcode, size):
    async def story():
        async with stage(frame_type="text" if opcode is TEXT else "binary") as on:
            client, backend = await on.join()
            sent = payload_of(opcode, size)

            sending = asyncio.create_task(client.send(frame(opcode, sent)))
            heard = await backend.recv_exactly(size)
            await sending
            assert heard == sent

            sending = asyncio.create_task(backend.send(sent))
            while sent:
                back = await client.frame()
                assert back.opcode is opcode
                assert sent.startswith(back.data)
                sent = sent[len(back.data) :]
            await sending

    run(story())


def test_a_message_in_fragments_with_pings_inside_arrives_as_one_run_of_bytes(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            euro = "€".encode()
            await client.send(
                frame(TEXT, b"one " + euro[:1], fin=False)
                + frame(PING, b"first")
                + frame(CONT, euro[1:2], fin=False)
                + frame(CONT, b"", fin=False)
                + frame(PING, b"")
                + frame(CONT, euro[2:] + b" two")
                + frame(BINARY, b"|three")
            )

            assert await backend.recv_exactly(17) == b"one " + euro + b" two|three"
            pongs = [await client.frame(), await client.frame()]
            assert [(pong.opcode, pong.data) for pong in pongs] == [(PONG, b"first"), (PONG, b"")]

    run(story())


def test_frames_in_the_same_segment_as_the_head_are_processed(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join(early=frame(TEXT, b"early ") + frame(PING, b"?") + frame(TEXT, b"bird"))

            assert await backend.recv_exactly(10) == b"early bird"
            assert await client.frame() == Frame(PONG, b"?")

    run(story())


def test_a_head_and_close_in_one_segment_deliver_what_stands_between(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join(early=frame(TEXT, b"hello and goodbye") + close_frame(3000))

            assert await backend.recv_to_end() == b"hello and goodbye"
            await backend.send(b"goodbye to you")
            backend.close()
            heard = await client.to_end()
            assert (bytes(heard.data), heard.code) == (b"goodbye to you", 3000)

    run(story())


def test_one_byte_at_a_time_from_the_first_of_the_head_to_the_last_of_the_close(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join(cuts=[1] * 400)
            wire = (
                frame(BINARY, b"x" * 126)
                + frame(PING, b"p" * 125)
                + frame(TEXT, "é€😀".encode(), fin=False)
                + frame(CONT, b"!")
                + close_frame(4999, "bye")
            )
            await client.send_in_pieces(wire, [1] * len(wire), 1)

            assert await backend.recv_to_end() == b"x" * 126 + "é€😀!".encode()
            backend.close()
            heard = await client.to_end()
            assert (heard.pongs, heard.code) == ([b"p" * 125], 4999)

    run(story())


def test_payload_is_passed_on_before_the_frame_is_whole(run: Run, stage):
    """A frame of 2^62 bytes has begun; whoever waits for its end waits for ever."""

    async def story():
        async with stage() as on:
            client, backend = await on.join()
            head = crooked(0x82, length=bytes([127]) + (1 << 62).to_bytes(8, "big"))
            await client.send(head[:-4] + bytes(4) + b"the first of many")

            assert await backend.recv_exactly(17) == b"the first of many"
            await client.send(b", and more")
            assert await backend.recv_exactly(10) == b", and more"

    run(story())


def test_very_many_fragments_are_no_burden_on_memory(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            count, batch = 200_000, 2_000
            pieces = frame(CONT, b"x", fin=False) * batch

            async def push():
                await client.send(frame(BINARY, b"", fin=False))
                for _ in range(count // batch):
                    await client.send(pieces)

            pushing = asyncio.create_task(push())
            assert await backend.recv_exactly(count) == b"x" * count
            await pushing
            assert rss_kib() - before < 4096

    before = rss_kib()
    run(story())


# --- what no client may send

PROTOCOL_ERRORS = {
    "unmasked text": (crooked(0x81, b"hi", masked=False), 1002),
    "unmasked, nothing but a header": (b"\x81\x00", 1002),
    "unmasked, the first two bytes of more": (b"\x81\x05", 1002),
    "unmasked PING": (crooked(0x89, b"", masked=False), 1002),
    "RSV1": (crooked(0xC1, b"x"), 1002),
    "RSV2": (crooked(0xA1, b"x"), 1002),
    "RSV3": (crooked(0x91, b"x"), 1002),
    **{f"reserved opcode {op:x}": (crooked(0x80 | op, b"x"), 1002) for op in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "fragmented PING": (crooked(0x09, b"x"), 1002),
    "fragmented CLOSE": (crooked(0x08, b"\x03\xe8"), 1002),
    "PING of 126 bytes": (crooked(0x89, b"x" * 126, length=b"\x7e\x00\x7e"), 1002),
    "PING of 126 bytes, as soon as its second byte shows it": (b"\x89\xfe", 1002),
    "stray continuation": (crooked(0x80, b"x"), 1002),
    "text inside a text": (frame(TEXT, b"", fin=False) + frame(TEXT, b"x"), 1002),
    "binary inside a text": (frame(TEXT, b"", fin=False) + frame(BINARY, b"x"), 1002),
    "length 5 spelt in 16 bits": (crooked(0x82, b"12345", length=b"\x7e\x00\x05"), 1002),
    "length 65535 spelt in 64 bits": (b"\x82\xff" + (65535).to_bytes(8, "big"), 1002),
    "negative length": (b"\x82\xff\x80", 1002),
    "CLOSE of one byte": (crooked(0x88, b"\x03"), 1002),
    **{
        f"CLOSE {code}": (close_frame(code) if code != NO_STATUS else crooked(0x88, (1005).to_bytes(2, "big")), 1002)
        for code in (0, 999, 1004, NO_STATUS, 1006, 1015, 1016, 2999, 5000, 65535)
    },
    "CLOSE with a reason that is not UTF-8": (crooked(0x88, b"\x03\xe8\xff"), 1007),
    "CLOSE with half a character": (crooked(0x88, b"\x03\xe8\xe2\x82"), 1007),
    "text with a byte that is never UTF-8": (frame(TEXT, b"\xff"), 1007),
    "text with a surrogate": (frame(TEXT, b"\xed\xa0\x80"), 1007),
    "text with an overlong slash": (frame(TEXT, b"\xc0\xaf"), 1007),
    "text beyond U+10FFFF": (frame(TEXT, b"\xf4\x90\x80\x80"), 1007),
    "text that ends inside a character": (frame(TEXT, "€".encode()[:2]), 1007),
    "text whose last fragment ends inside a character": (
        frame(TEXT, "€".encode()[:1], fin=False) + frame(CONT, "€".encode()[1:2]),
        1007,
    ),
    "text, bad before the frame is whole": (crooked(0x81, b"\xf5", length=b"\x7e\x10\x00"), 1007),
}


@pytest.mark.parametrize("name", PROTOCOL_ERRORS)
def test_a_protocol_error_is_told_at_once_and_what_came_before_is_delivered(run: Run, stage, name):
    wire, code = PROTOCOL_ERRORS[name]

    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(frame(TEXT, b"before ") + frame(BINARY, b"the fault") + wire)

            heard = await client.to_end()
            assert heard.code == code
            assert not heard.data
            said = await backend.recv_exactly(16)
            assert said == b"before the fault"
            rest = await backend.recv_to_end()
            assert codecs.utf_8_decode(rest, "strict", False) == ("", 0), "at most the start of a character"
            backend.close()
            line = await on.line()
            assert (line["code"], line["closed_by"]) == (code, "server")
            assert line["bytes_in"] == 16 + len(rest)

    run(story())


def test_nothing_after_a_protocol_error_is_listened_to(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(crooked(0xF1, b"x") + frame(BINARY, b"after") + frame(PING, b"after"))

            heard = await client.to_end()
            assert (heard.code, heard.pongs) == (1002, [])
            assert await backend.recv_to_end() == b""

    run(story())


# --- PING


@pytest.mark.parametrize("size", [0, 1, 124, 125])
def test_a_ping_is_answered_with_its_payload(run: Run, stage, size):
    async def story():
        async with stage() as on:
            client, _ = await on.join()
            body = os.urandom(size)
            await client.send(frame(PING, body))

            assert await client.frame() == Frame(PONG, body)

    run(story())


def test_an_unasked_pong_is_ignored(run: Run, stage):
    async def story():
        async with stage() as on:
            client, backend = await on.join()
            await client.send(frame(PONG, b"nobody asked") + frame(TEXT, b"x"))

            assert await backend.recv_exactly(1) == b"x"
            await backend.send(b"y")
            assert await client.payload(1) == b"y"

    run(story())


def test_ten_thousand_pings_of_a_client_that_does_not_read_cost_no_memory_and_end_in_answers(run: Run, stage):
    """The last PING must be answered (RFC 6455 §5.5.3 lets those before it go); traffic goes on meanwhile."""

    async def story():
        async with stage() as on:
            client, backend = await on.join(buffer_bytes=4096)
            before = rss_kib()
            sent = 0

            async def push():
                nonlocal sent
                for number in range(10_000):
                    await client.send(frame(PING, b"%0125d" % number))
                    sent += 1
                await client.send(frame(BINARY, b"the end"))

            pushing = asyncio.create_task(push())
            await quiet(lambda: sent)
            assert rss_kib() - before < 2048

            pongs = [await client.frame()]
            while pongs[-1].data != b"%0125d" % 9_999:
                pongs.append(await client.frame())
            await pushing
            numbers = [int(pong.data) for pong in pongs]
            assert {pong.opcode for pong in pongs} == {PONG}
            assert numbers == sorted(set(numbers))
            assert await backend.recv_exactly(7) == b"the end"

    run(story())


# --- backend to client


@pytest.mark.parametrize(
    ("options", "headers", "opcode", "answered"),
    [
        ({}, [], TEXT, None),
        ({"frame_type": "text"}, [], TEXT, None),
        ({"frame_type": "binary"}, [], BINARY, None),
        ({"frame_type": "text"}, [("Sec-WebSocket-Protocol", "binary")], BINARY, "binary"),
        ({"frame_type": "text"}, [("Sec-WebSocket-Protocol", "chat, binary")], BINARY, "binary"),
        ({"frame_type": "text"}, [("Sec-WebSocket-Protocol", "chat")], TEXT, None),
        ({"frame_type": "text", "subprotocols": ("chat",)}, [("Sec-WebSocket-Protocol", "binary, chat")], TEXT, "chat"),
        ({"frame_type": "binary", "subprotocols": ("chat",)}, [("Sec-WebSocket-Protocol", "binary")], BINARY, None),
    ],
)
def test_frames_to_the_client_are_of_the_routes_type_unless_binary_was_agreed(
    run: Run, stage, options, headers, opcode, answered
):
    async def story():
        async with stage(**options) as on:
            client, backend = await on.join(headers=headers)
            assert client.response.headers.get("sec-websocket-protocol") == answered
            await backend.send(b"hello")

            heard = await client.frame()
            assert (heard.opcode, heard.data, heard.fin) == (opcode, b"hello", True)

    run(story())


def test_the_clients_own_message_type_does_not_change_what_it_gets(run: Run, stage):
    async def story():
        async with stage(frame_type="text") as on:
            client, backend = await on.join()
            await client.send(frame(BINARY, b"x"))
            await backend.send(await backend.recv_exactly(1))

            assert (await client.frame()).opcode is TEXT

    run(story())


EMOJI = "a😀é€😀z"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_character_is_never_split_across_text_frames(run: Run, stage, step):
    """The backend writes `step` bytes, and nothing more until all whole characters of that are at the client."""

    async def story():
        async with stage(frame_type="text") as on:
            client, backend = await on.join()
            wire = (EMOJI * 3).encode()
            got = b""
            for at in range(0, len(wire), step):
                said = wire[: at + step]
                await backend.send(wire[at : at + step])
                whole = said.decode(errors="ignore").encode()
                while len(got) < len(whole):
                    heard = await client.frame()  # decodes each frame by itself
                    assert heard.data, "an empty frame says nothing"
                    got += heard.data
                assert got == whole
            assert got == wire

    run(story())


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_the_held_back_start_of_a_character_waits_and_does_not_come_as_an_empty_frame(run: Run, stage, cut):
    async def story():
        async with stage(frame_type="text") as on:
            client, backend = await on.join()
            await backend.send("😀".encode()[:cut])
            assert await silent(client, for_s=0.1)
            await backend.send("😀".encode()[cut:])
            assert await client.payload(4) == "😀".encode()

    run(story())


def test_four_byte_characters_in_bulk_come_whole_at_every_frame_border(run: Run, stage):
    async def story():
        async with stage(frame_type="text") as on:
            client, backend = await on.join()
            wire = b"x" + "😀".encode() * 300_000
            sending = asyncio.create_task(backend.send(wire))
            assert await client.payload(len(wire)) == wire
            await sending

    run(story())


@pytest.mark.parametrize(
    ("said", "valid"),
    [
        (b"fine \xff never", b"fine "),
        (b"\x80", b""),
        ("ü".encode() * 40_000 + b"\xc0\xaf", "ü".encode() * 40_000),
        (b"half \xe2\x82x", b"half "),
        (b"surrogate \xed\xa0\x80", b"surrogate "),
    ],
)
def test_bytes_that_can_never_be_text_end_a_text_route_and_the_log_names_the_remedy(run: Run, stage, said, valid):
    async def story():
        async with stage(frame_type="text") as on:
            client, backend = await on.join()
            sending = asyncio.create_task(backend.send(said))

            heard = await client.to_end(answer=True)
            assert bytes(heard.data) == valid
            assert heard.code == 1011
            assert set(heard.opcodes) <= {TEXT}
            await sending
            await backend.gone()
            backend.close()
            line = await on.line()
            assert (line["code"], line["closed_by"], line["bytes_out"]) == (1011, "server", len(valid))
            assert sum("--frame-type binary" in text for text in on.log.texts()) == 1

    run(story())


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_half_a_character_at_the_backends_end_is_1011_too(run: Run, stage, cut):
    async def story():
        async with stage(frame_type="text") as on:
            client, backend = await on.join()
            await backend.send(b"so far so good" + "😀".encode()[:cut])
            backend.close()

            heard = await client.to_end(answer=True)
            assert (bytes(heard.data), heard.code) == (b"so far so good", 1011)
            await eventually(lambda: any("--frame-type binary" in text for text in on.log.texts()), "the remedy")

    run(story())


def test_the_same_bytes_are_welcome_on_a_binary_route(run: Run, stage):
    async def story():
        async with stage(frame_type="binary") as on:
            client, backend = await on.join()
            await backend.send(bytes(range(256)))
            assert await client.payload(256) == bytes(range(256))

    run(story())


def test_what_the_tunnel_sends_is_read_by_a_second_library_alike(run: Run, stage):
    """wsproto, which shares no code with `websockets`, reads data, PONG and CLOSE of one tunnel."""

    async def story():
        async with stage(frame_type="text") as on:
            client, backend = await on.join()
            text = "añ😀" * 30_000
            sending = asyncio.create_task(backend.send(text.encode()))
            await client.send(frame(PING, b"are you there") + close_frame(3456, "enough"))
            assert await backend.recv_to_end() == b""
            reader = wsproto.FrameProtocol(client=True, extensions=[])
            heard, pongs, code = "", [], None
            ended = asyncio.create_task(end_after(sending, backend))
            while piece := await client.recv():
                reader.receive_bytes(piece)
                for got in reader.received_frames():
                    if got.opcode is wsproto.Opcode.TEXT:
                        heard += got.payload
                    elif got.opcode is wsproto.Opcode.PONG:
                        pongs.append(bytes(got.payload))
                    else:
                        assert got.opcode is wsproto.Opcode.CLOSE
                        code = got.payload[0]
            await ended
            assert (heard, pongs, int(code)) == (text, [b"are you there"], 3456)

    async def end_after(sending, backend):
        await sending
        backend.half_close()

    run(story())
