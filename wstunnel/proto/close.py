"""Why a WebSocket ended, in numbers for the wire and in words for the operator."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CloseCode", "describe"]


class CloseCode(IntEnum):
    """The close codes that we send or that peers send us (RFC 6455 §7.4, IANA WebSocket registry)."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    """Never on the wire: a CLOSE without a code."""
    ABNORMAL = 1006
    """Never on the wire: no CLOSE at all."""
    BAD_PAYLOAD = 1007
    POLICY = 1008
    TOO_BIG = 1009
    MISSING_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN = 1013
    BAD_GATEWAY = 1014


_WORDS = {
    CloseCode.NORMAL: "ended as it should",
    CloseCode.GOING_AWAY: "one side is going away",
    CloseCode.PROTOCOL_ERROR: "the WebSocket protocol was broken",
    CloseCode.UNSUPPORTED_DATA: "a kind of data that is not taken",
    CloseCode.NO_STATUS: "closed without a code",
    CloseCode.ABNORMAL: "the connection broke without a CLOSE",
    CloseCode.BAD_PAYLOAD: "text that is not UTF-8",
    CloseCode.POLICY: "against a policy",
    CloseCode.TOO_BIG: "over a limit",
    CloseCode.MISSING_EXTENSION: "an extension that the client needs is missing",
    CloseCode.INTERNAL_ERROR: "the backend or the server failed",
    CloseCode.SERVICE_RESTART: "the service restarts",
    CloseCode.TRY_AGAIN: "overloaded, to be tried again later",
    CloseCode.BAD_GATEWAY: "no good answer from the backend",
}
_REGISTERED = range(3000, 4000)
_PRIVATE = range(4000, 5000)


def describe(code: int) -> str:
    """A close code in the operator's words, for a log line; any integer is described."""
    if code in _REGISTERED:
        return "a code registered by a library or framework"
    if code in _PRIVATE:
        return "a code private to the application"
    if code in _WORDS:
        return _WORDS[CloseCode(code)]
    return "not a code that may be sent"
