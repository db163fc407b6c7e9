"""Peak memory of one step over the loaded model: `python -m bench.memory NAME PAIRS TOKENS`.

A process per contestant, since a peak never comes down.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from bench.contestants import CONTESTANTS, demo_model
from bench.results import own_folder, status
from bench.texts import make_items


def peak_over_base(name: str, pairs: int, tokens: int) -> float:
    """Bytes that one step of a contestant needs beyond what it holds before it."""
    command = [sys.executable, "-m", "bench.memory", name, str(pairs), str(tokens)]
    done = subprocess.run(command, cwd=own_folder(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"memory of {name}: {done.stderr[-500:]}")
    return float(json.loads(done.stdout.splitlines()[-1])["bytes"])


def main() -> None:
    """Runs one step and prints its peak as JSON."""
    import torch

    torch.set_num_threads(1)
    name, pairs, tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    step = CONTESTANTS[name](make_items(pairs, tokens), demo_model())
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    base = status("VmRSS")
    step()
    sys.stdout.write("\n" + json.dumps({"bytes": status("VmHWM") - base}) + "\n")


if __name__ == "__main__":
    main()
