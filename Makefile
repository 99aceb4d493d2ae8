# Two commands need nothing but Python >= 3.11, g++ and, for the CUDA kernels, nvcc:  make demo  and  make test
# Each makes .venv, installs what it needs, builds the extension and runs. `make help` lists the rest.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -q -c constraints.txt
BUILD_INPUTS := pyproject.toml setup.py $(shell find csrc -type f)
CPP_FILES := $(shell find csrc tests/emulator tests/new_neuron tools -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

# Optional dependencies of pyproject.toml that each command needs.
EXTRAS_demo := examples,snntorch
EXTRAS_test := test
EXTRAS_bench := bench
EXTRAS_docs := docs

# Libraries that the migration pages are tested against. They have a folder of their own, which other commands do not see,
# and come without their dependencies (gigabytes), which their neurons do not need.
OTHERS := $(VENV)/others

# The tests of a file may run in several processes, so that no file keeps one of them busy at the end.
PARALLEL := -n auto --maxprocesses=4 --dist worksteal

.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-machines bench bench-check wheel docs lint format types clean

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo 'Arguments: make demo ARGS="--epochs 2"; another Python: make PYTHON=python3.12 demo'

demo: $(VENV)/.built $(VENV)/.installed-demo  ## train on MNIST, time a training step, draw figures
	$(BIN)/python examples/mnist.py $(ARGS)

test: $(VENV)/.built $(VENV)/.installed-test $(VENV)/.others  ## run the tests of what users are promised; five minutes
	PYTHONPATH="$(CURDIR)/$(OTHERS)" $(BIN)/python -m pytest tests -m 'not thorough and not emulated' $(PARALLEL) --durations=20 $(ARGS)

test-all: $(VENV)/.built $(VENV)/.installed-test $(VENV)/.others  ## also examples, tools, the emulator, and more random cases
	SNNFAST_THOROUGH=1 PYTHONPATH="$(CURDIR)/$(OTHERS)" $(BIN)/python -m pytest tests $(PARALLEL) --durations=20 $(ARGS)

bench: $(VENV)/.built $(VENV)/.installed-bench  ## measure beside snnTorch and others for twenty minutes; bars, and a result to store
	$(BIN)/python -m benchmarks $(ARGS)

bench-check: $(VENV)/.built $(VENV)/.installed-test  ## fail where the layers, a loop or a training step got slower; a minute
	$(BIN)/python -m benchmarks check $(ARGS)

wheel: $(VENV)/.nox  ## build dist/*.whl for every Python >= 3.11 and torch >= 2.11; CUDA kernels where nvcc is found
	$(BIN)/nox -s build -- $(ARGS)

test-machines: $(VENV)/.nox  ## build for Linux aarch64, macOS and Windows, and test under qemu and wine
	$(BIN)/nox -s machines -- $(ARGS)

docs: $(VENV)/.built $(VENV)/.installed-docs  ## build the site into build/docs; any warning is an error
	rm -rf build/docs
	$(BIN)/python -m sphinx -q -W -n --keep-going -b html docs build/docs
	@echo "build/docs/index.html"

lint: $(VENV)/.tools  ## check style and format of Python and C++, and the schemas of the CI files and of the citation
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP_FILES)
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/request.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema -q --builtin-schema vendor.citation-file-format CITATION.cff

format: $(VENV)/.tools  ## format Python and C++ in place
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP_FILES)

types: $(VENV)/.tools $(VENV)/.torch  ## check the types
	$(BIN)/mypy
	$(BIN)/mypy --allow-untyped-calls --ignore-missing-imports --follow-imports=silent examples/*.py

include native.mk

clean:  ## remove the virtual environment and everything that was built
	rm -rf $(VENV) .nox build dist *.egg-info snnfast/*.so tests/emulator/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@echo "making $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed: make PYTHON=python3.11 ...")'
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

# torch comes before the package: the extension is built against the torch that it will run with.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "installing torch and the build tools (minutes, the first time)"
	@$(PIP) torch numpy 'setuptools>=77' ninja
	@touch $@

# Without the stamp, which only a build that succeeded leaves, the next run tries again.
$(VENV)/.built: $(VENV)/.torch $(BUILD_INPUTS)
	@echo "building the extension"
	@rm -f snnfast/_kernels.so
	@$(PIP) --no-build-isolation -e .
	@$(BIN)/python -m snnfast | grep '^fused'
	@if [ -e snnfast/_kernels.so ]; then touch $@; else \
	  echo "no kernels; to see why: $(BIN)/python -m pip install -v --no-build-isolation -e ."; fi

# The package is there already, so that this installs its extras and builds nothing.
$(VENV)/.installed-%: constraints.txt pyproject.toml | $(VENV)/.built
	@echo "installing what 'make $*' needs"
	@$(PIP) 'snnfast[$(EXTRAS_$*)]'
	@touch $@

$(VENV)/.others: constraints.txt | $(VENV)/.installed-test
	@echo "installing SpikingJelly, Norse and NeuroBench"
	@rm -rf $(OTHERS)
	@$(PIP) --no-deps --target $(OTHERS) 'spikingjelly>=2.0.0' 'norse>=1.1.0' 'neurobench>=2.3.0' loguru
	@touch $@

$(VENV)/.disassemblers: constraints.txt | $(BIN)/python
	@echo "installing nvdisasm and cuobjdump"
	@$(PIP) nvidia-cuda-nvdisasm nvidia-cuda-cuobjdump
	@touch $@

$(VENV)/.nox: constraints.txt | $(BIN)/python
	@echo "installing nox"
	@$(PIP) nox
	@touch $@

$(VENV)/.tools: constraints.txt | $(BIN)/python
	@echo "installing ruff, clang-format, mypy and check-jsonschema"
	@$(PIP) ruff clang-format mypy check-jsonschema
	@touch $@
