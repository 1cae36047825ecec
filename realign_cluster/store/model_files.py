"""A model folder as content: which files make it up, their hashes, and why a folder cannot be used.

Reads files and computes hashes; hashes of large files are remembered by path, size and time of change. Must not load
a model or a tokenizer, and never imports MLX or transformers: coordinator and daemon describe models too.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.job import ModelFileSpec, ModelSpec

WEIGHTS = re.compile(r"model.*\.safetensors")
OTHER_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",  # which tokens end an answer, where it differs from config.json
        "hf_quant_config.json",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "tiktoken.model",
        "chat_template.jinja",
        "chat_template.json",
    }
)
TOKENIZERS: tuple[tuple[str, ...], ...] = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("vocab.json", "merges.txt"),
    ("tiktoken.model",),
)
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HASH_BYTES = 16  # BLAKE2b-128 throughout, as lower-case hex


def describe_model(model: str | Path, progress: Callable[[], None] = lambda: None) -> ModelSpec:
    """The model at a folder (or of a hub id) by content: name, hash, and path, size and hash of each file that counts.

    `progress` is called after each file. Raises UsageError for a folder that is missing, incomplete, without a
    tokenizer, or that asks for code of its own.
    """
    folder = resolve_model(model)
    names = check_model_folder(folder)
    digests = _DigestCache(_cache_file())
    files = []
    for name in names:
        path = folder / name
        files.append(ModelFileSpec(path=name, size=path.stat().st_size, blake2b=digests.digest(path)))
        progress()
    digests.save()
    return ModelSpec(name=_name_of(model, folder), hash=hash_of_files(files), files=tuple(files))


def hash_of_files(files: Sequence[ModelFileSpec]) -> str:
    """BLAKE2b-128 over the sorted (path, size, file hash), one line each."""
    digest = hashlib.blake2b(digest_size=HASH_BYTES)
    for file in sorted(files, key=lambda file: file.path):
        digest.update(f"{file.path}\0{file.size}\0{file.blake2b}\n".encode())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """BLAKE2b-128 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=HASH_BYTES)).hexdigest()


def resolve_model(model: str | Path) -> Path:
    """The folder of a model given as a path or, where there is no such path, as a hub id (downloaded unless in the
    hub's cache).
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise UsageError(
            f"{model} is a file, not a model folder", "give the folder that holds config.json and *.safetensors"
        )
    if not HUB_ID.fullmatch(str(model)):
        raise UsageError(
            f"there is no model folder {model}", "give a folder in mlx-lm form, or a hub id such as org/name"
        )
    return _download(str(model))


def _download(hub_id: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as error:
        raise UsageError(
            f"there is no folder {hub_id}, and hub ids need huggingface_hub", "pip install huggingface_hub"
        ) from error
    patterns = ["model*.safetensors", *sorted(OTHER_FILES)]
    try:
        return Path(snapshot_download(hub_id, allow_patterns=patterns))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(
            f"there is no folder {hub_id}, and the hub did not give a model of that name: {reason}",
            "check the name and the network, or give the path of a model folder on this machine",
        ) from error


def check_model_folder(folder: Path) -> list[str]:
    """Names of the files that make up the model, sorted. Raises UsageError where the folder cannot be scored with."""
    present = {entry.name for entry in folder.iterdir() if entry.is_file()}
    config = read_config(folder)
    for key in ("model_file", "auto_map"):
        if key in config:
            raise UsageError(
                f"{folder / 'config.json'} has {key!r}: it wants to run Python code of its own, which is never done",
                "use a conversion of it for a model type that mlx-lm has built in",
            )
    if "model_type" not in config:
        raise UsageError(
            f"{folder / 'config.json'} has no 'model_type'", "use a folder in mlx-lm form (mlx_lm.convert makes one)"
        )
    weights = sorted(name for name in present if WEIGHTS.fullmatch(name))
    if not weights:
        others = sorted(
            name for name in present if name.endswith((".bin", ".pt", ".pth", ".gguf", ".npz", ".safetensors"))
        )
        held = f" (it has {', '.join(others[:3])})" if others else ""
        raise UsageError(
            f"{folder} has no model*.safetensors{held}", "convert it: mlx_lm.convert --hf-path MODEL --mlx-path FOLDER"
        )
    missing = sorted(_indexed_weights(folder) - present)
    if missing:
        raise UsageError(
            f"{folder} is incomplete: {missing[0]} is missing"
            + (f" and {len(missing) - 1} more" if len(missing) > 1 else ""),
            "copy or download the model again",
        )
    if not any(all(name in present for name in names) for names in TOKENIZERS):
        raise UsageError(
            f"model folder without tokenizer: {folder} has none of tokenizer.json, tokenizer.model, vocab.json",
            "copy the tokenizer's files of the original model into the folder",
        )
    return sorted([*weights, *(name for name in present if name in OTHER_FILES)])


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json. Raises UsageError if it is missing or not a JSON object."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{folder} has no config.json", "give a model folder in mlx-lm form") from None
    except ValueError as error:
        raise UsageError(f"{path} is not JSON: {error}", "copy or download the model again") from error
    if not isinstance(config, dict):
        raise UsageError(f"{path} does not hold an object", "copy or download the model again")
    return config


def weights_bytes(files: Sequence[ModelFileSpec]) -> int:
    """Bytes of the safetensors among `files`: what loading them occupies."""
    return sum(file.size for file in files if file.path.endswith(".safetensors"))


def _indexed_weights(folder: Path) -> set[str]:
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return set()
    names = index.get("weight_map") if isinstance(index, Mapping) else None
    return {str(name) for name in names.values()} if isinstance(names, Mapping) else set()


def _name_of(model: str | Path, folder: Path) -> str:
    return str(model) if not Path(model).expanduser().is_dir() else folder.resolve().name


def _cache_file() -> Path:
    home = os.environ.get("REALIGN_HOME")
    return (Path(home) if home else Path.home() / ".realign") / "model-hashes.json"


class _DigestCache:
    """File hashes by (real path, size, time of change). Losing it costs time only, so an unwritable home is not an
    error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._changed = False
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(known, dict):
                self._known = {str(key): str(value) for key, value in known.items()}

    def digest(self, path: Path) -> str:
        real = path.resolve()
        status = real.stat()
        key = f"{real}|{status.st_size}|{status.st_mtime_ns}"
        if key not in self._known:
            for old in list(self._same_path(real)):
                del self._known[old]
            self._known[key] = hash_file(real)
            self._changed = True
        return self._known[key]

    def _same_path(self, real: Path) -> Iterator[str]:
        return (key for key in list(self._known) if key.rsplit("|", 2)[0] == str(real))

    def save(self) -> None:
        if not self._changed:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=".model-hashes-")
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(self._known, file, indent=0)
            Path(temporary).replace(self._path)
            self._changed = False
