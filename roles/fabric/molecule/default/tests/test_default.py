"""Both nodes keep the verdict on the whole fabric."""

from __future__ import annotations

import json
import time

from tests.roles.helpers import changed

VERDICT = "/var/lib/ascent/molecule/fabric.json"
DEVICES = 8


def test_the_verdict_is_kept_and_private(host) -> None:
    file = host.file(VERDICT)
    assert (file.user, file.mode) == ("root", 0o640)
    assert host.file("/var/lib/ascent/molecule").mode == 0o750


def test_every_device_reached_its_counterpart_in_both_directions(host) -> None:
    verdict = json.loads(host.file(VERDICT).content_string)
    assert verdict["ok"] is True
    assert (verdict["pairs"], verdict["failed"]) == (2 * DEVICES, 0)
    assert 0 < verdict["rtt_us"]["median"] <= verdict["rtt_us"]["p99"] <= verdict["rtt_us"]["max"]
    assert time.time() - verdict["measured"] < 300


def test_a_dry_run_has_nothing_to_do() -> None:
    assert set(changed("converge.yml", "--check").values()) == {0}
