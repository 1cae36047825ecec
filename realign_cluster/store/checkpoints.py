"""Checkpoints of a run: RUN/checkpoints/step-NNNNNNNN/ holds the parts of one step and manifest.json.

A checkpoint is gathered in a folder of a temporary name; its manifest is written last, then the folder gets its name.
Everything here is durable. What went wrong is answered, not raised: training goes on without this checkpoint.
Must not know how parts come from the nodes, nor what their tensors mean.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import orjson
from pydantic import Field, FiniteFloat

from realign_cluster.domain.job import Strict
from realign_cluster.domain.run_memory import GoBack
from realign_cluster.domain.standing import Judged, retained
from realign_cluster.domain.world import StatePart, WorldPlan
from realign_cluster.store.durable import TEMPORARY_SUFFIX, sync_folder, write_durably
from realign_cluster.store.part_manifest import parse, seal, unseal
from realign_cluster.store.space import StorageFull, is_disk_full
from realign_cluster.store.state_part import Corrupt, data_path, read_header, receive_part, verify_part

MANIFEST: Final = "manifest.json"
PREFIX: Final = "step-"
NAME: Final = re.compile(r"step-\d{8}")
MANIFEST_BYTES: Final = 1 << 16  # more than any manifest or folder needs
REPLACED_SUFFIX: Final = ".replaced"
REMOVED_SUFFIX: Final = ".removed"

NotStored = StorageFull | Corrupt | OSError


class CheckpointManifest(Strict):
    """A complete checkpoint after `step` steps. `parts` are all there are, in order.

    `config` is what ranks must have in common to go on from here; `world` and `versions` made it. `validation_loss` and
    `kl` (nats per completion token) are the last that were measured at or before this step; the loss of the state after
    `validation_step` steps.
    """

    format: int = 1
    step: int
    layout: str
    parts: tuple[StatePart, ...]
    run: str = ""
    config: str = ""
    world: WorldPlan | None = None
    versions: dict[str, str] = Field(default_factory=dict)
    learning_rate_factor: float = 1.0
    beta_factor: float = 1.0
    validation_loss: FiniteFloat | None = None
    kl: FiniteFloat | None = None
    validation_step: int | None = None

    @property
    def judged(self) -> Judged:
        loss = self.validation_loss if self.validation_step == self.step else None
        return Judged(step=self.step, loss=loss, kl=self.kl)

    def problem(self) -> str:
        """Why this cannot be a checkpoint; "" if it can."""
        if self.format != 1:
            return f"format {self.format} is not known"
        if not self.parts:
            return "it has no parts"
        for index, part in enumerate(self.parts):
            if (part.step, part.layout, part.part, part.parts) != (self.step, self.layout, index, len(self.parts)):
                return f"{part.name} is not part {index} of {len(self.parts)} of step {self.step}, {self.layout}"
            if part.generation != self.parts[0].generation:
                return f"{part.name} is of generation {part.generation}, not {self.parts[0].generation}"
        return ""


class Intact(NamedTuple):
    """`manifest` is of the newest checkpoint whose every byte is as it was written, None where there is none.
    `skipped` are the newer ones, with their reasons.
    """

    manifest: CheckpointManifest | None
    skipped: tuple[Corrupt, ...]


class CheckpointStore:
    """The checkpoints in a folder, for one process. One is gathered at a time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, step: int) -> Path:
        """The folder of a complete checkpoint: its parts have their usual names there."""
        return self._folder / f"{PREFIX}{step:08d}"

    def begin(self, step: int) -> NotStored | None:
        """Makes a place for the parts of `step`; what was begun before and not committed is gone."""
        gathered = self._gathered(step)
        try:
            self.sweep()
            gathered.mkdir(parents=True)
        except OSError as error:
            return _not_stored(gathered, error)
        return None

    def receive(self, part: StatePart, manifest: bytes, chunks: Iterable[bytes]) -> StatePart | NotStored:
        """Stores a part of the checkpoint that was begun: its JSON file and its data file, in chunks of any size."""
        try:
            received = receive_part(self._gathered(part.step), manifest, chunks, durable=True)
        except (StorageFull, Corrupt, OSError) as error:
            return error
        if received != part:
            return Corrupt(data_path(self._gathered(part.step), part), f"{received.name} came in its place")
        return received

    def commit(self, manifest: CheckpointManifest) -> CheckpointManifest | NotStored:
        """Makes the gathered parts a checkpoint, in the place of an older one of the same step."""
        gathered, path = self._gathered(manifest.step), self.path(manifest.step)
        if problem := manifest.problem():
            return Corrupt(gathered, problem)
        try:
            for part in manifest.parts:
                if (held := read_header(data_path(gathered, part)).state) != part:
                    return Corrupt(data_path(gathered, part), f"it has digest {held.digest}, not {part.digest}")
            write_durably(gathered / MANIFEST, seal(orjson.dumps(manifest.model_dump(mode="json"))))
            replaced = path.with_name(path.name + REPLACED_SUFFIX)
            if path.exists():
                path.replace(replaced)
            gathered.replace(path)
            sync_folder(self._folder)
            sync_folder(self._folder.parent)
            shutil.rmtree(replaced, ignore_errors=True)
        except Corrupt as corrupt:
            return corrupt
        except OSError as error:
            return _not_stored(gathered, error)
        return manifest

    def abandon(self, step: int) -> None:
        """Removes what was gathered."""
        shutil.rmtree(self._gathered(step), ignore_errors=True)

    def manifests(self) -> list[CheckpointManifest]:
        """Of the checkpoints whose manifest is intact, newest first. Their parts are not read."""
        return [entry for entry in self._entries() if isinstance(entry, CheckpointManifest)]

    def newest_intact(self) -> Intact:
        """Reads checkpoints, newest first, until one is whole."""
        skipped: list[Corrupt] = []
        for entry in self._entries():
            found = entry if isinstance(entry, Corrupt) else self.verify(entry)
            if not isinstance(found, Corrupt):
                return Intact(found, tuple(skipped))
            skipped.append(found)
        return Intact(None, tuple(skipped))

    def to_start_from(self) -> tuple[list[CheckpointManifest], tuple[Corrupt, ...]]:
        """The newest that is intact and all that are older, newest first, and what was skipped. Of the older ones only
        the manifests are read: whoever is sent their parts checks them.
        """
        manifest, skipped = self.newest_intact()
        newest = manifest.step if manifest is not None else -1
        return [one for one in self.manifests() if one.step <= newest], skipped

    def verify(self, manifest: CheckpointManifest) -> CheckpointManifest | Corrupt:
        """Reads every byte of a checkpoint."""
        for part in manifest.parts:
            path = data_path(self.path(manifest.step), part)
            found = verify_part(path)
            if isinstance(found, Corrupt):
                return found
            if found != part:
                return Corrupt(path, f"it has digest {found.digest}, not {part.digest}")
        return manifest

    def prune(self, keep: int, *, within_budget_step: int | None = None, kl_budget: float | None = None) -> list[int]:
        """Removes checkpoints, and answers their steps, newest first.

        What stays: what `standing.retained` says, of `keep` newest ones, and in any case one that is intact.
        """
        manifests = self.manifests()
        judged = [one.judged for one in manifests]
        steps = retained(judged, newest=keep, within_budget_step=within_budget_step, kl_budget=kl_budget)
        kept = [one for one in manifests if one.step in steps]
        spare = [one for one in manifests if one.step not in steps]
        if spare and not any(isinstance(self.verify(one), CheckpointManifest) for one in kept):
            rescued = next((one for one in spare if isinstance(self.verify(one), CheckpointManifest)), None)
            spare = [one for one in spare if one is not rescued]
        return self._remove(self.path(one.step) for one in spare)

    def forget(self, go_backs: Sequence[GoBack]) -> list[int]:
        """Removes the checkpoints of courses that were given up, and answers their steps, newest first."""
        return self._remove(
            self.path(one.step)
            for one in self.manifests()
            if any(back.gives_up(one.parts[0].generation, one.step) for back in go_backs)
        )

    def sweep(self) -> None:
        """Ends what a killed process had begun: gathered parts go, a checkpoint half replaced is there again."""
        for replaced in self._folder.glob(f"{PREFIX}*{REPLACED_SUFFIX}"):
            path = replaced.with_name(replaced.name.removesuffix(REPLACED_SUFFIX))
            if path.exists():
                shutil.rmtree(replaced)
            else:
                replaced.replace(path)
        for suffix in (TEMPORARY_SUFFIX, REMOVED_SUFFIX):
            for path in self._folder.glob(f"{PREFIX}*{suffix}"):
                shutil.rmtree(path)

    def _remove(self, paths: Iterable[Path]) -> list[int]:
        """Their steps, newest first. The name goes first: what a kill in between leaves is no checkpoint."""
        steps = []
        for path in paths:
            removed = path.with_name(path.name + REMOVED_SUFFIX)
            path.replace(removed)
            shutil.rmtree(removed)
            steps.append(int(path.name.removeprefix(PREFIX)))
        return steps

    def _folders(self) -> list[Path]:
        """Newest first."""
        return sorted((path for path in self._folder.glob(f"{PREFIX}*") if NAME.fullmatch(path.name)), reverse=True)

    def _gathered(self, step: int) -> Path:
        return self._folder / f"{PREFIX}{step:08d}{TEMPORARY_SUFFIX}"

    def _entries(self) -> Iterator[CheckpointManifest | Corrupt]:
        """Newest first."""
        for path in self._folders():
            yield self._read(path)

    def _read(self, path: Path) -> CheckpointManifest | Corrupt:
        try:
            manifest = parse(CheckpointManifest, unseal((path / MANIFEST).read_bytes()))
        except OSError as error:
            return Corrupt(path / MANIFEST, error.strerror or str(error))
        except ValueError as error:
            return Corrupt(path / MANIFEST, str(error))
        if self.path(manifest.step) != path:
            return Corrupt(path / MANIFEST, f"it is of step {manifest.step}")
        if problem := manifest.problem():
            return Corrupt(path / MANIFEST, problem)
        return manifest


def _not_stored(path: Path, error: OSError) -> StorageFull | OSError:
    return StorageFull(path, MANIFEST_BYTES) if is_disk_full(error) else error
