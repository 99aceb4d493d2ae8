"""``python -m snnfast``: print the configuration."""

from snnfast import show_config

show_config()
