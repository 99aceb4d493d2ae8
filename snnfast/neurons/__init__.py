"""The layers of neurons."""
