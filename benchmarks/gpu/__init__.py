"""What only a GPU can tell: ``benchmarks/gpu.sh``, described in docs/gpu.md."""
