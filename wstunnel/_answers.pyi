"""The typed face of the scanner of answers; see _answers.pyx."""

__all__ = ["read_plain_answer"]

def read_plain_answer(data: bytes, max_bytes: int, max_fields: int) -> tuple[int, bytes, int, bool, int] | None:
    """Status, the fields that are for the client, length of the body, may the connection be used again, and where the
    head ends; None: ask a ResponseReader."""
