#!/bin/bash
# tools/gpu_check.sh [build]: the operations on a real GPU: the op tests, the same under compute-sanitizer, their speed,
# t2l-bench. "build" only builds what this runs, and gathers the libraries it needs in build/lib: with build/bin/op_tests_gpu
# and build/bin/t2l-bench carried along, it runs on a GPU machine that has CUDA but none of our packages.
set -u
cd "$(dirname "$0")/.."
programs="build/bin/op_tests_gpu build/bin/t2l-bench"

build() {
  tools/setup.sh && cmake -S . -B build -DT2L_CUDA=ON --log-level=WARNING &&
    cmake --build build -j "$(nproc)" --target gpu_tests t2l-bench || return
  mkdir -p build/lib
  # CUDA itself must fit the driver, and libc the machine: theirs are used.
  ldd $programs | awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
    grep -Ev '/(libc|libm|libdl|librt|libpthread|libcu[a-zA-Z]*)\.so' | xargs cp -Lu -t build/lib
}

if [ "${1-}" = build ]; then
  build
  exit
fi
nvidia-smi -L 2>/dev/null | grep -q GPU || { echo "gpu-check: FAILED, no GPU answers (nvidia-smi -L)"; exit 1; }
if [ -d build/lib ] && [ ! -f build/CMakeCache.txt ]; then
  echo "gpu-check: carried here, programs are used as they are"
  export LD_LIBRARY_PATH=build/lib:/usr/local/cuda/lib64${LD_LIBRARY_PATH+:$LD_LIBRARY_PATH}
else
  build || { echo "gpu-check: FAILED, does not build"; exit 1; }
fi
PATH=$PATH:/usr/local/cuda/bin:/usr/local/cuda/compute-sanitizer

failed=0
stage() {  # name, seconds, command...: a line for each stage
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  echo "== $name"
  timeout "$limit" "$@"
  status=$?
  [ $status != 124 ] || echo "not finished after $limit seconds"
  [ $status = 0 ] || failed=1
  echo "== $name: $([ $status = 0 ] && echo passed || echo FAILED), $((SECONDS - start)) s"
}

stage "op tests" 120 build/bin/op_tests_gpu
if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck synccheck; do
    stage $tool 100 compute-sanitizer --tool $tool --error-exitcode 9 build/bin/op_tests_gpu
  done
else
  echo "== compute-sanitizer: FAILED, not found beside nvcc"
  failed=1
fi
stage "op speed" 60 build/bin/op_tests_gpu --perf
stage "t2l-bench" 60 build/bin/t2l-bench gemm
exit $failed
