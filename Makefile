# `make demo` and `make test` are all that a fresh clone needs: both make the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_ARGS ?=
PYTEST_ARGS ?=

.PHONY: help venv demo test test-slow quality style doctest clean

help:
	@echo "make demo       the same prompt, dense and at three budgets, side by side (DEMO_ARGS=... for options)"
	@echo "make test       the quick tests (PYTEST_ARGS=... for options)"
	@echo "make test-slow  the tests that take long or need the network"
	@echo "make quality    lint, formatting and types, changing nothing"
	@echo "make style      fix lint and formatting"
	@echo "make doctest    run the examples in the docstrings"
	@echo "make venv       only the virtual environment, in $(VENV)"

venv: $(INSTALLED)

# torch comes first and exact, so that pip may take a CPU wheel that is on the machine.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,demo]'
	@touch $@

demo: venv
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

# Two processes with one torch thread each: faster on small models than one process with two threads.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not invariant" $(PYTEST_ARGS)

test-slow: venv
	$(BIN)/python -m pytest -m "slow and not gpu and not invariant" $(PYTEST_ARGS)

quality: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy src

style: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

doctest: venv
	$(BIN)/python -m pytest --doctest-modules src/sol_hf $(PYTEST_ARGS)

clean:
	rm -rf build dist demo.html .mypy_cache .pytest_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
