# A fresh clone needs python3 (3.10 or newer, with venv), a C compiler and make; the rest is set up here, in $(VENV).
# `make help` lists what there is.

PYTHON ?= python3
VENV ?= .venv
# A free-threaded Python (3.13t or newer), if there is one: `make test` then runs the concurrency tests on it too.
PYTHON_FT ?=
LOG ?=
PYTEST_ARGS ?=

BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := $(BIN)/python
INSTALL := $(PY) -m pip --disable-pip-version-check --quiet install --prefer-binary
# One empty file per piece of set-up that is done; a piece is done again when what it depends on changes.
MADE := $(VENV)/.made
FT := $(VENV)-ft
SOURCES := pyproject.toml setup.py MANIFEST.in $(wildcard src/nanolimit/*.p* src/nanolimit/*/*.py src/nanolimit/core/*.h src/nanolimit/dashboard/*/*)
PLATFORMS := linux macos windows

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SECONDARY:

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## /\1\t/p' Makefile | awk -F '\t' '{ printf "  make %-20s %s\n", $$1, $$2 }'

# --- set-up -----------------------------------------------------------------------------------------------------------

$(MADE)/venv:
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade "pip>=25.1"
	mkdir -p $(MADE)
	touch $@

$(MADE)/group-%: pyproject.toml $(MADE)/venv
	$(INSTALL) --group $*
	touch $@

# Installed as a user would have it, not as a link into src/: what the tests see is what a wheel holds.
$(MADE)/package: $(SOURCES) $(MADE)/group-build
	$(INSTALL) --no-build-isolation ".[all]"
	touch $@

$(FT)/.made: $(SOURCES)
	$(PYTHON_FT) -m venv $(FT)
	$(FT)/bin/python -m pip --disable-pip-version-check --quiet install --upgrade "pip>=25.1"
	$(FT)/bin/python -m pip --disable-pip-version-check --quiet install --prefer-binary --group wheel-test
	$(FT)/bin/python -m pip --disable-pip-version-check --quiet install --no-build-isolation .
	touch $@

.PHONY: venv
venv: $(MADE)/package $(MADE)/group-test $(MADE)/group-lint ## the virtual environment for work on nanolimit

# --- for users --------------------------------------------------------------------------------------------------------

.PHONY: demo
demo: $(MADE)/package ## a tour, then a replay of LOG=path, or of a generated log; the picture goes to demo/
	$(PY) -m nanolimit.cli.demo $(if $(LOG),"$(LOG)")

# Three parts side by side, on two cores: the core's C programs and, since they end sooner, the replacements beside their originals; what
# needs a redis-server, a browser, servers with workers, another build or processes to kill, and waits half of the time; and all the rest.
# With PYTEST_ARGS it is one run, of what they choose.
C_TESTS := tests/c tests/crash/test_step.py tests/crash/test_corrupt.py $(wildcard tests/integration/test_compat_*.py)
SERVED := redis dashboard drf fastapi flask gunicorn uvicorn
OUTSIDE_TESTS := tests/packaging $(filter-out $(C_TESTS),$(wildcard tests/crash/test_*.py)) \
	$(wildcard $(foreach name,$(SERVED),tests/integration/test_$(name)*.py))
C_TESTS_NEED := $(MADE)/package $(MADE)/group-test $(if $(NANOLIMIT_REQUIRE_TOOLS),$(MADE)/group-cross)
PYTHON_TESTS_NEED := $(MADE)/package $(MADE)/group-test $(if $(PYTHON_FT),$(FT)/.made)
PYTEST := $(if $(PYTHON_FT),NANOLIMIT_PYTHON_FT="$(CURDIR)/$(FT)/bin/python") $(PY) -m pytest

.PHONY: test
test: $(C_TESTS_NEED) $(PYTHON_TESTS_NEED) ## all tests
ifdef PYTEST_ARGS
	$(PYTEST) $(PYTEST_ARGS)
else
	$(MAKE) --no-print-directory -j3 test-c test-outside test-python
endif

# What these two say comes in one piece, when they are done: the dots of the last part are on the screen meanwhile.
.PHONY: test-c
test-c: $(C_TESTS_NEED)
	@echo "$(C_TESTS): side by side with the others"
	@$(PY) -m pytest -p no:cacheprovider $(C_TESTS) >$(MADE)/test-c.log 2>&1; status=$$?; echo; cat $(MADE)/test-c.log; exit $$status

.PHONY: test-outside
test-outside: $(C_TESTS_NEED)
	@echo "$(OUTSIDE_TESTS): side by side with the others"
	@$(PY) -m pytest -p no:cacheprovider $(OUTSIDE_TESTS) >$(MADE)/test-outside.log 2>&1; status=$$?; echo; cat $(MADE)/test-outside.log; exit $$status

.PHONY: test-python
test-python: $(PYTHON_TESTS_NEED)
	$(PYTEST) $(addprefix --ignore=,$(C_TESTS) $(OUTSIDE_TESTS))

.PHONY: bench
bench: $(MADE)/package $(MADE)/group-bench ## the benchmarks, peers side by side
	$(PY) benchmarks/check.py
	$(PY) benchmarks/batch.py
	$(PY) benchmarks/memory.py
	$(PY) benchmarks/pause.py
	$(PY) benchmarks/shared.py
	$(PY) benchmarks/redis.py
	$(PY) benchmarks/waiting.py
	$(PY) benchmarks/web.py
	$(PY) benchmarks/replacements.py
	$(PY) benchmarks/telemetry.py

# --- for those who change it ------------------------------------------------------------------------------------------

.PHONY: tools
tools: ## install the system tools that tests ask for (Debian, Ubuntu)
	bash .ci/tools

.PHONY: lint
lint: $(MADE)/group-lint ## style of Python, Cython and shell
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/cython-lint src tests
	@if command -v shellcheck >/dev/null; then echo shellcheck; shellcheck .ci/run .ci/tools; else echo "skipped: shellcheck is not installed"; test -z "$(NANOLIMIT_REQUIRE_TOOLS)"; fi

.PHONY: format
format: $(MADE)/group-lint ## let ruff format and sort
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

.PHONY: types
types: $(MADE)/package $(MADE)/group-types ## mypy --strict, pyright, and the stubs against the compiled module
	$(PY) -m mypy
	$(PY) -m pyright --pythonpath $(PY)
	$(PY) -m mypy.stubtest --allowlist tests/packaging/stubtest.txt nanolimit._core

.PHONY: docs
docs: $(MADE)/package $(MADE)/group-docs ## the documentation, into site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

.PHONY: c
c: $(MADE)/package $(MADE)/group-test $(if $(NANOLIMIT_REQUIRE_TOOLS),$(MADE)/group-cross) ## the core's own tests: sanitizers, fuzzing, other platforms
	$(PY) -m pytest tests/c $(PYTEST_ARGS)

.PHONY: mutants
mutants: $(MADE)/package $(MADE)/group-test ## plant known bugs one by one; each must be caught
	$(PY) tests/mutants/run.py

# What hardly comes near the extension is left out: it takes minutes there.
FAR_FROM_C := $(wildcard tests/unit/test_dashboard_*.py tests/unit/test_redis_*.py tests/unit/test_cli_*.py) tests/unit/test_supervisor.py
.PHONY: sanitize
sanitize: $(MADE)/group-build ## the extension under AddressSanitizer and UBSan (gcc on Linux)
	$(PYTHON) .ci/sanitize.py $(filter-out $(FAR_FROM_C),$(wildcard tests/unit/test_*.py)) $(wildcard tests/property/test_*.py)

.PHONY: instructions
instructions: $(MADE)/package $(MADE)/group-test ## callgrind's count of one hot allow, against the baseline
	$(PY) benchmarks/instructions.py --check

.PHONY: soak
soak: $(MADE)/package $(MADE)/group-test ## the long runs: fuzzing, kills, large tables, many examples
	HYPOTHESIS_PROFILE=soak NANOLIMIT_SOAK=1 $(PY) -m pytest tests/property tests/concurrency tests/c tests/crash $(PYTEST_ARGS)
	$(PY) benchmarks/kill.py --deaths 10000
	$(PY) benchmarks/kill.py --deaths 10000 --points
	$(PY) benchmarks/scale.py --keys 100_000_000

# --- distributions ----------------------------------------------------------------------------------------------------

.PHONY: sdist
sdist: $(MADE)/group-build ## the source distribution, into dist/
	$(PY) -m build --sdist

.PHONY: wheel
wheel: $(MADE)/group-build ## a wheel for this Python, into dist/
	$(PY) -m build --wheel

.PHONY: dist
dist: $(MADE)/group-build ## the source distribution and, from it, a wheel; dist/ is emptied first
	rm -rf dist
	$(PY) -m build

.PHONY: check-dist
check-dist: $(MADE)/group-check ## metadata, platform tag and symbols of what lies in dist/
	$(PY) -m twine check --strict dist/*
	$(PY) -m auditwheel show dist/*.whl
	$(PY) .ci/symbols.py dist/*.whl

.PHONY: test-wheel
test-wheel: ## the wheel in dist/, tested in a fresh environment outside the source tree
	$(PYTHON) .ci/outside.py wheel --extras all --group build --group test tests/packaging tests/unit

.PHONY: test-sdist
test-sdist: ## the same from the sdist, with any PYTHON=
	$(PYTHON) .ci/outside.py sdist tests/packaging tests/unit

.PHONY: test-free-threaded
test-free-threaded: ## the sdist on a free-threaded PYTHON=, threads included
	$(PYTHON) -c 'import sys; sys.exit(sys._is_gil_enabled())'
	$(PYTHON) .ci/outside.py sdist tests/unit tests/property tests/concurrency

.PHONY: wheels
wheels: $(MADE)/group-wheels ## what cibuildwheel makes on this platform, into wheelhouse/
	$(PY) -m cibuildwheel --output-dir wheelhouse

.PHONY: wheels-list
wheels-list: $(MADE)/group-workflows ## the wheels of a release must be those of .ci/wheels.txt
	for platform in $(PLATFORMS); do $(PY) -m cibuildwheel --print-build-identifiers --platform $$platform . || exit 1; done >$(MADE)/wheels.txt
	diff .ci/wheels.txt $(MADE)/wheels.txt

.PHONY: workflows
workflows: $(MADE)/group-workflows ## the GitHub workflows: actionlint and zizmor
	$(BIN)/actionlint
	$(BIN)/zizmor --offline --persona=pedantic .github

.PHONY: clean
clean: ## everything that make made, the virtual environment too
	rm -rf $(VENV) $(FT) build dist wheelhouse site demo .pytest_cache .mypy_cache .ruff_cache .hypothesis src/nanolimit.egg-info
