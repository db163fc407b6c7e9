"""What docs/security.md says of callers without a token on loopback."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
import sqlalchemy as sa
from gate import gateway, import_two

from ptalign_proto.v1 import library_pb2 as lib
from ptalign_server.errors import Unauthenticated
from ptalign_server.gateway.identity import LIBRARY, Gate, Tokens, caller
from ptalign_server.settings import ROLES, AuthSettings, Settings
from ptalign_server.store.schema import audit


def test_the_local_caller_has_all_six_roles(tmp_path: Path) -> None:
    Gate(Settings(state=tmp_path)).admit(LIBRARY + "PurgeSet", ())
    assert (caller().name, caller().tenant) == ("local", "default")
    assert caller().roles == set(ROLES)
    assert len(ROLES) == 6


def test_roles_are_narrowed_by_the_variable_that_the_page_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PTALIGN_AUTH__LOOPBACK_ROLES", '["engineer","annotator"]')
    Gate(Settings(state=tmp_path)).admit(LIBRARY + "GetPairSet", ())
    assert caller().roles == {"engineer", "annotator"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "ptalign.example"])
def test_the_address_that_is_listened_on_counts(tmp_path: Path, host: str) -> None:
    gate = Gate(Settings(state=tmp_path, host=host))
    with pytest.raises(Unauthenticated):
        gate.admit(LIBRARY + "GetPairSet", ())


def test_a_token_that_is_sent_counts_instead(tmp_path: Path) -> None:
    token = Tokens(tmp_path / "tokens.json").add("ann", "other", ("annotator",))
    gate = Gate(Settings(state=tmp_path))
    gate.admit(LIBRARY + "GetPairSet", (("authorization", f"Bearer {token}"),))
    assert (caller().name, caller().tenant, caller().roles) == ("ann", "other", {"annotator"})
    with pytest.raises(Unauthenticated):
        gate.admit(LIBRARY + "GetPairSet", (("authorization", "Bearer wrong"),))


async def test_a_read_on_loopback_states_its_purpose_and_is_audited(tmp_path: Path) -> None:
    async with gateway(tmp_path / "state") as gate:
        request = lib.StreamRecordsRequest(name=await import_two(gate), view=lib.RECORD_VIEW_FULL)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [r async for r in gate.library.StreamRecords(request)]
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        request.purpose = "a test"
        assert len([r async for r in gate.library.StreamRecords(request)]) == 2
        with gate.store.engine.connect() as connection:
            rows = connection.execute(sa.select(audit).where(audit.c.sequence > 1)).all()
    assert [(row.identity, row.tenant) for row in rows] == [("local", "default")]
    assert "a test" in rows[0].detail


async def test_without_the_reader_s_role_text_stays_masked(tmp_path: Path) -> None:
    auth = AuthSettings(loopback_roles=("engineer",))
    async with gateway(tmp_path / "state", auth=auth) as gate:
        request = lib.StreamRecordsRequest(
            name=await import_two(gate), view=lib.RECORD_VIEW_FULL, purpose="a test"
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            _ = [r async for r in gate.library.StreamRecords(request)]
    assert caught.value.code() == grpc.StatusCode.PERMISSION_DENIED
