"""The sandbox's layerwise proxy, under the name and command line of the engine's example script."""

from sandbox.engine.sim.proxy import main

main(layerwise=True)
