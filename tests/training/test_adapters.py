from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import AdapterSettings, FineTune, TrainJob
from realign_cluster.training.adapters import adapters_off, attach, save_adapters
from realign_cluster.training.dropout import DropoutContext, drop, salt_of
from tests.fixtures.models import make_model

SETTINGS = AdapterSettings(rank=4, scale=8.0, layers=1)
TOKENS = mx.random.randint(1, 2000, (3, 24), key=mx.random.key(1))


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    made: dict[tuple[str, int | None], Path] = {}

    def make(name: str, bits: int | None = None) -> Path:
        if (name, bits) not in made:
            made[name, bits] = make_model(tmp_path_factory.mktemp("models") / name, name, bits=bits)
        return made[name, bits]

    return make


def job_of(kind: FineTune, settings: AdapterSettings = SETTINGS) -> TrainJob:
    spec = ModelSpec(name="made", hash="0" * 32)
    return TrainJob(model=spec, data=spec, fine_tune=kind, adapter=settings, steps=1, global_batch=1)


def trainable(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.trainable_parameters()))


def train_a_little(model: nn.Module) -> dict[str, mx.array]:
    """Every trainable array moved off its initial value; the same for the same names and shapes."""
    moved = {
        name: value + 0.1 * mx.random.normal(value.shape, key=mx.random.key(salt_of(name)))
        for name, value in trainable(model).items()
    }
    model.update(tree_unflatten(list(moved.items())))
    return moved


def loss_gradients(model: nn.Module) -> dict[str, mx.array]:
    def loss(parameters: dict[str, Any]) -> mx.array:
        model.update(parameters)
        return (nn.losses.cross_entropy(model(TOKENS[:, :-1]), TOKENS[:, 1:])).mean()

    return dict(tree_flatten(mx.grad(loss)(model.trainable_parameters())))


def assert_close(found: mx.array, expected: mx.array, relative: float) -> None:
    difference = mx.linalg.norm((found - expected).astype(mx.float32).flatten()).item()
    size = mx.linalg.norm(expected.astype(mx.float32).flatten()).item()
    assert found.shape == expected.shape
    assert difference <= relative * size, f"{difference} of {size}"


@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", "lora"), ("llama", "dora"), ("qwen2", "lora"), ("qwen2", "dora"), ("mixtral", "lora")],
)
def test_outputs_and_gradients_are_mlx_lms(
    folder_of: Callable[..., Path], name: str, kind: FineTune, bits: int | None
) -> None:
    """qwen2's linear layers have biases, mixtral's experts are switch layers."""
    ours, _ = load_model(folder_of(name, bits))
    attach(ours, SETTINGS, kind, seed=0)
    values = train_a_little(ours)

    theirs, _ = load_model(folder_of(name, bits))
    theirs.freeze()
    linear_to_lora_layers(theirs, 1, {"rank": 4, "scale": 8.0, "dropout": 0.0}, use_dora=kind == "dora")
    assert sorted(trainable(theirs)) == sorted(values)  # the default choice of layers is the same
    theirs.update(tree_unflatten(list(values.items())))

    assert_close(ours(TOKENS), theirs(TOKENS), 1e-6)
    found, expected = loss_gradients(ours), loss_gradients(theirs)
    assert found.keys() == expected.keys()
    for parameter in expected:
        assert_close(found[parameter], expected[parameter], 1e-5)


@pytest.mark.parametrize(
    ("name", "kind", "bits"), [("llama", "lora", 4), ("qwen2", "dora", None), ("mixtral", "lora", None)]
)
def test_saved_adapters_load_with_mlx_lm(
    folder_of: Callable[..., Path], tmp_path: Path, name: str, kind: FineTune, bits: int | None
) -> None:
    model, _ = load_model(folder_of(name, bits))
    settings = SETTINGS.model_copy(update={"layers": -1, "dropout": 0.1})
    attach(model, settings, kind, seed=3)
    save_adapters(tmp_path / "adapters", train_a_little(model), job_of(kind, settings))

    loaded = mlx_lm.load(str(folder_of(name, bits)), adapter_path=str(tmp_path / "adapters"))[0]

    assert_close(loaded(TOKENS), model(TOKENS), 1e-6)


def test_mlx_lm_fuses_saved_adapters(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    model, _ = load_model(folder_of("llama-tied"))
    attach(model, SETTINGS, "lora", seed=3)
    save_adapters(tmp_path / "adapters", train_a_little(model), job_of("lora"))

    places = {"--model": folder_of("llama-tied"), "--adapter-path": tmp_path / "adapters"}
    options = [str(text) for pair in (places | {"--save-path": tmp_path / "fused"}).items() for text in pair]
    done = subprocess.run(
        [sys.executable, "-m", "mlx_lm", "fuse", *options], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    fused, _ = load_model(tmp_path / "fused")
    assert "lora_a" not in str(list(trainable(fused)))
    assert_close(fused(TOKENS), model(TOKENS), 1e-5)


def test_saved_full_weights_load_as_an_adapter(folder_of: Callable[..., Path], tmp_path: Path) -> None:
    model, _ = load_model(folder_of("llama-tied"))
    names = attach(model, SETTINGS, "full", seed=0).names
    assert set(names) == {name for name, _ in tree_flatten(model.parameters())}
    save_adapters(tmp_path / "adapters", train_a_little(model), job_of("full"))

    loaded = mlx_lm.load(str(folder_of("llama-tied")), adapter_path=str(tmp_path / "adapters"))[0]

    assert_close(loaded(TOKENS), model(TOKENS), 1e-6)


def test_initial_values_are_a_function_of_seed_and_name(folder_of: Callable[..., Path]) -> None:
    def initial(settings: AdapterSettings, seed: int) -> dict[str, mx.array]:
        mx.random.normal((3,))  # the global generator has no say
        model, _ = load_model(folder_of("llama"))
        attach(model, settings, "lora", seed)
        return trainable(model)

    one_block, all_blocks = initial(SETTINGS, 5), initial(SETTINGS.model_copy(update={"layers": -1}), 5)
    other_seed = initial(SETTINGS, 6)
    assert len(all_blocks) == 2 * len(one_block)
    drawn = [name for name in one_block if name.endswith("lora_a")]
    for name in drawn:
        assert mx.array_equal(one_block[name], all_blocks[name])
        assert not mx.array_equal(one_block[name], other_seed[name])
    values = np.concatenate([np.array(one_block[name]).flatten() for name in drawn if "mlp.down" not in name])
    bound = 1 / np.sqrt(64)
    assert np.abs(values).max() <= bound
    assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.05)


def test_adapters_are_float32_on_a_16_bit_base(tmp_path: Path) -> None:
    model, _ = load_model(make_model(tmp_path / "model", "llama", dtype=mx.bfloat16))
    attach(model, SETTINGS, "dora", seed=0)
    assert {value.dtype for value in train_a_little(model).values()} == {mx.float32}
    assert model(TOKENS).dtype == mx.bfloat16


def test_base_runs_alone_while_adapters_are_off(folder_of: Callable[..., Path]) -> None:
    base, _ = load_model(folder_of("mixtral"))
    expected = base(TOKENS)
    attach(base, SETTINGS.model_copy(update={"dropout": 0.5}), "lora", seed=0)
    train_a_little(base)
    with adapters_off(base):
        assert mx.array_equal(base(TOKENS), expected)
    assert not mx.allclose(base(TOKENS), expected)


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_dropout_of_a_row_does_not_depend_on_its_batch(folder_of: Callable[..., Path], name: str) -> None:
    """24 tokens of 3 rows are sorted by expert in a mixture's switch layers, 8 of one row are not."""
    model, _ = load_model(folder_of(name))
    dropout = attach(model, SETTINGS.model_copy(update={"dropout": 0.3}), "lora", seed=0).dropout
    train_a_little(model)
    keys = mx.random.randint(0, 2**31 - 1, TOKENS.shape, key=mx.random.key(2)).astype(mx.uint32)

    with dropout.keyed(keys):
        together = model(TOKENS)
    with dropout.keyed(keys[1:2, :8]):
        alone = model(TOKENS[1:2, :8])

    assert_close(together[1:2, :8], alone, 1e-5)
    assert not mx.allclose(model(TOKENS)[1:2, :8], alone, atol=1e-2)  # without keys nothing is dropped


def test_dropped_fraction_and_independence() -> None:
    keys = mx.arange(512, dtype=mx.uint32).reshape(2, 256)
    features = mx.arange(256, dtype=mx.uint32)
    ones = mx.ones((2, 256, 256))

    def kept(name: str) -> np.ndarray[Any, Any]:
        values = np.array(drop(ones, keys, salt_of(name), features, 0.25))
        np.testing.assert_allclose(np.unique(values), [0, 1 / 0.75])
        return values != 0

    first, second = kept("a"), kept("b")
    assert first.mean() == pytest.approx(0.75, abs=0.01)
    for shifted in (first[:, 1:, :], first[:, :, 1:], second):
        same = first[:, : shifted.shape[1], : shifted.shape[2]]
        assert np.corrcoef(same.flatten(), shifted.flatten())[0, 1] == pytest.approx(0, abs=0.012)
    assert first.mean(axis=(0, 1)).std() == pytest.approx(np.sqrt(0.75 * 0.25 / 512), rel=0.2)
    assert first.mean(axis=2).std() == pytest.approx(np.sqrt(0.75 * 0.25 / 256), rel=0.2)


def test_a_piece_of_the_features_drops_what_the_whole_drops() -> None:
    keys, salt = mx.array([[7, 8]], dtype=mx.uint32), salt_of("layer")
    values = mx.random.normal((1, 2, 16), key=mx.random.key(0))
    whole = drop(values, keys, salt, mx.arange(16, dtype=mx.uint32), 0.5)
    piece = drop(values[..., 4:8], keys, salt, mx.arange(4, 8, dtype=mx.uint32), 0.5)
    assert mx.array_equal(piece, whole[..., 4:8])


def test_dropout_refuses_tokens_it_cannot_tell_apart() -> None:
    dropout = DropoutContext()
    with dropout.keyed(mx.zeros((2, 3), dtype=mx.uint32)), pytest.raises(UsageError, match=r"layers\.0\.q"):
        dropout.of_tokens((2, 4, 3), "layers.0.q")


def test_unknown_keys_are_named_with_the_known_ones(folder_of: Callable[..., Path]) -> None:
    model, _ = load_model(folder_of("llama"))
    settings = SETTINGS.model_copy(update={"keys": ("self_attn.q_proj", "attention.wq")})
    with pytest.raises(UsageError, match=r"attention\.wq\n(.*)mlp.down_proj, mlp.gate_proj"):
        attach(model, settings, "lora", seed=0)


def test_keys_choose_layers(folder_of: Callable[..., Path]) -> None:
    model, _ = load_model(folder_of("mixtral"))
    keys = ("self_attn.q_proj", "block_sparse_moe.switch_mlp.up_proj")
    adapters = attach(model, SETTINGS.model_copy(update={"keys": keys}), "lora", seed=0)
    assert adapters.names == tuple(
        f"model.layers.1.{key}.{factor}" for key in reversed(keys) for factor in ("lora_a", "lora_b")
    )


def test_full_fine_tuning_of_quantised_weights_is_refused(folder_of: Callable[..., Path]) -> None:
    model, _ = load_model(folder_of("llama", 4))
    with pytest.raises(UsageError, match="has 4 bits"):
        attach(model, SETTINGS, "full", seed=0)


def test_dora_on_mixture_layers_is_refused(folder_of: Callable[..., Path]) -> None:
    model, _ = load_model(folder_of("mixtral"))
    with pytest.raises(UsageError, match=r"DoRA.*switch_mlp"):
        attach(model, SETTINGS, "dora", seed=0)
