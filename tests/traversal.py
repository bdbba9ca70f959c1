"""What attackers send to read beside a document root."""

from __future__ import annotations

import itertools

__all__ = ["traversals"]


def traversals() -> list[str]:
    """Request targets, as an attacker would send them, that lead to a secret if any step is careless.

    The secret is `secret.txt` and `www-secret/secret.txt` beside the root; the root holds `sub/deep/`, hidden files,
    and links that lead out: `link.txt`, `relative.txt`, `out`, `sub/up`, `sub/hop`, `slash` and `proc`.
    """
    dots = [
        "..", ".%2e", "%2e.", "%2e%2e", "%2E%2E", "%252e%252e", "%25252e%25252e", "..;", "..%00", "..%20", "...",
        "....", "%c0%ae%c0%ae", "%e0%80%ae%e0%80%ae", "%uff0e%uff0e", "\uff0e\uff0e", "\u2024\u2024", "\u2025", "..%0a",
        "%2e%2e%2e",
    ]  # fmt: skip
    slashes = [
        "/", "%2f", "%2F", "%252f", "\\", "%5c", "%255c", "//", "/./", "/%2e/", "%c0%af", "%e0%80%af", "\uff0f",
        "\u2215", "/\\", "%00/", "/;/", "%2f%2f",
    ]  # fmt: skip
    tails = ["secret.txt", "www-secret{}secret.txt"]
    found = []
    for dot, slash, tail in itertools.product(dots, slashes, tails):
        inner = tail.replace("{}", slash)
        found += [
            f"/{dot}{slash}{inner}",
            f"/sub{slash}{dot}{slash}{dot}{slash}{inner}",
            f"/sub/deep/{(dot + slash) * 3}{inner}",
            f"{dot}{slash}{inner}",
        ]
    links = ["link.txt", "relative.txt", "out", "sub/up", "sub/hop", "slash", "proc"]
    for link, slash in itertools.product(links, slashes):
        found += [
            f"/{link}",
            f"/{link}{slash}secret.txt",
            f"/{link}{slash}",
            f"/{link}{slash}www-secret{slash}secret.txt",
        ]
        found += [f"/{link.replace('/', slash)}", f"/sub/../{link}{slash}secret.txt"]
    hidden = [
        "/.env",
        "/%2eenv",
        "/.git/config",
        "/sub/../.env",
        "/.%67it/config",
        "//.env",
        "/./.env",
        "/.env/",
        "/.env%00.txt",
    ]
    whole = ["//etc/passwd", "/slash/etc/passwd", "/proc/self/root/etc/passwd", "file:///etc/passwd", "/%2fetc/passwd"]
    return list(dict.fromkeys([*found, *hidden, *whole]))
