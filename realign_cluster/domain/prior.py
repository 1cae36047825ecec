"""What is believed of a node's speed before it was measured: the user's figures, and estimates for other chips.

Every value carries its source, and a prior is never more than a first guess: one measurement of (node, model, task)
replaces it. The user's figures contradict each other because the ratio of two machines depends on model, batch and
length; they are kept as given, and `CONTRADICTION` says so. Must not know what was measured.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from realign_cluster.domain.memory import GIB, ModelFacts


@dataclass(frozen=True, slots=True, kw_only=True)
class ChipFigures:
    """The user's own measurements of one machine."""

    chip: str
    gpu_cores: int  # assumed: the chip's larger variant; others of this chip are scaled by their cores
    gflops: float
    examples_per_second: float  # model size not stated
    examples_per_second_30b: float
    best_batch: int
    examples_per_second_by_batch: tuple[tuple[int, float], ...]  # of another, small model: 776 : 278 at best

    def text(self) -> str:
        return (
            f"{self.gflops:,.0f} GFLOPS, {self.examples_per_second:g} ex/s, {self.examples_per_second_30b:g} ex/s "
            f"at 30B, best batch {self.best_batch}"
        )


M4_MAX = ChipFigures(
    chip="Apple M4 Max",
    gpu_cores=40,
    gflops=12_956,
    examples_per_second=3.86,
    examples_per_second_30b=1.95,
    best_batch=32,
    examples_per_second_by_batch=((1, 200), (8, 450), (16, 620), (32, 776), (64, 750)),
)
M3_ULTRA = ChipFigures(
    chip="Apple M3 Ultra",
    gpu_cores=80,
    gflops=4_599,
    examples_per_second=0.76,
    examples_per_second_30b=1.03,
    best_batch=4,
    examples_per_second_by_batch=((1, 180), (4, 278), (8, 265), (16, 240), (32, 210)),
)
USER_FIGURES = {figures.chip: figures for figures in (M4_MAX, M3_ULTRA)}
CLAIMED_SPLIT = (0.655, 0.345)
CONTRADICTION = (
    "the user's figures contradict each other: 65.5 / 34.5 is the 30B ratio (1.95 : 1.03 ex/s); at 3.86 : 0.76 the "
    "right split is 83.5 / 16.5, and 65.5 / 34.5 would be slower than the M4 Max alone; by GFLOPS (12,956 : 4,599) it "
    "is 73.8 / 26.2, by the best batches (776 : 278) 73.6 / 26.4. The ratio depends on model, batch and length, so one "
    "measurement replaces all of them"
)
LARGE_FROM_BILLIONS = 20.0  # from here the 30B figures apply, below it the others


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineChoice:
    """A row of the user's decision matrix."""

    above_billions: float
    up_to_billions: float
    choice: str
    memory_rule: str


DECISION_MATRIX = (
    MachineChoice(above_billions=0, up_to_billions=30, choice="M4 Max", memory_rule=""),
    MachineChoice(
        above_billions=30, up_to_billions=70, choice="M4 Max", memory_rule="unless more than 128 GB is needed"
    ),
    MachineChoice(
        above_billions=70,
        up_to_billions=float("inf"),
        choice="M3 Ultra",
        memory_rule="with 512 GB (fp16); larger: sharded, RDMA",
    ),
)

# Per GPU core, relative to the M4 family. Apple states 2.6 TFLOPS for the 8 cores of an M1 and 3.6 for the 10 of an
# M2; the later ones are assumed from their clocks. MLX's share of the peak is taken from the user's M4 Max: 12,956 /
# 40 cores.
GFLOPS_PER_M4_CORE = M4_MAX.gflops / M4_MAX.gpu_cores
RELATIVE_CORE = {1: 0.75, 2: 0.83, 3: 0.90, 4: 1.0, 5: 1.1}
DEFAULT_GPU_CORES = {"": 10, "Pro": 18, "Max": 36, "Ultra": 72}
# GB/s, from Apple's specifications (the larger variant where there are two)
BANDWIDTH = {
    (1, ""): 68, (1, "Pro"): 200, (1, "Max"): 400, (1, "Ultra"): 800,
    (2, ""): 100, (2, "Pro"): 200, (2, "Max"): 400, (2, "Ultra"): 800,
    (3, ""): 100, (3, "Pro"): 150, (3, "Max"): 400, (3, "Ultra"): 819,
    (4, ""): 120, (4, "Pro"): 273, (4, "Max"): 546,
    (5, ""): 153,
}  # fmt: skip
# Linux CPU backend, 2 cores: 45-106 GFLOPS with OpenBLAS, 7 with the reference BLAS the wheel bundles (one thread)
OPENBLAS_GFLOPS_PER_CORE = 30.0
BUNDLED_BLAS_GFLOPS = 7.0
ACCELERATE_GFLOPS_PER_CORE = 60.0
CUDA_GFLOPS = 30_000.0
CPU_BANDWIDTH = 20.0  # GB/s
CUDA_BANDWIDTH = 900.0
SECONDS_PER_TOKEN = {"cpu": 20e-6, "metal": 2e-6, "cuda": 1e-6}  # tokenising, softmax, Python: what no FLOP count holds
# Forward passes over a row's text: ifd runs the answer a second time, without its instruction; kl runs two models
PASSES = {"loglik": 1.0, "ifd": 1.6, "ifd-ppl": 1.6, "preference": 1.0, "judge": 1.0, "kl": 2.0, "generate": 1.0}
UNKNOWN_BATCH = {"cpu": 8, "metal": 16, "cuda": 32}


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What a node says of its hardware."""

    chip: str
    backend: Literal["metal", "cpu", "cuda"]
    gpu_cores: int = 0
    cpu_cores: int = 1
    blas: str = ""  # "openblas", "bundled", "accelerate"


@dataclass(frozen=True, slots=True, kw_only=True)
class PriorSpeed:
    """Never measured. `cost_per_second` is in token equivalents, as in domain.batching.row_cost."""

    cost_per_second: float
    gflops: float
    best_batch: int  # rows
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Throughput:
    """How fast a device multiplies and reads, by estimate."""

    gflops: float
    gigabytes_per_second: float
    best_batch: int
    source: str


def apple_family(chip: str) -> tuple[int, str] | None:
    """(generation, variant) of "Apple M3 Ultra" -> (3, "Ultra"); None for anything else."""
    match = re.fullmatch(r"Apple M(\d+)(?: (Pro|Max|Ultra))?", chip.strip())
    return (int(match.group(1)), match.group(2) or "") if match else None


def throughput(device: DeviceFacts) -> Throughput:
    """GFLOPS and bandwidth of any device, with where they come from."""
    family = apple_family(device.chip) if device.backend == "metal" else None
    if family is not None:
        return _apple(device, family)
    if device.backend == "metal":
        cores = device.gpu_cores or DEFAULT_GPU_CORES[""]
        return Throughput(
            gflops=cores * GFLOPS_PER_M4_CORE * 0.9,
            gigabytes_per_second=100.0,
            best_batch=UNKNOWN_BATCH["metal"],
            source=f"unknown Apple GPU ({device.chip or 'no name'}), {cores} cores at 0.9 of an M4's",
        )
    if device.backend == "cuda":
        return Throughput(
            gflops=CUDA_GFLOPS,
            gigabytes_per_second=CUDA_BANDWIDTH,
            best_batch=UNKNOWN_BATCH["cuda"],
            source=f"CUDA device {device.chip}: {CUDA_GFLOPS:,.0f} GFLOPS assumed",
        )
    cores = max(device.cpu_cores, 1)
    match device.blas:
        case "bundled":
            gflops, source = BUNDLED_BLAS_GFLOPS, "the wheel's reference BLAS: 7 GFLOPS whatever the cores"
        case "accelerate":
            gflops, source = cores * ACCELERATE_GFLOPS_PER_CORE, f"{cores} CPU cores x 60 GFLOPS with Accelerate"
        case _:
            gflops, source = (
                cores * OPENBLAS_GFLOPS_PER_CORE,
                f"{cores} CPU cores x 30 GFLOPS with {device.blas or 'a BLAS'}",
            )
    return Throughput(
        gflops=gflops,
        gigabytes_per_second=CPU_BANDWIDTH,
        best_batch=UNKNOWN_BATCH["cpu"],
        source=f"{source} ({device.chip})",
    )


def _apple(device: DeviceFacts, family: tuple[int, str]) -> Throughput:
    generation, variant = family
    bandwidth = float(BANDWIDTH.get(family) or max(BANDWIDTH[(g, v)] for g, v in BANDWIDTH if v == variant))
    figures = USER_FIGURES.get(device.chip.strip())
    if figures is not None:
        cores = device.gpu_cores or figures.gpu_cores
        scaled = "" if cores == figures.gpu_cores else f", scaled from {figures.gpu_cores} to {cores} GPU cores"
        return Throughput(
            gflops=figures.gflops * cores / figures.gpu_cores,
            gigabytes_per_second=bandwidth,
            best_batch=figures.best_batch,
            source=f"the user's figures for {figures.chip} ({figures.text()}){scaled}",
        )
    cores = device.gpu_cores or DEFAULT_GPU_CORES[variant]
    relative = RELATIVE_CORE.get(generation, RELATIVE_CORE[max(RELATIVE_CORE)])
    return Throughput(
        gflops=cores * GFLOPS_PER_M4_CORE * relative,
        gigabytes_per_second=bandwidth,
        best_batch=UNKNOWN_BATCH["metal"],
        source=f"{cores} GPU cores x {relative:g} of the user's M4 Max per core ({GFLOPS_PER_M4_CORE:.0f} GFLOPS)",
    )


def forward_passes(kinds: Sequence[str]) -> float:
    """How often a row's text goes through the model; kinds that are asked for together share their passes."""
    return max((PASSES.get(kind, 1.0) for kind in kinds), default=1.0)


def prior_speed(
    device: DeviceFacts, model: ModelFacts, *, batch_tokens: int = 2048, kinds: Sequence[str] = ()
) -> PriorSpeed:
    """Estimated speed of scoring: 2 FLOPs per active parameter and token, weights read once per batch, overhead per
    token.

    For the M3 Ultra the *ratio* to the M4 Max comes from the user's examples per second at that model size, because
    the GFLOPS alone would put it higher than what the user saw below 30B, and lower than at 30B.
    """
    chip = device.chip.strip() if device.backend == "metal" else ""
    if chip == M3_ULTRA.chip:
        reference = DeviceFacts(chip=M4_MAX.chip, backend="metal", gpu_cores=M4_MAX.gpu_cores)
        base = _cost_per_second(throughput(reference), model, "metal", batch_tokens) / forward_passes(kinds)
        if model.billions >= LARGE_FROM_BILLIONS:
            ratio, where = (
                M3_ULTRA.examples_per_second_30b / M4_MAX.examples_per_second_30b,
                "1.03 : 1.95, their ratio at 30B",
            )
        else:
            ratio, where = (
                M3_ULTRA.examples_per_second / M4_MAX.examples_per_second,
                "0.76 : 3.86, their ratio below 30B",
            )
        own = throughput(device)
        cores = (device.gpu_cores or M3_ULTRA.gpu_cores) / M3_ULTRA.gpu_cores
        return PriorSpeed(
            cost_per_second=base * ratio * cores,
            gflops=own.gflops,
            best_batch=own.best_batch,
            source=f"{own.source}; speed is the M4 Max's x {ratio:.3f} ({where})",
        )
    own = throughput(device)
    return PriorSpeed(
        cost_per_second=_cost_per_second(own, model, device.backend, batch_tokens) / forward_passes(kinds),
        gflops=own.gflops,
        best_batch=own.best_batch,
        source=own.source,
    )


def _cost_per_second(speed: Throughput, model: ModelFacts, backend: str, batch_tokens: int) -> float:
    multiply = 2 * model.parameters.active / (speed.gflops * 1e9)
    read = model.weights_bytes / (speed.gigabytes_per_second * 1e9) / max(batch_tokens, 1)
    return 1.0 / (max(multiply, read) + SECONDS_PER_TOKEN[backend])


def choose_machine(model: ModelFacts, needed_bytes: int) -> str:
    """What the user's decision matrix says of a model of this size, as a line for the plan."""
    row = next(row for row in DECISION_MATRIX if model.billions <= row.up_to_billions)
    choice = row.choice
    rule = f" {row.memory_rule}" if row.memory_rule else ""
    if choice == "M4 Max" and needed_bytes > 128 * GIB:
        return f"the user's matrix: {_range(row)}: {choice}{rule}; {needed_bytes / GIB:.0f} GiB are needed, so M3 Ultra"
    return f"the user's matrix: {_range(row)}: {choice}{rule}"


def _range(row: MachineChoice) -> str:
    if row.up_to_billions == float("inf"):
        return f"above {row.above_billions:g}B"
    return (
        f"up to {row.up_to_billions:g}B"
        if row.above_billions == 0
        else f"{row.above_billions:g}-{row.up_to_billions:g}B"
    )
