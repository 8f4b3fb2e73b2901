# SPDX-License-Identifier: Apache-2.0
# Every target does its own set-up, on a fresh clone too.

PYTHON ?= python3
VENV := .venv
CPP = $(shell git ls-files '*.cpp' '*.h')

.PHONY: build demo test bench lint format

build: $(VENV)/.built

demo: build
	$(VENV)/bin/python examples/prefix_sharing.py

test: lint
	$(VENV)/bin/python -m pytest

bench: build
	$(VENV)/bin/python benchmarks/copy_cache.py

lint: build
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/clang-format --dry-run --Werror $(CPP)
	$(VENV)/bin/mypy
	$(VENV)/bin/codespell
	! git grep -L 'SPDX-License-Identifier: Apache-2.0' -- '*.py' '*.cpp' '*.h' Makefile

format: build
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format
	$(VENV)/bin/clang-format -i $(CPP)

# torch first and by its exact version: a range would be resolved to a build for another accelerator.
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet torch==2.13.0 numpy ninja 'setuptools>=77'
	touch $@

$(VENV)/.built: $(VENV)/.torch pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)
	$(VENV)/bin/pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@
