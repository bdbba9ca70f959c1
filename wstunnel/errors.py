"""What can go wrong, by who is at fault.

    TunnelError
    +-- PeerError        the client broke a rule; carries the HTTP status or close code it gets
    |   +-- LimitError   the client went past a bound in Limits
    +-- BackendError     the backend is missing, refuses, or broke
    +-- CutAnswerError   the backend broke in the middle of an answer that the client has the beginning of
    +-- ConfigError      what the operator wrote cannot be used (exit code 2)
    +-- StartError       what the operator wrote cannot be had on this machine now (exit code 1)

Texts are one sentence an operator can act on. A peer's bytes enter a text only through `safe()`.
"""

from __future__ import annotations

import codecs

from wstunnel.limits import LogLimits

__all__ = [
    "BackendError",
    "ConfigError",
    "CutAnswerError",
    "LimitError",
    "PeerError",
    "StartError",
    "TunnelError",
    "safe",
]

# Looked up now: Python loads a codec from a file at its first use, for which there may be no descriptor left then.
_escape = codecs.getencoder("unicode_escape")


def safe(raw: bytes | str, limit_chars: int = LogLimits().safe_chars) -> str:
    """A peer's bytes as printable ASCII of at most `limit_chars`, cut with `...`; never a control character.

    in      bytes are read as latin-1, so that every byte shows
    source  robustness goal 24: control bytes escaped always (h2o 40error-log-escape.t)
    """
    text = raw.decode("latin-1") if isinstance(raw, bytes) else raw
    cut = text[: limit_chars + 1]
    shown = _escape(cut)[0].decode("ascii").replace('"', '\\"')
    if len(shown) <= limit_chars and len(text) <= limit_chars:
        return shown
    return shown[: limit_chars - 3] + "..."


class TunnelError(Exception):
    """The root: everything that wstunnel raises on purpose."""


class PeerError(TunnelError):
    """The client broke a rule. `status` answers it before the 101, `close_code` after."""

    def __init__(
        self,
        text: str,
        *,
        status: int = 400,
        close_code: int = 1002,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(text)
        self.status, self.close_code, self.headers = status, close_code, headers


class LimitError(PeerError):
    """A peer went past a bound in Limits. Carries the bound, so the log line explains itself."""

    def __init__(self, bound: str, allowed: int, seen: int, *, close_code: int, status: int) -> None:
        super().__init__(f"{bound}: {seen} is over the limit of {allowed}", status=status, close_code=close_code)
        self.bound, self.allowed, self.seen = bound, allowed, seen


class BackendError(TunnelError):
    """No backend could be had. `status` is what the client gets: 502, 503 or 504."""

    def __init__(self, text: str, *, status: int = 503) -> None:
        super().__init__(text)
        self.status = status


class CutAnswerError(TunnelError):
    """An answer broke off behind its head. No status can be said any more: the client's connection must end."""


class ConfigError(TunnelError):
    """One or more settings cannot be used. `problems` holds them all, each with its place."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class StartError(TunnelError):
    """The settings are sound, but an address, socket or program cannot be had here and now."""
