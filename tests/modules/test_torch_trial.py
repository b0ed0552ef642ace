"""What is read of trials of torch.distributed."""

from __future__ import annotations

from library import torch_trial as module

TABLE = (
    "data_size(Bytes): | aveg_time(us): | alg_bandwidth(GB/s): | check_result:\n"
    "8192              | 41.20          | 0.19884              | success\n"
    "67108864          | 900.00         | 74.56540             | success\n"
)


def outcome(tmp_path, code, text, started=True):
    base = tmp_path / "t"
    for path in tmp_path.iterdir():
        path.unlink()
    if started:
        (tmp_path / "t.docker.sh").write_text("")
    if code is not None:
        (tmp_path / "t.code").write_text(f"{code}\n")
    (tmp_path / "t.log").write_text(text)
    return module._outcome(str(base), {"last_size": 1 << 26, "limit": 9.0})["outcome"]


def test_what_a_trial_came_to(tmp_path):
    assert outcome(tmp_path, 0, TABLE) == "ok"
    assert outcome(tmp_path, 0, "") == "ok"
    assert outcome(tmp_path, 0, TABLE[:150]) == "failed"
    assert outcome(tmp_path, 1, "RuntimeError: connect() timed out\nrank 8 ended with 1\n") == "failed"
    assert outcome(tmp_path, 1, TABLE + "local rank_id 3, check result failed, 8192 | 1 | 1 | failed\n") == "wrong"
    assert outcome(tmp_path, None, "") == "timeout"
    assert outcome(tmp_path, 77, "no torch in this image: No module named 'torch'\n") == "absent"
    assert outcome(tmp_path, None, "", started=False) == "absent"


def test_without_the_image_nothing_is_started_and_all_is_removed(run_module, tmp_path):
    trial = {"name": "t", "container": "ascent-c-t", "image": "none:1", "files": {"t.docker.sh": "exit 1\n"}}
    given = {
        "directory": str(tmp_path / "torch"),
        "trials": [trial],
        "program": str(tmp_path / "no-docker"),
        "limit": 5,
    }
    run_module(module, {**given, "state": "started"})
    told = run_module(module, {**given, "state": "finished"})
    assert told["trials"]["t"] == {"outcome": "absent", "rows": [], "text": "the image is not on the node"}
    run_module(module, {**given, "state": "absent"})
    assert not (tmp_path / "torch").exists()


def test_a_trial_that_ends_is_read(run_module, tmp_path):
    client = tmp_path / "docker"
    client.write_text("#!/bin/sh\nexit 0\n")
    client.chmod(0o755)
    trial = {"name": "t", "container": "c", "image": "i:1", "files": {"t.docker.sh": f"cat <<'END'\n{TABLE}END\n"}}
    given = {"directory": str(tmp_path / "torch"), "trials": [trial], "program": str(client), "limit": 20}
    run_module(module, {**given, "state": "started"})
    told = run_module(module, {**given, "state": "finished"})
    assert (told["trials"]["t"]["outcome"], told["trials"]["t"]["rows"][-1]["gbs"]) == ("ok", 74.5654)
