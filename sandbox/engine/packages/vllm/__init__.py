"""Stands for the engine's package: `import vllm` works and knows its version. The engine itself is simulated."""

from importlib.metadata import version
from typing import Any

__version__ = version("vllm")


def __getattr__(name: str) -> Any:
    """What programs for offline inference use, imported when it is asked for."""
    if name in ("LLM", "SamplingParams"):
        from sandbox.engine.sim import offline

        return getattr(offline, name)
    raise AttributeError(f"module 'vllm' has no attribute {name!r}")
