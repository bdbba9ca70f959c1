"""What docs/tls.md shows works as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.authority import Authority
from wstunnel.config import toml
from wstunnel.config.flags import flag_parser, settings_of
from wstunnel.settings import Front, Settings, TcpAddress

PAGE = Path(__file__).parent.parent.parent / "docs" / "tls.md"


def blocks(language: str) -> list[str]:
    """The page's code blocks in one language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(autouse=True)
def certs(tmp_path, monkeypatch) -> Path:
    """The files that the page names, in the current folder."""
    folder = tmp_path / "certs"
    folder.mkdir()
    (tmp_path / "www").mkdir()
    authority = Authority(folder)
    for name in ("example", "other"):
        made = authority.files(name)
    os.link(made.both, folder / "both.pem")
    monkeypatch.chdir(tmp_path)
    return folder


def test_every_configuration_is_accepted(tmp_path):
    found = []
    for number, text in enumerate(blocks("toml")):
        path = tmp_path / f"{number}.toml"
        path.write_text(text)
        found.append(toml.read(str(path)))
    assert [each.warnings for each in found] == [(), (), ()]
    several, clients, clear = (each.settings for each in found)
    assert several.fronts[2] == Front()
    assert several.fronts[3].tls_cert == (str(tmp_path / "certs" / "both.pem"),)
    assert (clients.tls_client_ca, clients.tls_client_verify) == (str(tmp_path / "certs" / "ca.pem"), "optional")
    assert (clear.addresses, clear.h2c) == ((TcpAddress("127.0.0.1", 8081),), True)


def test_every_command_line_is_accepted():
    (line,) = re.findall(r"^wstunnel (--.*)$", "\n".join(blocks("sh")), re.MULTILINE)
    settings = settings_of(*flag_parser().parse_known_args(shlex.split(line))).settings
    assert settings.tls_cert


def test_haproxy_takes_what_is_meant_for_it(tmp_path):
    haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
    if haproxy is None:
        assert "CI" not in os.environ, "haproxy is missing"
        pytest.skip("needs the package haproxy")
    (text,) = blocks("haproxy")
    (tmp_path / "haproxy.cfg").write_text(text)
    subprocess.run([haproxy, "-c", "-f", "haproxy.cfg"], check=True, capture_output=True)


def test_what_it_says_of_numbers_is_so():
    text = PAGE.read_text(encoding="utf-8")
    limits = Settings().limits
    assert f"every {'two' if limits.certificate.look_s == 2 else limits.certificate.look_s} seconds" in text
    assert f"at once, {limits.h2.max_streams} where nothing is said" in text
