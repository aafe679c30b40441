"""The experiment that trains if none is named."""

from rgtrain.machine.devices import num_gpus


def default_experiment() -> str:
    """Return the quickstart that fits this machine, which trains the embedded model within minutes."""
    return "quickstart_gpu" if num_gpus() else "quickstart"
