"""`make demo`: the whole loop on a real model through the real service.

Starts `ptalign-server` on free loopback ports with its state under demo-out/, runs the loop file
with the `ptalign` command as a user would, and stops everything it started.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from ptalign.errors import NotReady
from ptalign_server.locks import hold_lock
from ptalign_server.settings import Settings

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
BIN = Path(sys.executable).parent

ENDED = ".ended"
"""File of a demo's folder whose time is that of its end."""
NO_DATA = """evaluation data: none. Suites will lack prompts and the verdict will be INCONCLUSIVE;
README, "Evaluation data", says which files to get and where to name them."""
GO_ON = """to go on with what it made: PTALIGN_STATE={state} make serve
then: .venv/bin/ptalign list adapters; .venv/bin/ptalign chat -m MODEL -a ADAPTER --compare"""


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def server_environment(state: Path, ports: list[int]) -> dict[str, str]:
    """Settings of the demo's server."""
    grpc, metrics, page = ports
    return dict(os.environ) | {
        "PTALIGN_STATE": str(state),
        "PTALIGN_PORT": str(grpc),
        "PTALIGN_METRICS_PORT": str(metrics),
        "PTALIGN_PAGE_PORT": str(page),
    }


def stop(server: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL for a server that will not go."""
    if server.poll() is None:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
    print(f"server stopped (exit {server.wait()})", flush=True)


def wait_until_serving(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Waits for the control services.

    Raises:
        SystemExit: The server ended or did not answer within 30 s; its last lines are shown.
    """
    host, port = address.split(":")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    lines = log.read_text(errors="replace").splitlines()[-20:]
    raise SystemExit("the server did not come up; its last lines:\n" + "\n".join(lines))


def put_aside(out: Path) -> None:
    """Makes room for a demo. One whose state was gone on with, or that did not end, is kept.

    Raises:
        SystemExit: A server uses it now.
    """
    state = out / "state"
    lock = Settings(state=state).run_dir / "gateway.lock"
    if lock.exists():
        try:
            hold_lock(lock, 0.0).close()
        except NotReady as error:
            raise SystemExit(str(error)) from None
    if not out.exists():
        return
    ended = out / ENDED
    if ended.exists() and changed(state) <= ended.stat().st_mtime:
        shutil.rmtree(out)
        return
    kept = out.with_name(f"{out.name}.{time.strftime('%Y%m%dT%H%M%S')}")
    out.rename(kept)
    print(f"the demo before this one was gone on with: kept as {kept}", flush=True)


def changed(state: Path) -> float:
    """When a server last wrote to a state folder."""
    return max((file.stat().st_mtime for file in state.glob("*.db*")), default=0.0)


def run(loop: Path, out: Path) -> int:
    """The loop; returns the exit code of `ptalign run`."""
    put_aside(out)
    out.mkdir(parents=True)
    ports = free_ports(3)
    address = f"127.0.0.1:{ports[0]}"
    log = out / "server.log"
    data = os.environ.get("PTALIGN_EVAL_DATA", "")
    print(f"evaluation data: {data}" if data else NO_DATA, flush=True)
    print(f"starting ptalign-server on {address} (log: {log})", flush=True)
    with log.open("wb") as stream:
        server = subprocess.Popen(
            [str(BIN / "ptalign-server"), "serve"],
            env=server_environment(out / "state", ports),
            stdout=stream,
            stderr=stream,
        )
    try:
        wait_until_serving(server, address, log)
        command = [str(BIN / "ptalign"), "--endpoint", address, "run", str(loop), "--out", str(out)]
        return subprocess.run(command, cwd=ROOT, check=False).returncode
    finally:
        stop(server)
        (out / ENDED).touch()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fast", action="store_true", help="base and PT-ALIGN, smaller budget")
    parser.add_argument("--out", type=Path, default=ROOT / "demo-out")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is stopped on the way out
    began = time.monotonic()
    out = arguments.out.absolute()
    code = run(HERE / ("fast.yaml" if arguments.fast else "full.yaml"), out)
    print(f"demo: {time.monotonic() - began:.0f} s; open {out / 'report.html'}", flush=True)
    if code == 0:
        state = (out / "state").relative_to(ROOT) if out.is_relative_to(ROOT) else out / "state"
        print(GO_ON.format(state=state), flush=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
