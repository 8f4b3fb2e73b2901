# SPDX-License-Identifier: Apache-2.0
# Every target does its own set-up, on a fresh clone too. Two environments: .venv has torch alone, .venv-npu has
# torch_npu as well, and runs it on the simulated Ascend runtime of tests/ascend_sim.

PYTHON ?= python3
SIMULATED := LD_LIBRARY_PATH=$(CURDIR)/tests/ascend_sim/build
CPP = $(shell git ls-files '*.cpp' '*.h')

.PHONY: build demo test docs sanitize fuzz mutate bench lint format

build: .venv/.built .venv-npu/.built

# On the NPU where CANN's environment has been sourced, else on the CPU.
DEMO := $(if $(ASCEND_TOOLKIT_HOME),.venv-npu,.venv)

demo: $(DEMO)/.built
	$(DEMO)/bin/python examples/prefix_sharing.py

test:
	$(MAKE) --jobs=2 --no-print-directory lint .venv-npu/.built
	.venv/bin/python -m pytest
	$(SIMULATED) .venv-npu/bin/python -m pytest

# README.md, docs/ and the API reference as one site, build/docs/index.html. A link or a name that leads nowhere is an error.
docs: .venv/.built
	.venv/bin/python docs/draw_copy_cache.py
	.venv/bin/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs

# The C++ core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
sanitize: .venv/.built
	$(MAKE) -C tests/cpp PYTHON=$(CURDIR)/.venv/bin/python sanitize

# Random calls against a byte model, for FUZZ_SECONDS each as shipped and under AddressSanitizer; FUZZ_CASE repeats one.
fuzz: .venv/.built
	$(MAKE) -C tests/cpp PYTHON=$(CURDIR)/.venv/bin/python fuzz

# Puts the code wrong, one thing at a time, and sees whether a test fails. Takes hours, in a checkout without changes.
mutate: .venv-npu/.built
	.venv/bin/python tests/mutation $(SUITES)

# Takes some minutes, on a machine with nothing else to do.
bench: .venv-npu/.built
	.venv/bin/python benchmarks/copy_cache.py
	.venv/bin/python benchmarks/copy_cache_batch.py
	.venv/bin/python benchmarks/compiled.py
	.venv/bin/python benchmarks/growth.py
	$(SIMULATED) .venv-npu/bin/python benchmarks/npu_host.py

lint: .venv/.built
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/clang-format --dry-run --Werror $(CPP)
	.venv/bin/mypy
	.venv/bin/codespell
	! git grep -L 'SPDX-License-Identifier: Apache-2.0' -- '*.py' '*.cpp' '*.h' Makefile

format: .venv/.built
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	.venv/bin/clang-format -i $(CPP)

# torch first and by its exact version: a range would be resolved to a build for another accelerator.
.venv/.torch:
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet torch==2.13.0 numpy ninja 'setuptools>=77'
	touch $@

.venv-npu/.torch:
	$(PYTHON) -m venv .venv-npu
	.venv-npu/bin/pip install --quiet torch==2.13.0 torch_npu==2.13.0 numpy ninja 'setuptools>=77'
	touch $@

SOURCES := pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)

.venv/.built: .venv/.torch $(SOURCES)
	.venv/bin/pip install --quiet --no-build-isolation --editable '.[dev]'
	touch $@

# After .venv: both build in this tree, and at once they would be in each other's way.
.venv-npu/.built: .venv-npu/.torch .venv/.built $(SOURCES) $(wildcard tests/ascend_sim/src/*)
	.venv-npu/bin/pip install --quiet --no-build-isolation --editable '.[bench,demo,test]'
	$(MAKE) --silent -C tests/ascend_sim PYTHON=$(CURDIR)/.venv-npu/bin/python
	touch $@
