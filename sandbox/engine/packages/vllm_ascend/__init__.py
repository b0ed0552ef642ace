"""Stands for the Ascend plugin's package: `import vllm_ascend` works and knows its version."""

from importlib.metadata import version

__version__ = version("vllm-ascend")
