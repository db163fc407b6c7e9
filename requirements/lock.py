"""Writes requirements/*.txt from *.in with hashes: `make lock`.

torch and its siblings stay out: the +cpu build lives on an index of its own, and the CPU engine
breaks beside torchvision, torchaudio and torchcodec. What cpu.txt pins is not pinned twice.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
TORCH_CPU = "torch==2.13.0+cpu"


def compile_lock(name: str, *extra: str) -> None:
    """Resolves NAME.in into NAME.txt."""
    unsafe = [word for package in LEFT_OUT for word in ("--unsafe-package", package)]
    command = [
        "uv",
        "pip",
        "compile",
        "-q",
        "--python-version",
        "3.11",
        "--no-annotate",
        "--no-header",
    ]
    command += ["--generate-hashes", *unsafe, *extra, f"{name}.in", "-o", f"{name}.txt"]
    print("locking", name, flush=True)
    subprocess.run(command, cwd=HERE, check=True)


def blocks(file: Path) -> dict[str, str]:
    """Package name -> its pinned lines."""
    found: dict[str, str] = {}
    current = ""
    for line in file.read_text().splitlines(keepends=True):
        if match := re.match(r"([A-Za-z0-9_.-]+)==", line):
            current = match[1].lower()
            found[current] = line
        elif current and line.startswith(" "):
            found[current] += line
    return found


def main() -> None:
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as constraint:
        constraint.write(TORCH_CPU + "\n")
        constraint.flush()
        cpu_torch = ("-c", constraint.name, *sys.argv[1:])
        compile_lock("cpu", *cpu_torch)
        compile_lock("dev", *cpu_torch)
        compile_lock("bench", *cpu_torch)
    compile_lock("gpu")
    compile_lock("demo-model", "--no-deps")
    pinned = blocks(HERE / "cpu.txt")
    for name in ("dev", "bench"):
        file = HERE / f"{name}.txt"
        file.write_text("".join(v for k, v in blocks(file).items() if k not in pinned))


if __name__ == "__main__":
    main()
