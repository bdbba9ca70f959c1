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


@pytest.fixture(params=STEPS, ids="-".join)
def run(request: pytest.FixtureRequest) -> Run:
    """`run(coroutine)` over both steps: sockets read by the loop's transports, and by the hub."""
    return Run(*request.param)
