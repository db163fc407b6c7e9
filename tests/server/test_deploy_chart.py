"""The Helm chart, rendered by Helm itself and checked against Kubernetes' own schemas."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import Chart, HelmError, HelmRenderError, HelmValuesError, lint
from pydantic import BaseModel

from ptalign.config import GateConfig
from ptalign_server.catalogue import read_models
from ptalign_server.settings import Settings
from ptalign_server.variables import OTHERS

CHART = Path(__file__).parents[2] / "deploy" / "helm" / "ptalign"
SHAPES = ("embedded", "scaled")
CUSTOM = {"ServiceMonitor"}
"""Kinds of operators: Kubernetes has no schema for them."""
PORTS = {50051, 9464, 8080, 8100, 53}
Manifest = dict[str, Any]


def example(shape: str) -> dict[str, Any]:
    return yaml.safe_load((CHART / "examples" / f"{shape}.yaml").read_text())


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, as Helm lays one values file over another."""
    out = dict(base)
    for key, value in change.items():
        old = out.get(key)
        both = isinstance(value, dict) and isinstance(old, dict)
        out[key] = merged(old, value) if both else value
    return out


def render(values: dict[str, Any]) -> list[Manifest]:
    with Chart.load(CHART) as chart:
        files = chart.render(values, name="pt", namespace="ml")
    texts = [text for name, text in files.items() if not name.endswith(".txt")]
    return [doc for text in texts for doc in yaml.safe_load_all(text) if doc]


def refusal(values: dict[str, Any], error: type[HelmError] = HelmValuesError) -> str:
    with pytest.raises(error) as caught:
        render(values)
    return str(caught.value)


def named(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    return next(m for m in manifests if m["kind"] == kind and m["metadata"]["name"] == name)


def pods(manifests: list[Manifest]) -> Iterator[dict[str, Any]]:
    for manifest in manifests:
        if manifest["kind"] == "StatefulSet":
            yield manifest["spec"]["template"]["spec"]


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return pod["containers"] + pod.get("initContainers", [])


def env_of(manifests: list[Manifest], name: str) -> dict[str, Any]:
    container = named(manifests, "StatefulSet", name)["spec"]["template"]["spec"]["containers"][0]
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}


@pytest.fixture(params=SHAPES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(example(request.param))


@pytest.mark.parametrize("shape", SHAPES)
def test_helm_lints_both_shapes(shape: str) -> None:
    report = lint(CHART, example(shape), strict=True)
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []


@pytest.mark.parametrize("version", ["1.27", "1.37"])
def test_kubernetes_accepts_every_manifest(manifests: list[Manifest], version: str) -> None:
    for manifest in manifests:
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, version, strict=True)


def test_the_validator_would_see_a_wrong_field() -> None:
    service = named(render(example("embedded")), "Service", "pt")
    service["spec"]["prots"] = []
    with pytest.raises(kubernetes_validate.ValidationError, match="prots"):
        kubernetes_validate.validate(service, "1.37", strict=True)


def test_nothing_runs_as_root_or_writes_its_root(manifests: list[Manifest]) -> None:
    for pod in pods(manifests):
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] == 10001
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]


def test_what_is_written_to_is_a_volume(manifests: list[Manifest]) -> None:
    """The root is read-only: state, /tmp and /dev/shm must be mounts, secrets must not be."""
    for pod in pods(manifests):
        mounts = pod["containers"][0]["volumeMounts"]
        writable = {m["mountPath"] for m in mounts if not m.get("readOnly")}
        assert {"/tmp", "/dev/shm"} <= writable
        assert not [path for path in writable if path.startswith(("/etc", "/models"))]


def test_only_documented_ports_come_in_or_go_out(manifests: list[Manifest]) -> None:
    policies = [m for m in manifests if m["kind"] == "NetworkPolicy"]
    closed = named(manifests, "NetworkPolicy", "pt-default-deny")
    assert closed["spec"] == {
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/name": "ptalign",
                "app.kubernetes.io/instance": "pt",
            }
        },
        "policyTypes": ["Ingress", "Egress"],
    }
    asked = {5432, 443}  # examples/scaled.yaml: database and object store
    for policy in policies:
        spec = policy["spec"]
        rules = spec.get("ingress", []) + spec.get("egress", [])
        for rule in rules:
            assert {p["port"] for p in rule["ports"]} <= PORTS | asked
            assert rule.get("from") or rule.get("to"), "an empty peer list admits everybody"


def test_every_policy_selects_pods_that_exist(manifests: list[Manifest]) -> None:
    labels = [
        m["spec"]["template"]["metadata"]["labels"] for m in manifests if m["kind"] == "StatefulSet"
    ]

    def matches(selector: dict[str, str]) -> bool:
        return any(selector.items() <= pod.items() for pod in labels)

    for manifest in manifests:
        spec = manifest.get("spec", {})
        if manifest["kind"] == "Service":
            assert matches(spec["selector"])
        elif manifest["kind"] == "NetworkPolicy":
            assert matches(spec["podSelector"]["matchLabels"])
        elif manifest["kind"] == "PodDisruptionBudget":
            assert matches(spec["selector"]["matchLabels"])


def test_service_monitor_finds_the_metrics_port() -> None:
    manifests = render(example("scaled"))
    monitor = named(manifests, "ServiceMonitor", "pt")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    found = [
        m for m in manifests if m["kind"] == "Service" and wanted <= m["metadata"]["labels"].items()
    ]
    assert [s["metadata"]["name"] for s in found] == ["pt-servers"]
    assert found[0]["spec"]["ports"] == [{"name": "metrics", "port": 9464, "targetPort": "metrics"}]


def test_probes_use_the_local_socket() -> None:
    pod = next(pods(render(example("embedded"))))
    container = pod["containers"][0]
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["exec"]["command"] == ["ptalign-server", "health"]


def test_embedded_is_one_server_on_a_volume_with_its_own_engine() -> None:
    manifests = render(example("embedded"))
    server = named(manifests, "StatefulSet", "pt")
    assert server["spec"]["replicas"] == 1
    assert server["spec"]["volumeClaimTemplates"][0]["metadata"]["name"] == "state"
    assert [m for m in manifests if m["metadata"]["name"].startswith("pt-engine")] == []
    env = env_of(manifests, "pt")
    assert "PTALIGN_DATABASE" not in env
    assert "PTALIGN_ENGINE__KIND" not in env


def test_the_server_finds_the_evaluation_data() -> None:
    """Without it no evaluation could PASS on Kubernetes."""
    assert env_of(render(example("embedded")), "pt")["PTALIGN_EVAL_DATA"] == "/models/eval"


def test_scaled_servers_share_the_database_the_store_and_the_engines() -> None:
    manifests = render(example("scaled"))
    env = env_of(manifests, "pt")
    assert env["PTALIGN_DATABASE"] == {"secretKeyRef": {"name": "ptalign-database", "key": "url"}}
    assert env["PTALIGN_ARTEFACTS"] == "s3://ptalign-prod/state"
    assert env["PTALIGN_ENGINE__KIND"] == "remote"
    engine = named(manifests, "StatefulSet", "pt-engine")
    headless = named(manifests, "Service", engine["spec"]["serviceName"])
    assert headless["spec"]["clusterIP"] == "None"
    hosts = [url.split("/")[2] for url in json.loads(env["PTALIGN_ENGINE__URLS"])]
    expected = [f"pt-engine-{i}.{headless['metadata']['name']}:8100" for i in range(3)]
    assert hosts == expected


def test_jobs_outlive_an_upgrade(manifests: list[Manifest]) -> None:
    """dbos leaves the jobs of another application version alone: a chart must not change it."""
    assert "PTALIGN_APPLICATION_VERSION" not in env_of(manifests, "pt")


def test_executor_id_is_the_pods_stable_name(manifests: list[Manifest]) -> None:
    env = env_of(manifests, "pt")
    assert env["PTALIGN_EXECUTOR_ID"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def check_setting(name: str) -> None:
    """Follows PTALIGN_A__B through the settings' fields; a few are read elsewhere."""
    if name in OTHERS:
        return
    model: Any = Settings
    for part in name.removeprefix("PTALIGN_").lower().split("__"):
        assert isinstance(model, type), name
        assert issubclass(model, BaseModel), name
        assert part in model.model_fields, f"{name} is no setting of the server"
        model = model.model_fields[part].annotation


def test_every_ptalign_variable_is_a_setting(manifests: list[Manifest]) -> None:
    seen = 0
    for pod in pods(manifests):
        for variable in pod["containers"][0]["env"]:
            if variable["name"].startswith("PTALIGN_"):
                check_setting(variable["name"])
                seen += 1
    assert seen >= 10


def test_the_servers_settings_parse_what_the_chart_sets(
    manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env_of(manifests, "pt").items():
        monkeypatch.setenv(name, value if isinstance(value, str) else "postgresql+psycopg://h/db")
    settings = Settings()
    assert settings.host == "0.0.0.0"
    assert not settings.loopback
    assert (settings.page, settings.page_host, settings.page_port) == (True, "0.0.0.0", 8080)
    assert settings.auth.tls_cert == Path("/etc/ptalign/tls/tls.crt")
    if settings.engine.kind == "remote":
        assert len(settings.engine.urls) == 3


def test_what_has_no_value_of_its_own_is_set_by_its_variable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Retention, limits, engines of one's own: with the fixed list none could be set at all."""
    env = {
        "PTALIGN_LIMITS__MAX_QUEUED": "5000",
        "PTALIGN_LOG_LEVEL": "DEBUG",
        "PTALIGN_ENGINE__KIND": "remote",
        "PTALIGN_ENGINE__URLS": '["http://vllm:8000/v1"]',
    }
    gate = {"min_harm_reduction": 0.2}
    change = {"retentionDays": 180, "gate": gate, "server": {"env": env}}
    values = merged(example("embedded"), change)
    for name, value in env_of(render(values), "pt").items():
        monkeypatch.setenv(name, value if isinstance(value, str) else "pt-0")
    settings = Settings()
    assert (settings.retention_days, settings.log_level) == (180, "DEBUG")
    assert settings.limits.max_queued == 5000
    assert settings.gate == GateConfig(min_harm_reduction=0.2)
    assert settings.engine.urls == ("http://vllm:8000/v1",)


def test_retention_is_the_servers_own_unless_told(manifests: list[Manifest]) -> None:
    days = env_of(manifests, "pt")["PTALIGN_RETENTION_DAYS"]
    assert float(days) == Settings.model_fields["retention_days"].default


def test_a_variable_of_the_chart_is_not_set_twice() -> None:
    """A second PTALIGN_DATABASE would win over the secret's, and pass the schema by."""
    text = (CHART / "templates" / "_env.tpl").read_text()
    names = re.findall(r"name: (PTALIGN_\w+)", text)
    assert len(names) >= 25
    for name in names:
        given = {"gate": {"min_harm_reduction": 0.2}, "server": {"env": {name: "x"}}}
        values = merged(example("scaled"), given)
        assert f"server.env has {name}, which the chart" in refusal(values, HelmRenderError)


def test_mounted_secrets_are_brought_up_to_date(manifests: list[Manifest]) -> None:
    """Kubernetes never refreshes what is mounted by subPath."""
    for pod in pods(manifests):
        secrets = {v["name"] for v in pod["volumes"] if "secret" in v}
        for container in containers(pod):
            for mount in container.get("volumeMounts", []):
                assert mount["name"] not in secrets or "subPath" not in mount, mount


def test_every_server_finds_every_training_checkpoint() -> None:
    """A restarted pod's training is queued anew: another pod took it, and began at step 0."""
    pod = named(render(example("scaled")), "StatefulSet", "pt")["spec"]["template"]["spec"]
    at = {m["mountPath"]: m for m in pod["containers"][0]["volumeMounts"]}
    work = Path("/var/lib/ptalign/work")
    assert at[str(work)] == {"name": "sets", "mountPath": str(work), "subPath": "work"}
    [claim] = [v for v in pod["volumes"] if v["name"] == "sets"]
    assert claim["persistentVolumeClaim"] == {"claimName": "ptalign-sets"}
    # Kubernetes would make the folder as root.
    [maker] = [c for c in pod["initContainers"] if c["name"] == "work"]
    assert maker["volumeMounts"] == [{"name": "sets", "mountPath": "/sets"}]
    assert maker["command"][-1] == "/sets/work"
    embedded = named(render(example("embedded")), "StatefulSet", "pt")["spec"]["template"]["spec"]
    assert "subPath" not in str(embedded["containers"][0]["volumeMounts"])
    assert [c["name"] for c in embedded["initContainers"]] == ["operator-key"]


def test_the_token_file_is_read_where_the_secret_is_mounted() -> None:
    manifests = render(example("scaled"))
    file = Path(str(env_of(manifests, "pt")["PTALIGN_TOKENS_FILE"]))
    pod = named(manifests, "StatefulSet", "pt")["spec"]["template"]["spec"]
    [mount] = [m for m in pod["containers"][0]["volumeMounts"] if m["name"] == "tokens"]
    [volume] = [v for v in pod["volumes"] if v["name"] == "tokens"]
    assert mount["mountPath"] == str(file.parent)
    assert [item["path"] for item in volume["secret"]["items"]] == [file.name]
    assert "PTALIGN_TOKENS_FILE" not in env_of(render(example("embedded")), "pt")


def test_no_secret_value_stands_in_a_manifest(manifests: list[Manifest]) -> None:
    assert [m for m in manifests if m["kind"] == "Secret"] == []
    for pod in pods(manifests):
        for container in containers(pod):
            for argument in container.get("args", []) + container.get("command", []):
                assert "api-key" not in argument


@pytest.mark.parametrize("missing", ["database", "objectStore", "persistence", "secrets"])
def test_more_than_one_server_needs_what_they_share(missing: str) -> None:
    values = {k: v for k, v in example("scaled").items() if k not in {missing, "engines"}}
    message = refusal(values)
    assert f"/{missing}/" in message


def test_tokens_do_not_stay_in_a_pod_without_a_volume() -> None:
    """They were left in the pod, and nobody could call once it had been replaced."""
    gone = {"persistence": {"enabled": False}, "server": {"replicas": 1}}
    values = merged(example("scaled"), gone | {"secrets": {"tokens": {"existingSecret": ""}}})
    assert "/secrets/tokens/existingSecret" in refusal(values)
    render(merged(example("scaled"), gone))


def test_replicas_alone_are_refused() -> None:
    message = refusal(merged(example("embedded"), {"server": {"replicas": 2}}))
    assert "/database/existingSecret" in message
    assert "/objectStore/url" in message


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"server": {"replicas": 0}}, "/server/replicas"),
        ({"server": {"replicas": "2"}}, "/server/replicas"),
        ({"server": {"terminationGracePeriodSeconds": 5}}, "/server/terminationGracePeriodSeconds"),
        ({"profile": "tpu"}, "/profile"),
        ({"image": {"tag": "latest"}}, "/image/tag"),
        ({"image": {"digest": "sha256:12"}}, "/image/digest"),
        ({"objectStore": {"url": "http://bucket"}}, "/objectStore/url"),
        ({"models": [{"name": "m", "path": "/models/../etc"}]}, "/models/0/path"),
        ({"models": [{"name": "m", "path": "/etc/weights"}]}, "/models/0/path"),
        ({"networkPolicy": {"clients": []}}, "/networkPolicy/clients"),
        ({"persistence": {"enabled": False}}, "/database/existingSecret"),
        ({"engines": {"enabled": True, "model": "x"}}, "/objectStore/url"),
        ({"engines": {"extraArgs": ["--trust-remote-code"]}}, "/engines/extraArgs/0"),
        ({"service": {"type": "NodePort"}}, "/service/type"),
        ({"replicaCount": 3}, "replicaCount"),
        ({"retentionDays": -1}, "/retentionDays"),
        ({"gate": {"min_harm_reduction": 20}}, "/gate/min_harm_reduction"),
        ({"gate": {"max_harm": 0.1}}, "max_harm"),
        ({"server": {"env": {"LD_PRELOAD": "x"}}}, "LD_PRELOAD"),
        ({"server": {"env": {"PTALIGN_LOG_LEVEL": 5}}}, "/server/env/PTALIGN_LOG_LEVEL"),
    ],
)
def test_bad_values_are_refused_by_place(change: dict[str, Any], place: str) -> None:
    assert place in refusal(merged(example("embedded"), change))


@pytest.mark.parametrize(
    ("change", "teaches"),
    [
        ({"secrets": {"operatorKey": {"existingSecret": ""}}}, "back it up"),
        ({"secrets": {"tls": {"existingSecret": ""}}}, "refuses to listen off loopback"),
        ({"models": []}, "Name at least one model"),
        ({"modelVolume": {"existingClaim": ""}}, "mounted read-only at /models"),
    ],
)
def test_what_is_missing_is_said_in_words(change: dict[str, Any], teaches: str) -> None:
    assert teaches in refusal(merged(example("embedded"), change), HelmRenderError)


def test_engines_of_their_own_serve_the_only_model() -> None:
    """Under one served name, a second model would have been answered by the first one's weights."""
    values = example("scaled")
    assert env_of(render(values), "pt")["PTALIGN_ENGINE__MODEL"] == values["models"][0]["name"]
    values["models"].append({"name": "b", "path": "/models/b"})
    assert "Make a release for each model" in refusal(values, HelmRenderError)


def test_engines_of_their_own_need_the_network_policy() -> None:
    values = merged(example("scaled"), {"networkPolicy": {"enabled": False}})
    assert "admits servers alone" in refusal(values, HelmRenderError)


def test_the_server_reads_the_charts_models(tmp_path: Path) -> None:
    values = merged(example("embedded"), {})
    values["models"].append({"name": "b", "path": "/models/b", "system_prompt": "Be kind: always"})
    catalogue = named(render(values), "ConfigMap", "pt")["data"]["models.yaml"]
    file = tmp_path / "models.yaml"
    file.write_text(catalogue)
    models = read_models(file)
    assert list(models) == ["qwen2.5-7b-instruct", "b"]
    assert models["b"].system_prompt == "Be kind: always"


def test_engines_load_only_what_they_pulled() -> None:
    engine = named(render(example("scaled")), "StatefulSet", "pt-engine")
    container = engine["spec"]["template"]["spec"]["containers"][0]
    flag = next(a for a in container["args"] if a.startswith("--middleware="))
    module, _, name = flag.removeprefix("--middleware=").rpartition(".")
    assert hasattr(importlib.import_module(module), name)
    env = {e["name"]: e.get("value") for e in container["env"]}
    assert env["PTALIGN_STATE"] == "/adapters"
    assert "/adapters" in {m["mountPath"] for m in container["volumeMounts"]}


@pytest.mark.parametrize(("profile", "sampler"), [("gpu", "0"), ("cpu", None)])
def test_engines_start_where_nothing_compiles_for_a_gpu(profile: str, sampler: str | None) -> None:
    """FlashInfer's sampler is compiled with nvcc at the start, which the image has not."""
    manifests = render(merged(example("scaled"), {"profile": profile}))
    container = named(manifests, "StatefulSet", "pt-engine")["spec"]["template"]["spec"]
    env = {e["name"]: e.get("value") for e in container["containers"][0]["env"]}
    assert env.get("VLLM_USE_FLASHINFER_SAMPLER") == sampler


def test_engines_must_serve_a_model_of_the_catalogue() -> None:
    values = merged(example("scaled"), {"engines": {"model": "absent"}})
    message = refusal(values, HelmRenderError)
    assert '"absent" is not in models (qwen2.5-7b-instruct)' in message


def test_every_value_is_explained() -> None:
    """Each leaf of values.yaml has a `# --` comment right above it, but for Kubernetes' own."""
    known = {"nodeSelector", "tolerations", "affinity", "podAnnotations", "annotations", "labels"}
    known |= {"requests", "limits", "tmpSize", "shmSize", "interval", "matchLabels"}
    above, unexplained = "", []
    for line in (CHART / "values.yaml").read_text().splitlines():
        key, _, value = line.strip().partition(":")
        leaf = value.strip() and not line.strip().startswith(("#", "-"))
        if leaf and "# --" not in above and key not in known:
            unexplained.append(key)
        above = line
    assert unexplained == []


def test_notes_teach_the_next_step() -> None:
    with Chart.load(CHART) as chart:
        files = chart.render(example("scaled"), name="pt", namespace="ml")
    notes = next(text for name, text in files.items() if name.endswith("NOTES.txt"))
    assert "2 servers on PostgreSQL" in notes
    assert "Back up the secret ptalign-operator-key" in notes
    assert "--tls-cert client.crt" in notes  # mutual TLS
    assert "--tls-server-name NAME" in notes  # no certificate of a service names localhost
    assert "WARNING" not in notes


def test_notes_warn_when_the_network_is_open() -> None:
    values = merged(example("embedded"), {"networkPolicy": {"enabled": False}})
    with Chart.load(CHART) as chart:
        files = chart.render(values, name="pt", namespace="ml")
    assert "WARNING" in next(text for name, text in files.items() if name.endswith("NOTES.txt"))


def test_notes_warn_of_what_goes_with_a_pod_without_a_volume() -> None:
    values = merged(example("scaled"), {"persistence": {"enabled": False}})
    with Chart.load(CHART) as chart:
        files = chart.render(values, name="pt", namespace="ml")
    notes = next(text for name, text in files.items() if name.endswith("NOTES.txt"))
    named_there = re.findall(r"policies/|\w+\.yaml", notes.partition("WARNING")[2])
    assert named_there == ["policies/", "judges.yaml", "suites.yaml"]


def test_labels_of_pods_and_long_contexts_are_rendered_as_they_are() -> None:
    """1010000 became 1.01e+06, which vLLM reads as no number; Azure goes by a pod's label."""
    label = {"azure.workload.identity/use": "true"}
    values = merged(
        example("scaled"),
        {"server": {"podLabels": label}, "engines": {"podLabels": label, "maxModelLen": 1_010_000}},
    )
    made = render(values)
    sets = [m for m in made if m["kind"] == "StatefulSet"]
    assert len(sets) == 2
    for found in sets:
        labels = found["spec"]["template"]["metadata"]["labels"]
        assert labels.items() >= label.items()
        assert labels.items() >= found["spec"]["selector"]["matchLabels"].items()
    assert "--max-model-len=1010000" in str(made)
    taken = {"server": {"podLabels": {"app.kubernetes.io/name": "x"}}}
    assert "app.kubernetes.io/name" in refusal(merged(example("scaled"), taken))
