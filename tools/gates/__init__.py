"""What can be known of the CUDA kernels without a GPU, checked: ``python -m tools.gates``."""
