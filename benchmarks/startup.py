"""How fast `skipway --help` answers, as a process of its own, and whether torch was imported.

python benchmarks/startup.py
"""

from __future__ import annotations

import subprocess
import sys
import time

from recorded import record, spread

RUNS = 20
LOADED = "import sys, skipway; print('torch' in sys.modules)"


def main() -> None:
    seconds = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        command = [sys.executable, "-m", "skipway", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begun)
    answer = subprocess.run([sys.executable, "-c", LOADED], check=True, capture_output=True)
    figures = {
        "help_seconds": spread(seconds[1:]),
        "import_skipway_loads_torch": answer.stdout.strip() == b"True",
        "bar": {"help_seconds": 0.4},
    }
    record("startup", figures)


if __name__ == "__main__":
    main()
