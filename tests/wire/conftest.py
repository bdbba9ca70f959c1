"""Fixtures of the wire tests: black-box tests of the relay over real loopback sockets."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import STEPS, Run
from tests.wire.stage import Stage


@pytest.fixture
def stage(tmp_path: Path) -> Callable[..., Stage]:
    """`stage(**route options)`: a Tunnel in front of a scripted backend; see Stage."""
    return partial(Stage, str(tmp_path))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`run` goes over every step; a test that is marked `over` goes over those whose wires it names."""
    if "run" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("over")
        steps = [step for step in STEPS if mark is None or step[-1] in mark.args]
        metafunc.parametrize("run", steps, ids="-".join, indirect=True)


@pytest.fixture
def run(request: pytest.FixtureRequest) -> Run:
    """`run(coroutine)` over the steps: sockets read by the loop's transports, and by the hub, and over each wire."""
    return Run(*request.param)
