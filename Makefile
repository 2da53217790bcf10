# Every target makes .venv by itself; `make help` lists them.
# Variables: PYTHON (the interpreter that .venv is made with), PYTEST (more arguments for pytest),
# CONSTRAINTS (constraints-lowest.txt installs the lowest versions that pyproject.toml names).
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
PYTEST ?=
CONSTRAINTS ?= constraints.txt
VENV := .venv
PY := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
NVRTC := build/nvrtc/.installed

# Many small processes run beside each other: one thread each beats several that wait for one another.
# A file's tests stay together, for they share what is slow to make; those of many launches mostly wait,
# so that three run on two cores, and the longest files are not left to the end.
BESIDE := -n 3 --dist loadfile --no-loadscope-reorder
test test-avx2 test-budget test-default test-extended test-gpu check-cuda repository: export OMP_NUM_THREADS ?= 1
# What depends on the width of vectors, in PyTorch's kernels, in oneDNN's, and in ours; it compiles nothing.
NUMERIC := tests/ops/kernels/test_cpu_capability.py \
  $(patsubst %,tests/ops/attention/test_%.py,attention_dropout cpu_kernels dispatch dropout row_start tile_skipping topk_softmax) \
  $(patsubst %,tests/ops/test_%.py,layer_norm linear linear_cross_entropy product) \
  $(patsubst %,tests/model/test_%.py,block causality documents loss x_transformers) \
  $(patsubst %,tests/training/test_%.py,golden_losses layouts)

.PHONY: help quickstart test test-avx2 test-budget test-default test-extended test-gpu check check-cuda format lint lint-fix types floors docs docs-check repository lock clean distclean

help: ## Show this list
	@sed -n 's/^\([a-z][a-z0-9 -]*\):[^#]*## /\1\t/p' Makefile | while IFS=$$'\t' read -r name text; do printf '  make %-17s %s\n' "$$name" "$$text"; done

quickstart: $(INSTALLED) ## Train a small GPT-X on real text, evaluate it, let it write
	$(PY) tools/quickstart.py

test: $(INSTALLED) $(NVRTC) ## Run the tests that need no GPU
	$(PY) -m pytest $(BESIDE) -m 'not extended' $(PYTEST)

test-extended: $(INSTALLED) $(NVRTC) ## Run all of them, the full matrices and 100 kills too; an hour
	$(PY) -m pytest $(BESIDE) $(PYTEST)

test-budget: $(INSTALLED) $(NVRTC) ## Run what `make test` does; fail where a file exceeds its CPU time
	$(PY) -m pytest $(BESIDE) -m 'not extended' --budget $(PYTEST)

test-avx2: $(INSTALLED) ## Run the numeric tests as on a CPU without AVX-512; PYTEST=tests runs all
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 GPTX_CPU_CAPABILITY=avx2 \
	  $(PY) -m pytest $(BESIDE) -m 'not extended' $(or $(PYTEST),$(NUMERIC))

test-default: $(INSTALLED) ## Run the numeric tests as on a CPU without AVX2; PYTEST=tests runs all
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 GPTX_CPU_CAPABILITY=default \
	  $(PY) -m pytest $(BESIDE) -m 'not extended' $(or $(PYTEST),$(NUMERIC))

test-gpu: $(INSTALLED) ## Run the tests that need a GPU
	$(PY) -m pytest tests/gpu $(PYTEST)

check-cuda: $(INSTALLED) $(NVRTC) ## Check that the CUDA kernels compile for V100, A100 and H100
	$(PY) -m pytest tests/ops/test_cuda_compiles.py

check: lint types floors docs-check repository ## Check style, types, floors, generated files, repository rules

lint: $(INSTALLED) ## Check format and lint
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .

lint-fix format: $(INSTALLED) ## Repair format and whatever lint can repair
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(INSTALLED) ## Check types
	$(PY) -m mypy

floors: $(INSTALLED) ## Check that packages import only from lower floors
	$(VENV)/bin/lint-imports

docs: $(INSTALLED) ## Write the generated files: docs/configuration.md, configs/schema.json
	$(PY) tools/document_config.py

docs-check: $(INSTALLED) ## Check that the generated files are fresh
	$(PY) tools/document_config.py --check

repository: $(INSTALLED) ## Check the rules of the repository, and that every option is read
	$(PY) -m pytest tests/test_repository.py tests/config/test_options_are_read.py

# Each build of torch names its own CUDA libraries; pinned here, they would rule out the other builds.
# The lowest versions are for Python 3.10: newer ones have no wheels of some of them.
COMPILE = $(VENV)/bin/uv pip compile --quiet --python-version 3.10 --all-extras --no-annotate --custom-compile-command 'make lock'
lock: $(INSTALLED) ## Write both files of constraints anew; make lock UPGRADE='--upgrade-package numpy' moves a pin
	$(PY) -m pip install --quiet uv
	$(COMPILE) --universal $(UPGRADE) --output-file constraints.txt pyproject.toml
	$(COMPILE) --resolution lowest-direct --python-platform x86_64-manylinux_2_28 $(UPGRADE) \
	  --output-file constraints-lowest.txt pyproject.toml
	sed -i.old -E '/^(cuda|nvidia)-/d' constraints.txt constraints-lowest.txt && rm constraints*.txt.old

clean: ## Remove caches and build products; keep .venv, runs/ and data/
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . \( -path ./$(VENV) -o -path ./.git -o -path ./runs -o -path ./data \) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean ## Remove .venv too
	rm -rf $(VENV)

# The stamp comes last: an install that was interrupted is taken up again. pip reads its own
# environment (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, ...), so another index needs no option here.
$(INSTALLED): pyproject.toml setup.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	  echo "megatron_gptx needs Python 3.10 or newer; '$(PYTHON)' is $$($(PYTHON) --version 2>/dev/null || echo not there)." >&2; \
	  echo "Name another interpreter: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments: its venv module is not installed." >&2; \
	  echo "On Debian and Ubuntu: apt-get install python3-venv" >&2; exit 2; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV): a few minutes the first time."
	@$(PY) -m pip install --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

# The last compiler for V100. In a folder of its own: in .venv it could be another than the one torch wants.
$(NVRTC): | $(INSTALLED)
	@echo "Installing NVRTC 12.6 into $(@D), for tests only."
	@$(PY) -m pip install --disable-pip-version-check --quiet --no-deps --upgrade --target $(@D) 'nvidia-cuda-nvrtc-cu12==12.6.*'
	@touch $@
