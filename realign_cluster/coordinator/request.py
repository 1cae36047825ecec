"""What was asked of a curation run: checked before anything starts, kept in run.toml, compared at resume.

Knows no node and no clock. Two requests with equal `identity` give the same scores and the same output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from realign_cluster import __version__
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.expression import KeepIf, compile_keep_if
from realign_cluster.domain.group import Sharding
from realign_cluster.domain.job import (
    FIELDS_OF_KIND,
    JUDGE_LABELS,
    JUDGE_TEMPLATE,
    KIND_VERSION,
    NO_MODEL,
    Beside,
    Chat,
    Fields,
    ModelSpec,
    Sampling,
    ScoreJob,
    Truncate,
    needs_whole_model,
)
from realign_cluster.domain.suggest import did_you_mean


class CurateRequest(BaseModel):
    """Everything of the command line that bears on the result, with defaults filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: tuple[str, ...]
    out: Path
    model: str
    kinds: tuple[str, ...]
    fields: Fields = Fields()
    template: str | None = None
    labels: tuple[str, ...] = ()
    chat: Chat = "auto"
    max_tokens: int = Field(default=2048, ge=2)
    truncate: Truncate = "left"
    sampling: Sampling | None = None  # generate; None: as it is by default
    adapter: str | None = None
    reference_model: str | None = None
    reference_adapter: str | None = None
    keep_if: str | None = None
    format: Literal["jsonl", "parquet"] = "jsonl"
    limit: int | None = Field(default=None, ge=1)
    on_bad_row: Literal["fail", "quarantine"] = "fail"
    reproducible: bool = False
    export_trl: bool = False
    # Where and how it runs: may differ from sitting to sitting.
    hostfile: Path | None = None
    discover: bool = False
    min_nodes: int | None = None
    allow_skew: tuple[str, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)  # of the workers
    nice: int | None = Field(default=None, ge=-20, le=19)
    shard: Sharding = "auto"

    @field_validator("kinds")
    @classmethod
    def _known_kinds(cls, kinds: tuple[str, ...]) -> tuple[str, ...]:
        if not kinds:
            raise UsageError("no score kind was given", f"--score one or more of {', '.join(_public_kinds())}")
        for kind in kinds:
            if kind not in FIELDS_OF_KIND:
                raise UsageError(
                    f"--score: there is no kind '{kind}'{did_you_mean(kind, FIELDS_OF_KIND)}",
                    f"use one or more of {', '.join(_public_kinds())}, separated by commas",
                )
        if len(set(kinds)) != len(kinds):
            raise UsageError("--score: a kind is named twice", "name each kind once")
        if "noop" in kinds and len(kinds) > 1:
            raise UsageError(
                "--score: noop measures the cluster without a model and goes with no other kind", "drop it"
            )
        return kinds

    @model_validator(mode="after")
    def _consistent(self) -> CurateRequest:
        if self.labels and "judge" not in self.kinds:
            raise UsageError("--labels is for the kind judge only", "add judge to --score, or drop --labels")
        if self.template is not None and "judge" not in self.kinds:
            raise UsageError("--template is for the kind judge only", "add judge to --score, or drop --template")
        if "judge" in self.kinds:
            if self.labels and len(set(self.labels)) < 2:
                raise UsageError("--labels needs at least two different labels", "for example --labels yes,no")
            template = self.template or JUDGE_TEMPLATE
            for place in ("{claim}", "{evidence}"):
                if template.count(place) != 1:
                    raise UsageError(
                        f"the judge template has {place} {template.count(place)} times",
                        f"put {place} in it exactly once",
                    )
        if self.export_trl and "preference" not in self.kinds:
            raise UsageError(
                "--export-trl writes the preference scores as TRL's reference columns", "add preference to --score"
            )
        self._check_sampling()
        self._check_reference()
        if (self.model == NO_MODEL) != (self.kinds == ("noop",)):
            raise UsageError(
                "--model none goes with --score noop and with nothing else", "name a model folder or hub id"
            )
        if self.model == NO_MODEL and self.adapter is not None:
            raise UsageError("--adapter goes on a model, and --model none is none", "drop --adapter")
        return self

    def _check_sampling(self) -> None:
        if "generate" not in self.kinds:
            if self.sampling is not None:
                raise UsageError(
                    "--temperature, --top-p, --top-k, --max-new-tokens, --stop, --seed and --samples are for the kind "
                    "generate only",
                    "add generate to --score, or drop them",
                )
            return
        if self.answer_tokens >= self.max_tokens:
            raise UsageError(
                f"--max-new-tokens {self.answer_tokens} leaves no room for a prompt within --max-tokens "
                f"{self.max_tokens}",
                "raise --max-tokens, which bounds prompt and answer together, or ask for shorter answers",
            )

    def _check_reference(self) -> None:
        reference = self.reference_model is not None or self.reference_adapter is not None
        if "kl" not in self.kinds:
            if reference:
                raise UsageError(
                    "--reference-model and --reference-adapter are for the kind kl only", "add kl to --score"
                )
        elif self.adapter is None and not reference:
            raise UsageError(
                "--score kl compares a model with a reference, and both would be the same",
                "--adapter PATH (compared with the model without it), --reference-model or --reference-adapter",
            )

    @property
    def answer_tokens(self) -> int:
        """Of one sample at most; 0: nothing is drawn."""
        return (self.sampling or Sampling()).max_new_tokens if "generate" in self.kinds else 0

    @property
    def new_tokens(self) -> int:
        """That are drawn for a row at most, over all its samples."""
        return (self.sampling or Sampling()).new_tokens if "generate" in self.kinds else 0

    @property
    def whole_model_only(self) -> str:
        return needs_whole_model(self.kinds, adapter=self.adapter is not None)

    def anchored(self) -> CurateRequest:
        """The same request with absolute paths: what run.toml holds can be taken up from any folder."""
        return self.model_copy(
            update={
                "inputs": tuple(str(Path(item).expanduser().absolute()) for item in self.inputs),
                "out": self.out.absolute(),
                "model": _anchored(self.model),
                "adapter": _anchored(self.adapter),
                "reference_model": _anchored(self.reference_model),
                "reference_adapter": _anchored(self.reference_adapter),
                "hostfile": self.hostfile.expanduser().absolute() if self.hostfile is not None else None,
            }
        )

    def compile_keep_if(self) -> KeepIf | None:
        return compile_keep_if(self.keep_if, self.kinds) if self.keep_if else None

    def job(self, model: ModelSpec, beside: Beside | None = None, *, canaries: tuple[str, ...] = ()) -> ScoreJob:
        """`beside`: the adapters and the reference that are named, by content."""
        judge = "judge" in self.kinds
        return ScoreJob(
            kinds=self.kinds,
            kind_versions={kind: KIND_VERSION[kind] for kind in self.kinds},
            model=model,
            fields=self.fields,
            template=(self.template or JUDGE_TEMPLATE) if judge else None,
            labels=(self.labels or JUDGE_LABELS) if judge else (),
            chat=self.chat,
            max_tokens=self.max_tokens,
            truncate=self.truncate,
            reproducible=self.reproducible,
            canaries=canaries,
            sampling=(self.sampling or Sampling()) if "generate" in self.kinds else None,
            **dict(beside or Beside()),
        )

    def identity(self, model: ModelSpec, beside: Beside | None = None) -> dict[str, Any]:
        """What must be equal for a run folder to be continued: names are what an error shows."""
        job = self.job(model, beside)
        named = {
            "adapter": job.adapter,
            "reference model": job.reference_model,
            "reference adapter": job.reference_adapter,
        }
        return {
            "model": f"{model.name} ({model.hash})",
            **{name: f"{spec.name} ({spec.hash})" for name, spec in named.items() if spec is not None},
            **({"sampling": job.sampling.model_dump(mode="json")} if job.sampling is not None else {}),
            "score kinds": [f"{kind} v{version}" for kind, version in job.kind_versions.items()],
            "fields": job.fields.model_dump(),
            "judge template": job.template,
            "judge labels": list(job.labels),
            "chat": job.chat,
            "max tokens": job.max_tokens,
            "truncate": job.truncate,
            "reproducible": job.reproducible,
            "keep-if": self.keep_if,
            "format": self.format,
            "limit": self.limit,
            "on-bad-row": self.on_bad_row,
            "TRL columns": self.export_trl,
            "version of realign-cluster": __version__,
        }


def _public_kinds() -> list[str]:
    return [kind for kind in FIELDS_OF_KIND if kind != "noop"]


def _anchored(model: str | None) -> str | None:
    """A folder by its absolute path; a hub id stays."""
    if model is None:
        return None
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model
