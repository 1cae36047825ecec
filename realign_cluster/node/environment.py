"""What a worker process finds in its environment, and what each variable really does: doctor and install print it."""

from __future__ import annotations

from collections.abc import Mapping

from realign_cluster.domain.errors import UsageError

ENVIRONMENT_EFFECTS: dict[str, str] = {
    "MLX_METAL_PREALLOCATE": "read by nothing in MLX: no effect. What it intends is mx.set_wired_limit and "
    "mx.set_cache_limit, which the workers set from the device's memory",
    "MLX_METAL_FAST_SYNCH": "makes the CPU and the GPU wait for each other by shared memory instead of events: lower "
    "latency of collectives; off by default, MLX warns that it can deadlock and wedge the GPU until a reboot",
    "TOKENIZERS_PARALLELISM": "false keeps the tokenizers library to one thread and silent about forks; the workers "
    "always get it, because one tokeniser per worker is enough",
    "OPENBLAS_NUM_THREADS": "how many threads OpenBLAS uses in a worker; set from --cores or from the job",
    "OPENBLAS_CORETYPE": "pins OpenBLAS to the kernels of one processor family, so that nodes compute the same bits; "
    "set by --reproducible",
    "LD_PRELOAD": "on Linux the workers get OpenBLAS in place of the one-threaded BLAS that MLX's wheel brings: "
    "matrix products 6 to 15 times as fast",
    "HF_HUB_OFFLINE": "1 keeps a worker from asking the Hugging Face hub: models come from the coordinator",
    "NICE": "launchd's Nice, systemd's Nice, nice(1): CPU scheduling only, nothing on the GPU. Under sudo the exported "
    "variables are dropped, so ask for both here: realignd install --nice -10 --env K=V",
}

# Prefixes of what a hostfile or a job may set in a worker. Anything else could make it load foreign code.
_ALLOWED = ("MLX_", "OPENBLAS_", "OMP_", "VECLIB_", "METAL_", "MTL_", "TOKENIZERS_", "REALIGN_FAULTS")


def check_environment(environment: Mapping[str, str]) -> None:
    """Raises UsageError for a variable that jobs and hostfiles may not set."""
    for name in environment:
        if not name.startswith(_ALLOWED):
            raise UsageError(
                f"the environment variable {name} may not be set for a worker from outside",
                f"remove it from the hostfile or job; allowed are {', '.join(f'{prefix}*' for prefix in _ALLOWED)}; "
                "what the machine itself needs goes into its service: realignd install --env K=V",
            )


def parse_assignments(pairs: list[str]) -> dict[str, str]:
    """["K=V", ...]. Raises UsageError."""
    result: dict[str, str] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not separator or not name.replace("_", "a").isalnum() or name[0].isdigit():
            raise UsageError(f"--env {pair}: not of the form NAME=VALUE", "--env MLX_METAL_FAST_SYNCH=1")
        result[name] = value
    return result


def effect_of(name: str) -> str:
    return ENVIRONMENT_EFFECTS.get(name, "not known here: handed to the process as it is")
