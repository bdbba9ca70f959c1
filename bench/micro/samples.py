"""What the kernels are given to work on, the same for all."""

from __future__ import annotations

__all__ = ["READ_BYTES", "SCRIPTS", "text"]

READ_BYTES = 64 * 1024
_WORDS = {"ASCII": "plain words ", "Cyrillic": "Привет, мир! ", "CJK with emoji": "漢字仮名😀交じり文"}
SCRIPTS = list(_WORDS)


def text(script: str, size: int) -> bytes:
    """Whole characters of a script: `size` bytes, or up to three fewer."""
    return (_WORDS[script] * size).encode()[:size].decode(errors="ignore").encode()
