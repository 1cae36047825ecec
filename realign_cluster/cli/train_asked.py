"""What a training command was asked for: options over a file (--config) over defaults, every mistake with its place."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, get_args

from pydantic import ValidationError

from realign_cluster.cli.train_options import ALL, BY_PATH, REQUESTED, Given, Path
from realign_cluster.coordinator.train_request import Track
from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.suggest import did_you_mean
from realign_cluster.domain.toml_lines import line_of_toml, lines_of_toml
from realign_cluster.domain.train_limits import broken_limits
from realign_cluster.domain.training import Backend, ParallelMode, TrainSettings

CHOICES: Mapping[Path, tuple[str, ...]] = {
    ("parallel",): ("auto", *get_args(ParallelMode)),
    ("backend",): ("auto", *get_args(Backend)),
    ("track",): get_args(Track),
}
PROBES: Path = ("kl", "probes")
LISTS = (("data",), ("valid",), ("benchmarks",), PROBES, ("adapter", "keys"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainAsked:
    model: str
    data: tuple[str, ...]
    valid: tuple[str, ...]
    benchmarks: tuple[str, ...]
    parallel: Any
    backend: Any
    track: Any
    settings: TrainSettings
    kl_probes: tuple[str, ...] = ()


class _Source:
    """Says where a value came from: an option, or a line of the file."""

    def __init__(self, given: Given, file: FilePath | None, lines: dict[Path, int]) -> None:
        self._given = given
        self._file = file
        self._lines = lines

    def of(self, path: Path) -> str:
        if path in self._given or self._file is None or path not in self._lines:
            return BY_PATH[path].option.split("/")[0] if path in BY_PATH else ".".join(path)
        return f"{self._file}:{line_of_toml(self._lines, path)}: {'.'.join(path)}"


def train_asked(given: Given, config: FilePath | None) -> TrainAsked:
    """Raises UsageError, a line for everything that is wrong, with option or file and line."""
    text = _text(config) if config is not None else ""
    written = _written(text, config) if config is not None else {}
    lines = lines_of_toml(text)
    source = _Source(given, config, lines)
    values = {**dict(_leaves(written)), **given}
    wrong = list(_unknown(values, config, lines))
    values = {path: _as_list(value) if path in LISTS else value for path, value in values.items() if path in BY_PATH}
    for path, allowed in CHOICES.items():
        if path in values and values[path] not in allowed:
            wrong.append(f"{source.of(path)}: {values[path]!r} will not do, it should be one of {', '.join(allowed)}")
    missing = [
        BY_PATH[path].option for path in (("model",), ("data",), ("steps",), ("global_batch",)) if path not in values
    ]
    if missing:
        wrong.append(f"{', '.join(missing)}: missing")
    if wrong:
        raise UsageError("\n".join(wrong), "see realign train --help")
    settings = _settings(values, source)
    valid, benchmarks = (tuple(values.get((name,), ())) for name in ("valid", "benchmarks"))
    if not valid and settings.evaluation.patience is not None:
        raise UsageError(f"{source.of(('evaluation', 'patience'))}: no validation loss is measured", "give --valid too")
    if not (valid or benchmarks) and settings.evaluation.every:
        raise UsageError(f"{source.of(('evaluation', 'every'))}: there is nothing to evaluate on", "give --valid too")
    return TrainAsked(
        model=str(values["model",]),
        data=tuple(values["data",]),
        valid=valid,
        benchmarks=benchmarks,
        kl_probes=_probes(values, settings, source),
        parallel=values.get(("parallel",), "auto"),
        backend=values.get(("backend",), "auto"),
        track=values.get(("track",), "none"),
        settings=settings,
    )


def _probes(values: Mapping[Path, Any], settings: TrainSettings, source: _Source) -> tuple[str, ...]:
    probes = tuple(values.get(PROBES, ()))
    if not probes:
        return ()
    if settings.kl is None:
        raise UsageError(f"{source.of(PROBES)}: the divergence is never measured", "--kl-every N, such as 50")
    if ("kl", "prompts") in values:
        raise UsageError(f"{source.of(PROBES)}: all of its prompts are measured on", "leave out --kl-prompts")
    if settings.kl.new_tokens >= settings.max_tokens:
        raise UsageError(
            f"{source.of(PROBES)}: {settings.kl.new_tokens:,} sampled tokens leave no room for a prompt within"
            f" {settings.max_tokens:,} tokens",
            "a smaller --kl-new-tokens, or a larger --max-tokens",
        )
    return probes


def _settings(values: Mapping[Path, Any], source: _Source) -> TrainSettings:
    requested = {setting.path for setting in REQUESTED}
    nested: dict[str, Any] = {}
    for path, value in values.items():
        if path not in requested:
            table = nested
            for name in path[:-1]:
                table = table.setdefault(name, {})
            table[path[-1]] = value
    if "kl" in nested and "every" not in nested["kl"]:
        raise UsageError("the divergence has a budget but is never measured", "--kl-every N, such as 50")
    try:
        settings = TrainSettings.model_validate(nested)
    except ValidationError as error:
        wrong = [f"{source.of(tuple(map(str, each['loc'])))}: {each['msg']}" for each in error.errors()]
        raise UsageError("\n".join(wrong), "see realign train --help") from None
    if broken := broken_limits(settings):
        raise UsageError(
            "\n".join(f"{source.of(each.path)}: {each.what}; it should be {each.right}" for each in broken),
            "see realign train --help",
        )
    return settings


def _text(config: FilePath) -> str:
    try:
        return config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--config: {config} cannot be read: {error}", "name a TOML file") from error


def _written(text: str, config: FilePath) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"--config: {config}: {error}", "correct that line") from error


def _leaves(table: Mapping[str, Any], at: Path = ()) -> Iterator[tuple[Path, Any]]:
    for name, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*at, name))
        else:
            yield (*at, name), value


def _unknown(values: Mapping[Path, Any], config: FilePath | None, lines: dict[Path, int]) -> Iterator[str]:
    known = [".".join(setting.path) for setting in ALL]
    for path in values:
        if path not in BY_PATH:
            name = ".".join(path)
            yield f"{config}:{line_of_toml(lines, path)}: {name}: unknown{did_you_mean(name, known)}"


def _as_list(value: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return tuple(value)
