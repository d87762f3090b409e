# Everything sets itself up in .venv; python3 (3.11 to 3.13) and make are all it takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# each module is compiled when it is first loaded: compiling all of every package takes as long as installing it
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --no-compile --constraint constraints.txt

.PHONY: help run results results-page benchmarks-page gallery test test-slow coverage lint wheel docs bench bench-training bench-attacks bench-jacobian bench-gpu bench-scaling clean
help:
	@echo "make run        train a network in 28 ways on real images and write the page that compares them"
	@echo "make results    every study of the papers at the size laptop (hours): results/ and docs/results.md"
	@echo "make test       every test but the slow ones"
	@echo "make test-slow  the slow ones, and the property tests with all their random examples"
	@echo "make coverage   the tests, and which lines and branches they miss"
	@echo "make lint       style, docstrings and types"
	@echo "make wheel      what pip installs: dist/ with a wheel and the sources"
	@echo "make docs       the documentation: docs/_build/index.html"
	@echo "make gallery    the pictures and answers of docs/gallery.md, measured again (five minutes)"
	@echo "make bench      speed beside other people's methods (ARGS=--quick for a minute)"
	@echo "make bench-training  the loop beside a plain one (ARGS=--quick for a few minutes)"
	@echo "make bench-attacks   attacks beside other people's (ARGS=--quick for two minutes)"
	@echo "make bench-jacobian  norms at a point beside explicit Jacobians"
	@echo "make bench-gpu   exactness and speed on a GPU, in 8 minutes at most (ARGS='--device cpu --quick' tries the script)"
	@echo "make bench-scaling   how time and memory grow (ARGS='--only norms')"
	@echo "make clean      remove what make made, but not runs/"

run: $(VENV)/.core
	@$(BIN)/opnorm study tour $(ARGS)

results: $(VENV)/.core
	@for name in $$($(BIN)/python docs/write_results.py --names); do \
	  $(BIN)/opnorm study $$name --size laptop --keep results $(ARGS) || exit 1; done
	@$(MAKE) results-page

results-page: $(VENV)/.core
	$(BIN)/python docs/write_results.py

benchmarks-page: $(VENV)/.core
	$(BIN)/python docs/write_benchmarks.py

gallery: $(VENV)/.core
	$(BIN)/python docs/write_gallery.py

# where it is set, each of a hundred processes that the tests start compiles the whole package: 0.8 s
unexport PYTHONDONTWRITEBYTECODE

# one process more than the two cores that it is for: a fifth of the time of two is waiting for other processes
test: $(VENV)/.dev
	$(BIN)/python -m pytest -n 3 --dist worksteal -m "not slow" $(ARGS)

test-slow: $(VENV)/.dev
	HYPOTHESIS_PROFILE=thorough $(BIN)/python -m pytest -m slow --timeout 1800 $(ARGS)

coverage: $(VENV)/.dev
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" --cov --cov-report term:skip-covered --cov-fail-under 90 $(ARGS)

wheel: $(VENV)/.dev
	$(BIN)/python -m build --no-isolation
	@ls dist/*

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python benchmarks/norms.py $(ARGS)

bench-training: $(VENV)/.core
	$(BIN)/python benchmarks/training.py $(ARGS)

bench-attacks: $(VENV)/.bench
	$(BIN)/python benchmarks/attacks.py $(ARGS)

bench-jacobian: $(VENV)/.core
	$(BIN)/python benchmarks/jacobian.py $(ARGS)

bench-gpu: $(VENV)/.core
	$(BIN)/python benchmarks/gpu.py --json gpu.json $(ARGS)

bench-scaling: $(VENV)/.core
	$(BIN)/python benchmarks/scaling.py $(ARGS)

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --builder html docs docs/_build
	@echo docs/_build/index.html

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "opnorm needs Python 3.11 to 3.13; try: make PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and pinned, so that nothing else chooses a build of it
$(VENV)/.core: $(VENV)/.python pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once)" >&2
	@$(PIP) torch
	@$(PIP) --editable .
	@$(BIN)/python -c 'import altair, pyarrow.parquet, torch, tyro, vl_convert'
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	@$(PIP) --editable '.[dev]'
	@touch $@

$(VENV)/.bench: $(VENV)/.core
	@$(PIP) --editable '.[bench]'
	@touch $@

$(VENV)/.docs: $(VENV)/.core
	@$(PIP) --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) docs/_build .pytest_cache .ruff_cache .mypy_cache .hypothesis .coverage
