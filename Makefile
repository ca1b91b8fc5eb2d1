# Every target builds .venv from the pinned set when it is missing or older than the pins.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One torch thread per test worker: on a small machine more threads than cores cost time.
TEST_ENV := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false \
	HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 WANDB_MODE=offline
PYTEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-with shapes lint format types docs bench build lock clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-10s %s\n", $$1, $$2}'

$(STAMP): requirements-dev.lock pyproject.toml sae_lens/_version.py
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else \
	"Python 3.10 to 3.13 is needed, $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % v[:2])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation -e .
	touch $@

setup: $(STAMP) ## Build .venv from the pinned set

demo: $(STAMP) ## Train two SAEs on the embedded model and write a report (no network)
	$(BIN)/sae-lens demo

test: $(STAMP) lint types docs ## Lint, types, docs build, then the tests without the slow ones
	$(TEST_ENV) $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP) ## Run the slow tests too
	$(TEST_ENV) $(BIN)/python -m pytest -m "not gpu and not network" $(PYTEST_ARGS)

test-with: $(VENV)-tl-$(TL)/.installed ## Run the tests with another TransformerLens (TL=3.9.0)
	$(TEST_ENV) $(<D)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

# The pinned set, but for what that version asks for. The pinned pandas does not know numpy 2.
$(VENV)-tl-$(TL)/.installed: requirements-dev.lock pyproject.toml
	@test -n "$(TL)" || { echo "Which version? For example: make test-with TL=3.9.0"; exit 1; }
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check \
		"transformer-lens==$(TL)" "pandas>=2.2.3"
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--no-build-isolation -e .
	touch $@

shapes: $(STAMP) ## Run the tests with every tensor compared to the shape in the signature
	SAE_LENS_CHECK_SHAPES=1 $(TEST_ENV) $(BIN)/python -m pytest -n auto --maxprocesses 4 \
		--dist loadfile $(addprefix tests/,kernels saes activations training analysis)

lint: $(STAMP) ## Style, docstrings, stray prints, formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(STAMP) ## Check the types
	$(BIN)/pyright

docs: $(STAMP) ## Build the documentation; a warning is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(STAMP) ## Compare speed and memory with others (BENCH_ARGS="--quick" for a first look)
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

build: $(STAMP) ## Build the wheel and the source archive
	$(BIN)/python -m build

lock: $(STAMP) ## Resolve the pinned set again, for all supported Pythons
	@# The GPU libraries of torch are left out: pip adds what the chosen torch build asks for. Triton
	@# stays, at torch's own version, since its kernels are tested in its interpreter without a GPU.
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --no-annotate \
		--custom-compile-command "make lock" requirements-dev.in -o requirements-dev.lock
	sed -i.bak -E '/^(-e |nvidia-|cuda-)/d' requirements-dev.lock && rm requirements-dev.lock.bak

clean: ## Remove what the targets made, but .venv
	rm -rf build dist site demo_output bench_output .pytest_cache .ruff_cache .hypothesis
