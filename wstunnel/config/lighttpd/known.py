"""Which options of a lighttpd.conf mean something here, and what is said about the others."""

from __future__ import annotations

__all__ = [
    "FEATURES_LEFT",
    "GATEWAY_MODULES",
    "HOST_OPTIONS_LEFT",
    "MODULES",
    "MODULE_OF",
    "OPTIONS",
    "SERVER_OPTIONS",
    "left",
]

GATEWAY_MODULES = {
    "mod_wstunnel": "wstunnel",
    "mod_proxy": "proxy",
    "mod_cgi": "cgi",
    "mod_scgi": "scgi",
    "mod_fastcgi": "fastcgi",
}
"""Modules that answer requests, and how their options begin."""

_TLS_MODULES = ("mod_openssl", "mod_gnutls", "mod_mbedtls", "mod_nss", "mod_wolfssl")
MODULES = frozenset((*GATEWAY_MODULES, "mod_alias", "mod_indexfile", "mod_staticfile", "mod_accesslog", *_TLS_MODULES))
"""Modules whose work is done here."""

MODULE_OF = {prefix: module for module, prefix in GATEWAY_MODULES.items()} | {
    "alias": "mod_alias",
    "accesslog": "mod_accesslog",
}
"""The module without which lighttpd ignores an option, by the beginning of its name; others need none."""

SERVER_OPTIONS = frozenset(
    (
        "server.bind",
        "server.errorlog",
        "server.feature-flags",
        "server.groupname",
        "server.max-connections",
        "server.max-worker",
        "server.modules",
        "server.port",
        "server.use-ipv6",
        "server.username",
    )
)
"""What holds for the whole server, and stands outside of conditions."""

_GATEWAY_OPTIONS = frozenset(
    f"{prefix}.{name}"
    for prefix in ("wstunnel", "proxy", "scgi", "fastcgi")
    for name in ("server", "balance", "map-extensions")
)
OPTIONS = (
    SERVER_OPTIONS
    | _GATEWAY_OPTIONS
    | {
        "alias.url",
        "cgi.assign",
        "cgi.limits",
        "cgi.upgrade",
        "index-file.names",
        "mimetype.assign",
        "proxy.forwarded",
        "proxy.header",
        "server.document-root",
        "server.max-read-idle",
        "server.max-write-idle",
        "ssl.ca-file",
        "ssl.engine",
        "ssl.openssl.ssl-conf-cmd",
        "ssl.pemfile",
        "ssl.privkey",
        "ssl.verifyclient.activate",
        "ssl.verifyclient.ca-file",
        "ssl.verifyclient.depth",
        "ssl.verifyclient.enforce",
        "ssl.verifyclient.exportcert",
        "ssl.verifyclient.username",
        "wstunnel.frame-type",
        "wstunnel.origins",
        "wstunnel.ping-interval",
    }
)
"""What is done here."""

_LEFT = {
    "accesslog.filename": "access lines go to the log, with all others; --log-format json makes them easy to tell",
    "accesslog.format": "access lines have a form of their own",
    "server.breakagelog": "what programs write to stderr goes to the log",
    "server.errorlog-use-syslog": "the log is a file or stderr; systemd takes stderr to the journal",
    "server.event-handler": "without effect: it is always epoll",
    "server.http-parseopts": "without effect: requests are always read strictly, and their paths normalized",
    "server.max-fds": "without effect: the descriptor limit of the process is used, raise that",
    "server.max-keep-alive-idle": "not done here: an idle connection is closed after 30 s",
    "server.max-keep-alive-requests": "not done here: a connection is kept for any number of requests",
    "server.network-backend": "without effect here",
    "server.pid-file": "not written; `python -m wstunnel status` finds the process, and systemd needs no such file",
    "server.stream-request-body": "without effect: request bodies are always streamed",
    "server.stream-response-body": "without effect: responses are always streamed",
    "server.tag": "not done here: answers name no server",
    "server.upload-dirs": "without effect: nothing is written to temporary files",
    "server.compat-module-load": "without effect here",
    "server.follow-symlink": "without effect: symbolic links inside the document root are never followed",
    "static-file.exclude-extensions": "not done here: a script that no gateway takes IS SERVED as a file; move it out "
    "of the document root",
    "url.access-deny": "not done here: what it denies IS SERVED if it is in the document root; move it out of there",
}
_LEFT_BEGINNINGS = {
    "auth": "not done here: EVERYBODY PASSES; put a server in front that asks for passwords",
    "dir-listing": "not done here: folders are not listed",
    "ssl": "not done here",
}

HOST_OPTIONS_LEFT = {
    "allow-x-send-file": "not done here: the response is passed on as it is",
    "broken-scriptfilename": "not done here",
    "fix-root-scriptname": "not done here",
    "strip-request-uri": "not done here",
    "x-sendfile": "not done here: the response is passed on as it is",
    "x-sendfile-docroot": "not done here",
}
"""Options of hosts that lighttpd knows and that mean nothing here."""

FEATURES_LEFT = frozenset(("server.graceful-restart-bg", "server.metrics-high-precision-timestamps"))


def left(name: str) -> str:
    """What is said about an option that is not one of OPTIONS."""
    if name.endswith(".debug"):
        return "without effect: --log-level debug shows more"
    return _LEFT.get(name) or _LEFT_BEGINNINGS.get(name.partition(".")[0]) or "not done here; it is ignored"
