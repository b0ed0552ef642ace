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
        ("export REDISCLI_AUTH=hunter2", "export REDISCLI_AUTH=***"),
        ("SSH_KEY=hunter2 SSHPASS=hunter2 MYSQL_PWD=hunter2", "SSH_KEY=*** SSHPASS=*** MYSQL_PWD=***"),
        ("AWS_ACCESS_KEY_ID=hunter2", "AWS_ACCESS_KEY_ID=***"),
        ("AWS_SECRET_ACCESS_KEY: hunter2", "AWS_SECRET_ACCESS_KEY: ***"),
        ("key AKIAABCDEFGHIJKLMNOP now", "key *** now"),
        ('{"auths": {"quay.io": {"auth": "dXNlcjpwYXNz"}}}', '{"auths": {"quay.io": {"auth": ***}}}'),
        (r'"{\"auth\": \"dXNlcjpwYXNz\", \"port\": 1}"', r'"{\"auth\": ***, \"port\": 1}"'),
        (r'{"password": "hunter\"2", "port": 1}', '{"password": ***, "port": 1}'),
        ('["vllm", "--api-key", "hunter2", "--port", "8000"]', '["vllm", "--api-key", ***, "--port", "8000"]'),
        ("pip --index http://ana:hunt/er@2@proxy:3128/x", "pip --index http://ana:***@proxy:3128/x"),
        ("redis://:hunter2@192.0.2.1:6379/0", "redis://:***@192.0.2.1:6379/0"),
        ("http://a:p/1@h1,http://b:p@2@h2", "http://a:***@h1,http://b:***@h2"),
        ("http://ana:12345678@proxy", "http://ana:***@proxy"),
        ("authorization: bearer k1", "authorization: bearer ***"),
        ('"Authorization": "Bearer k1"', '"Authorization": "Bearer ***"'),
        ("Authorization: k1", "Authorization: ***"),
        ("-H 'X-Auth: Bearer k1' HF_AUTH: Basic dTpw", "-H 'X-Auth: Bearer ***' HF_AUTH: Basic ***"),
        ("sent Bearer abc1 to it", "sent Bearer *** to it"),
        ("Proxy-Authorization: Basic dTpw", "Proxy-Authorization: Basic ***"),
        (
            "session_token=abc id_token: abc access_tokens=[abc, def]",
            "session_token=*** id_token: *** access_tokens=***",
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
        'eos_token="<|im_end|>" bos_token_id=151643 "pad_token": "[PAD]" next_token: Paris',
        '"eos_token_id": [151645, 151643], "stop_token_ids": [1], image_token_index=151655',
        "max_tokens=50 max_token: 12 num_tokens: 3 per_token_latency: 12.5ms token_type_ids=[0, 0]",
        "next token: Paris; first token: 12.5ms; the token: 42",
        "draft_token_ids=[1, 2] num_speculative_tokens=3 kv_cache_tokens=643,232",
        "http://192.0.2.1:8000/users/me@example.org?x=1 and http://h:80/a@b",
        'HF_TOKEN_PATH=/root/.cache/token password_file: /etc/x "api_key": true, "password": null, "secret": ""',
        '"secrets": {"directory": "/run/x"}',
        "basic authentication, missing bearer token, basic information; author: Ana, bypass=1 PWD=/root OLDPWD=/",
    ],
)
def test_the_rest_stays(text: str) -> None:
    assert mask(text) == text


@pytest.mark.parametrize(
    "text", ["HF_TOKEN=abc", "http://a:p@h", "Authorization: Bearer ab", "--api-key x", '"auth": "x"']
)
def test_what_is_hidden_stays_as_it_is_when_it_is_masked_again(text: str) -> None:
    assert mask(mask(text)) == mask(text) != text


def test_a_line_of_nothing_but_such_words_is_read_through_soon() -> None:
    """What takes as many steps as the square of two hundred thousand characters takes minutes."""
    for text in ("token_" * 33000, "--" + "token" * 40000 + " ", "://u:" * 40000, "a-" * 100000):
        assert mask(text) == text


def test_known_secrets_are_hidden_wherever_they_stand() -> None:
    assert mask("GET /?key=opensesame", ["opensesame", "x"]) == "GET /?key=***"
