# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-fast coverage check

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/installed
	$(BIN)/kdbench run task=gnn method=lingugkd seed=0..4
	$(BIN)/kdbench leaderboard build runs -o build/demo

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --durations=25

# What a developer runs again and again: no SLURM, browser, contract or real data, nothing that takes seconds.
test-fast: .venv/installed
	$(BIN)/python -m pytest -n 2 -m "not slow and not slurm and not browser and not contract and not data"

coverage: .venv/installed
	$(BIN)/python -m pytest -n 2 -m "not slurm and not browser" --cov --cov-report=term:skip-covered
