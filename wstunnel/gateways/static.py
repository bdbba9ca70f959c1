"""Files under one folder, for plain GET and HEAD.

Nothing outside the folder is reached (`wstunnel.folders`), and what is not a regular file is not there. Every refusal
that depends on the disk is the same 404, so that an answer tells nothing about what lies beside the files. There is no
directory listing: a folder without `index.html` is a 404 too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from http import HTTPStatus
from types import MappingProxyType
from urllib.parse import quote

from wstunnel._hub import Hub
from wstunnel.errors import TunnelError
from wstunnel.folders import below, check_folder, names_of, open_file
from wstunnel.limits import FileLimits
from wstunnel.net.exchange import Exchange
from wstunnel.proto.request import Headers, Request

__all__ = ["ShortFileError", "StaticGateway"]

_BUSY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_BROKEN = frozenset({errno.EIO, errno.ESTALE, errno.ETIMEDOUT})

# Not the standard library's `mimetypes`: its table changes with Python's version and with the machine's /etc.
_OTHER_TYPE = "application/octet-stream"
_TYPES = MappingProxyType(
    {
        ".aac": "audio/aac",
        ".apng": "image/apng",
        ".avif": "image/avif",
        ".bmp": "image/bmp",
        ".css": "text/css",
        ".csv": "text/csv",
        ".flac": "audio/flac",
        ".gif": "image/gif",
        ".gz": "application/gzip",
        ".htm": "text/html",
        ".html": "text/html",
        ".ico": "image/vnd.microsoft.icon",
        ".ics": "text/calendar",
        ".jpeg": "image/jpeg",
        ".jpg": "image/jpeg",
        ".js": "text/javascript",
        ".json": "application/json",
        ".jsonld": "application/ld+json",
        ".log": "text/plain",
        ".m4a": "audio/mp4",
        ".map": "application/json",
        ".md": "text/markdown",
        ".mjs": "text/javascript",
        ".mp3": "audio/mpeg",
        ".mp4": "video/mp4",
        ".oga": "audio/ogg",
        ".ogg": "audio/ogg",
        ".ogv": "video/ogg",
        ".opus": "audio/ogg",
        ".otf": "font/otf",
        ".pdf": "application/pdf",
        ".png": "image/png",
        ".svg": "image/svg+xml",
        ".tar": "application/x-tar",
        ".ttf": "font/ttf",
        ".txt": "text/plain",
        ".wasm": "application/wasm",
        ".wav": "audio/wav",
        ".webm": "video/webm",
        ".webmanifest": "application/manifest+json",
        ".webp": "image/webp",
        ".woff": "font/woff",
        ".woff2": "font/woff2",
        ".xhtml": "application/xhtml+xml",
        ".xml": "text/xml",
        ".zip": "application/zip",
    }
)

_ENTITY_TAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_HTTP_DATE = re.compile(r"[A-Z][a-z]{2}, [0-9]{2} [A-Z][a-z]{2} [1-9][0-9]{3} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT")
# Nineteen digits hold every file offset; a longer number is a Range that we do not know, and so ignore.
_ONE_RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,19})-([0-9]{0,19})[ \t]*", re.IGNORECASE)


class ShortFileError(TunnelError):
    """A file ended before the length that was announced for it: the connection cannot go on."""


@dataclass(frozen=True, slots=True)
class _File:
    """An open regular file and what its answer says about it; the owner closes `fd`."""

    fd: int
    size_bytes: int
    etag: str
    modified_s: int
    type: str

    @property
    def last_modified(self) -> str:
        return formatdate(self.modified_s, usegmt=True)


class StaticGateway:
    """Answers plain requests from the files under `root`.

    in      root         a folder; it may be a symbolic link itself and is opened anew for each request, so that a
                         deployment that swaps the link is seen at once
            prefix       the part of the URL path in whose place it stands
            index_names  files that stand for their folder, the first that is there
            types        by the end of a file's name, before those that are known anyway; "" is for all others
    raises  StartError if there is no such folder now
    bound   one open file and one chunk of `limits.chunk_bytes` per request under way
    """

    __slots__ = ("_index_names", "_limits", "_prefix", "_root", "_types")

    def __init__(
        self,
        root: str,
        limits: FileLimits,
        *,
        prefix: str = "/",
        index_names: Sequence[str] = ("index.html",),
        types: Sequence[tuple[str, str]] = (),
    ) -> None:
        check_folder(root, option="document-root")
        self._root, self._limits, self._prefix = root, limits, prefix
        self._index_names = [os.fsencode(name) for name in index_names]
        self._types = [(os.fsencode(suffix), type_) for suffix, type_ in types]

    def open(self, hub: Hub) -> None:
        """Nothing: files are no backends."""

    def close(self) -> None:
        """Nothing is kept."""

    def finds(self, request: Request) -> bool:
        """Any request that is no handshake; what is not there is a 404."""
        return not request.wants_websocket

    async def serve(self, exchange: Exchange) -> None:
        """Send one whole answer.

        raises  ShortFileError when a file shrinks or breaks while it is sent: the promised bytes cannot
                come any more, so the caller must close the connection; and what `exchange` raises
        source  RFC 9110 §8.8, §13, §14
        """
        request = exchange.request
        if request.method not in ("GET", "HEAD"):
            await _refuse(exchange, HTTPStatus.METHOD_NOT_ALLOWED, (("Allow", "GET, HEAD"),))
            return
        path = below(request.path, self._prefix)
        names = None if path is None else names_of(path)
        if names is None:
            await _refuse(exchange, HTTPStatus.NOT_FOUND)
            return
        try:
            file = self._open(names) if names[-1] else self._open_index(names[:-1])
        except IsADirectoryError:
            await _refuse(exchange, HTTPStatus.MOVED_PERMANENTLY, (("Location", _with_slash(request)),))
            return
        except OSError as error:
            await _refuse(exchange, _status_of(error))
            return
        try:
            await self._send(exchange, file)
        finally:
            os.close(file.fd)

    def _open_index(self, folder: list[bytes]) -> _File:
        """The first file that stands for a folder. raises OSError when there is none, or another reason not to go on"""
        missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        for name in self._index_names:
            try:
                return self._open([*folder, name])
            except FileNotFoundError as error:
                missing = error
        raise missing

    def _open(self, names: list[bytes]) -> _File:
        """The file at the end of `names`; IsADirectoryError for a folder, OSError for all else that is no file."""
        fd = open_file(self._root, names)
        try:
            found = os.fstat(fd)
            if stat.S_ISDIR(found.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(found.st_mode):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        except OSError:
            os.close(fd)
            raise
        # A time still to come is not sent (RFC 9110 §8.8.2.1); one before 1970 has no use.
        modified_s = min(max(int(found.st_mtime), 0), int(time.time()))
        etag = f'"{found.st_ino:x}-{found.st_size:x}-{found.st_mtime_ns:x}"'
        return _File(fd, found.st_size, etag, modified_s, self._type_of(names[-1]))

    def _type_of(self, name: bytes) -> str:
        for suffix, type_ in self._types:
            if suffix and name.endswith(suffix):
                return type_
        found = _TYPES.get(os.path.splitext(name)[1].decode("latin-1").lower())
        if found is None:
            return dict(self._types).get(b"", _OTHER_TYPE)
        return f"{found}; charset=utf-8" if found.startswith("text/") else found

    async def _send(self, exchange: Exchange, file: _File) -> None:
        request = exchange.request
        validators = (("ETag", file.etag), ("Last-Modified", file.last_modified))
        refused = _precondition(request, file)
        if refused is HTTPStatus.NOT_MODIFIED:
            await exchange.respond(refused, validators)
            return
        if refused is not None:
            await _refuse(exchange, refused)
            return
        headers: Headers = (
            ("Content-Type", file.type),
            *validators,
            ("Accept-Ranges", "bytes"),
            ("X-Content-Type-Options", "nosniff"),
        )
        part = _range(request, file)
        if part is None:
            status, part = HTTPStatus.OK, range(file.size_bytes)
        elif not part:
            await _refuse(
                exchange,
                HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
                (("Content-Range", f"bytes */{file.size_bytes}"),),
            )
            return
        else:
            status = HTTPStatus.PARTIAL_CONTENT
            headers += (("Content-Range", f"bytes {part.start}-{part.stop - 1}/{file.size_bytes}"),)
        await exchange.start(status, headers, len(part))
        if request.method == "GET":
            await self._copy(exchange, file, part)

    async def _copy(self, exchange: Exchange, file: _File, part: range) -> None:
        position = part.start
        while position < part.stop:
            try:
                chunk = os.pread(file.fd, min(self._limits.chunk_bytes, part.stop - position), position)
            except OSError as error:
                raise ShortFileError(f"reading a file failed at byte {position}: {error.strerror}") from error
            if not chunk:
                raise ShortFileError(f"a file of {file.size_bytes} bytes ended at byte {position} while it was sent")
            await exchange.write(chunk)
            position += len(chunk)


async def _refuse(exchange: Exchange, status: HTTPStatus, headers: Headers = ()) -> None:
    text = (("Content-Type", "text/plain; charset=utf-8"), ("X-Content-Type-Options", "nosniff"))
    await exchange.respond(status, (*headers, *text), f"{status.value} {status.phrase}\n".encode())


def _status_of(error: OSError) -> HTTPStatus:
    if error.errno in _BUSY:
        return HTTPStatus.SERVICE_UNAVAILABLE
    if error.errno in _BROKEN:
        return HTTPStatus.INTERNAL_SERVER_ERROR
    return HTTPStatus.NOT_FOUND


def _with_slash(request: Request) -> str:
    """Where a folder's page is: always a path of this host, because no empty first name leads anywhere."""
    path = quote(request.path.encode("utf-8", "surrogateescape")) + "/"
    query = quote(request.query.encode("latin-1", "replace"), safe=string.punctuation)
    return f"{path}?{query}" if query else path


def _precondition(request: Request, file: _File) -> HTTPStatus | None:
    """The status that a failed precondition answers with, or None: go on (RFC 9110 §13.2.2)."""
    if request.all("if-match"):
        if not _lists(request, "if-match", file.etag, weakly=False):
            return HTTPStatus.PRECONDITION_FAILED
    else:
        unmodified_s = _seconds(request.first("if-unmodified-since"))
        if unmodified_s is not None and file.modified_s > unmodified_s:
            return HTTPStatus.PRECONDITION_FAILED
    if request.all("if-none-match"):
        if _lists(request, "if-none-match", file.etag, weakly=True):
            return HTTPStatus.NOT_MODIFIED
    else:
        since_s = _seconds(request.first("if-modified-since"))
        if since_s is not None and file.modified_s <= since_s:
            return HTTPStatus.NOT_MODIFIED
    return None


def _lists(request: Request, name: str, etag: str, *, weakly: bool) -> bool:
    """Does the field hold `*` or our (strong) tag? Weakly, `W/` before theirs does not matter."""
    listed = ",".join(request.all(name))
    if listed.strip(" \t") == "*":
        return True
    return any((tag.removeprefix("W/") if weakly else tag) == etag for tag in _ENTITY_TAG.findall(listed))


def _seconds(date: str | None) -> int | None:
    """An HTTP date in the one form that is still sent; None for all else, which then has no effect."""
    if date is None or not _HTTP_DATE.fullmatch(date):
        return None
    try:
        return int(parsedate_to_datetime(date).timestamp())
    except ValueError:
        return None


def _range(request: Request, file: _File) -> range | None:
    """The bytes asked for: None for the whole file, an empty range where none of them exists.

    Several ranges at once, and what does not read as a range, get the whole file, as RFC 9110 §14.2 allows.
    """
    fields = request.all("range")
    if request.method != "GET" or len(fields) != 1 or not _range_still_fits(request, file):
        return None
    match = _ONE_RANGE.fullmatch(fields[0])
    if match is None:
        return None
    first, last = match.groups()
    if not first:
        return range(max(file.size_bytes - int(last), 0), file.size_bytes) if last else None
    if last and int(last) < int(first):
        return None
    return range(int(first), min(int(last) + 1, file.size_bytes) if last else file.size_bytes)


def _range_still_fits(request: Request, file: _File) -> bool:
    """If-Range: only the very file that the client has a part of; a date says so once its second is over."""
    condition = request.first("if-range")
    if condition is None or condition == file.etag:
        return True
    return condition == file.last_modified and file.modified_s < int(time.time())
