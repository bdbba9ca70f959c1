"""What the README shows works as it stands there."""

from __future__ import annotations

import ast
import os
import re

from tests.conftest import Run
from tests.wire.clients import TEXT, Client, close_frame, frame
from wstunnel import Route, Settings, TcpAddress, Tunnel
from wstunnel.config import check, toml
from wstunnel.config.flags import flag_parser, settings_of

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def blocks(language: str) -> list[str]:
    """The README's code blocks in one language, in order."""
    with open(os.path.join(ROOT, "README.md"), encoding="utf-8") as file:
        return re.findall(rf"```{language}\n(.*?)```", file.read(), re.DOTALL)


def program(folder: str, name: str = "echo.pl") -> str:
    """The README's Perl program as an executable file."""
    (text,) = blocks("perl")
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    os.chmod(path, 0o755)
    return path


def test_the_perl_program_echoes_lines_of_two_clients_at_once(run: Run, tmp_path):
    route = Route(socket=str(tmp_path / "echo.sock"), bin_path=(program(str(tmp_path)),))

    async def story() -> None:
        async with Tunnel(Settings(listen=(TcpAddress("127.0.0.1", 0),), routes=(route,))) as tunnel:
            clients = [await Client.reach(tunnel.addresses[0]) for _ in range(2)]
            for client in clients:
                await client.upgrade("/")
            for client in reversed(clients):
                await client.send(frame(TEXT, "grüße\n".encode()))
                assert await client.payload(8) == "grüße\n".encode()
            for client in clients:
                await client.send(close_frame(1000))
                assert (await client.to_end()).code == 1000
                client.close()

    run(story())


def test_the_configuration_is_accepted_and_means_what_it_says(tmp_path):
    (text,) = blocks("toml")
    program(str(tmp_path))
    (tmp_path / "www").mkdir()
    path = tmp_path / "wstunnel.toml"
    path.write_text(text, encoding="utf-8")

    settings = toml.load(str(path))

    assert settings.max_connections == 10000
    assert (settings.workers, settings.routes[0].min_procs, settings.routes[0].max_procs) == (2, 1, 4)
    assert settings.routes[0].origins == ("https://example.com",)
    assert "/run/wstunnel/http.sock" in check.as_toml(settings)


def test_every_command_line_is_accepted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program(str(tmp_path))
    program(str(tmp_path), "a.py")
    program(str(tmp_path), "upper.py")
    (tmp_path / "www").mkdir()
    shell = "\n".join(blocks("sh"))
    lines = re.findall(r"^(?:python -m )?wstunnel (--(?!help).*?)(?:  #.*)?$", shell, re.MULTILINE)
    assert len(lines) == 4

    for line in lines:
        words = [word.strip("'") for word in line.split()]
        said, strangers = flag_parser().parse_known_args(words)
        assert settings_of(said, strangers).settings.routes


def test_the_library_example_compiles_and_its_imports_exist():
    (text,) = blocks("python")
    compile(text, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    names: dict[str, object] = {}
    exec(text.splitlines()[0], names)
    assert {"Route", "Settings", "Tunnel"} <= names.keys()
