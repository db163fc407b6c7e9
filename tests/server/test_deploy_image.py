"""The Dockerfile: hadolint is content, and what it pins is what the repository locks."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "Dockerfile"
TEXT = FILE.read_text()


def stages() -> dict[str, str]:
    """Text of each build stage by name."""
    parts = re.split(r"^FROM (\S+) AS (\S+)$", TEXT, flags=re.MULTILINE)
    return dict(zip(parts[2::3], parts[3::3], strict=True))


def locked(file: str, package: str) -> str:
    found = re.search(
        rf"^{package}==(\S+)", (ROOT / "requirements" / file).read_text(), re.MULTILINE
    )
    assert found, f"{package} is not locked in {file}"
    return found[1]


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"
    done = subprocess.run([hadolint, "--no-color", str(FILE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_hadolint_would_find_something(tmp_path: Path) -> None:
    worse = tmp_path / "Dockerfile"
    worse.write_text(TEXT.replace("USER 10001:10001", "RUN sudo pip install x\nUSER root"))
    hadolint = Path(sys.executable).parent / "hadolint"
    assert subprocess.run([hadolint, str(worse)], capture_output=True).returncode != 0


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_targets_run_as_nobody_in_particular(target: str) -> None:
    last = stages()[target].strip().splitlines()[-1]
    assert last == "USER 10001:10001"
    assert 'CMD ["ptalign-server", "health"]' in stages()["runtime"]


def test_every_base_is_pinned_and_names_no_host() -> None:
    image = re.search(r"^ARG PYTHON_IMAGE=(\S+)$", TEXT, re.MULTILINE)
    assert image
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", image[1])
    assert "http" not in TEXT


def test_versions_agree_with_the_locks() -> None:
    assert f"hatchling=={locked('dev.txt', 'hatchling')}" in stages()["wheels"]
    for target in ("cpu", "gpu"):
        text = stages()[f"deps-{target}"]
        assert f"COPY requirements/{target}.txt" in text
        assert "--require-hashes" in text
    makefile = (ROOT / "Makefile").read_text()
    torch = re.search(r"ARG TORCH_VERSION=(\S+)", stages()["deps-gpu"])
    assert torch
    assert f"torch=={torch[1]}" in makefile
    assert f"ARG TORCH_VERSION={torch[1]}+cpu" in stages()["deps-cpu"]


def test_the_installed_torch_is_the_images() -> None:
    version = importlib.metadata.version("torch")
    assert f"ARG TORCH_VERSION={version}\n" in TEXT


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignore if line.startswith("!")]
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", TEXT, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source
            assert any(Path(source).match(pattern) for pattern in kept), f"{source} is ignored"


def test_caches_lie_on_volumes() -> None:
    """The root file system may be read-only: nothing may be written beside the two volumes."""
    runtime = stages()["runtime"]
    volumes = re.search(r"^VOLUME \[(.+)\]$", runtime, re.MULTILINE)
    assert volumes
    places = [part.strip(' "') for part in volumes[1].split(",")]
    found = dict(re.findall(r"(\w+)=(/\S+)", runtime))
    assert "FLASHINFER_WORKSPACE_BASE" in found
    for name, path in found.items():
        if name.endswith(("HOME", "DIR", "ROOT", "BASE")):
            assert any(path.startswith(place) for place in places), name
