"""The typed face of TLS; see _tls.pyx."""

import ssl

from typing_extensions import disjoint_base

__all__ = ["Tls"]

@disjoint_base
class Tls:
    def __init__(self, context: ssl.SSLContext) -> None: ...
