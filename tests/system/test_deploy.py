"""What an operator copies from deploy/ is accepted by the programs that read it."""

from __future__ import annotations

import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from wstunnel.config.flags import flag_parser
from wstunnel.settings import Settings

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICE, SOCKET = "wstunnel.service", "wstunnel.socket"

MOST_EXPOSURE = 1.5
"""Of 10; what `systemd-analyze security` calls OK ends at 4.3."""

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None and not os.environ.get("CI"), reason="no systemd-analyze on this machine"
)


@pytest.fixture
def units(tmp_path: Path) -> Path:
    """A copy whose command is a program that is there."""
    command = f"ExecStart={shutil.which('true')} "
    text, count = re.subn(r"(?m)^ExecStart=/usr/bin/wstunnel ", command, (FOLDER / SERVICE).read_text())
    assert count == 1
    (tmp_path / SERVICE).write_text(text)
    shutil.copy(FOLDER / SOCKET, tmp_path)
    return tmp_path


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    # its folder of colours and pagers is nobody's business here, and warnings must be in words that we can look for
    environ = {**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    return subprocess.run(
        ["systemd-analyze", *words],
        check=False,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )


@needs_systemd
@pytest.mark.parametrize("unit", [SERVICE, SOCKET])
def test_systemd_has_nothing_against_a_unit(units, unit):
    done = analyze("verify", str(units / unit))
    assert (done.returncode, done.stdout) == (0, "")


@needs_systemd
def test_what_is_wrong_with_a_unit_would_be_seen(units):
    with (units / SERVICE).open("a") as file:
        file.write("[Service]\nProtectSytem=strict\n")
    assert "ProtectSytem" in analyze("verify", str(units / SERVICE)).stdout


@needs_systemd
def test_the_sandbox_leaves_little_open(units):
    done = analyze("security", "--offline=yes", "--no-pager", str(units / SERVICE))
    found = re.search(r"Overall exposure level for wstunnel\.service: ([0-9.]+)", done.stdout)
    assert found, done.stdout
    assert float(found[1]) <= MOST_EXPOSURE, "\n".join(line for line in done.stdout.splitlines() if "✗" in line)


# --- what systemd cannot know


class Unit(configparser.RawConfigParser):
    def __init__(self, name: str) -> None:
        super().__init__(strict=False, comment_prefixes=("#",), inline_comment_prefixes=None)
        self.optionxform = str  # type: ignore[assignment,method-assign]
        self.read(FOLDER / name)


def test_the_command_line_is_one_that_wstunnel_understands():
    _, *words = shlex.split(Unit(SERVICE)["Service"]["ExecStart"])
    said, strangers = flag_parser().parse_known_args(words)
    assert strangers == []
    assert said.file == ["/etc/wstunnel/wstunnel.toml"]


def test_systemd_waits_longer_for_the_end_than_wstunnel_takes():
    settings = Settings()
    takes_s = settings.drain_timeout_s + settings.limits.master.exit_wait_s + settings.kill_timeout_s
    assert float(Unit(SERVICE)["Service"]["TimeoutStopSec"]) > takes_s + 5.0


def test_a_configuration_that_cannot_be_used_is_not_tried_again(tmp_path):
    (tmp_path / "bad.toml").write_text("liste = 1\n")
    words = [sys.executable, "-m", "wstunnel", "-f", str(tmp_path / "bad.toml")]
    done = subprocess.run(words, check=False, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == int(Unit(SERVICE)["Service"]["RestartPreventExitStatus"]), done.stderr


def test_only_the_master_gets_the_signals():
    service = Unit(SERVICE)["Service"]
    assert service["KillMode"] == "mixed"
    assert shlex.split(service["ExecReload"])[1:] == ["-HUP", "$MAINPID"]


def test_sockets_are_for_nobody_else():
    service = Unit(SERVICE)["Service"]
    assert (service["RuntimeDirectory"], service["RuntimeDirectoryMode"]) == ("wstunnel", "0700")
    assert Unit(SOCKET)["Socket"]["SocketMode"] == "0600"
