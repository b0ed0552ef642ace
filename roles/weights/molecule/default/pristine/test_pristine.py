"""The hosts without the hub's model, as a dry run and the cleanup leave them."""

from __future__ import annotations

MODELS = "/root/.cache/modelscope/hub/models/molecule"


def test_there_is_the_sandbox_s_own_model_only(host) -> None:
    assert host.check_output("ls -A %s", MODELS).split() == ["tiny"]
