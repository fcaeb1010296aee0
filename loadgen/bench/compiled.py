"""The compiled copy of engine and simulator (`make compiled`): made where this is a checkout with a C compiler, and measured in a process
of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
_SCRIPT = """
import sys
from loadgen.bench.simulator import EDGES, is_compiled, ours_s
if not is_compiled():
    sys.exit("sources were measured instead of the compiled copy")
print(ours_s(EDGES, int(sys.argv[1])))
"""


def compiled_copy(tell: Callable[[str], None]) -> Path | None:
    """Its folder, made anew where sources are newer; None where it cannot be made, with the reason told."""
    if not (REPOSITORY / "Makefile").exists():
        return None
    if shutil.which("make") is None or shutil.which("cc") is None:
        tell("not compiled: no make or no C compiler here")
        return None
    tell("make compiled: engine and simulator as machine code (a minute or two, where sources are newer)")
    made = subprocess.run(["make", "compiled"], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if made.returncode:
        tell(f"not compiled: {(made.stderr.strip().splitlines() or ['make failed'])[-1]}")
        return None
    return REPOSITORY / "build" / "compiled"


def compiled_s(folder: Path, num_tasks: int) -> float:
    """CPU seconds for one task, as `simulator.ours_s`. Raises where anything but compiled code would be measured."""
    search = os.pathsep.join([str(folder), str(folder / "proto")])
    command = [sys.executable, "-c", _SCRIPT, str(num_tasks)]
    # The working directory is searched before PYTHONPATH.
    run = subprocess.run(command, cwd=folder, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{folder}: {run.stderr.strip()}")
    return float(run.stdout)
