"""Which options mean something beside which others: what does not is neither taken nor shown."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from wstunnel.settings import Host

__all__ = ["HOST_FIELDS", "unfit"]

HOST_FIELDS = frozenset(each.name for each in dataclasses.fields(Host))

_OF_PROGRAMS = ("bin_environment", "bin_copy_environment", "kill_signal")
_OF_POOLS = ("max_procs", "min_procs", "idle_timeout_s", "listen_backlog")
_OF_CONNECTING = ("socket", "host", "port", "bin_path", *_OF_POOLS, "max_load_per_proc", "max_load_policy")

_NO_PROGRAM = "needs a bin-path: it is about programs that are spawned here"
_NO_STDIO = "needs a stdio"
_STDIO = "cannot stand beside stdio, which starts a program for each tunnel and connects to none"
_NO_LIMIT = "needs a bin-path, or a max-load-policy of queue or refuse"


def unfit(has: Callable[[str], bool], *, is_shared: bool) -> dict[str, str]:
    """Fields that mean nothing in this route or host, with the reason of each.

    in      has         whether a field is set
            is_shared   max-load-policy is share
    """
    if has("stdio"):
        return dict.fromkeys((*_OF_CONNECTING, "disable_time_s", "balance"), _STDIO)
    fields = {"max_forks": _NO_STDIO}
    if not has("bin_path"):
        fields |= dict.fromkeys((*_OF_POOLS, *_OF_PROGRAMS), _NO_PROGRAM)
        if is_shared:
            fields["max_load_per_proc"] = _NO_LIMIT
    return fields
