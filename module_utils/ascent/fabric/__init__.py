"""The fabric gate: what every part of it found, judged by pure functions (docs/architecture.md, section 7)."""
