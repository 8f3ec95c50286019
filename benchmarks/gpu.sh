#!/usr/bin/env bash
# On a machine with a GPU: build, test, sanitize, benchmark; nothing is downloaded.
#   benchmarks/gpu.sh OUT_DIR
# Ends within DROCC_GPU_SECONDS (default 720): each step has a limit, and the benchmarks' share is kept free for them. JSON
# and logs go to OUT_DIR. Whatever fails, what is known by then is printed last: the steps, and the measurements. Needs torch with CUDA, nvcc and a C++20 compiler. The suites
# need pytest and numpy (where they are not installed: on PYTHONPATH); without, that step fails and the rest runs.
# DROCC_CUDA_ARCHS (default: the first GPU's) and PYTHON choose what is built and run.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(mkdir -p "${1:?usage: benchmarks/gpu.sh OUT_DIR}" && cd "$1" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
limit=${DROCC_GPU_SECONDS:-720}
bench_limit=$((limit * 25 / 100))
steps=() failed=()
SECONDS=0

# note NAME STATUS SECONDS: of a step that has ended.
note() {
  local verdict=ok
  case $2 in 0) ;; 124 | 137) verdict="not done in time" ;; *) verdict=FAILED ;; esac
  [ "$2" -eq 0 ] || failed+=("$1")
  steps+=("$(printf '%-36s %-18s %4d s' "$1" "$verdict" "$3")")
}
# left MOST RESERVE: seconds that a step may take, at most MOST, when RESERVE are to stay for what follows.
left() {
  local seconds=$((limit - SECONDS - $2))
  [ $seconds -lt "$1" ] || seconds=$1
  [ $seconds -gt 1 ] && echo $seconds || echo 1
}
# step NAME MOST RESERVE COMMAND ...: its output goes to OUT_DIR/NAME.log.
step() {
  local name=$1 begin=$SECONDS code
  timeout -k 5 "$(left "$2" "$3")" "${@:4}" >"$out/${name// /_}.log" 2>&1
  code=$?
  note "$name" $code $((SECONDS - begin))
  [ $code -eq 0 ] || tail -5 "$out/${name// /_}.log"
  return $code
}
finish() {
  echo "finished in $SECONDS s; failed: ${failed[*]:-nothing}"
  printf '%s\n' "${steps[@]}"
  [ ! -s "$out/table.txt" ] || cat "$out/table.txt"
}
trap finish EXIT

arch=${DROCC_CUDA_ARCHS:-$($python -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())')}
[ -n "$arch" ] || { note "a GPU, and a torch with CUDA" 1 0; exit 1; }
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

# Exported: a step is a process of its own, for `timeout`.
export out python arch jobs
export -f build_by_cmake build_by_hand
step build $((limit * 40 / 100)) "$bench_limit" bash -c 'build_by_cmake || build_by_hand' || exit 1
rm -rf "$out/objects" "$out/build"
step "library loads" 60 "$bench_limit" "$python" -m benchmarks.loaded || exit 1

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
  OMP_NUM_THREADS=1 timeout -k 5 "$suite_seconds" "$python" -m pytest -m cuda -q --maxfail=20 -p no:cacheprovider \
    -k "$chosen" "python_tests/test_$file.py" >"$(log_of "$1")" 2>&1
}
log_of() {
  echo "$out/tests.${1//[: ]/_}.log"
}
if $python -c 'import pytest, numpy'; then
  declare -A running
  begin=$SECONDS
  suite_seconds=$(left $((limit * 25 / 100)) $((bench_limit + limit * 12 / 100)))
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
    [ $code -ne 5 ] || code=0  # no test of that file needs a GPU
    note "test_$suite" $code $((SECONDS - begin))
    echo "$suite: $(tail -1 "$(log_of "$suite")")"
  done
else
  note "tests, without pytest or numpy" 1 0
fi
for tool in memcheck racecheck; do
  if command -v compute-sanitizer >/dev/null; then
    step $tool $((limit * 6 / 100)) "$bench_limit" \
      compute-sanitizer --tool $tool --error-exitcode 9 "$python" -m benchmarks.cuda_sanitize
  else
    note "$tool, without compute-sanitizer" 1 0
  fi
done
# Prints as it measures: what is there when it fails or is ended stays.
begin=$SECONDS
timeout -k 5 "$(left "$bench_limit" 0)" "$python" -u -m benchmarks.bench_cuda --out "$out" \
  >"$out/table.txt" 2>"$out/bench.err"
code=$?
note benchmarks $code $((SECONDS - begin))
[ $code -eq 0 ] || tail -5 "$out/bench.err"
[ ${#failed[@]} -eq 0 ]
