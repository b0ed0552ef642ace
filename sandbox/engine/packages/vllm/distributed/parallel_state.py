"""Process groups of the engine. The simulated engine's end with the engine, so nothing is left to do."""


def destroy_model_parallel() -> None:
    """The groups of tensor, pipeline and data parallelism go."""


def destroy_distributed_environment() -> None:
    """The group of all processes goes."""
