# `make demo` and `make test` are all that a fresh clone needs: both make the virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
DEMO_INSTALLED := $(VENV)/.installed-demo
VENV_OLDEST ?= .venv-oldest
BIN_OLDEST := $(VENV_OLDEST)/bin
INSTALLED_OLDEST := $(VENV_OLDEST)/.installed
DEMO_ARGS ?=
PYTEST_ARGS ?=
SEED ?= 0
TEXTS ?=
PICTURES ?= docs/pictures
CASES ?= 5000
JOBS ?= 1

# What differs between versions: what is relied on in other packages, and what each part takes from them.
OLDEST_TESTS := test_upstream or test_golden or test_generate or test_kv_refresh or test_cuda_graphs or \
	test_configuration_sol or test_policy or test_public_api or test_hub or test_peft or test_grpo_trainer or \
	test_budgeted_perplexity or test_lm_eval_adapter or test_sweep_figures or test_smollm2 or test_linear or test_demo

.PHONY: help venv venv-oldest demo docs figures test test-oldest test-slow fuzz quality style doctest clean

help:
	@echo "make demo       one prompt by transformers, densely by us, and at two budgets (DEMO_ARGS=... for options)"
	@echo "make docs       the documentation as a site, in build/docs/site"
	@echo "make figures    measure and draw every figure of the paper index, in hours (TEXTS=texts.jsonl.gz)"
	@echo "make test       the quick tests (PYTEST_ARGS=... for options)"
	@echo "make test-slow  the tests that take long or need the network"
	@echo "make fuzz       drawn cases against everything that is promised (SEED=0 CASES=5000 JOBS=1)"
	@echo "make quality    lint, formatting and types, changing nothing"
	@echo "make style      fix lint and formatting"
	@echo "make doctest    run the examples in the docstrings"
	@echo "make venv       only the virtual environment, in $(VENV)"
	@echo "make test-oldest  some of the quick tests on the oldest versions that setup.cfg allows"
	@echo "make venv-oldest  only their virtual environment, in $(VENV_OLDEST): about 6 GB, torch comes with CUDA"

venv: $(INSTALLED)
venv-oldest: $(INSTALLED_OLDEST)

# torch comes first and exact, so that pip may take a CPU wheel that is on the machine.
$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev,docs,space,browser]'
	@touch $@ $(DEMO_INSTALLED)

# What the demo needs and no more, where nothing is installed yet.
$(DEMO_INSTALLED): setup.cfg pyproject.toml constraints.txt
	@test -x $(BIN)/python || { echo "Making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	$(BIN)/python -m pip install "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[demo,fast]'
	@touch $@

$(INSTALLED_OLDEST): setup.cfg pyproject.toml constraints-oldest.txt
	@test -x $(BIN_OLDEST)/python || { echo "Making $(VENV_OLDEST)"; $(PYTHON) -m venv $(VENV_OLDEST); }
	$(BIN_OLDEST)/python -m pip install "$$(grep '^torch==' constraints-oldest.txt)"
	$(BIN_OLDEST)/python -m pip install --constraint constraints-oldest.txt --editable '.[dev]'
	@touch $@

demo: $(DEMO_INSTALLED)
	$(BIN)/python examples/demo.py $(DEMO_ARGS)

docs: venv
	$(BIN)/python docs/build_site.py

# Folders of sweeps keep what is measured, so that a stopped run goes on where it was. The texts are others than those
# that the policies were trained on.
SHIPPED := model_cards/sol-smollm2-135m
RECOMMENDED := model_cards/sol-smollm2-135m-recommended
OF_TEXTS = --base smollm2-135m --data $(TEXTS)
figures: venv
	@test -n "$(TEXTS)" || { echo "Give texts that the policies were not trained on: make figures TEXTS=texts.jsonl.gz" >&2; exit 2; }
	$(BIN)/sol-hf pareto $(SHIPPED) $(OF_TEXTS) --dtype bfloat16 --soft --episodes 1 --page-places 1 --skip-blocks 256 --blocks 40 \
		--controllers policy,fixed,random:20,entropy,drift,oracle,oracle:4 --out runs/pareto
	$(BIN)/sol-hf pareto $(SHIPPED) $(OF_TEXTS) --bits-backend nested --per-document 1 --blocks 24 --controllers policy,fixed --out runs/published
	$(BIN)/sol-hf pareto $(RECOMMENDED) $(OF_TEXTS) --budgets auto --per-document 1 --blocks 24 --controllers policy,fixed --out runs/recommended
	$(BIN)/python examples/make_figures.py runs/pareto --bytes-front recommended=runs/recommended published=runs/published \
		--action-map examples/texts/tide.txt --pollution $(TEXTS) --blocks 32 --dtype bfloat16 --out $(PICTURES)

# Two processes with one torch thread each: faster on small models than one process with two threads.
test: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not invariant" $(PYTEST_ARGS)

test-oldest: venv-oldest
	OMP_NUM_THREADS=1 $(BIN_OLDEST)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not invariant" \
		-k "$(OLDEST_TESTS)" $(PYTEST_ARGS)

test-slow: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile -m "slow and not gpu and not invariant" $(PYTEST_ARGS)

# Each process has one torch thread.
fuzz: venv
	cd tests && OMP_NUM_THREADS=1 $(abspath $(BIN))/python -m fuzz --seed $(SEED) --cases $(CASES) --jobs $(JOBS)

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
