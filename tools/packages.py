"""Packages of PyPI for another system than this one."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# The platforms of PyPI's wheels that a system can install, by the tag of our wheel.
PLATFORMS = {
    "linux_aarch64": ["manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64"],
    "macosx_11_0_arm64": ["macosx_14_0_arm64", "macosx_11_0_arm64"],
    "win_amd64": ["win_amd64"],
}
PYTHON = "3.13"


def install(packages: Sequence[str | Path], folder: Path, tag: str) -> None:
    """Unpack wheels into a folder, without what they depend on: pip would ask this system what that is."""
    platforms = [word for platform in PLATFORMS[tag] for word in ("--platform", platform)]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-compile"]
    pip += ["--only-binary=:all:", "--implementation", "cp", "--python-version", PYTHON, *platforms]
    subprocess.run([*pip, "--upgrade", "--target", folder, *packages], check=True)
