"""`python -m wstunnel`."""

from __future__ import annotations

import sys

from wstunnel.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
