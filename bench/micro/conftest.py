"""What the micro benchmarks must reach: tests hand in what they found, and all of it stands at the end of the run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.load.bars import Bar, markdown

_FOUND = pytest.StashKey[list[Bar]]()


@pytest.fixture
def hold(request: pytest.FixtureRequest) -> Callable[[Bar], None]:
    """Takes a bar for the table at the end; skips where no time is to be taken."""
    if not request.config.getoption("benchmark_enable"):
        pytest.skip("times are taken with --benchmark-enable")
    return request.config.stash.setdefault(_FOUND, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(_FOUND, [])
    if found:
        terminalreporter.section("bars")
        terminalreporter.write_line(markdown(found))
