"""The sandbox's plain proxy for connectors that pull, with name and command line of the engine's example script."""

from sandbox.engine.sim.proxy import main

main(layerwise=False)
