"""The library and its ops, settings, and what PyTorch needs to know. Nothing here knows a neuron's equations."""
