"""Work at an edge that no living broker publishes: what a broker left behind that died, or whose word is lost with Redis.

The edge itself says whose tasks it has. So a broker that starts does not take a loaded edge for an idle one, and no task counts twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from services.core.offload.values import Work


def unclaimed_work(num_tasks_by_broker: Mapping[str, int], claimed: Collection[str], tokens_a_task: float) -> Work:
    """`claimed`: brokers whose work is known already, this one's among them. What is left to decode is not known: a usual answer each.

    Tasks that came without a broker (an empty id) are nobody's and count.
    """
    num_tasks = sum(num for broker_id, num in num_tasks_by_broker.items() if broker_id not in claimed)
    return Work(num_tasks, 0.0, num_tasks * tokens_a_task)
