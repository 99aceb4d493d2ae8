"""Layers in sequence over time, and training steps as CUDA graphs."""
