"""How long `import autocompress` and `autocompress --help` take, as a user waits for them.

    python benchmarks/import_time.py

Each is a process of its own, started and waited for, so the interpreter's start is in the figure; that is
timed by itself for comparison. The three take turns; a first round fills the caches and is not counted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

PROGRAM = Path(sysconfig.get_path("scripts")) / "autocompress"
COMMANDS = {
    "python -c ''": [sys.executable, "-c", ""],
    "import autocompress": [sys.executable, "-c", "import autocompress"],
    "autocompress --help": [str(PROGRAM), "--help"],
}


def wall_s(command: list[str]) -> float:
    """Wall seconds of a process."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=10)
    runs = parser.parse_args().runs
    rounds = [{name: wall_s(command) for name, command in COMMANDS.items()} for _ in range(runs + 1)][1:]
    for name in COMMANDS:
        seconds = [taken[name] for taken in rounds]
        print(f"{name:<22} median {statistics.median(seconds):.3f} s, slowest {max(seconds):.3f} s of {runs} runs")


if __name__ == "__main__":
    main()
