"""What follows from one condition for another, and that requests are cut into parts without gaps and overlaps."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wstunnel.config.lighttpd.conditions import Claim, as_condition, decided, negated, split
from wstunnel.settings import Condition


def holds(claim: Claim | Condition, request: dict[str, str]) -> bool:
    """As `Condition` says that conditions are asked."""
    text = request[claim.field]
    if claim.field == "host" and ":" not in claim.value:
        text = text.partition(":")[0]
    if claim.field == "socket" and claim.value.startswith(":"):
        text = f":{text.rpartition(':')[2]}"
    is_so = {
        "==": text == claim.value,
        "!=": text != claim.value,
        "=^": text.startswith(claim.value),
        "=$": text.endswith(claim.value),
        "=~": claim.operator == "=~" and re.search(claim.value, text) is not None,
        "!~": claim.operator == "!~" and re.search(claim.value, text) is None,
    }[claim.operator]
    return is_so == claim.holds if isinstance(claim, Claim) else is_so


@pytest.mark.parametrize(
    ("known", "asked", "answer"),
    [
        (Claim("url", "==", "/a"), Claim("url", "==", "/a"), True),
        (Claim("url", "==", "/a"), Claim("url", "==", "/b"), False),
        (Claim("url", "==", "/a"), Claim("url", "==", "/b", holds=False), True),
        (Claim("url", "==", "/ab"), Claim("url", "=^", "/a"), True),
        (Claim("url", "==", "/ab"), Claim("url", "=$", "/a"), False),
        (Claim("url", "==", "/ab"), Claim("url", "=~", "a"), None),
        (Claim("url", "==", "/a"), Claim("host", "==", "/a"), None),
        (Claim("url", "==", "/a", holds=False), Claim("url", "==", "/b"), None),
        (Claim("url", "=^", "/a/"), Claim("url", "=^", "/a"), True),
        (Claim("url", "=^", "/a"), Claim("url", "=^", "/a/"), None),
        (Claim("url", "=^", "/a"), Claim("url", "=^", "/b"), False),
        (Claim("url", "=^", "/a"), Claim("url", "==", "/b"), False),
        (Claim("url", "=^", "/a"), Claim("url", "==", "/ab"), None),
        (Claim("url", "=^", "/a", holds=False), Claim("url", "=^", "/ab"), False),
        (Claim("url", "=^", "/a", holds=False), Claim("url", "==", "/ab"), False),
        (Claim("url", "=^", "/a", holds=False), Claim("url", "=^", "/"), None),
        (Claim("url", "=^", "/a"), Claim("url", "=$", "a"), None),
        (Claim("url", "=~", "a+"), Claim("url", "=~", "a+", holds=False), False),
        (Claim("host", "==", "a"), Claim("host", "==", "a:80"), None),
        (Claim("host", "==", "a"), Claim("host", "==", "b"), False),
        (Claim("socket", "==", ":80"), Claim("socket", "==", "127.0.0.1:80"), None),
        (Claim("socket", "==", ":80"), Claim("socket", "==", "127.0.0.1:81"), False),
        (Claim("socket", "==", "127.0.0.1:80"), Claim("socket", "==", "[::1]:80"), False),
    ],
)
def test_an_answer_follows_from_another(known, asked, answer):
    assert decided(known, asked) is answer
    assert decided(known, negated(asked)) is (None if answer is None else not answer)


VALUES = {
    "url": st.sampled_from(["", "/", "/a", "/a/", "/a/b", "/ab", "/b", "b", "a/b", "/a.b"]),
    "host": st.sampled_from(["", "a", "b", "a.b", "b.a", "a:80", "a:81", ".b"]),
    "socket": st.sampled_from([":80", ":81", "127.0.0.1:80", "127.0.0.1:81", "0.0.0.0:80"]),
}
CLAIMS = st.sampled_from(["url", "host", "socket"]).flatmap(
    lambda field: st.builds(
        Claim,
        st.just(field),
        st.sampled_from(["=="] if field == "socket" else ["==", "=^", "=$", "=~"]),
        VALUES[field],
        st.booleans(),
    )
)
REQUESTS = st.fixed_dictionaries(
    {
        "url": VALUES["url"].filter(lambda url: url.startswith("/")),
        "host": VALUES["host"],
        "socket": VALUES["socket"].filter(lambda socket: not socket.startswith(":")),
    }
)


@given(CLAIMS, CLAIMS, REQUESTS)
def test_what_is_decided_is_so(known, asked, request_):
    if holds(known, request_):
        assert decided(known, asked) in {None, holds(asked, request_)}


@given(CLAIMS, REQUESTS)
def test_a_claim_is_a_condition(claim, request_):
    assert holds(as_condition(claim), request_) is holds(claim, request_)


@given(st.lists(st.lists(CLAIMS, min_size=1, max_size=3).map(tuple), max_size=4), REQUESTS)
def test_every_request_is_in_one_cell_with_the_blocks_that_hold_for_it(blocks, request_):
    cells = split(list(enumerate(blocks)), 10_000)

    assert cells is not None
    (cell,) = [cell for cell in cells if all(holds(claim, request_) for claim in cell.claims)]
    assert cell.blocks == tuple(
        number for number, when in enumerate(blocks) if all(holds(claim, request_) for claim in when)
    )


def test_blocks_that_exclude_each_other_make_one_cell_each():
    blocks = [(number, (Claim("host", "==", f"host{number}"),)) for number in range(100)]
    cells = split(blocks, 101)

    assert cells is not None
    assert len(cells) == 101
    assert [cell.blocks for cell in cells if len(cell.claims) == 1] == [(number,) for number in range(100)]


def test_cells_are_bounded():
    assert split([(number, (Claim("url", "=~", str(number)),)) for number in range(30)], 256) is None
