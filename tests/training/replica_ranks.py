"""What tests of replicas have each rank do."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from realign_cluster.domain.training import OptimizerSettings
from realign_cluster.training.optimizer import MasterOptimizer
from realign_cluster.training.replicas import aligned, of_first


def drift(group: mx.distributed.Group, unlike: bool) -> dict[str, Any]:
    """Three steps of which, on rank 1 of an `unlike` pair, each gradient is off by its last bit."""
    off = 1 + 2.0**-23 * group.rank() * unlike
    optimizer = MasterOptimizer(
        OptimizerSettings(name="adamw"), {"a": mx.array([1.0, -0.0, 3.0]), "b": mx.ones((2, 2))}
    )
    for _ in range(3):
        gradients = {name: mx.array(0.25) * weight * off for name, weight in optimizer.weights.items()}
        norm = of_first(mx.array(2.0 + group.rank()), group)
        optimizer.step(gradients, norm=norm.item(), learning_rate=0.1)
    before = dict(optimizer.state())
    state = aligned(before, group)
    optimizer.restore(state or before)
    after = optimizer.state()
    return {
        "norm": norm,
        "was_aligned": state is not None,
        **{f"before {name}": value for name, value in before.items()},
        **{f"after {name}": value for name, value in after.items()},
    }
