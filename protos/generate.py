"""Generates the wire code (`make protos`) and checks the .proto files (`--lint`).

The generator is pinned to grpcio-tools 1.76: its output loads on protobuf 6.33 and 7, while 1.85's
refuses 6. It runs in an environment of its own because it asks for an older protobuf.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
RELEASES = HERE.parent / "tests" / "data" / "golden"
"""``VERSION.binpb`` of each release, written by make.py there."""
TOOLS = "grpcio-tools==1.76.0"


def include_folder(root: Path) -> Path:
    """A folder with google/longrunning/operations.proto, which its package ships renamed."""
    spec = importlib.util.find_spec("google.longrunning")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("googleapis-common-protos is missing: run `make install`")
    source = Path(next(iter(spec.submodule_search_locations)))
    target = root / "google" / "longrunning"
    target.mkdir(parents=True)
    shutil.copy(source / "operations_proto.proto", target / "operations.proto")
    for name in ("rpc", "api"):
        shutil.copytree(
            source.parent / name,
            root / "google" / name,
            ignore=lambda _, names: [n for n in names if not n.endswith(".proto")],
        )
    return root


def tools_python(root: Path) -> Path:
    """A python that has the pinned generator."""
    venv = root / "tools"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    subprocess.run([str(python), "-m", "pip", "install", "-q", TOOLS, "setuptools<81"], check=True)
    return python


def generate(out: Path, root: Path) -> None:
    """Writes *_pb2.py, *_pb2.pyi and *_pb2_grpc.py for every .proto under protos/."""
    python = tools_python(root)
    bundled = subprocess.run(
        [
            str(python),
            "-c",
            "import grpc_tools, os; print(os.path.join(grpc_tools.__path__[0], '_proto'))",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    files = sorted(str(p) for p in HERE.rglob("*.proto"))
    subprocess.run(
        [
            str(python),
            "-m",
            "grpc_tools.protoc",
            f"-I{HERE}",
            f"-I{include_folder(root / 'include')}",
            f"-I{bundled}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--pyi_out={out}",
            *files,
        ],
        check=True,
    )


def buf_tree(root: Path) -> Path:
    """A copy of the .proto files that holds the imported ones beside ours, as buf wants them."""
    tree = root / "buf"
    shutil.copytree(
        HERE, tree / "protos", ignore=lambda _, names: [n for n in names if n.endswith(".py")]
    )
    include_folder(tree / "include")
    shutil.copy(HERE.parent / "buf.yaml", tree)
    return tree


def buf(*words: str, tree: Path) -> None:
    """Runs buf in a tree; its own words say what is wrong."""
    program = shutil.which("buf", path=str(Path(sys.executable).parent))
    if program is None:
        raise SystemExit("buf is missing: run `make install`")
    if subprocess.run([program, *words], cwd=tree).returncode:
        raise SystemExit(f"buf {words[0]} found the above")


def lint(root: Path) -> None:
    """buf lint and format, and nothing that breaks a client of any release."""
    tree = buf_tree(root)
    buf("lint", "protos", tree=tree)
    buf("format", "--diff", "--exit-code", "protos", tree=tree)
    for release in sorted(RELEASES.glob("*.binpb")):
        buf("breaking", "protos", "--against", str(release), tree=tree)


def write_image(target: Path) -> None:
    """What a release speaks, for `lint` to compare every later one with."""
    with tempfile.TemporaryDirectory() as folder:
        words = ("build", "protos", "--exclude-source-info", "-o", str(target.resolve()))
        buf(*words, tree=buf_tree(Path(folder)))


def write_format() -> None:
    """buf format in place, so that generated code and source never differ in layout."""
    buf = shutil.which("buf", path=str(Path(sys.executable).parent))
    if buf is not None:
        subprocess.run([buf, "format", "-w", str(HERE)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lint", action="store_true", help="check, write nothing")
    parser.add_argument("--out", type=Path, default=HERE, help="where to write the generated code")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.lint:
            lint(Path(folder))
        else:
            write_format()
            generate(arguments.out, Path(folder))


if __name__ == "__main__":
    main()
