"""How many connections the descriptor limit carries."""

from __future__ import annotations

import resource

from wstunnel.errors import StartError
from wstunnel.limits import AcceptLimits

__all__ = ["connection_budget"]


def connection_budget(wanted: int | None, limits: AcceptLimits) -> int:
    """How many connections the descriptor limit carries, or `wanted`, for which the soft limit is raised.

    raises  StartError when the hard limit does not carry `wanted`
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted is None:
        return max(1, (soft - limits.reserved_fds) // limits.fds_per_connection)
    needed = wanted * limits.fds_per_connection + limits.reserved_fds
    if needed > soft:
        if hard != resource.RLIM_INFINITY and needed > hard:
            most = (hard - limits.reserved_fds) // limits.fds_per_connection
            raise StartError(
                f"max-connections = {wanted} needs {needed} descriptors and the limit is {hard}: raise it "
                f"(ulimit -Hn, LimitNOFILE)" + (f" or set max-connections to {most}" if most > 0 else "")
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    return wanted
