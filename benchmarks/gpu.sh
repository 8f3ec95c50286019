#!/usr/bin/env bash
# On a machine with a GPU: build, test, sanitize, benchmark. Under 8 minutes; nothing is downloaded.
#   benchmarks/gpu.sh OUT_DIR
# JSON and logs go to OUT_DIR; a short table is printed last. Needs torch with CUDA, nvcc and a C++20 compiler. The suites
# need pytest and numpy (where they are not installed: on PYTHONPATH); without, that step fails and the rest runs.
# DROCC_CUDA_ARCHS (default: the first GPU's) and PYTHON choose what is built and run.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: benchmarks/gpu.sh OUT_DIR}" && cd "$1" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
failed=()

arch=${DROCC_CUDA_ARCHS:-$($python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
[ -n "$arch" ] || { echo "no CUDA GPU, or a torch without CUDA"; exit 1; }
jobs=$(nproc)

# Without cmake, ninja or pybind11: the two operator libraries by hand; `_C` is only for `drocc-ext info`.
build_by_hand() {
  local torch work=$out/objects
  torch=$($python -c 'import os, torch; print(os.path.dirname(torch.__file__))') || return 1
  mkdir -p "$work"
  local flags=(-std=c++20 -O3 -DTORCH_TARGET_VERSION=0x020a000000000000
    -isystem "$torch/include" -isystem "$torch/include/torch/csrc/api/include")
  local cxx=("${CXX:-g++}" "${flags[@]}" -fPIC -fopenmp-simd -fvisibility=hidden -fvisibility-inlines-hidden -Wno-psabi)
  local isas=("generic:") defines=()
  if [ "$(uname -m)" = x86_64 ]; then
    defines=(-DDROCC_X86_ISAS)
    isas+=("avx2:-mavx2 -mfma -mf16c"
      "avx512:-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c -mprefer-vector-width=512")
  fi
  local list=$work/commands isa file
  : >"$list"
  for isa in "${isas[@]}"; do
    for file in csrc/cpu/*_kernel.cpp; do
      echo "${cxx[*]} ${defines[*]} -DDROCC_ISA=${isa%%:*} -fno-math-errno -fno-trapping-math ${isa#*:} -c $file" \
        "-o $work/$(basename "$file" .cpp).${isa%%:*}.cpu.o" >>"$list"
    done
  done
  for file in csrc/*.cpp csrc/cpu/*.cpp; do
    case "$file" in csrc/module.cpp | *_kernel.cpp) continue ;; esac
    echo "${cxx[*]} ${defines[*]} -DDROCC_ISA=generic -c $file -o $work/$(basename "$(dirname "$file")").$(basename "$file" .cpp).cpu.o" >>"$list"
  done
  for file in csrc/*.cpp; do
    [ "$file" = csrc/module.cpp ] && continue
    echo "${cxx[*]} -DDROCC_NO_SCHEMAS -c $file -o $work/$(basename "$file" .cpp).checks.cuda.o" >>"$list"
  done
  for file in csrc/cuda/*.cu; do
    echo "nvcc ${flags[*]} -DUSE_CUDA --expt-relaxed-constexpr -Xcompiler -fPIC,-fvisibility=hidden" \
      "-gencode arch=compute_$arch,code=sm_$arch -c $file -o $work/$(basename "$file" .cu).cuda.o" >>"$list"
  done
  xargs -P "$jobs" -I{} bash -c '{}' <"$list" || return 1
  local link=(-L"$torch/lib" -Wl,-rpath,"$torch/lib" -Wl,--no-as-needed -ltorch)
  "${CXX:-g++}" -shared -o drocc_ext/libdrocc_cpu.so "$work"/*.cpu.o "${link[@]}" || return 1
  nvcc -shared -o drocc_ext/libdrocc_cuda.so "$work"/*.cuda.o -L"$torch/lib" -Xlinker -rpath="$torch/lib" \
    -Xlinker --no-as-needed -ltorch
}

build_by_cmake() {
  $python -c 'import pybind11' && command -v cmake && command -v ninja || return 1
  cmake -S . -B "$out/build" -G Ninja -DDROCC_CUDA=1 "-DDROCC_CUDA_ARCHS=$arch" \
    -DPython_EXECUTABLE="$(command -v "$python")" -DDROCC_OUTPUT_DIR="$PWD/drocc_ext" &&
    cmake --build "$out/build" -j "$jobs"
}

SECONDS=0
build_by_cmake >"$out/build.log" 2>&1 || build_by_hand >>"$out/build.log" 2>&1 ||
  { tail -30 "$out/build.log"; echo "the build failed"; exit 1; }
echo "built for sm_$arch in $SECONDS s"
rm -rf "$out/objects" "$out/build"
$python -m benchmarks.loaded ||
  { echo "the CUDA library did not load"; exit 1; }

# Each file in a process of its own, side by side: the exact solutions are slow, and on the CPU.
suites=(cuda influence hidden search_methods)
for file in python_tests/test_{l2,mahalanobis}_shell*.py; do
  file=${file#python_tests/test_}
  suites+=("${file%.py}")
done
# Triton's dtypes are compiled side by side too: suite:which of its tests.
if $python -c 'import triton' 2>/dev/null; then
  suites+=("triton_cuda:float32" "triton_cuda:float64" "triton_cuda:bfloat16"
    "triton_cuda:float16 and not bfloat16" "triton_cuda:not float")
fi
run_suite() {
  local file=${1%%:*} chosen=""
  [ "$file" = "$1" ] || chosen=${1#*:}
  OMP_NUM_THREADS=1 timeout 170 "$python" -m pytest -m cuda -q --maxfail=20 -p no:cacheprovider \
    -k "$chosen" "python_tests/test_$file.py" >"$(log_of "$1")" 2>&1
}
log_of() {
  echo "$out/tests.${1//[: ]/_}.log"
}
if $python -c 'import pytest, numpy'; then
  declare -A running
  for suite in "${suites[@]}"; do
    if [[ $suite == *_properties ]] && ! $python -c 'import hypothesis' 2>/dev/null; then
      echo "$suite: hypothesis is missing, left out"
      continue
    fi
    run_suite "$suite" &
    running[$suite]=$!
  done
  for suite in "${!running[@]}"; do
    wait "${running[$suite]}"
    code=$?
    [ $code -eq 124 ] && suite+=" (not done in 170 s)"
    [ $code -eq 0 ] || [ $code -eq 5 ] || failed+=("test_$suite")  # 5: no test of that file needs a GPU
    echo "$suite: $(tail -1 "$(log_of "${suite%% (*}")")"
  done
else
  echo "the suites did not run: pytest or numpy is missing"
  failed+=("tests")
fi
for tool in memcheck racecheck; do
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer not found"; break; }
  timeout 45 compute-sanitizer --tool $tool --error-exitcode 9 $python -m benchmarks.cuda_sanitize \
    >"$out/$tool.log" 2>&1 || failed+=("$tool")
  tail -2 "$out/$tool.log"
done
echo "tested in $SECONDS s"
timeout 170 $python -m benchmarks.bench_cuda --out "$out" >"$out/table.txt" 2>"$out/bench.err" ||
  { failed+=("benchmarks"); tail -5 "$out/bench.err"; }
echo "finished in $SECONDS s; failed: ${failed[*]:-nothing}"
cat "$out/table.txt"
[ ${#failed[@]} -eq 0 ]
