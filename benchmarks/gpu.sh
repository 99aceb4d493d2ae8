#!/usr/bin/env bash
# Run all that needs a GPU: benchmarks/gpu.sh OUTPUT [STEP ...]. Every step runs, whatever became of the others, and
# leaves its log in OUTPUT; the exit code is 1 if one failed. Described in docs/gpu.md.
set -uo pipefail
: "${1:?expected the folder of the results}"
output=$(realpath -m "$1") && shift && mkdir -p "$output" || exit 1
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
steps=("$@")
[ $# -gt 0 ] || steps=(environment card times memcheck benchmarks tests racecheck synccheck initcheck profile)

tests() { "$python" -m pytest -q -m gpu -p no:cacheprovider --continue-on-collection-errors "$@"; }

# An access beyond a tensor is seen only if the tensor is an allocation of its own.
sanitizer() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool "$1" --error-exitcode 9 "$python" -m benchmarks.gpu.workload
}

profile() {
  ncu --clock-control none --kernel-name 'regex:^(forward|backward)[a-z_]*_kernel$' --csv --page raw \
    --print-units base --log-file "$output/profile.csv" --set detailed "$python" -m benchmarks.gpu.workload --profiled
}

run() {
  case $1 in
    environment) nvidia-smi && "$python" -m snnfast ;;
    card) tests --junitxml "$output/card.xml" tests/test_gpu.py ;;
    tests) tests --junitxml "$output/tests.xml" -n 8 --ignore tests/test_gpu.py tests ;;
    times) "$python" -m benchmarks.gpu.times --json "$output/times.json" ;;
    benchmarks) "$python" -m benchmarks run --device cuda --json "$output/benchmarks.json" ;;
    memcheck | racecheck | synccheck | initcheck) sanitizer "$1" ;;
    profile) profile ;;
    *) echo "there is no step $1" && return 1 ;;
  esac
}

failed=()
for step in "${steps[@]}"; do
  echo "=== $step"
  run "$step" 2>&1 | tee "$output/$step.log" || failed+=("$step")
done
echo "=== failed: ${failed[*]:-nothing}"
[ ${#failed[@]} -eq 0 ]
