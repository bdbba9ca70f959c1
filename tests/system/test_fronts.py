"""Programs that were made for a terminal or an editor, served as they are by `stdio`: shells, a language server."""

from __future__ import annotations

import json
import os
import sys
import sysconfig
from typing import Any

import pytest

from tests.conftest import Run
from tests.system.test_stdio import in_one_loop, in_processes
from tests.wire.clients import TEXT, Client, frame

KILL_TIMEOUT_S = 20.0

both = pytest.mark.parametrize("serving", [in_one_loop, in_processes])

DIALOGUES = {
    ("sh", "-i"): [
        ("echo $((6 * 7))", "42\n"),
        ("word=grüße", ""),
        ('echo "$word" | wc -c; echo "$word"', "8\ngrüße\n"),
        ("no-such-command", ""),  # the complaint goes to the log, and the dialogue goes on
        ("echo $?", "127\n"),
    ],
    (sys.executable, "-I", "-q", "-u", "-i"): [
        ("6 * 7", "42\n"),
        ("word = 'grüße'", ""),
        ("print(word.upper())", "GRÜSSE\n"),
        ("1 / 0", ""),
        ("len(word)", "5\n"),
    ],
}
"""Lines that are typed, and all that is said to each."""

EXITS = {"sh": "exit {}", sys.executable: "raise SystemExit({})"}


async def heard(client: Client, length: int) -> str:
    """At least so many bytes of text: a program's lines come in as many frames as they happen to."""
    got = bytearray()
    while len(got) < length:
        answer = await client.frame()
        assert answer is not None, f"the end came after {bytes(got)!r}"
        assert answer.opcode is TEXT, answer
        got += answer.data
    return got.decode()


@both
@pytest.mark.parametrize(("status", "code"), [(0, 1000), (3, 1011)])
@pytest.mark.parametrize("argv", DIALOGUES, ids=["sh", "python"])
def test_a_shell_talks_and_its_exit_is_a_close_code(run: Run, tmp_path, argv, status, code, serving):
    async def story() -> None:
        async with serving(tmp_path, argv, KILL_TIMEOUT_S) as served, served.client() as client:
            for said, answer in DIALOGUES[argv]:
                await client.send(frame(TEXT, f"{said}\n".encode()))
                assert await heard(client, len(answer.encode())) == answer
            await client.send(frame(TEXT, f"{EXITS[argv[0]].format(status)}\n".encode()))
            assert (await client.to_end(answer=True)).code == code

    run(story())


# --- a language server


class Editor:
    """What an editor does with a language server: JSON-RPC with a head per message, wherever frames are cut."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._got = bytearray()

    async def say(self, method: str, params: Any, id_: int | None = None) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if id_ is None else {"id": id_})
        body = json.dumps(message).encode()
        await self.client.send(frame(TEXT, b"Content-Length: %d\r\n\r\n" % len(body)))
        await self.client.send(frame(TEXT, body))

    async def hear(self) -> dict[str, Any]:
        head = await self._until(lambda: self._got.find(b"\r\n\r\n") + 4 if b"\r\n\r\n" in self._got else 0)
        (length,) = (int(field[15:]) for field in head.split(b"\r\n") if field.lower().startswith(b"content-length:"))
        return json.loads(await self._until(lambda: length if len(self._got) >= length else 0))

    async def hear_of(self, **wanted: Any) -> dict[str, Any]:
        """The next message with these members; those before it are passed over."""
        while True:
            message = await self.hear()
            if wanted.items() <= message.items():
                return message

    async def _until(self, length_of: Any) -> bytes:
        while not (length := length_of()):
            heard = await self.client.frame()
            assert heard is not None, f"the end came after {bytes(self._got)!r}"
            assert heard.opcode is TEXT, heard
            self._got += heard.data
        taken = bytes(self._got[:length])
        del self._got[:length]
        return taken


@both
def test_a_language_server_finds_a_fault(run: Run, tmp_path, serving):
    """`ruff server`, which our own checks have brought along."""
    ruff = os.path.join(sysconfig.get_path("scripts"), "ruff")
    uri = (tmp_path / "some.py").as_uri()
    document = {"uri": uri, "languageId": "python", "version": 1, "text": "import grüße\n"}

    async def story() -> None:
        argv = (ruff, "server", "--isolated")
        async with serving(tmp_path, argv, KILL_TIMEOUT_S) as served, served.client() as client:
            editor = Editor(client)
            hello = {"processId": None, "rootUri": tmp_path.as_uri(), "capabilities": {}}
            await editor.say("initialize", hello, 1)
            result = (await editor.hear_of(id=1))["result"]
            assert (result["serverInfo"]["name"], "codeActionProvider" in result["capabilities"]) == ("ruff", True)
            await editor.say("initialized", {})

            await editor.say("textDocument/didOpen", {"textDocument": document})
            found = await editor.hear_of(method="textDocument/publishDiagnostics")
            assert [fault["code"] for fault in found["params"]["diagnostics"]] == ["F401"]

            await editor.say("shutdown", None, 2)
            assert (await editor.hear_of(id=2))["result"] is None
            await editor.say("exit", None)
            assert (await client.to_end(answer=True)).code == 1000

    run(story())
