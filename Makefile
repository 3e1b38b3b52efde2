# `make run` installs everything into .venv and runs the main job; `make test` installs the test tools too and passes the tests.
PYTHON ?= python3
METHOD ?= none
SUITE ?= testbed-quick
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: run test lint leaderboard clean

run: $(VENV)/installed
	$(BIN)/bench run --method $(METHOD) --suite $(SUITE)
	@$(BIN)/bench leaderboard --records runs/records --out runs/leaderboard | sed -n 's/\(.*[.]html\)$$/page: \1/p'

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

lint: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

leaderboard: $(VENV)/installed
	$(BIN)/bench leaderboard

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is %d.%d" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) runs
