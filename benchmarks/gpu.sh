#!/usr/bin/env bash
# All that a GPU can tell, in ten minutes: benchmarks/gpu.sh [--dry-run]. Described in docs/gpu.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
exec "$python" -m benchmarks.gpu "$@"
