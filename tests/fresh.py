"""Code in a process of its own that has imported torch, but nothing of ours: no Python has to start for each."""

import contextlib
import io
import multiprocessing
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]


def fresh(code: str, folder: Path | None = None, **variables: str) -> str:
    """What a program prints; what it raises is raised here.

    ``folder``: where it runs, and finds modules besides; ``variables``: of its environment, without our others.
    """
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" else "forkserver")
    if sys.platform != "win32":
        context.set_forkserver_preload(["torch"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_run, code, folder, variables).result(timeout=300)


def _run(code: str, folder: Path | None, variables: dict[str, str]) -> str:
    for name in [name for name in os.environ if name.startswith("SNNFAST_")]:
        del os.environ[name]
    os.environ.update(variables)
    os.chdir(folder or ROOT)
    if folder is not None:
        sys.path.insert(0, str(folder))
    assert not any(name.partition(".")[0] in ("snnfast", "snntorch") for name in sys.modules)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        exec(compile(code, "<fresh>", "exec"), {"__name__": "__main__"})
    return printed.getvalue().strip()
