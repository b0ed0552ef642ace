#!/usr/bin/env python3
"""Makes tiny models with random weights, complete enough for a real engine: `tiny_models.py DIRECTORY`.

`DIRECTORY/tiny-dense` has Qwen3's architecture, `DIRECTORY/tiny-moe` Qwen3-MoE's. What they answer makes no sense, but
every step of a real engine runs on them, in about a millisecond. Both are made in seconds and are the same every time,
so that equal prompts give equal answers on all nodes. The tokenizer is a byte-level BPE, trained on text that every
Python installation carries: nothing is downloaded. It runs in the image of the real engine, which has the libraries.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

VOCABULARY = 4096
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
END_OF_TEXT, _, END_OF_TURN = range(len(SPECIAL))
# The CPU kernels of attention want a head of at least 32.
HEAD, HEADS, KV_HEADS, HIDDEN, INNER, LAYERS = 32, 4, 2, 64, 128, 2
EXPERTS, EXPERTS_PER_TOKEN, EXPERT_INNER = 4, 2, 64
CONTEXT = 4096

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def texts() -> Iterator[str]:
    """English prose and code that is at hand: the topics and the sources of Python's own library."""
    library = Path(json.__file__).resolve().parent.parent
    for path in sorted(library.glob("pydoc_data/topics.py")) + sorted(library.glob("*.py")):
        yield path.read_text(encoding="utf-8", errors="replace")


def make_tokenizer(directory: Path) -> None:
    """Trains the tokenizer and writes it in the form that transformers reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    if tokenizer.get_vocab_size() != VOCABULARY:
        sys.exit(f"the tokenizer has {tokenizer.get_vocab_size()} entries instead of {VOCABULARY}: too little text")
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": CONTEXT,
        "eos_token": SPECIAL[END_OF_TURN],
        "pad_token": SPECIAL[END_OF_TEXT],
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    write_json(directory / "tokenizer_config.json", config)


def write_json(path: Path, value: object) -> None:
    """Writes a value as indented JSON."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def config(moe: bool) -> dict[str, object]:
    """`config.json` of a model."""
    result: dict[str, object] = {
        "architectures": ["Qwen3MoeForCausalLM" if moe else "Qwen3ForCausalLM"],
        "model_type": "qwen3_moe" if moe else "qwen3",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "max_position_embeddings": CONTEXT,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "initializer_range": 0.02,
        "torch_dtype": "float32",
        "bos_token_id": None,
        "eos_token_id": END_OF_TURN,
    }
    if moe:
        result |= {
            "num_experts": EXPERTS,
            "num_experts_per_tok": EXPERTS_PER_TOKEN,
            "moe_intermediate_size": EXPERT_INNER,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        }
    return result


def shapes(moe: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all tensors, as transformers names them."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for number in range(LAYERS):
        layer = f"model.layers.{number}"
        yield f"{layer}.input_layernorm.weight", (HIDDEN,)
        yield f"{layer}.post_attention_layernorm.weight", (HIDDEN,)
        yield f"{layer}.self_attn.q_proj.weight", (HEADS * HEAD, HIDDEN)
        yield f"{layer}.self_attn.k_proj.weight", (KV_HEADS * HEAD, HIDDEN)
        yield f"{layer}.self_attn.v_proj.weight", (KV_HEADS * HEAD, HIDDEN)
        yield f"{layer}.self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD)
        yield f"{layer}.self_attn.q_norm.weight", (HEAD,)
        yield f"{layer}.self_attn.k_norm.weight", (HEAD,)
        if moe:
            yield f"{layer}.mlp.gate.weight", (EXPERTS, HIDDEN)
        inner = EXPERT_INNER if moe else INNER
        for mlp in [f"{layer}.mlp.experts.{expert}" for expert in range(EXPERTS)] if moe else [f"{layer}.mlp"]:
            yield f"{mlp}.gate_proj.weight", (inner, HIDDEN)
            yield f"{mlp}.up_proj.weight", (inner, HIDDEN)
            yield f"{mlp}.down_proj.weight", (HIDDEN, inner)
    yield "model.norm.weight", (HIDDEN,)


def make_weights(path: Path, moe: bool) -> None:
    """Random weights: norms are one, matrices wide enough that different prompts give clearly different answers."""
    import torch
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(20260101)
    tensors = {
        name: torch.ones(shape) if len(shape) == 1 else torch.randn(shape, generator=generator) * 0.3
        for name, shape in shapes(moe)
    }
    save_file(tensors, str(path), metadata={"format": "pt"})


def main() -> None:
    """Makes both models in the directory that is named."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("directory", type=Path)
    root = arguments.parse_args().directory
    for name, moe in (("tiny-dense", False), ("tiny-moe", True)):
        directory = root / name
        directory.mkdir(parents=True, exist_ok=True)
        write_json(directory / "config.json", config(moe))
        write_json(
            directory / "generation_config.json",
            {"eos_token_id": [END_OF_TURN, END_OF_TEXT], "pad_token_id": END_OF_TEXT},
        )
        make_tokenizer(directory)
        make_weights(directory / "model.safetensors", moe)
        print(directory)


if __name__ == "__main__":
    main()
