"""SCGI requests: one netstring, in which nothing can pass for something else."""

from __future__ import annotations

import pytest

from wstunnel.proto.scgi import encode_request


def test_the_length_comes_first_and_the_body_is_not_part_of_it():
    assert encode_request({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": "27"}) == (
        b"45:CONTENT_LENGTH\x0027\0SCGI\x001\0REQUEST_METHOD\0POST\0,"
    )


def test_without_a_body_its_length_is_0():
    assert encode_request({}) == b"24:CONTENT_LENGTH\x000\0SCGI\x001\0,"


def test_values_keep_the_bytes_that_the_client_sent():
    assert b"\0caf\xc3\xa9 \xff\0" in encode_request({"PATH_INFO": "caf\u00e9 \udcff"})


@pytest.mark.parametrize("pair", [("", "x"), ("A\0B", "x"), ("A", "x\0HTTPS"), ("A", "\0")])
def test_what_would_make_other_variables_is_a_mistake_of_ours(pair):
    with pytest.raises(ValueError, match="cannot be sent"):
        encode_request(dict([pair]))
