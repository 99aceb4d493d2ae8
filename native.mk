# What `make native` checks: the machine code that the C++ and CUDA sources become. It takes half an hour, and depends on
# little of the repository: tools/native.py knows on what, and whether it has passed since. Run it after a change of that,
# and commit tools/native.sha256.

# For all processors, and with the CUDA kernels where nvcc is. A warning, or a build without kernels, is a failure.
OF_ALL := SNNFAST_BUILD=all SNNFAST_REQUIRE_EXT=1 SNNFAST_WERROR=1
NVCC := $(shell command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null)
NATIVE := native-library clang $(if $(NVCC),sanitize gates)

# Those of the kernels.
NATIVE_TESTS := $(addprefix tests/,core/test_cpu_backend.py images/test_batch_norm.py images/test_convolutions.py \
	images/test_image_kernels.py images/test_winograd.py program/test_program.py spikes/test_linear.py \
	unroll/test_kernels.py unroll/test_lengths.py unroll/test_saved.py)
# Those that compare instruction sets, or look at the CUDA kernels in a library.
LIBRARY_TESTS := $(addprefix tests/,compiler/test_normed_programs.py cuda/test_cuda.py unroll/test_normed.py \
	unroll/test_ops.py unroll/test_pooled.py with_snntorch/test_spikegen.py)
# Another build of the package than that of .venv. SAFEPATH: Python would otherwise find the package of this folder first.
OF_BUILD = PYTHONSAFEPATH=1 PYTHONPATH="$(CURDIR)/build/$(1)/lib:$(CURDIR):$(CURDIR)/tests"
build_and_test = $(BIN)/python setup.py -q build --build-base build/$(1) --build-lib build/$(1)/lib && \
	$(OF_BUILD) SNNFAST_REQUIRE_EXT=1 $(BIN)/python -m pytest -o pythonpath= $(2) \
	-m 'not thorough and not emulated and not gpu' $(PARALLEL) $(ARGS)

# A second compiler: it evaluates and optimises in another order, and what is right does not depend on that.
CLANG ?= clang++-19

.PHONY: native native-library clang gates sanitize sanitize-threads sanitize-memory

# SNNFAST_THOROUGH=1: for all architectures of a wheel, not only for the one whose instructions are counted.
ifneq ($(SNNFAST_THOROUGH),1)
native: export TORCH_CUDA_ARCH_LIST := 9.0+PTX
endif
native:  ## check what C++ and CUDA sources become, by all that is below
	@for part in $(NATIVE); do \
	  start=$$(date +%s); echo "=== $$part"; $(MAKE) $$part || exit 1; echo "=== $$part took $$(($$(date +%s) - start)) s"; \
	done
	$(BIN)/python tools/native.py --passed

native-library: $(VENV)/.installed-test  ## build the library for all processors and cards, and test its instruction sets
	$(OF_ALL) $(if $(NVCC),SNNFAST_CUDA=1) $(call build_and_test,native,$(NATIVE_TESTS) $(LIBRARY_TESTS))

clang: $(VENV)/.installed-test  ## build the CPU kernels with clang, beside those of g++, and run their tests; CLANG=clang++
	$(OF_ALL) CXX='$(CLANG)' SNNFAST_CUDA=0 $(call build_and_test,clang,$(NATIVE_TESTS))
	$(call OF_BUILD,clang) $(BIN)/python -m snnfast | grep '^compiler *clang'

sanitize: sanitize-threads sanitize-memory  ## run the CUDA sources on the CPU under the sanitizers; SNNFAST_THOROUGH=1: all tests of them

sanitize-threads: $(VENV)/.built
	$(BIN)/python tests/emulator/build.py driver thread
	tests/emulator/_build/thread/driver $(if $(filter 1,$(SNNFAST_THOROUGH)),8)

sanitize-memory: $(VENV)/.built $(VENV)/.installed-test
	SNNFAST_EMULATOR_SANITIZE=1 $(BIN)/python tests/emulator/build.py
	SNNFAST_EMULATOR_SANITIZE=1 SNNFAST_REQUIRE_EMULATOR=1 ASAN_OPTIONS=detect_leaks=0 OMP_NUM_THREADS=1 \
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	$(BIN)/python -m pytest tests -m 'emulated$(if $(filter 1,$(SNNFAST_THOROUGH)),, and not thorough)' $(PARALLEL) $(ARGS)

gates: $(VENV)/.built $(VENV)/.disassemblers  ## check the machine code of the CUDA kernels; ARGS=--update: new budgets
	SNNFAST_CUDA=1 $(BIN)/python -m tools.gates $(if $(wildcard build/native/lib),--library build/native/lib/snnfast/_kernels.so) $(ARGS)
