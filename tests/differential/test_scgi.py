"""Our SCGI requests, read by sioscgi, which knows nothing of us."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sioscgi.request import Body, End, Headers, SCGIReader

from tests.differential.frames import PATIENT, pieces
from wstunnel.proto.scgi import encode_request

names = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12)
values = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=40)


@PATIENT
@given(st.dictionaries(names, values, max_size=6), st.binary(max_size=50), st.lists(st.integers(0, 300), max_size=6))
def test_sioscgi_reads_what_we_write(variables, body, cuts):
    variables = {name: value for name, value in variables.items() if name not in {"SCGI", "CONTENT_LENGTH"}}
    if body:
        variables["CONTENT_LENGTH"] = str(len(body))
    reader = SCGIReader()
    told, heard, ends = {}, b"", 0

    for piece in pieces(encode_request(variables) + body, cuts):
        if piece:
            reader.receive_data(piece)
        while (event := reader.next_event()) is not None:
            match event:
                case Headers():
                    told = event.environment
                case Body():
                    heard += event.data
                case End():
                    ends += 1

    expected = {"SCGI": "1", "CONTENT_LENGTH": "0"} | variables
    assert told == {name: value.encode() for name, value in expected.items()}
    assert (heard, ends) == (body, 1)
