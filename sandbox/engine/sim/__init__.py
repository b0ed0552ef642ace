"""Engine simulator of the sandbox: `vllm serve` without an accelerator. See docs/engine_simulator.md."""
