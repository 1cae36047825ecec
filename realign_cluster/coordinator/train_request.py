"""What `realign train` was asked for: from the command line or from run.toml, checked before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from realign_cluster import __version__
from realign_cluster.domain.job import ModelSpec
from realign_cluster.domain.training import PROBES_FILE, Backend, ParallelMode, TrainJob, TrainSettings

Track = Literal["none", "wandb", "tensorboard"]


class TrainRequest(BaseModel):
    """One command. `parallel` and `backend` "auto" leave the choice to the plan."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: tuple[str, ...]
    valid: tuple[str, ...] = ()
    benchmarks: tuple[str, ...] = ()
    kl_probes: tuple[str, ...] = ()  # whose prompts divergence is measured on; none: those of `valid`, or `data`
    model: str
    out: Path
    settings: TrainSettings
    parallel: ParallelMode | Literal["auto"] = "auto"
    backend: Backend | Literal["auto"] = "auto"
    track: Track = "none"
    hostfile: Path | None = None
    discover: bool = False
    min_nodes: int | None = None
    wait_seconds: float | None = None  # reproducible: for nodes that went; None: as recovery has it
    allow_skew: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    nice: int | None = None

    def anchored(self) -> TrainRequest:
        """The same request with absolute paths: what run.toml holds can be taken up from any folder."""
        model = Path(self.model).expanduser()
        return self.model_copy(
            update={
                "data": tuple(str(Path(item).expanduser().absolute()) for item in self.data),
                "valid": tuple(str(Path(item).expanduser().absolute()) for item in self.valid),
                "kl_probes": tuple(str(Path(item).expanduser().absolute()) for item in self.kl_probes),
                "benchmarks": tuple(str(Path(item).expanduser().absolute()) for item in self.benchmarks),
                "out": self.out.absolute(),
                "model": str(model.absolute()) if model.is_dir() else self.model,
                "hostfile": self.hostfile.expanduser().absolute() if self.hostfile is not None else None,
            }
        )

    def job(self, model: ModelSpec, data: ModelSpec) -> TrainJob:
        return TrainJob(**self.settings.model_dump(), model=model, data=data)

    def identity(self, model: ModelSpec, data: ModelSpec) -> dict[str, Any]:
        """What must be equal for a run folder to be continued: names are what an error shows.

        Where and on how many nodes it runs may change, and so may what only decides when a state is kept.
        """
        free = {"checkpoint_every", "keep_checkpoints", "snapshot_every"}
        settings = self.settings.model_dump(mode="json", exclude=free)
        probes = {file.path: file.blake2b for file in data.files}.get(PROBES_FILE)
        return {
            "model": f"{model.name} ({model.hash})",
            "data": f"{data.name} ({data.hash})",
            **({"kl probes": probes} if probes is not None else {}),
            **{name.replace("_", " "): value for name, value in settings.items()},
            "version of realign-cluster": __version__,
        }
