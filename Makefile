# One environment, .venv, made on first use and again only when its description changes.
# The stamps in it say which extras are installed; dev contains those of demo, which are what the
# README's commands need.

PYTHON ?= python3
BIN := .venv/bin
DESCRIPTION := pyproject.toml constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TEST_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs bench clean

help:  ## This list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile

demo: .venv/demo.stamp  ## Train teachers, a multi-task model and a student; print their table
	$(BIN)/outshine demo

test: .venv/dev.stamp  ## Run the tests (TEST_ARGS="-k name" for some of them)
	$(BIN)/python -m pytest -n auto --maxprocesses=4 $(TEST_ARGS)

lint: .venv/dev.stamp  ## Lint, format check, types
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

format: .venv/dev.stamp  ## Mend what lint can mend by itself
	$(BIN)/python -m ruff check --fix .
	$(BIN)/python -m ruff format .

docs: .venv/dev.stamp  ## Generate the pages and numbers of the docs
	$(BIN)/python docs/generate.py
	$(BIN)/python bench/tables.py
	$(BIN)/python results/report.py

bench: .venv/dev.stamp  ## Measure speed and memory (hours; GLUE files in OUTSHINE_GLUE_DIR)
	$(BIN)/python bench/run.py

clean:  ## Remove the environment and everything that was built; runs stay
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

.venv/demo.stamp: .venv/python.stamp $(DESCRIPTION)
	@echo "Installing Outshine and its demo into .venv (a few minutes the first time) ..."
	@$(PIP_INSTALL) -e '.[demo,hub,serve,onnx]' || $(EXPLAIN_PIP)
	@touch $@

.venv/dev.stamp: .venv/python.stamp $(DESCRIPTION)
	@echo "Installing Outshine and its tools into .venv (a few minutes the first time) ..."
	@$(PIP_INSTALL) -e '.[dev]' || $(EXPLAIN_PIP)
	@touch .venv/demo.stamp $@

.venv/python.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Outshine needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "hint: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv .venv || { \
	  echo "hint: some systems ship venv apart, for instance as the package python3-venv" >&2; \
	  exit 1; }
	@touch $@

EXPLAIN_PIP = { \
  echo "pip could not install the packages named above." >&2; \
  echo "hint: it needs the network, or a package index that has the versions in constraints.txt" >&2; \
  exit 1; }
