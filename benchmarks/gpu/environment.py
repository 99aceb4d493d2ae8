"""Card, driver and versions, as JSON; with kernels for the card, which are built if they are not there."""

import argparse
import json
import os
import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.environment", description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--wheel", type=Path, help="take the kernels from a wheel instead of building them")
    parser.add_argument("--dry-run", action="store_true")
    args = parser.parse_args()
    if not args.dry_run and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device")
    if args.wheel is not None:
        unpack(args.wheel)
    elif not args.dry_run and not has_kernels():
        build()
    found = facts()
    args.json.write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))
    if not args.dry_run and found["snnfast"]["fused on cuda"] != "yes":
        raise SystemExit(f"no kernels for this card: {found['snnfast']['fused on cuda']}")


def has_kernels() -> bool:
    """Asked of another process: an extension that was loaded can't be replaced."""
    code = "import snnfast, sys; sys.exit(snnfast.config()['fused on cuda'] != 'yes')"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def build() -> None:
    """In place, for this card alone."""
    major, minor = torch.cuda.get_device_capability()
    variables = {"SNNFAST_REQUIRE_EXT": "1", "SNNFAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, **variables}, check=True)


def unpack(wheel: Path) -> None:
    """The kernels of a wheel into the source tree, which is what runs here."""
    name = "snnfast/_kernels.so"
    with zipfile.ZipFile(wheel) as archive:
        if name not in archive.namelist():
            raise SystemExit(f"{wheel.name} has no {name}: it was built without the kernels")
        archive.extract(name, ROOT)


def facts() -> dict[str, Any]:
    import snnfast

    from ..report import commit

    found: dict[str, Any] = {
        "commit": commit(),
        "system": platform.platform(),
        "processors": os.cpu_count(),
        "torch cuda": torch.version.cuda,
        "snnfast": dict(snnfast.config()),
        "cards": [],
        "driver": None,
    }
    for i in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(i)
        found["cards"].append(
            {
                "name": card.name,
                "capability": f"{card.major}.{card.minor}",
                "multiprocessors": card.multi_processor_count,
                "bytes": card.total_memory,
            }
        )
    if found["cards"]:
        found["driver"] = driver()
    return found


def driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return "unknown"


if __name__ == "__main__":
    main()
