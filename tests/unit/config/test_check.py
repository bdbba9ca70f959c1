"""Effective settings are a wstunnel.toml that says the same."""

from __future__ import annotations

import os
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from wstunnel.config.check import as_toml
from wstunnel.config.toml import load
from wstunnel.settings import Route, Settings, TcpAddress, UnixAddress

NAMES = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/?#%"), min_size=1, max_size=8
).filter(lambda name: name.strip() and name not in {".", ".."})
PATHS = st.lists(NAMES, min_size=1, max_size=2).map(lambda names: "/" + "/".join(names))
SECONDS = st.floats(0.001, 1e7)
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


def routes(number: int) -> st.SearchStrategy[Route]:
    """Any route; the number keeps its backend apart from those of the others."""
    where = st.one_of(
        st.builds(lambda name: {"socket": f"/run/{number}{name}"}, NAMES),
        st.builds(
            lambda host: {"host": host, "port": 1000 + 10 * number}, st.sampled_from(["127.0.0.1", "::1", "a.b"])
        ),
    )
    program = st.one_of(
        st.just({}),
        st.builds(
            lambda words, procs: {"bin_path": ("/bin/sh", *words), "max_procs": procs},
            st.lists(WORDS),
            st.integers(1, 9),
        ),
    )
    found = st.one_of(
        st.builds(lambda path: {"path": path}, PATHS), st.builds(lambda suffix: {"path": None, "suffix": suffix}, NAMES)
    )
    rest = st.fixed_dictionaries(
        {
            "frame_type": st.sampled_from(["text", "binary"]),
            "origins": st.sampled_from([None, ("*",), ("https://a.example:8443", "*.b.example")]),
            "subprotocols": st.sampled_from([(), ("binary",), ("chat.v2", "binary")]),
            "ping_interval_s": SECONDS,
            "ping_timeout_s": SECONDS,
            "max_read_idle_s": st.just(0.0),
            "max_write_idle_s": SECONDS,
            "close_timeout_s": SECONDS,
            "connect_timeout_s": SECONDS,
        }
    )
    return st.builds(
        lambda *parts: Route(**{k: v for part in parts for k, v in part.items()}), where, program, found, rest
    )


SETTINGS = st.builds(
    Settings,
    listen=st.lists(
        st.one_of(
            st.builds(TcpAddress, st.sampled_from(["0.0.0.0", "::1", "localhost"]), st.integers(1, 999)),
            st.builds(UnixAddress, PATHS.map(lambda path: "/l" + path)),
        ),
        min_size=1,
        max_size=3,
        unique=True,
    ).map(tuple),
    document_root=st.sampled_from([None, "/", "/usr"]),
    max_connections=st.none() | st.integers(1, 10_000_000),
    log_level=st.sampled_from(["debug", "info", "warning", "error"]),
    log_format=st.sampled_from(["text", "json"]),
    routes=st.tuples(*map(routes, range(1, 3))),
)


@settings(deadline=None)
@given(SETTINGS)
def test_any_settings_are_printed_as_a_file_that_loads_to_the_same(any_settings):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "wstunnel.toml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(as_toml(any_settings))
        assert load(path) == any_settings


def test_every_value_is_said_and_what_is_unset_is_explained():
    text = as_toml(Settings(routes=(Route(host="127.0.0.1", port=7),)))
    assert text == (
        'listen = ["127.0.0.1:8081"]\n'
        "# max-connections: what the descriptor limit carries\n"
        'log-level = "info"\n'
        'log-format = "text"\n'
        "\n"
        "[[route]]\n"
        'path = "/"\n'
        'gateway = "tunnel"\n'
        'host = "127.0.0.1"\n'
        "port = 7\n"
        "max-procs = 1\n"
        'frame-type = "text"\n'
        "# origins: the same origin as the Host\n"
        'subprotocols = ["binary"]\n'
        "ping-interval = 20\n"
        "ping-timeout = 20\n"
        "max-read-idle = 0\n"
        "max-write-idle = 360\n"
        "close-timeout = 5\n"
        "connect-timeout = 8\n"
    )
