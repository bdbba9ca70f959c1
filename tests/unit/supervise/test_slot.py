"""A slot that somebody else looks after."""

from __future__ import annotations

import asyncio

from wstunnel.settings import UnixAddress
from wstunnel.supervise.slot import Slot


def test_a_backend_that_is_not_ours_is_always_there_and_never_dies():
    slot = Slot("unix:/run/x", UnixAddress("/run/x"))

    assert (slot.name, slot.address, slot.load) == ("unix:/run/x", UnixAddress("/run/x"), 0)
    assert (slot.state, slot.pid, slot.restarts, slot.deaths) == ("running", None, 0, 0)
    assert not slot.is_ending_since(0)
    assert asyncio.run(slot.exit_status_since(0)) is None
