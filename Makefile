# What a developer types; `make` alone lists it. Everything that is made stays inside this folder.
PYTHON ?= python3
VENV ?= .venv
ARGS ?=
TLS ?=

PY := $(VENV)/bin/python
READY := $(VENV)/.ready
BUILT := $(VENV)/.built
BENCH_READY := $(VENV)/.bench-ready

SOURCES := $(wildcard wstunnel/*.pyx wstunnel/*.pxd)
MODULES := $(basename $(wildcard wstunnel/*.pyx))
UNBUILT := $(strip $(foreach module,$(MODULES),$(if $(wildcard $(module).*.so),,$(module))))
CHECKED := $(wildcard wstunnel tests bench examples tools) setup.py

.DELETE_ON_ERROR:
.PHONY: help run test check bench bench-quick bench-micro chaos annotate asan clean FORCE
.PHONY: check-format check-lint check-types check-stubs check-cython check-imports

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*## */  make \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 20

run: $(BUILT)  ## an example tunnel on 127.0.0.1:8081, with a page to open, until Ctrl-C (ARGS="--log-level debug"; TLS=1)
	@exec $(PY) -m tools.run_example $(if $(TLS),--tls) $(ARGS)

test: $(BUILT)  ## all tests (ARGS="-k origin")
	$(PY) -m pytest $(ARGS)

check: $(BUILT)  ## format, lint, types, and what may import what: all of it, even if the first fails
	@$(MAKE) --no-print-directory --keep-going check-format check-lint check-types check-stubs check-cython check-imports

check-format:
	$(PY) -m ruff format --check $(CHECKED)

check-lint:
	$(PY) -m ruff check $(CHECKED)

check-types:
	$(PY) -m mypy

check-stubs:
	$(PY) -m mypy.stubtest --allowlist tools/stubtest.allow --ignore-unused-allowlist $(subst /,.,$(MODULES))

check-cython:
	PATH="$(abspath $(VENV))/bin:$$PATH" cython-lint $(SOURCES)

check-imports:
	$(VENV)/bin/lint-imports

bench: $(BUILT) $(BENCH_READY)  ## how fast it is beside others, 10 minutes (ARGS="--scenario echo"; ARGS=--help)
	@$(PY) -m bench.load $(ARGS)

bench-quick: $(BUILT) $(BENCH_READY)  ## the same in a minute
	@$(PY) -m bench.load --quick $(ARGS)

bench-micro: $(BUILT) $(BENCH_READY)  ## what a byte costs in the compiled core, beside others
	$(PY) -m pytest bench/micro --benchmark-enable $(ARGS)

chaos: $(BUILT)  ## what a service that stays up promises, tried by kill -9 and worse, 2 minutes (ARGS="--only reload")
	@$(PY) -m tools.chaos $(ARGS)

annotate: $(READY)  ## how C the compiled modules are: build/annotate/*.html
	mkdir -p build/annotate
	for module in $(notdir $(MODULES)); do \
	    $(VENV)/bin/cython --annotate -o build/annotate/$$module.c wstunnel/$$module.pyx || exit 1; \
	done
	rm -f build/annotate/*.c

# A copy, so that the modules in wstunnel/ stay what they are. Leaks are left to the tests: the interpreter itself
# does not give everything back. The sanitizer keeps SIGSEGV to itself, because it says more than faulthandler, and
# little of what was freed, because tests watch how much memory a tunnel takes.
ASAN_TREE := build/asan
ASAN_ENV = LD_PRELOAD="$$(realpath "$$(gcc -print-file-name=libasan.so)") $$(realpath "$$(gcc -print-file-name=libubsan.so)")" \
    ASAN_OPTIONS=detect_leaks=0:allow_user_segv_handler=0:quarantine_size_mb=1:thread_local_quarantine_size_kb=64 \
    UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc

asan: $(READY)  ## unit and wire tests with AddressSanitizer and UBSan in the compiled modules
	rm -rf $(ASAN_TREE)
	mkdir -p $(ASAN_TREE)
	cp -R wstunnel tests examples setup.py pyproject.toml $(ASAN_TREE)
	find $(ASAN_TREE) \( -name '*.so' -o -name '*.c' -o -name __pycache__ \) -prune -exec rm -rf {} +
	cd $(ASAN_TREE) && WSTUNNEL_BUILD=asan $(abspath $(PY)) setup.py -q build_ext --inplace
	cd $(ASAN_TREE) && $(ASAN_ENV) $(abspath $(PY)) -m pytest tests/unit tests/wire tests/differential $(ARGS)

clean:  ## remove what was built; .venv stays
	rm -rf build dist *.egg-info artifacts .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	rm -f $(BUILT) wstunnel/*.so $(addsuffix .c,$(MODULES))
	find $(wildcard wstunnel tests bench examples tools) -name __pycache__ -prune -exec rm -rf {} +

$(READY): requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo >&2 "wstunnel needs Python 3.11 or newer, and $(PYTHON) is not: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
	    echo >&2 "$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --requirement requirements-dev.txt
	@touch $@

$(BENCH_READY): bench/load/requirements.txt $(READY)
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --requirement bench/load/requirements.txt
	@touch $@

# A new setup.py may bring new flags, which time stamps alone do not show.
$(BUILT): $(READY) $(SOURCES) setup.py $(if $(UNBUILT),FORCE)
	$(PY) setup.py -q build_ext --inplace $(if $(filter setup.py,$?),--force)
	@touch $@
