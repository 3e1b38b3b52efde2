# `make run` installs everything into .venv and runs the main job; `make test` installs the test tools too and passes the tests.
PYTHON ?= python3
METHOD ?= none
SUITE ?= testbed-quick
BIN := .venv/bin

.PHONY: run test lint leaderboard clean

run: .venv/installed
	$(BIN)/bench run --method $(METHOD) --suite $(SUITE)
	@$(BIN)/bench leaderboard --records runs/records --out runs/leaderboard >/dev/null
	@echo "page: runs/leaderboard/$(SUITE).html"

test: .venv/installed-dev
	$(BIN)/python -m pytest

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

leaderboard: .venv/installed
	$(BIN)/bench leaderboard

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf .venv runs
