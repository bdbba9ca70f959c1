"""A request for a backend that speaks SCGI. What it answers is what a CGI program answers: `cgi.ResponseHeadReader`."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["encode_request"]


def encode_request(variables: Mapping[str, str]) -> bytes:
    """The head of a request; its body, of CONTENT_LENGTH bytes, follows as it is.

    in      variables  as `cgi.variables` makes them. Without CONTENT_LENGTH there is no body, and 0 is sent: SCGI has
                       no bodies of unknown length
    raises  ValueError on an empty name or a NUL, which would make other variables of what follows
    bound   that of the variables, and a copy
    source  Protocol of SCGI 1: a netstring, CONTENT_LENGTH first, SCGI=1
    """
    told = {"CONTENT_LENGTH": "0", "SCGI": "1", **variables}
    for name, value in told.items():
        if not name or "\0" in name or "\0" in value:
            raise ValueError(f"{name!r} cannot be sent as a variable of SCGI")
    block = "".join([f"{name}\0{value}\0" for name, value in told.items()]).encode("utf-8", "surrogateescape")
    return b"%d:%b," % (len(block), block)
