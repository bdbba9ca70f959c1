"""What is published: an sdist that builds, and a wheel that works where nothing else is installed.

Needs what `pip install` needs. Without it these tests fail: a package that nobody can install is not skipped over.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path

import pytest

from wstunnel import __version__

ROOT = Path(__file__).parent.parent.parent
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "artifacts", "__pycache__", "*.so", "*.c", "*.egg-info")
STEM = f"wstunnel_server-{__version__}"

pytestmark = pytest.mark.timeout(300)


def call(*command: str | Path, cwd: Path) -> str:
    """The output of a command that has to succeed, away from this checkout and its settings."""
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "WSTUNNEL_BUILD"}}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


@dataclass(frozen=True)
class Built:
    """The two files of a release, and what is in them."""

    sdist: Path
    wheel: Path

    @property
    def in_sdist(self) -> set[str]:
        with tarfile.open(self.sdist) as file:
            return {member.name.removeprefix(f"{STEM}/") for member in file if member.isfile()}

    @property
    def in_wheel(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as file:
            return set(file.namelist())

    def metadata(self) -> Message:
        with zipfile.ZipFile(self.wheel) as file:
            return message_from_bytes(file.read(f"{STEM}.dist-info/METADATA"))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """An sdist of a copy of this tree, and the wheel that was built from the sdist alone."""
    folder = tmp_path_factory.mktemp("packaging")
    shutil.copytree(ROOT, folder / "tree", ignore=NOT_SOURCE)
    call(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "tree", cwd=folder)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return Built(sdist, wheel)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment that holds the wheel and what it asks for."""
    folder = tmp_path_factory.mktemp("installed")
    call(sys.executable, "-m", "venv", folder, cwd=folder)
    pins = ROOT / "requirements-dev.txt"
    call(folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--constraint", pins, built.wheel, cwd=folder)
    return folder / "bin"


def test_the_sdist_holds_what_builds_tests_and_explains(built):
    wanted = {
        "LICENSE",
        "MANIFEST.in",
        "Makefile",
        "README.md",
        "pyproject.toml",
        "requirements-dev.txt",
        "setup.py",
        "examples/echo.pl",
        "examples/www/index.html",
        "tests/system/test_packaging.py",
        "tools/run_example.py",
        "wstunnel/py.typed",
    }
    wanted |= {f"wstunnel/{name}{ext}" for name in ("_hub", "_relay", "_speedups") for ext in (".pyx", ".pxd", ".pyi")}
    assert wanted - built.in_sdist == set()


def test_the_sdist_holds_nothing_that_was_made_from_the_rest(built):
    made = {name for name in built.in_sdist if name.endswith((".c", ".so", ".pyc")) or "/." in name}
    assert made == set()


def test_the_wheel_holds_the_package_alone_with_its_types_and_licence(built):
    names = built.in_wheel
    assert {name.split("/")[0] for name in names} == {"wstunnel", f"{STEM}.dist-info"}
    assert {os.path.splitext(name)[1] for name in names if name.startswith("wstunnel/")} == {
        ".py",
        ".pyi",
        ".so",
        ".typed",
    }
    assert f"{STEM}.dist-info/licenses/LICENSE" in names
    for module in ("_hub", "_relay", "_speedups"):
        assert any(name.startswith(f"wstunnel/{module}.") and name.endswith(".so") for name in names)
        assert f"wstunnel/{module}.pyi" in names


def test_the_wheel_holds_every_module_of_the_tree(built):
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "wstunnel").rglob("*.py")}
    assert modules - built.in_wheel == set()


def test_the_metadata_says_what_this_is(built):
    metadata = built.metadata()
    assert (metadata["Name"], metadata["Version"]) == ("wstunnel-server", __version__)
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "MIT"
    assert sorted(need.split(">")[0].split("<")[0] for need in metadata.get_all("Requires-Dist")) == [
        "h2",
        "httptools",
        "lark",
        "uvloop",
    ]


@pytest.mark.parametrize("command", [["wstunnel"], ["python", "-m", "wstunnel"]])
def test_the_wheel_runs_where_nothing_else_is_installed(installed, tmp_path, command):
    program, *arguments = command
    assert call(installed / program, *arguments, "--version", cwd=tmp_path) == f"wstunnel {__version__}\n"
    assert "--bin-path" in call(installed / program, *arguments, "--help", cwd=tmp_path)


def test_the_wheel_has_its_compiled_modules_and_nothing_of_the_checkout(installed, tmp_path):
    told = call(installed / "python", "-c", "import wstunnel._relay as m; print(m.__file__)", cwd=tmp_path)
    assert told.startswith(str(installed.parent))
    assert told.rstrip().endswith(".so")
