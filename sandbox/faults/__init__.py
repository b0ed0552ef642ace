"""Faults of the catalogue, brought about on a sandbox node and healed. See docs/sandbox_faults.md."""
