#!/usr/bin/env bash
# All that a GPU can tell, in nine minutes, or the most of it in three: benchmarks/gpu.sh [--short] [--dry-run]. Described in docs/gpu.md.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}"
exec "$python" -m benchmarks.gpu "$@"
