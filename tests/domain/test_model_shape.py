"""A model trained further is planned with the speed that was measured before; another architecture is not."""

from __future__ import annotations

from realign_cluster.domain.job import ModelFileSpec, ModelSpec


def spec(**changes: str | int) -> ModelSpec:
    """A model of two files with these changes: "config" and "weights" are hashes, "size" is of the weights."""
    config, weights, size = changes.get("config", "c"), changes.get("weights", "w"), changes.get("size", 100)
    files = (
        ModelFileSpec(path="model.safetensors", size=int(size), blake2b=str(weights)),
        ModelFileSpec(path="config.json", size=10, blake2b=str(config)),
    )
    return ModelSpec(name="m", hash=f"{config}{weights}{size}", files=files)


def test_other_weights_of_the_same_shape() -> None:
    assert spec(weights="trained").shape == spec().shape


def test_another_configuration_or_size_is_another_shape() -> None:
    assert len({spec().shape, spec(config="wider").shape, spec(size=200).shape}) == 3


def test_a_model_without_files_is_told_by_its_hash() -> None:
    assert ModelSpec(name="none", hash="none").shape == "none"
