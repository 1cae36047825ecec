"""The user's figures as given, and estimates for everything else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realign_cluster.domain.memory import GIB, ModelFacts
from realign_cluster.domain.parameters import Parameters
from realign_cluster.domain.prior import (
    CLAIMED_SPLIT,
    M3_ULTRA,
    M4_MAX,
    ChipFigures,
    DeviceFacts,
    apple_family,
    choose_machine,
    forward_passes,
    prior_speed,
    throughput,
)


def model(billions: float) -> ModelFacts:
    count = int(billions * 1e9)
    return ModelFacts(
        name=f"{billions:g}B",
        weights_bytes=2 * count,
        parameters=Parameters(total=count, active=count, source="test"),
        dtype="bfloat16",
        architecture=None,
    )


def metal(chip: str, gpu_cores: int = 0) -> DeviceFacts:
    return DeviceFacts(chip=chip, backend="metal", gpu_cores=gpu_cores)


def split(billions: float) -> float:
    fast = prior_speed(metal(M4_MAX.chip), model(billions)).cost_per_second
    large = prior_speed(metal(M3_ULTRA.chip), model(billions)).cost_per_second
    return fast / (fast + large)


def test_the_users_ratios_apply_where_they_were_measured() -> None:
    assert split(30) == pytest.approx(CLAIMED_SPLIT[0], abs=0.001)
    assert split(1) == pytest.approx(0.835, abs=0.001)


def test_the_claimed_split_is_slower_than_one_machine_at_the_small_ratio() -> None:
    fast, large = M4_MAX.examples_per_second, M3_ULTRA.examples_per_second
    assert max(CLAIMED_SPLIT[0] / fast, CLAIMED_SPLIT[1] / large) > 1 / fast


@pytest.mark.parametrize("figures", [M4_MAX, M3_ULTRA], ids=lambda figures: figures.chip)
def test_the_best_batch_is_the_best_of_the_users_own_table(figures: ChipFigures) -> None:
    best = max(figures.examples_per_second_by_batch, key=lambda pair: pair[1])[0]
    assert best == figures.best_batch
    assert prior_speed(metal(figures.chip), model(8)).best_batch == best


def test_fewer_gpu_cores_are_slower_in_proportion_and_said_so() -> None:
    full, binned = prior_speed(metal(M4_MAX.chip, 40), model(8)), prior_speed(metal(M4_MAX.chip, 32), model(8))
    assert binned.gflops == pytest.approx(full.gflops * 0.8)
    assert "scaled from 40 to 32" in binned.source
    assert "user's figures" in full.source


@pytest.mark.parametrize(
    ("chip", "family"),
    [
        ("Apple M1", (1, "")),
        ("Apple M2 Pro", (2, "Pro")),
        ("Apple M3 Ultra", (3, "Ultra")),
        ("Apple M10 Max", (10, "Max")),
        ("Apple A18", None),
        ("AMD EPYC", None),
    ],
)
def test_apple_family(chip: str, family: tuple[int, str] | None) -> None:
    assert apple_family(chip) == family


@pytest.mark.parametrize(
    "device",
    [
        metal("Apple M1"),
        metal("Apple M2 Max", 38),
        metal("Apple M9 Ultra", 100),
        metal("Apple something new"),
        metal(""),
        DeviceFacts(chip="AMD EPYC 7763", backend="cpu", cpu_cores=2, blas="openblas"),
        DeviceFacts(chip="", backend="cpu", cpu_cores=0, blas=""),
        DeviceFacts(chip="Apple M2", backend="cpu", cpu_cores=8, blas="accelerate"),
        DeviceFacts(chip="NVIDIA H100", backend="cuda"),
    ],
)
def test_any_device_has_an_estimate_that_names_its_source(device: DeviceFacts) -> None:
    prior = prior_speed(device, model(1))
    assert prior.cost_per_second > 0
    assert prior.gflops > 0
    assert prior.best_batch > 0
    assert len(prior.source) > 10


def test_the_bundled_blas_does_not_gain_from_cores() -> None:
    one = throughput(DeviceFacts(chip="x", backend="cpu", cpu_cores=1, blas="bundled"))
    many = throughput(DeviceFacts(chip="x", backend="cpu", cpu_cores=64, blas="bundled"))
    assert one.gflops == many.gflops == 7.0
    openblas = throughput(DeviceFacts(chip="x", backend="cpu", cpu_cores=2, blas="openblas"))
    assert 45 <= openblas.gflops <= 106


def test_a_mixture_is_as_fast_as_its_active_parameters() -> None:
    dense = model(30)
    mixture = ModelFacts(
        name="mixture",
        weights_bytes=dense.weights_bytes,
        parameters=Parameters(total=dense.parameters.total, active=dense.parameters.total // 10, source="test"),
        dtype="bfloat16",
        architecture=None,
    )
    device = metal(M4_MAX.chip)
    speed = prior_speed(device, mixture, batch_tokens=8192).cost_per_second
    assert speed > 5 * prior_speed(device, dense, batch_tokens=8192).cost_per_second


def test_ifd_needs_a_second_pass() -> None:
    device = metal(M4_MAX.chip)
    once, twice = (
        prior_speed(device, model(8), kinds=kinds).cost_per_second for kinds in (("loglik",), ("ifd", "loglik"))
    )
    assert (
        forward_passes(("loglik", "ifd"))
        == forward_passes(("ifd",))
        > forward_passes(("loglik",))
        == forward_passes(())
    )
    assert twice < once


@pytest.mark.parametrize(
    ("billions", "needed", "says"),
    [
        (8, 20, "up to 30B: M4 Max"),
        (30, 61, "up to 30B: M4 Max"),
        (47, 95, "30-70B: M4 Max unless more than 128 GB is needed"),
        (69, 140, "so M3 Ultra"),
        (70.6, 140, "above 70B: M3 Ultra with 512 GB"),
        (405, 783, "above 70B: M3 Ultra"),
    ],
)
def test_the_decision_matrix(billions: float, needed: int, says: str) -> None:
    assert says in choose_machine(model(billions), needed * GIB)


@given(st.floats(0.001, 1000), st.floats(0.001, 1000))
def test_larger_models_are_never_faster_within_a_size_class(one: float, other: float) -> None:
    small, large = sorted((one, other))
    for device in (metal(M4_MAX.chip), metal("Apple M2", 10), DeviceFacts(chip="x", backend="cpu", cpu_cores=4)):
        assert prior_speed(device, model(large)).cost_per_second <= prior_speed(device, model(small)).cost_per_second
