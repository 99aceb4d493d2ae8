#!/usr/bin/env bash
# Run all that needs a GPU: benchmarks/gpu.sh OUTPUT [STEP ...]. Described in docs/gpu.md.
set -uo pipefail
: "${1:?expected the folder of the results}"
output=$(realpath -m "$1") && shift && mkdir -p "$output" || exit 1
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
steps=("$@")
# The benchmarks are last: what they compare with compiles for minutes.
[ $# -gt 0 ] || steps=(card training times tests memcheck racecheck synccheck initcheck profile benchmarks)
export SNNFAST_REQUIRE_EXT=1 SNNFAST_REQUIRE_GPU=1  # without which tests would be skipped, and the step would pass

# Most tools write what they have when they are interrupted.
limited() { timeout --signal INT --kill-after 20 "${LIMIT:-600}" "$@"; }

environment() {
  nvidia-smi
  local facts
  facts=$(limited "$python" -m snnfast)
  echo "$facts"
  grep -q '^fused on cuda  *yes$' <<< "$facts"
}

tests() { limited "$python" -m pytest -q -m gpu -p no:cacheprovider --continue-on-collection-errors "$@"; }

# An access beyond a tensor is seen only if the tensor is an allocation of its own.
sanitizer() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    limited compute-sanitizer --tool "$1" --error-exitcode 9 "$python" -m benchmarks.gpu.workload
}

profile() {
  limited ncu --clock-control none --kernel-name 'regex:^((forward|backward)[a-z_]*_kernel|snnfast_program)$' --csv --page raw \
    --print-units base --log-file "$output/profile.csv" --set detailed "$python" -m benchmarks.gpu.workload --profiled
}

run() {
  echo "=== $1"
  case $1 in
    environment) environment ;;
    card) tests --junitxml "$output/card.xml" tests/cuda/test_gpu.py ;;
    tests) tests --junitxml "$output/tests.xml" -n 8 --ignore tests/cuda/test_gpu.py tests ;;
    training) limited "$python" -m benchmarks.gpu.training --json "$output/training.json" ;;
    times) limited "$python" -m benchmarks.gpu.times --json "$output/times.json" ;;
    benchmarks) limited "$python" -m benchmarks run --device cuda --json "$output/benchmarks.json" ;;
    memcheck | racecheck | synccheck | initcheck) sanitizer "$1" ;;
    profile) profile ;;
    *) echo "there is no step $1" && return 1 ;;
  esac
}

logged() { "$@" 2>&1 | tee -a "$output/gpu.log"; }

if ! logged run environment; then
  logged echo "=== failed: the kernels do not run on a card here; no other step was begun"
  exit 1
fi
failed=()
for step in "${steps[@]}"; do
  logged run "$step" || failed+=("$step (exit code $?)")
done
logged echo "=== failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
