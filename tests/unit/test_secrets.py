"""What leaves a host has no secrets in it, and still all the rest."""

from __future__ import annotations

import pytest

from ascent.secrets import mask


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("export HF_TOKEN=hunter2", "export HF_TOKEN=***"),
        ('{"api_key": "hunter2", "model": "m"}', '{"api_key": ***, "model": "m"}'),
        ("args: {'api_key': ['hunter2', 'hunter3'], 'port': 8000}", "args: {'api_key': ***, 'port': 8000}"),
        ("vllm serve --api-key hunter2 --port 8000", "vllm serve --api-key *** --port 8000"),
        ("vllm serve --api-key=hunter2", "vllm serve --api-key=***"),
        ("Authorization: Bearer hunter2hunter2", "Authorization: Bearer ***"),
        ("http_proxy=http://ana:hunter2@proxy:3128", "http_proxy=http://ana:***@proxy:3128"),
        ("using hf_abcdefghijklmnopqrst now", "using *** now"),
        ("db_password: 'hunter 2'", "db_password: ***"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nAAAA\nBBBB\n-----END RSA PRIVATE KEY-----\nrest",
            "-----BEGIN RSA PRIVATE KEY-----\n***\n-----END RSA PRIVATE KEY-----\nrest",
        ),
        ("-----BEGIN PRIVATE KEY-----\nAAAA", "-----BEGIN PRIVATE KEY-----\n***\n-----END PRIVATE KEY-----"),
    ],
)
def test_secrets_are_hidden(text: str, wanted: str) -> None:
    assert mask(text) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "Avg prompt throughput: 12.0 tokens/s, max_tokens=50, generation_tokens: 12",
        "--max-num-batched-tokens 16384 --tokenizer-mode slow tokenizer=Qwen/Qwen3",
        "INFO 01-01 loaded 5 shards: 100% | KV cache 12.5 GiB",
        "http://192.0.2.1:8000/v1/models and ssh://host:22",
        "authentication passed: yes",
    ],
)
def test_the_rest_stays(text: str) -> None:
    assert mask(text) == text


def test_known_secrets_are_hidden_wherever_they_stand() -> None:
    assert mask("GET /?key=opensesame", ["opensesame", "x"]) == "GET /?key=***"
