"""The certificate that all servers of the bench have: ECDSA on P-256, signed by an authority that nobody asks."""

from __future__ import annotations

import os
from dataclasses import dataclass

from bench.load.programs import MissingError

__all__ = ["Certificate", "make_certificate"]


@dataclass(frozen=True)
class Certificate:
    """Paths of PEM files."""

    chain: str
    key: str
    both: str  # the key, then the chain


def make_certificate(folder: str) -> Certificate:
    """A new one for localhost, in that folder.

    raises  MissingError without trustme
    """
    try:
        import trustme
    except ImportError:
        raise MissingError("pip install --no-deps -r requirements-dev.txt") from None
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    leaf = authority.issue_cert("localhost", "127.0.0.1", key_type=trustme.KeyType.ECDSA)
    chain = b"".join(pem.bytes() for pem in leaf.cert_chain_pems)
    key = leaf.private_key_pem.bytes()
    made = Certificate(*(os.path.join(folder, name) for name in ("chain.pem", "key.pem", "both.pem")))
    for path, pem in ((made.chain, chain), (made.key, key), (made.both, key + chain)):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(pem)
    return made
