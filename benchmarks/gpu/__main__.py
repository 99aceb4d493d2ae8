"""All that a GPU can tell, in nine minutes: environment, smoke test, times, bandwidth, tests, sanitizers.

Only the smoke test ends it early. One JSON file holds the card, the driver, the versions and what each step found.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .plan import steps
from .runner import Outcome, run

RESULTS = Path(__file__).parent.parent / "results"
SECONDS, SHORT_SECONDS = 500.0, 170.0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks/gpu.sh", description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="the same without a card, on the emulator and the CPU")
    parser.add_argument("--steps", nargs="+", metavar="S", help="only these, after environment")
    parser.add_argument("--wheel", type=Path, help="take the built extension from a wheel of snnfast")
    parser.add_argument(
        "--output", type=Path, help="folder of the results (default: benchmarks/results; dry run: none)"
    )
    parser.add_argument("--short", action="store_true", help="three minutes: smoke test, and kernels beside copy_")
    parser.add_argument(
        "--seconds", type=float, help=f"of all steps together (default: {SECONDS:g}; {SHORT_SECONDS:g})"
    )
    args = parser.parse_args(argv)
    seconds = args.seconds or (SHORT_SECONDS if args.short else SECONDS)
    date = datetime.now(UTC)
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        plan = steps(Path(folder), args.dry_run, args.wheel, args.short)
        if unknown := set(args.steps or ()) - {step.name for step in plan}:
            parser.error(f"--steps {min(unknown)}: there are {', '.join(step.name for step in plan)}")
        end = time.monotonic() + seconds
        for step in plan:
            # Without the environment nothing tells which card the results are of, and no kernels come from a wheel.
            if args.steps and step.name not in (*args.steps, "environment"):
                continue
            print(f"=== {step.name}: at most {min(step.seconds, max(0.0, end - time.monotonic())):.0f} s", flush=True)
            outcomes.append(run(step, end - time.monotonic()))
            print(f"{outcomes[-1].output.rstrip()}\n=== {step.name} {outcomes[-1].verdict}", flush=True)
            # After each step: a machine that is taken away leaves what it has found.
            content = summary(outcomes, args.dry_run, date)
            output = args.output or (RESULTS if card_of(content) and not args.dry_run else None)
            written = None if output is None else save(content, output)
            if step.gating and outcomes[-1].verdict != "passed":
                print(f"nothing else runs: {step.name} {outcomes[-1].verdict}")
                break
    for outcome in outcomes:
        print(f"{outcome.name:<12} {outcome.verdict:<10} {outcome.seconds:>6.1f} s")
    if written is not None:
        print(f"wrote {written.name}")
    return exit_code(outcomes, args.dry_run)


def exit_code(outcomes: Sequence[Outcome], dry_run: bool) -> int:
    """On a card only the smoke test counts: the rest are results. A dry run is a test of every step."""
    return 1 if any(o.verdict != "passed" for o in outcomes if dry_run or o.name == "smoke") else 0


def summary(outcomes: Sequence[Outcome], dry_run: bool, date: datetime) -> dict[str, Any]:
    """What is kept: the environment first, then each step with what it found."""
    found: dict[str, Any] = {"format": 1, "date": f"{date:%Y-%m-%d %H:%M} UTC", "dry run": dry_run}
    found["environment"] = next((o.results for o in outcomes if o.name == "environment"), None)
    kept = []
    for outcome in outcomes:
        step = asdict(outcome)
        if outcome.name == "environment":
            step["results"] = None  # above
        kept.append(step)
    return {**found, "steps": kept}


def card_of(content: dict[str, Any]) -> str:
    """The first card that the environment found, or nothing."""
    cards = (content["environment"] or {}).get("cards")
    return str(cards[0]["name"]) if cards else ""


def save(content: dict[str, Any], folder: Path) -> Path:
    """As ``CARD_DATE.json``."""
    name = card_of(content) or ("dry run" if content["dry run"] else "no card")
    name = re.sub(r"[^a-z0-9]+", "-", f"{name} {content['date']}".lower())
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    return file


if __name__ == "__main__":
    sys.exit(main())
