"""Builds the compiled core. WSTUNNEL_BUILD chooses the flags: release (default), debug, asan."""

from __future__ import annotations

import os

from Cython.Build import cythonize
from setuptools import Extension, setup

_FLAGS: dict[str, tuple[list[str], list[str]]] = {
    "release": (["-O3", "-g1", "-fno-strict-aliasing"], []),
    "debug": (["-O0", "-g3"], []),
    "asan": (
        ["-O1", "-g3", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"],
        ["-fsanitize=address,undefined"],
    ),
}

_build = os.environ.get("WSTUNNEL_BUILD", "release")
if _build not in _FLAGS:
    raise SystemExit(f"WSTUNNEL_BUILD={_build}: take one of {', '.join(_FLAGS)}")
_compile, _link = _FLAGS[_build]

setup(
    ext_modules=cythonize(
        [
            Extension(
                f"wstunnel.{name}",
                [f"wstunnel/{name}.pyx"],
                extra_compile_args=["-std=c11", "-Wall", "-Wextra", "-Wno-unused-parameter", *_compile],
                extra_link_args=_link,
            )
            for name in (
                "_wheel",
                "_slots",
                "_sockets",
                "_speedups",
                "_heads",
                "_answers",
                "_tls",
                "_hub",
                "_handshake",
                "_relay",
                "_h2",
            )
            if os.path.exists(f"wstunnel/{name}.pyx")
        ],
        compiler_directives={"warn.unused": True},
    )
)
