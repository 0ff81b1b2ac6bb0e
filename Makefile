# Everything runs in .venv; `make demo` and `make test` install all that they need, once.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo test test-fast lint bench audit install clean

PYTHON ?= python3
BIN := .venv/bin
CACHE := $(or $(EDGEPRUNE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/edgeprune)
# three processes for two cores: who runs when is told by tests/turns.py
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder
BUDGET ?= 100 tokens < 75%

demo: install  ## the main job on this machine, in minutes: a quarter less latency than unpruned
	$(BIN)/edgeprune run smollm2 --target local --budget "$(BUDGET)" --quant auto \
		--effort low --profile-seconds 20

test: lint  ## every test, the emulated ARM machine included
	-$(BIN)/python -m tests.install  # without root it says what to install
	$(PYTEST) --cov --cov-report=term:skip-covered --durations=30

test-fast: install  ## what needs neither a machine, nor a real model, nor a whole run
	$(PYTEST) -m "not arm and not debian and not smollm2 and not measures and not slow"

lint: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy --cache-dir "$(CACHE)/mypy"

bench: install  ## the runs that README and docs show, measured anew
	$(BIN)/python benchmarks/readme.py --write

audit: install  ## known vulnerabilities of what is installed; needs a network
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/pip --quiet install pip-audit
	.venv-audit/bin/pip-audit --path "$$($(BIN)/python -c 'import sysconfig as s; print(s.get_path("purelib"))')"

install: .venv/installed

.venv/installed: pyproject.toml install.sh
	./install.sh "$(PYTHON)" .venv
	touch $@

clean:
	rm -rf .venv .venv-audit runs .coverage .mypy_cache .ruff_cache .pytest_cache .hypothesis
