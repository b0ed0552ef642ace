"""Of the engine's package only what programs for offline inference clean up with."""
