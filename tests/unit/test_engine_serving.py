"""Engine processes on loopback: one server, data-parallel groups, prefill/decode pairs behind proxies, failures."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.engine_harness import (
    ROOT,
    Process,
    events,
    free_ports,
    get,
    make_machine,
    metric,
    post,
    serve,
    starting,
    vllm,
)

Start = Callable[..., Process]
PROMPT = {"model": "tiny", "prompt": "The future of AI is", "max_tokens": 20, "temperature": 0}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_machine(tmp_path / "machine", devices=16)


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Start]:
    """Start processes; whatever is left of them is stopped at the end."""
    with starting(root, tmp_path) as run:
        yield run


def kv_config(role: str, port: int, connector: str, decode: int = 2) -> str:
    sizes = {"prefill": {"dp_size": 1, "tp_size": 2}, "decode": {"dp_size": decode, "tp_size": 2}}
    config = {"kv_connector": connector, "kv_role": role, "kv_port": str(port), "kv_connector_extra_config": sizes}
    return json.dumps(config)


def test_one_server(start: Start, root: Path):
    port = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    server = start("server", serve(port, "-tp", "4", "--quantization", "ascend", "--max-model-len", "256"))
    log = server.wait_for("Application startup complete")
    assert "Loading safetensors checkpoint shards: 100% Completed | 2/2" in log
    assert "Graph capturing finished" in log
    assert get(f"{url}/health")[0] == 200
    assert get(f"{url}/version") == (200, {"version": "0.21.0", "simulated": True})
    assert get(f"{url}/v1/models")[1]["data"][0]["max_model_len"] == 256
    (lease,) = (root / "usr/local/dcmi/leases").glob("*.json")
    held = json.loads(lease.read_text())
    assert (held["pid"], sorted(held["devices"])) == (server.process.pid, ["0", "1", "2", "3"])

    status, whole = post(f"{url}/v1/completions", PROMPT)
    assert status == 200
    assert whole["usage"] == {
        "prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25, "prompt_tokens_details": None,
    }  # fmt: skip
    assert whole["choices"][0]["finish_reason"] == "length"
    options = {"stream": True, "stream_options": {"include_usage": True}}
    streamed = events(post(f"{url}/v1/completions", PROMPT | options)[1])
    assert "".join(e["choices"][0]["text"] for e in streamed[:-1]) == whole["choices"][0]["text"]
    assert streamed[-1]["choices"] == []
    assert streamed[-1]["usage"] == {"prompt_tokens": 5, "completion_tokens": 20, "total_tokens": 25}

    chat = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "What is 7 + 5?"}],
        "max_tokens": 30,
        "stop": "In",
    }
    status, answer = post(f"{url}/v1/chat/completions", chat | {"temperature": 0})
    assert status == 200
    assert answer["choices"][0]["message"]["content"].startswith("12.")
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "In" not in answer["choices"][0]["message"]["content"]
    streamed = events(post(f"{url}/v1/chat/completions", chat | {"temperature": 0, "stream": True})[1])
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"
    content = "".join(e["choices"][0]["delta"]["content"] for e in streamed)
    assert content == answer["choices"][0]["message"]["content"]

    assert (
        post(f"{url}/v1/completions", PROMPT | {"prompt": ["a b", "c d"], "n": 2, "temperature": 1})[1]["choices"][3][
            "index"
        ]
        == 3
    )
    assert post(f"{url}/v1/completions", PROMPT | {"prompt": [1, 2, 3]})[1]["usage"]["prompt_tokens"] == 3
    assert post(f"{url}/tokenize", {"model": "tiny", "prompt": PROMPT["prompt"]})[1]["count"] == 5

    status, error = post(f"{url}/v1/completions", PROMPT | {"model": "other"})
    assert (status, error["error"]["message"]) == (404, "The model `other` does not exist.")
    status, error = post(f"{url}/v1/completions", PROMPT | {"max_tokens": 300})
    assert status == 400
    assert error["error"]["message"].startswith("max_tokens=300 cannot be greater than max_model_len=")
    assert post(f"{url}/v1/completions", PROMPT | {"max_tokens": 0})[0] == 400
    assert get(f"{url}/nothing")[0] == 404
    # As uvicorn writes it: every look at its health is another line.
    server.wait_for(r'INFO:     127\.0\.0\.1:\d+ - "GET /health HTTP/1\.1" 200 OK\n')
    server.wait_for(r'127\.0\.0\.1:\d+ - "POST /v1/completions HTTP/1\.1" 400 Bad Request\n')

    page = get(f"{url}/metrics")[1]
    assert metric(page, "vllm:request_success_total", finished_reason="length") == 7
    assert metric(page, "vllm:request_success_total", finished_reason="stop") == 2
    assert metric(page, "vllm:time_to_first_token_seconds_count") == 9
    assert metric(page, "vllm:num_requests_running") == 0
    began = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began < 2
    assert not list((root / "usr/local/dcmi/leases").glob("*.json"))


def test_clients_that_leave_take_their_request_along(start: Start):
    port = free_ports(1)
    server = start("server", serve(port, "--max-model-len", "4096"), SIM_SPEED="4")
    server.wait_for("Application startup complete")
    body = json.dumps(PROMPT | {"max_tokens": 4000, "ignore_eos": True, "stream": True}).encode()
    head = "\r\n".join(["POST /v1/completions HTTP/1.1", "Host: x", "Content-Type: application/json",
                        f"Content-Length: {len(body)}", "", ""])  # fmt: skip
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode() + body)
        assert b"200 OK" in client.recv(100)
    deadline = time.monotonic() + 5
    running = 1.0
    while running and time.monotonic() < deadline:
        time.sleep(0.05)
        running = metric(get(f"http://127.0.0.1:{port}/metrics")[1], "vllm:num_requests_running")
    assert running == 0
    assert server.stop() == 0


def group(port: int, rpc: int, *more: str) -> list[str]:
    return serve(port, "-dp", "4", "-dpl", "2", "-tp", "2", "-dpa", "127.0.0.1", "-dpp", str(rpc),
                 "--enable-expert-parallel", "--enforce-eager", *more)  # fmt: skip


def headless(port: int, rpc: int, *more: str) -> list[str]:
    return group(port, rpc, "--headless", "--data-parallel-start-rank", "2", *more)


def test_head_and_headless(start: Start):
    first = free_ports(2)
    member = start("member", headless(first, first + 1), ASCEND_RT_VISIBLE_DEVICES="4,5,6,7", VLLM_HOST_IP="127.0.0.2")
    member.wait_for("Waiting for init message from front-end")
    head = start("head", group(first, first + 1, "--api-server-count", "2"), ASCEND_RT_VISIBLE_DEVICES="0,1,2,3")
    log = head.wait_for("(?s)Application startup complete.*Application startup complete")
    assert "remote core engine proc(s) to start" in log
    assert "(EngineCore_DP1 pid=" in log
    assert "(EngineCore_DP3 pid=" in member.text()
    url = f"http://127.0.0.1:{first}"
    for number in range(8):
        status, answer = post(f"{url}/v1/completions", PROMPT | {"prompt": f"Say {number} now", "ignore_eos": True})
        assert (status, answer["usage"]["completion_tokens"]) == (200, 20)
    page = get(f"{url}/metrics")[1]
    assert [metric(page, "vllm:generation_tokens_total", engine=str(rank)) for rank in range(4)] == [40.0] * 4
    head.process.kill()
    assert member.exit() == 1
    assert "EngineDeadError" in member.text()


def test_external_data_parallel(start: Start):
    """One server a rank, each with its own API; the group comes up only together."""
    first = free_ports(3)
    shared = ["-dp", "2", "-tp", "2", "-dpa", "127.0.0.1", "-dpp", str(first + 2)]
    one = start("one", serve(first + 1, *shared, "--data-parallel-rank", "1"), ASCEND_RT_VISIBLE_DEVICES="2,3")
    one.wait_for("Waiting for init message")
    zero = start("zero", serve(first, *shared, "--data-parallel-rank", "0"), ASCEND_RT_VISIBLE_DEVICES="0,1")
    for rank, process in enumerate((zero, one)):
        process.wait_for("Application startup complete")
        url = f"http://127.0.0.1:{first + rank}"
        assert post(f"{url}/v1/completions", PROMPT)[0] == 200
        assert metric(get(f"{url}/metrics")[1], "vllm:generation_tokens_total", engine=str(rank)) == 20


def test_head_dies_with_its_member(start: Start):
    first = free_ports(2)
    head = start("head", group(first, first + 1), ASCEND_RT_VISIBLE_DEVICES="0,1,2,3")
    member = start("member", headless(first, first + 1), ASCEND_RT_VISIBLE_DEVICES="4,5,6,7")
    head.wait_for("Application startup complete")
    assert member.stop() == 0
    assert head.exit() == 1
    assert "Remote engine core(s) EngineCore_DP2, EngineCore_DP3 died unexpectedly" in head.text()
    assert "EngineDeadError" in head.text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-model-len", "1024"], "Configuration mismatch detected for engine 2"),
        (["-dpl", "1", "-dpr", "1"], "HELLO message from remote engine 1, expected it to be local"),
    ],
)
def test_members_that_do_not_fit_end_both(start: Start, arguments: list[str], message: str):
    first = free_ports(2)
    head = start("head", group(first, first + 1), ASCEND_RT_VISIBLE_DEVICES="0,1,2,3")
    member = start("member", headless(first, first + 1, *arguments), ASCEND_RT_VISIBLE_DEVICES="4,5,6,7")
    assert head.exit() == member.exit() == 1
    assert message in head.text()
    assert message in member.text()


def test_nobody_comes(start: Start):
    first = free_ports(3)
    lonely = start("member", headless(first, first + 1), SIM_TIMEOUT_SCALE="0.002", ASCEND_RT_VISIBLE_DEVICES="4,5,6,7")
    head = start("head", group(first, first + 2), SIM_TIMEOUT_SCALE="0.002", VLLM_ENGINE_READY_TIMEOUT_S="400",
                 ASCEND_RT_VISIBLE_DEVICES="0,1,2,3")  # fmt: skip
    assert lonely.exit() == 1
    assert "Did not receive response from front-end process within 5 minutes" in lonely.text()
    assert head.exit() == 1
    assert "Waiting for 0 local, 2 remote core engine proc(s) to connect" in head.text()
    assert "TimeoutError: Timed out waiting for engine core processes to start" in head.text()


@pytest.mark.parametrize(
    ("connector", "script"),
    [
        ("MooncakeLayerwiseConnector", "load_balance_proxy_layerwise_server_example.py"),
        ("MooncakeConnectorV1", "load_balance_proxy_server_example.py"),
    ],
)
def test_prefill_and_decode(start: Start, connector: str, script: str):
    """One prefill, one decode over two processes: the second decode rank's KV goes to another address."""
    first = free_ports(20)
    prefill_port, decode_port, rpc, proxy_port = range(first, first + 4)
    shared = ["-tp", "2", "--enable-expert-parallel", "--no-enable-prefix-caching"]
    prefill = start("prefill", serve(prefill_port, *shared, "--enforce-eager", "--kv-transfer-config",
                    kv_config("kv_producer", first + 5, connector)), ASCEND_RT_VISIBLE_DEVICES="0,1")  # fmt: skip
    decode_arguments = [*shared, "-dp", "2", "-dpl", "1", "-dpa", "127.0.0.1", "-dpp", str(rpc), "--kv-transfer-config",
                        kv_config("kv_consumer", first + 10, connector)]  # fmt: skip
    head = start("head", serve(decode_port, *decode_arguments, "--api-server-count", "1"),
                 ASCEND_RT_VISIBLE_DEVICES="2,3")  # fmt: skip
    start("member", serve(decode_port, *decode_arguments, "--headless", "-dpr", "1"),
          ASCEND_RT_VISIBLE_DEVICES="4,5", VLLM_HOST_IP="127.0.0.2")  # fmt: skip
    proxy_argv = [sys.executable, f"sandbox/engine/proxies/{script}", "--host", "127.0.0.1", "--port", str(proxy_port),
                  "--prefiller-hosts", "127.0.0.1", "--prefiller-port", str(prefill_port),
                  "--decoder-hosts", "127.0.0.1", "--decoder-ports", str(decode_port)]  # fmt: skip
    proxy = start("proxy", proxy_argv, PYTHONPATH=str(ROOT))
    for process in (prefill, head, proxy):
        process.wait_for("Application startup complete")
    prefill_url, decode_url, url = (f"http://127.0.0.1:{p}" for p in (prefill_port, decode_port, proxy_port))
    health = get(f"{url}/healthcheck")[1]
    assert health.items() >= {"status": "ok", "prefill_instances": 1, "decode_instances": 1}.items()
    proxy.wait_for(r'INFO:     127\.0\.0\.1:\d+ - "GET /healthcheck HTTP/1\.1" 200 OK\n')

    texts = set()
    for number in range(4):
        status, answer = post(f"{url}/v1/completions", PROMPT | {"prompt": f"Say {number} and go on"})
        assert (status, answer["usage"]["completion_tokens"]) == (200, 20)
        texts.add(answer["choices"][0]["text"])
    assert len(texts) == 4
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "What is 7 + 5?"}], "max_tokens": 8}
    streamed = events(post(f"{url}/v1/chat/completions", chat | {"temperature": 0, "stream": True})[1])
    assert "".join(e["choices"][0]["delta"]["content"] for e in streamed).startswith("12.")
    pages = [get(f"{base}/metrics")[1] for base in (prefill_url, decode_url)]
    assert [metric(page, "vllm:generation_tokens_total") for page in pages] == [5, 88]
    asked = metric(pages[0], "vllm:prompt_tokens_total")
    assert metric(pages[1], "vllm:prompt_tokens_by_source_total", source="external_kv_transfer") == asked
    assert metric(pages[1], "vllm:external_prefix_cache_hits_total", engine="1") > 0
    sent = metric(pages[0], "sim:kv_transfer_bytes", direction="sent")
    assert sent == metric(pages[1], "sim:kv_transfer_bytes", direction="received") > 0

    # A decode instance asked directly computes the prompt itself.
    assert post(f"{decode_url}/v1/completions", PROMPT)[0] == 200
    page = get(f"{decode_url}/metrics")[1]
    assert metric(page, "vllm:prompt_tokens_by_source_total", source="local_compute") == 5


def test_sizes_that_differ_between_prefill_and_decode(start: Start):
    """Each side's arguments fit itself, but prefill was told of another decode size: the first request shows it."""
    first = free_ports(12)
    prefill = start("prefill", serve(first, "-tp", "2", "--kv-transfer-config",
                    kv_config("kv_producer", first + 4, "MooncakeConnectorV1", decode=4)),
                    ASCEND_RT_VISIBLE_DEVICES="0,1")  # fmt: skip
    decode = start("decode", serve(first + 1, "-tp", "2", "--kv-transfer-config",
                   kv_config("kv_consumer", first + 8, "MooncakeConnectorV1", decode=1)),
                   ASCEND_RT_VISIBLE_DEVICES="2,3")  # fmt: skip
    for process in (prefill, decode):
        process.wait_for("Application startup complete")
    wanted = {"kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False}, "max_tokens": 1}
    params = post(f"http://127.0.0.1:{first}/v1/completions", PROMPT | wanted)[1]["kv_transfer_params"]
    assert (params["remote_host"], params["remote_port"]) == ("127.0.0.1", first + 4)
    status, error = post(f"http://127.0.0.1:{first + 1}/v1/completions", PROMPT | {"kv_transfer_params": params})
    assert (status, error["error"]["message"]) == (500, "Internal server error")
    assert "Mooncake transfer failed" in decode.text()
    assert "KV handshake: peer decode runs dp_size=1" in decode.text()


def test_ports_that_are_taken(start: Start):
    first = free_ports(8)
    decode = kv_config("kv_consumer", first + 2, "MooncakeConnectorV1", decode=1)
    with socket.create_server(("127.0.0.1", first)), socket.create_server(("127.0.0.1", first + 3)):
        api = start("api", serve(first))
        kv = start("kv", serve(first + 1, "-tp", "2", "--kv-transfer-config", decode))
        rpc = start("rpc", group(first + 1, first + 3))
        assert api.exit() == kv.exit() == rpc.exit() == 1
    assert "OSError: [Errno 98] Address already in use" in api.text()
    assert f"zmq.error.ZMQError: Address already in use (addr='tcp://127.0.0.1:{first + 3}')" in kv.text()
    assert "KV Cache receiving thread failed to start" in kv.text()
    assert f"ZMQError: Address already in use (addr='tcp://127.0.0.1:{first + 3}')" in rpc.text()


def test_bad_start(start: Start, root: Path):
    port = free_ports(1)
    assert (unknown := start("unknown", serve(port, "--foo"))).exit() == 2
    assert "vllm: error: unrecognized arguments: --foo" in unknown.text()
    assert (bare := start("bare", serve(port), LD_LIBRARY_PATH="")).exit() == 1
    assert "libhccl.so: cannot open shared object file" in bare.text()
    assert (broken := start("broken", serve(port), SIM_FAIL="weights:EI0006")).exit() == 1
    assert "wait socket establish timeout" in broken.text()
    assert "Engine core initialization failed. See root cause above" in broken.text()
    assert (version := start("version", vllm("--version"), LD_LIBRARY_PATH="")).exit() == 0
    assert version.text().strip() == "0.21.0"
    next((root / "root").rglob("*00002.safetensors")).unlink()
    assert (missing := start("missing", serve(port))).exit() == 1
    assert "FileNotFoundError: [Errno 2] No such file or directory" in missing.text()


def test_failures_on_demand(start: Start):
    first = free_ports(2)
    hanging = start("hanging", serve(first), SIM_FAIL="hccl:hang", ASCEND_RT_VISIBLE_DEVICES="0")
    hanging.wait_for("No available shared memory broadcast block")
    dying = start("dying", serve(first + 1), SIM_FAIL="request:aicore", ASCEND_RT_VISIBLE_DEVICES="1")
    dying.wait_for("Application startup complete")
    with pytest.raises(OSError, match=r"."):
        post(f"http://127.0.0.1:{first + 1}/v1/completions", PROMPT | {"max_tokens": 2000, "ignore_eos": True})
    assert dying.exit() == 1
    assert "error code is 507014" in dying.text()
    assert hanging.stop() == 0


def test_throughput_is_logged_while_there_is_some(start: Start):
    port = free_ports(1)
    drafts = json.dumps({"method": "mtp", "num_speculative_tokens": 2})
    server = start("server", serve(port, "--speculative-config", drafts), VLLM_LOG_STATS_INTERVAL="0.2")
    server.wait_for("Application startup complete")
    body = PROMPT | {"max_tokens": 200, "ignore_eos": True}
    assert post(f"http://127.0.0.1:{port}/v1/completions", body)[0] == 200
    log = server.wait_for(r"Engine 000: .*Avg generation throughput: 0\.0 tokens/s")
    assert re.search(r"Engine 000: Avg prompt throughput: \d+\.\d tokens/s, Avg generation throughput: [1-9]", log)
    assert re.search(r"SpecDecoding metrics: Mean acceptance length: [12]\.\d\d, .*, \d\.\d{3}, Avg Draft", log)
    count = server.text().count("Engine 000: Avg")
    time.sleep(0.6)
    assert server.text().count("Engine 000: Avg") == count, "an idle engine says nothing"


def test_small_machines_bring_all_up(start: Start):
    """Sixteen ranks in one process stay light: no timer and no thread for each."""
    first = free_ports(40)
    server = start("many", serve(first, "-dp", "16", "--kv-transfer-config", json.dumps({
        "kv_connector": "MooncakeLayerwiseConnector", "kv_role": "kv_consumer", "kv_port": first + 1,
    })), SIM_SPEED="20")  # fmt: skip
    server.wait_for("Application startup complete")

    def cpu() -> float:
        fields = Path(f"/proc/{server.process.pid}/stat").read_text().rsplit(") ", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    began = cpu()
    time.sleep(1)
    assert cpu() - began < 0.2, "idle ranks cost nothing"

    began = cpu()
    body = PROMPT | {"max_tokens": 100, "ignore_eos": True, "stream": True}
    threads = [threading.Thread(target=post, args=(f"http://127.0.0.1:{first}/v1/completions", body)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Eight streams of a real engine's pace, about 50 tokens a second each, are then less than a fifth of a core.
    assert (cpu() - began) / 800 < 0.0005
    assert server.stop() == 0


@pytest.mark.parametrize("fault", ["http-500", "empty", "garbage", "hang"])
def test_faults_of_answers(start: Start, fault: str):
    """The engine goes on; what it answers is wrong."""
    port = free_ports(1)
    server = start("server", serve(port), SIM_FAIL=f"request:{fault}")
    server.wait_for("Application startup complete")
    url = f"http://127.0.0.1:{port}"
    if fault == "hang":
        with socket.create_connection(("127.0.0.1", port)) as client:
            body = json.dumps(PROMPT).encode()
            head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}"
            client.sendall(f"{head}\r\nContent-Type: application/json\r\n\r\n".encode() + body)
            client.settimeout(1)
            with pytest.raises(TimeoutError):
                client.recv(1)
    else:
        status, answer = post(f"{url}/v1/completions", PROMPT)
        if fault == "http-500":
            assert (status, answer["error"]["type"]) == (500, "InternalServerError")
        elif fault == "empty":
            assert (answer["choices"][0]["text"], answer["usage"]["completion_tokens"]) == ("", 1)
        else:
            words = answer["choices"][0]["text"]
            assert sum(letter.isascii() and (letter.isalpha() or letter == " ") for letter in words) < 0.9 * len(words)
    assert get(f"{url}/health")[0] == 200
    assert server.stop() == 0
