"""Layers in sequence over time."""
