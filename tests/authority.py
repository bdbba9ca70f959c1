"""Certificates for tests: an authority of their own, and files as an operator has them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import trustme

__all__ = ["Authority", "Files"]


@dataclass(frozen=True)
class Files:
    """A certificate with its chain, its key, and one file with both."""

    cert: str
    key: str
    both: str

    @property
    def serial(self) -> int:
        """Of the certificate, as `SSLSocket.getpeercert` shows it."""
        decoded = ssl._ssl._test_decode_cert(self.cert)  # type: ignore[attr-defined]  # no public way
        return int(decoded["serialNumber"], 16)


class Authority:
    """Signs whatever is asked; `ca` is the file with its own certificate."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder = folder
        self._ca = trustme.CA(organization_name=f"authority {name}")
        self.ca = str(folder / f"{name}.pem")
        self._ca.cert_pem.write_to_path(self.ca)

    def files(self, name: str, *identities: str, subject: str | None = None) -> Files:
        """Files for `name`.pem, .key and .both; the keys are for nobody else. Written again, they are new ones."""
        made = self._ca.issue_cert(*(identities or ("127.0.0.1", "localhost")), common_name=subject)
        files = Files(*(str(self._folder / f"{name}.{end}") for end in ("pem", "key", "both")))
        chain = b"".join(each.bytes() for each in made.cert_chain_pems)
        for path, pem in (
            (files.cert, chain),
            (files.key, made.private_key_pem.bytes()),
            (files.both, made.private_key_pem.bytes() + chain),
        ):
            fresh = Path(f"{path}.new")
            fresh.touch(0o600)
            fresh.write_bytes(pem)
            fresh.rename(path)
        return files

    def trusting(self, presented: Files | None = None) -> ssl.SSLContext:
        """A client that trusts this authority, and presents a certificate of its own."""
        context = ssl.create_default_context(cafile=self.ca)
        if presented is not None:
            context.load_cert_chain(presented.cert, presented.key)
        return context
