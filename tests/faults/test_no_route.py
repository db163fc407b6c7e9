"""With no route to anywhere everything works and nothing tries to leave."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SCENARIO = """
import json, sys
sys.path[:0] = {paths!r}
from pathlib import Path
from world import author
from running import state_of
from world import generate, records_of, served

def listeners():
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{{name}}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A":
                found.add(int(words[1].rpartition(":")[2], 16))
    return sorted(found)

def unroutable():
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (l.split() for l in lines if l.startswith("Ip:"))
    return int(dict(zip(names, values))["OutNoRoutes"])

def lookups():
    lines = Path("/proc/net/snmp").read_text().splitlines()
    names, values = (l.split() for l in lines if l.startswith("Udp:"))
    return int(dict(zip(names, values))["OutDatagrams"])

with author(0.0) as url:
    with served(Path({state!r}), url) as server:
        made = server.tuning.GenerateInstructions(generate(6))
        done = server.wait(made.name)
        ports = {{server.port, server.metrics_port, int(url.split(":")[2].split("/")[0])}}
        print(json.dumps({{
            "state": state_of(done),
            "unroutable": unroutable(),
            "datagrams": lookups(),
            "others": sorted(set(listeners()) - ports),
        }}))
"""


@pytest.mark.tier(3)
@pytest.mark.timeout(400)
def test_nothing_tries_to_leave(score: Any, tmp_path: Path) -> None:
    probe = subprocess.run(["unshare", "-n", "ip", "link", "set", "lo", "up"], capture_output=True)
    if probe.returncode:
        pytest.skip("needs unshare -n and ip (root, or CAP_SYS_ADMIN; package iproute2)")
    row = score.row("runs without a route: outbound attempts", 1)
    paths = [str(HERE), str(HERE.parent / "server")]
    program = tmp_path / "scenario.py"
    program.write_text(SCENARIO.format(paths=paths, state=str(tmp_path / "state")))
    run = f"ip link set lo up && exec {sys.executable} {program}"
    found = subprocess.run(["unshare", "-n", "sh", "-c", run], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr[-2000:]
    said = json.loads(found.stdout.strip().splitlines()[-1])
    row.ran = 1
    row.bad = said["unroutable"] + said["datagrams"] + len(said["others"])
    assert said == {"state": "SUCCEEDED", "unroutable": 0, "datagrams": 0, "others": []}
