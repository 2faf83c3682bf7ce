# Everything a person needs, on a fresh checkout with Python 3.11 or newer, pip and make.
# Words for the program behind a target go into ARGS:  make test ARGS="tests/unit -k outbox"

.DEFAULT_GOAL := help
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.venv/.stamp: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Twinlock needs Python 3.11 or newer: name one with make PYTHON=..." >&2; exit 1; }
	@test -x $(BIN)/python || { echo "== Creating .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@echo "== Installing twinlock with its server and development parts into .venv"
	@$(PIP) -e '.[server,dev]'
	@touch $@

# The benchmarks' peers and plots are optional: a platform without them still gets Twinlock's own figures.
.venv/.stamp-bench: .venv/.stamp
	@echo "== Installing the benchmarks' plots and peers into .venv"
	@if $(PIP) -e '.[bench]'; then touch $@; \
	else echo "== Left out: plots and peers, because the extra 'bench' cannot be installed here"; fi

.PHONY: help demo cluster test check soak bench clean

help: ## show this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

demo: .venv/.stamp ## show live sync between two devices (ARGS=--once for one round)
	@$(BIN)/python -m demo $(ARGS)

cluster: .venv/.stamp ## run a cluster on this machine and kill parts of it (ARGS=--once for one round)
	@$(BIN)/python -m demo.cluster $(ARGS)

test: .venv/.stamp ## run all tests but the slow ones
	@echo "== Tests"
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow" $(ARGS)

check: .venv/.stamp ## lint, formatting, types, import contracts, tidiness
	@echo "== Lint"
	@$(BIN)/ruff check .
	@echo "== Formatting"
	@$(BIN)/ruff format --check .
	@echo "== Types"
	@$(BIN)/mypy
	@echo "== Import contracts"
	@$(BIN)/lint-imports
	@echo "== Tidiness"
	@$(BIN)/python -m pytest -q tests/tidy

soak: .venv/.stamp ## run the slow tests: long soaks and large simulations
	@echo "== Soak tests"
	@$(BIN)/python -m pytest -m slow $(ARGS)

bench: .venv/.stamp-bench ## measure, compare with peers and plot
	@$(BIN)/python -m bench $(ARGS)

clean: ## remove caches and build outputs (.venv stays)
	@echo "== Removing caches and build outputs"
	@rm -rf build dist src/*.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache bench/results
	@find src tests demo bench examples -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
