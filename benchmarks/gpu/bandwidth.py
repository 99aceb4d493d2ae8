"""Achieved bandwidth of the kernels from the report of Nsight Compute, ``ncu --csv --page raw --print-units base``."""

import csv
import io
import re
from pathlib import Path
from typing import Any

TIME, READ, WRITTEN = "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum"
SHARE = "dram__throughput.avg.pct_of_peak_sustained_elapsed"
# Those that check the counts of `make gates`: instructions of all warps, and how busy the schedulers were.
COUNTS = {
    "smsp__inst_executed.sum": "instructions",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue %",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "warps %",
    "launch__registers_per_thread": "registers",
}
METRICS = (TIME, READ, WRITTEN, SHARE)
KERNELS = "regex:^(forward|backward)[a-z_]*_kernel$"
NAME = re.compile(r"\w+_kernel(<.*?>)?(?=\()")  # up to the arguments, without namespaces, which have brackets too


def command(program: list[str], report: Path) -> list[str]:
    """``program`` under ncu, which writes ``report``; the card keeps its clocks."""
    options = ["--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none"]
    options += ["--log-file", str(report)]
    return ["ncu", *options, "--metrics", ",".join((*METRICS, *COUNTS)), "--kernel-name", KERNELS, *program]


def parse(output: str) -> list[dict[str, Any]]:
    """One record for each launch, its bytes counted at the card's memory."""
    lines = output.splitlines()
    heads = [i for i, line in enumerate(lines) if line.startswith('"ID"')]
    if not heads:
        return []
    found = []
    for row in csv.DictReader(io.StringIO("\n".join(lines[heads[0] :]))):
        if not row["ID"] or not all(row.get(metric) for metric in METRICS):
            continue  # the row of units, or what the program printed after it
        time, read, written, share = (float(row[metric].replace(",", "")) for metric in METRICS)
        seconds = time * 1e-9
        found.append(
            {
                "kernel": name[0] if (name := NAME.search(row["Kernel Name"])) else row["Kernel Name"],
                "seconds": seconds,
                "bytes read": read,
                "bytes written": written,
                "bytes per second": (read + written) / seconds,
                "share of peak": share / 100,
                **{name: float(row[count].replace(",", "")) for count, name in COUNTS.items() if row.get(count)},
            }
        )
    return found
