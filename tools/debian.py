"""Packages of Debian, also for another processor, unpacked into a folder. Nothing is installed, and nobody is root."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path


def unpack(packages: Sequence[str], architecture: str, folder: Path) -> Path:
    """Download packages and all that they depend on from this system's archives, and unpack them into a folder."""
    done = folder / ".done"
    if done.exists() and done.read_text() == " ".join(packages):
        return folder
    state = folder / ".apt"
    for needed in ("lists/partial", "archives/partial"):
        (state / needed).mkdir(parents=True, exist_ok=True)
    (state / "status").write_text("")  # as if nothing were installed: then everything is downloaded
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",
        "Dir::State": state,
        "Dir::State::status": state / "status",
        "Dir::State::lists": state / "lists",
        "Dir::Cache": state,
        "Dir::Cache::archives": state / "archives",
        "Debug::NoLocking": "true",
    }
    apt = ["apt-get", "-qq", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    subprocess.run([*apt, "update"], check=True)
    command = [*apt, "--yes", "--no-install-recommends", "--download-only", "install", *packages]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    for archive in sorted((state / "archives").glob("*.deb")):
        subprocess.run(["dpkg-deb", "--extract", archive, folder], check=True)
    done.write_text(" ".join(packages))
    return folder
