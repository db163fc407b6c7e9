"""The chart with the operator's keys from a command: no secret, no copy of one, no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmRenderError, lint

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "ptalign"
COMMAND = "vault kv get -field=keys secret/ptalign"


def values(shape: str, **operator_key: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CHART / "examples" / f"{shape}.yaml").read_text())
    found["secrets"]["operatorKey"] = operator_key
    return found


def render(wanted: dict[str, Any]) -> dict[str, str]:
    with Chart.load(CHART) as chart:
        return chart.render(wanted, name="pt", namespace="ml")


@pytest.mark.parametrize("shape", ["embedded", "scaled"])
def test_a_key_command_takes_the_place_of_the_key_secret(shape: str) -> None:
    wanted = values(shape, command=COMMAND, commandSecret="vault-access")
    assert lint(CHART, wanted, strict=True)["errors"] == []
    files = render(wanted)
    notes = next(text for name, text in files.items() if name.endswith("NOTES.txt"))
    assert "Back up the keys that secrets.operatorKey.command prints" in notes
    for text in (text for name, text in files.items() if not name.endswith(".txt")):
        assert "operator-key" not in text
        for manifest in (m for m in yaml.safe_load_all(text) if m and m["kind"] == "StatefulSet"):
            kubernetes_validate.validate(manifest, "1.37", strict=True)
            container = manifest["spec"]["template"]["spec"]["containers"][0]
            env = {e["name"]: e.get("value") for e in container["env"]}
            server = container["name"] == "server"
            assert env.get("PTALIGN_KEY_COMMAND") == (COMMAND if server else None)
            assert "PTALIGN_KEY_FILE" not in env
            given = [e["secretRef"]["name"] for e in container.get("envFrom", [])]
            assert ("vault-access" in given) == server


@pytest.mark.parametrize(
    ("operator_key", "teaches"),
    [
        ({}, "set secrets.operatorKey.command"),
        ({"command": COMMAND, "existingSecret": "k"}, "Keys come from one place"),
    ],
)
def test_keys_come_from_one_place(operator_key: dict[str, str], teaches: str) -> None:
    with pytest.raises(HelmRenderError, match=teaches):
        render(values("embedded", **operator_key))
