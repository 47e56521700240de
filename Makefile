# Every target works by itself on a fresh Debian 12 machine; `make help` lists them.
JOBS         ?= $(shell nproc)
PREFIX       ?= /usr/local
CMAKE_FLAGS  ?=
FUZZ_SECONDS ?= 60

# $(call build,folder,CMake flags,targets): configures once more, as that is quick, and builds.
build = cmake -S . -B $(1) $(2) $(CMAKE_FLAGS) --log-level=WARNING && cmake --build $(1) -j $(JOBS) --target $(3)
test  = ctest --test-dir $(1) --output-on-failure

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := all
.PHONY: all setup demo reproduce test emu install bench asan tsan clang fuzz mutate gpu-build gpu-check format clean help

all: setup  ## build the programs into build/bin/, installing missing Debian packages first
	@$(call build,build,,all)

setup:  ## install the Debian packages that the build and the tests need
	@tools/setup.sh

demo: all  ## tasks never trained on, answered with and without adapters made from their descriptions; or yours: TASK="…"
	@build/bin/demo $${TASK:+--task "$$TASK"}

reproduce: all  ## the small world's table and figures from nothing, resumable (QUICK=1, OUT=build/reproduce)
	@tools/demo/reproduce.py $(if $(QUICK),--quick) --out $(or $(OUT),build/reproduce)

test: setup  ## build and run all tests, those of the GPU kernels on an emulated GPU
	@$(call build,build,,all tests)
	@$(call test,build)

emu: setup  ## the programs with the emulated GPU behind --device cuda, into build/emu/bin/
	@$(call build,build/emu,-DT2L_EMULATE=ON -DT2L_CUDA=OFF -DT2L_TESTS=OFF,all)

install: all  ## install the programs into PREFIX/bin (PREFIX=/usr/local)
	@cmake --install build --prefix $(PREFIX)

bench:  ## matrix products against OpenBLAS and oneDNN, and the main job, as shares of the machine's peak
	@tools/setup.sh bench
	@$(call build,build,,t2l-bench)
	@for table in gemm generate; do build/bin/t2l-bench $$table || exit; done

# Fibers as threads: what AddressSanitizer and ThreadSanitizer are told of them stands in cuda/emu/emu.cpp.
asan: setup  ## all tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@$(call build,build/asan,"-DT2L_SANITIZE=address;undefined" -DT2L_CUDA=OFF,all tests)
	@$(call test,build/asan)

# libgomp is not instrumented, so its barriers would look like races: one thread of it.
tsan: setup  ## all tests under ThreadSanitizer, which sees the emulated GPU's threads
	@$(call build,build/tsan,-DT2L_SANITIZE=thread -DT2L_CUDA=OFF,all tests)
	@OMP_NUM_THREADS=1 TSAN_OPTIONS="halt_on_error=1 suppressions=$(CURDIR)/tests/tsan.supp" $(call test,build/tsan)

clang:  ## all tests, built by clang
	@tools/setup.sh full
	@$(call build,build/clang,-DCMAKE_CXX_COMPILER=clang++-14 -DT2L_CUDA=OFF,all tests)
	@$(call test,build/clang)

fuzz:  ## every parser against libFuzzer for FUZZ_SECONDS=60 each
	@tools/setup.sh full
	@$(call build,build/fuzz,-DCMAKE_CXX_COMPILER=clang++-14 -DT2L_FUZZ=ON "-DT2L_SANITIZE=address;undefined" \
	  -DT2L_CUDA=OFF -DT2L_TESTS=OFF,fuzzers)
	@tools/fuzz.sh build/fuzz $(FUZZ_SECONDS)

mutate: setup  ## delete each barrier of each kernel in turn; the tests must miss none
	@$(call build,build,,op_tests test_emulator)
	@tools/mutate.py --build build --jobs $(JOBS)

gpu-build: setup  ## what gpu-check runs, for a GPU machine without the packages: carry build/bin and build/lib there
	@tools/gpu_check.sh build

gpu-check:  ## the operations on a real GPU: tests, compute-sanitizer, speed
	@tools/gpu_check.sh

format: setup  ## clang-format every source
	@tools/check_format.sh --fix

clean:  ## delete build/
	@rm -rf build

help:  ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 18
