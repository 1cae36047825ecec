from __future__ import annotations

import math

import mlx.core as mx
import numpy as np
import pytest

from realign_cluster.domain.training import OptimizerSettings
from realign_cluster.training.optimizer import MasterOptimizer, NotFiniteError, parameter_of

SHAPES = {"layers.0.lora_a": (7, 3), "layers.0.lora_b": (3, 5), "norm.weight": (6,)}


def arrays(seed: int, dtype: mx.Dtype = mx.float32) -> dict[str, mx.array]:
    keys = mx.random.split(mx.random.key(seed), len(SHAPES))
    return {
        name: mx.random.normal(shape, key=key).astype(dtype)
        for (name, shape), key in zip(SHAPES.items(), keys, strict=True)
    }


def norm_of(values: dict[str, mx.array]) -> float:
    return math.sqrt(sum(float(mx.square(value).sum().item()) for value in values.values()))


def take_steps(optimizer: MasterOptimizer, first: int, last: int) -> None:
    for step in range(first, last):
        gradients = arrays(100 + step)
        optimizer.step(gradients, norm=norm_of(gradients), learning_rate=1e-2 / (1 + step))


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_goes_on_bit_by_bit_from_a_state(name: str) -> None:
    settings = OptimizerSettings(name=name, weight_decay=0.1)
    unbroken = MasterOptimizer(settings, arrays(1))
    take_steps(unbroken, 0, 10)
    before = MasterOptimizer(settings, arrays(1))
    take_steps(before, 0, 5)
    kept = {tensor: np.array(value) for tensor, value in before.state().items()}
    take_steps(before, 5, 7)  # what was kept stays as it was
    after = MasterOptimizer(settings, arrays(2))
    after.restore({tensor: mx.array(value) for tensor, value in kept.items()})
    take_steps(after, 5, 10)
    assert after.state().keys() == unbroken.state().keys()
    for tensor, value in unbroken.state().items():
        assert np.array(value).tobytes() == np.array(after.state()[tensor]).tobytes(), tensor


def test_adamw_is_the_paper_s() -> None:
    settings = OptimizerSettings(name="adamw", beta1=0.8, beta2=0.95, weight_decay=0.1, clip_norm=0.7)
    optimizer = MasterOptimizer(settings, arrays(1))
    expected = {name: np.array(value, dtype=np.float64) for name, value in arrays(1).items()}
    m = {name: np.zeros_like(value) for name, value in expected.items()}
    v = {name: np.zeros_like(value) for name, value in expected.items()}
    for step in range(1, 7):
        gradients = arrays(step)
        norm = norm_of(gradients)
        assert norm > 0.7
        optimizer.step(gradients, norm=norm, learning_rate=0.01)
        for name, value in gradients.items():
            g = np.array(value, dtype=np.float64) * 0.7 / (norm + 1e-6)
            m[name] = 0.8 * m[name] + 0.2 * g
            v[name] = 0.95 * v[name] + 0.05 * g**2
            update = m[name] / (1 - 0.8**step) / (np.sqrt(v[name] / (1 - 0.95**step)) + 1e-8)
            expected[name] -= 0.01 * (update + 0.1 * expected[name])
    for name, value in optimizer.weights.items():
        np.testing.assert_allclose(np.array(value), expected[name], rtol=1e-5, atol=1e-6)


def test_clips_only_above_the_norm() -> None:
    free = MasterOptimizer(OptimizerSettings(name="sgd", weight_decay=0.0, clip_norm=None), arrays(1))
    clipped = MasterOptimizer(OptimizerSettings(name="sgd", weight_decay=0.0, clip_norm=1.0), arrays(1))
    small = {name: value * 0.01 for name, value in arrays(3).items()}
    for optimizer in (free, clipped):
        optimizer.step(small, norm=norm_of(small), learning_rate=1.0)
    for name, value in free.weights.items():
        assert mx.array_equal(value, clipped.weights[name])
    before = dict(clipped.weights)
    large = arrays(4)
    clipped.step(large, norm=norm_of(large), learning_rate=1.0)
    moved = {name: before[name] - value for name, value in clipped.weights.items()}
    assert norm_of(moved) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_changes_nothing(norm: float) -> None:
    optimizer = MasterOptimizer(OptimizerSettings(), arrays(1))
    take_steps(optimizer, 0, 2)
    before = {tensor: np.array(value) for tensor, value in optimizer.state().items()}
    with pytest.raises(NotFiniteError):
        optimizer.step(arrays(9), norm=norm, learning_rate=1.0)
    for tensor, value in optimizer.state().items():
        assert np.array(value).tobytes() == before[tensor].tobytes()


def test_updates_too_small_for_sixteen_bits_add_up_in_the_master_weights() -> None:
    start = {name: mx.ones(shape, dtype=mx.bfloat16) for name, shape in SHAPES.items()}
    optimizer = MasterOptimizer(OptimizerSettings(name="sgd", weight_decay=0.0, clip_norm=None), start)
    ones = {name: mx.ones(shape) for name, shape in SHAPES.items()}
    for _ in range(100):
        optimizer.step(ones, norm=1.0, learning_rate=1e-3)  # bfloat16 has nothing between 1 and 1 - 1/256
    for value in optimizer.weights.values():
        assert value.dtype == mx.float32
        np.testing.assert_allclose(np.array(value), 0.9, rtol=1e-5)


def test_every_tensor_of_a_state_says_which_parameter_it_is_cut_like() -> None:
    state = MasterOptimizer(OptimizerSettings(), arrays(1)).state()
    assert len(state) == 3 * len(SHAPES) + 1
    for tensor, value in state.items():
        parameter = parameter_of(tensor)
        if parameter is None:
            assert tensor == "optimizer/step"
        else:
            assert value.shape == SHAPES[parameter]


@pytest.mark.parametrize("change", ["missing", "shape", "dtype"])
def test_a_state_of_something_else_is_refused(change: str) -> None:
    optimizer = MasterOptimizer(OptimizerSettings(), arrays(1))
    state = optimizer.state()
    name = "optimizer/v/norm.weight"
    if change == "missing":
        del state[name]
    else:
        state[name] = mx.zeros((7,)) if change == "shape" else state[name].astype(mx.float16)
    with pytest.raises(ValueError, match=r"norm\.weight"):
        optimizer.restore(state)
