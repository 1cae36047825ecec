"""Float32 master weights and their optimizer, over plain names: what a step does with the summed gradients.

The model's own weights may be of 16 bits; small updates would be lost in them. Holds this rank's pieces only and must
not know how they were cut: every update is element by element, but for the clipping, whose norm is given.

A state is named tensors, as a state part keeps them:

    weights/NAME        the master weight of parameter NAME, float32
    optimizer/m/NAME    first moment (adam, adamw), cut as the parameter is
    optimizer/v/NAME    second moment (adam, adamw), cut as the parameter is
    optimizer/step      steps taken, uint64, the same on all ranks

`parameter_of` says which parameter a tensor is cut like.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import assert_never

import mlx.core as mx
import mlx.optimizers

from realign_cluster.domain.training import OptimizerSettings

WEIGHTS = "weights/"
MOMENTS = ("optimizer/m/", "optimizer/v/")
STEP = "optimizer/step"
CLIP_EPSILON = 1e-6  # as torch and mlx have it


class NotFiniteError(Exception):
    """The gradient's norm is NaN or infinite. Weights and moments are as they were."""


class MasterOptimizer:
    """`parameters` by name, of any floating dtype; they are copied to float32.

    adamw decays weights apart from the moments, sgd (without momentum) adds the decay to the gradient, adam has none.
    Adam's moments are corrected for their bias.
    """

    def __init__(self, settings: OptimizerSettings, parameters: Mapping[str, mx.array]) -> None:
        self._clip_norm = settings.clip_norm
        self._optimizer = _make(settings)
        self._weights = {name: value.astype(mx.float32) for name, value in sorted(parameters.items())}
        self._moments: dict[str, dict[str, mx.array]] = {name: {} for name in self._weights}
        if settings.name != "sgd":
            for name, weight in self._weights.items():
                self._optimizer.init_single(weight, self._moments[name])
        self._step = mx.array(0, dtype=mx.uint64)

    @property
    def weights(self) -> Mapping[str, mx.array]:
        """The master weights by name, float32."""
        return self._weights

    def step(self, gradients: Mapping[str, mx.array], *, norm: float, learning_rate: float) -> None:
        """One update. `gradients` float32 by name, `norm` of the whole model's gradient over all ranks.

        Raises NotFiniteError before anything is changed.
        """
        if not math.isfinite(norm):
            raise NotFiniteError(f"the gradient's norm is {norm}")
        if self._clip_norm is not None and norm > self._clip_norm:
            scale = self._clip_norm / (norm + CLIP_EPSILON)
            gradients = {name: value * scale for name, value in gradients.items()}
        self._step = self._step + 1
        self._optimizer.state = {"step": self._step, "learning_rate": mx.array(learning_rate)}
        self._weights = {
            name: self._optimizer.apply_single(gradients[name], weight, self._moments[name])
            for name, weight in self._weights.items()
        }
        mx.eval(self._weights, self._moments, self._step)

    def state(self) -> dict[str, mx.array]:
        """Named tensors from which `restore` goes on bit by bit. They are never changed in place."""
        found = {WEIGHTS + name: weight for name, weight in self._weights.items()}
        for name, moments in self._moments.items():
            found |= {f"optimizer/{moment}/{name}": value for moment, value in moments.items()}
        return found | {STEP: self._step}

    def restore(self, state: Mapping[str, mx.array]) -> None:
        """Takes over what `state` gave, of the same parameters. Raises ValueError if it is not of this optimizer."""
        expected = self.state()
        if missing := sorted(expected.keys() - state.keys()):
            raise ValueError(f"the state has no {missing[0]} ({len(missing)} tensors missing)")
        for name, own in expected.items():
            if state[name].shape != own.shape or state[name].dtype != own.dtype:
                raise ValueError(
                    f"{name} is {state[name].dtype} {state[name].shape} in the state, {own.dtype} {own.shape} here"
                )
        self._weights = {name: state[WEIGHTS + name] for name in self._weights}
        self._moments = {
            name: {moment: state[f"optimizer/{moment}/{name}"] for moment in moments}
            for name, moments in self._moments.items()
        }
        self._step = state[STEP]


def parameter_of(tensor: str) -> str | None:
    """The parameter that a state's tensor is cut like; None: not cut at all."""
    for prefix in (WEIGHTS, *MOMENTS):
        if tensor.startswith(prefix):
            return tensor.removeprefix(prefix)
    return None


def _make(settings: OptimizerSettings) -> mlx.optimizers.Optimizer:
    betas = [settings.beta1, settings.beta2]
    match settings.name:
        case "adamw":
            return mlx.optimizers.AdamW(
                settings.learning_rate, betas, settings.eps, settings.weight_decay, bias_correction=True
            )
        case "adam":
            return mlx.optimizers.Adam(settings.learning_rate, betas, settings.eps, bias_correction=True)
        case "sgd":
            return mlx.optimizers.SGD(settings.learning_rate, weight_decay=settings.weight_decay)
        case _:
            assert_never(settings.name)
