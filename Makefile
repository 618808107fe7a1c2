# Verbs of the project; `make help` prints them.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
NATIVE := $(shell find csrc -type f -not -path '*/build/*' -not -name '*.so' 2>/dev/null)

.PHONY: help setup tools check test test-unit build demo cluster generate

help: ## print this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

setup: .venv/.installed ## install everything into .venv (once; again when the pins change)

.venv/.installed: pyproject.toml constraints.txt $(NATIVE)
	@test -d .venv || $(PYTHON) -m venv .venv
	@echo "installing into .venv: torch is large, this takes a few minutes the first time"
	@$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@$(BIN)/pip install -q --disable-pip-version-check ./csrc || \
	  echo "mux_native was NOT built (see above): the slower reference allocator is used and reported"
	@touch $@

tools: setup ## build the pinned Kubernetes, etcd and Helm for the tests (once, about 6 minutes on 2 cores)
	@PYTHONPATH=tests $(BIN)/python -m harness.tools

check: setup ## format, lint, types, layers, generated files
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@out="$$($(BIN)/lint-imports --no-logo 2>&1)" || { echo "$$out"; exit 1; }
	@$(BIN)/python -m mux_operator.schema --check
	@$(BIN)/python tools/generate_stubs.py --check

test: setup tools check ## everything that CI runs: checks, unit and integration suites
	@$(BIN)/pytest -q tests/unit
	@$(BIN)/pytest -q tests/integration

test-unit: setup ## the fast suite alone
	@$(BIN)/pytest -q tests/unit

build: setup ## wheels into dist/
	@$(BIN)/pip wheel -q --no-deps -w dist . ./csrc

generate: setup ## write the generated files again: CRDs, gRPC stubs
	@$(BIN)/python -m mux_operator.schema --write
	@$(BIN)/python tools/generate_stubs.py

demo: setup ## three tiny models on this machine's CPU behind one endpoint (ARGS=--exit ends by itself)
	@$(BIN)/python -m mux_cli.demo $(ARGS)

cluster: tools ## a real Kubernetes control plane with a process kubelet, kept up until Ctrl-C
	@PYTHONPATH=tests $(BIN)/python -m harness.cluster
