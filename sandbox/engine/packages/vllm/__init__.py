"""Stands for the engine's package: `import vllm` works and knows its version. The engine itself is simulated."""

from importlib.metadata import version

__version__ = version("vllm")
