"""Names and ports of a run on Ray that no other run on the same machine has."""

import secrets
from collections.abc import Callable
from functools import wraps
from typing import Any

import ray
from ray.util.placement_group import placement_group_table
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rgtrain.upstream.held_ports import held_by_this_process

# Actors on other machines that hold a port. They end with this process.
_holders: list[Any] = []


class PortHolder:
    """An actor that holds a port of its machine."""

    def address(self) -> tuple[str, str]:
        """Return the address of this machine in the cluster, and the number of a port that is held, as texts."""
        return ray.util.get_node_ip_address().strip("[]"), str(held_by_this_process())


def holding_master_port(original: Callable[..., None]) -> Callable[..., None]:
    """Wrap the method by which verl's worker group chooses the port on which its workers meet, so that it is held.

    Args:
        original: verl's method. It still handles an address or a range of ports that the caller gives.

    Returns:
        The method to use. Its port is held until the end of this process.
    """

    @wraps(original)
    def _get_master_addr_port(
        self: Any, pg: Any, bundle_index: int = 0, master_port_range: list[int] | None = None
    ) -> None:
        if self._master_addr is not None or self._master_port is not None or master_port_range is not None:
            original(self, pg, bundle_index=bundle_index, master_port_range=master_port_range)
            return
        # The machine of the worker with rank 0, which will listen.
        node = placement_group_table(pg)["bundles_to_node_id"][bundle_index]
        if node == ray.get_runtime_context().get_node_id():
            self._master_addr, self._master_port = PortHolder().address()
            return
        there = NodeAffinitySchedulingStrategy(node, soft=False)
        holder = ray.remote(PortHolder).options(num_cpus=0, scheduling_strategy=there).remote()
        _holders.append(holder)
        self._master_addr, self._master_port = ray.get(holder.address.remote())

    return _get_master_addr_port


def random_job_id() -> Any:
    """Return a Ray job id that no other cluster is likely to have."""
    # Greater than the numbers that a cluster counts itself.
    return ray.JobID.from_int(secrets.randbelow(2**31 - 2**16) + 2**16)
