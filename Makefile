# `make train` and `make test` do everything on a fresh machine with git, make and Python >= 3.11.4.
PYTHON ?= python3
BIN := .venv/bin
ARGS ?=

.PHONY: help install train sample evaluate test check tensorboard clean

help: ## list these targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

install: .venv/installed ## make .venv and install the project in it, once

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11, 4) and "Python >= 3.11.4 is needed, and $(PYTHON) is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

train: install ## train on the digits and draw samples (ARGS="experiment=mnist name=foo" for other runs)
	$(BIN)/python scripts/train.py $(ARGS)

sample: install ## draw images from runs/digits (ARGS="ckpt=runs/foo label=3")
	$(BIN)/python scripts/sample.py $(or $(ARGS),ckpt=runs/digits)

evaluate: install ## score runs/digits (ARGS="ckpt=runs/foo sampler=unipc")
	$(BIN)/python scripts/evaluate.py $(or $(ARGS),ckpt=runs/digits)

test: install ## run every test (ARGS="-k sampler" for some)
	$(BIN)/python -m pytest $(ARGS)

check: install ## formatting, lint, types, import directions
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

tensorboard: install ## watch the runs in a browser
	$(BIN)/tensorboard --logdir runs

clean: ## remove .venv and caches; runs and data stay
	rm -rf .venv build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
