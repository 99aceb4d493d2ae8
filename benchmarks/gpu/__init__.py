"""What ``benchmarks/gpu.sh`` runs on a GPU beside the tests and the ordinary benchmarks: see docs/gpu.md."""
