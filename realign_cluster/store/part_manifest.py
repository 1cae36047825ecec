"""What is said of a part file in the JSON beside it, and the bytes it is said in: any other byte makes it unreadable.

    {"manifest":{...},"digest":"BLAKE2b-128 of the manifest's bytes"}

Must not know where a part lies nor how its tensors are written.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Final, TypeVar

import orjson
from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from realign_cluster.domain.job import Strict
from realign_cluster.domain.world import StateKind, StatePart

DIGEST_BYTES: Final = 16
ITEM_BYTES: Final = {
    "BOOL": 1, "U8": 1, "I8": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2, "U32": 4, "I32": 4, "F32": 4,
    "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
PART_NAME: Final = re.compile(r"(snapshot|checkpoint)-\d{8,}\.[A-Za-z0-9-]+\.\d+-of-\d+")
Model = TypeVar("Model", bound=BaseModel)
Scalar = bool | int | FiniteFloat | str | None
_HEAD: Final = b'{"manifest":'
_TAIL: Final = b',"digest":"%s"}\n'
_TAIL_BYTES: Final = len(_TAIL % (b"0" * 2 * DIGEST_BYTES))


class PieceOf(Strict):
    """Which part of a `whole` shape a tensor is: `ranges` of `axis`, concatenated. Axis -1: all of it."""

    whole: tuple[int, ...]
    axis: int = -1
    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the piece. Raises ValueError where the ranges do not lie within the whole, ascending and apart."""
        if self.axis == -1 and not self.ranges:
            return self.whole
        if not 0 <= self.axis < len(self.whole):
            raise ValueError(f"axis {self.axis} of a shape {self.whole}")
        at = 0
        for begin, end in self.ranges:
            if not at <= begin <= end <= self.whole[self.axis]:
                raise ValueError(f"ranges {self.ranges} of {self.whole[self.axis]}")
            at = end
        length = sum(end - begin for begin, end in self.ranges)
        return (*self.whole[: self.axis], length, *self.whole[self.axis + 1 :])


class TensorEntry(Strict):
    """A tensor in the file: `bytes` of it from `offset`.

    The file's digest is what vouches for them; `crc32` says which tensor is damaged, at an eighth of the time.
    """

    dtype: str
    shape: tuple[int, ...]
    offset: int
    bytes: int
    crc32: int
    piece: PieceOf


class PartHeader(Strict):
    """What a part is of, apart from its tensors' bytes.

    `run` and `config` say which run and which settings it belongs to. `scalars` are numbers and texts of the state
    (learning-rate factors, best loss); they must be finite. `pieces` says of a tensor by name where it lies in the
    whole one; a tensor that is not named is whole.
    """

    kind: StateKind
    step: int
    part: int = 0
    parts: int = 1
    layout: str = Field(default="whole", pattern="^[A-Za-z0-9-]+$")
    generation: int = 0
    run: str = ""
    config: str = ""
    scalars: dict[str, Scalar] = Field(default_factory=dict)
    pieces: dict[str, PieceOf] = Field(default_factory=dict)

    def state(self, digest: str, size: int) -> StatePart:
        return StatePart(
            kind=self.kind, step=self.step, part=self.part, parts=self.parts, layout=self.layout,
            generation=self.generation, digest=digest, bytes=size,
        )  # fmt: skip


class PartManifest(Strict):
    """A part as it was written. `tensors` in the order of the file, which they fill from `offset` of the first on."""

    format: int = 1
    state: StatePart
    run: str
    config: str
    scalars: dict[str, Scalar]
    tensors: dict[str, TensorEntry]

    def problem(self) -> str:
        """Why this cannot be of any part file; "" if it can."""
        if self.format != 1:
            return f"format {self.format} is not known"
        if not PART_NAME.fullmatch(self.state.name):
            return f"{self.state.name!r} is no name of a part"
        at = min((entry.offset for entry in self.tensors.values()), default=self.state.bytes)
        for name, entry in self.tensors.items():
            item = ITEM_BYTES.get(entry.dtype)
            if item is None:
                return f"{name}: dtype {entry.dtype} is not known"
            if entry.offset != at or entry.bytes != item * math.prod(entry.shape) or entry.piece.shape != entry.shape:
                return f"{name}: shape, piece and place do not agree"
            at += entry.bytes
        return "" if at == self.state.bytes else f"its tensors end at {at}, its file at {self.state.bytes}"


def encode(manifest: PartManifest) -> bytes:
    return seal(orjson.dumps(manifest.model_dump(mode="json")))


def decode(data: bytes) -> PartManifest:
    """Raises ValueError, with the reason, for anything but the bytes that `encode` made of a part."""
    manifest = parse(PartManifest, unseal(data))
    if problem := manifest.problem():
        raise ValueError(problem)
    return manifest


def seal(body: bytes) -> bytes:
    """`body`, which is JSON, with its digest: JSON again."""
    return _HEAD + body + _tail(body)


def unseal(data: bytes) -> bytes:
    """What was sealed. Raises ValueError if any byte is not as `seal` made it."""
    body = data[len(_HEAD) : -_TAIL_BYTES]
    if not data.startswith(_HEAD) or data[-_TAIL_BYTES:] != _tail(body):
        raise ValueError(f"the digest over its {len(data)} bytes is wrong")
    return body


def parse(model: type[Model], body: bytes) -> Model:
    """Raises ValueError, with the first field that is wrong."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _tail(body: bytes) -> bytes:
    return _TAIL % hashlib.blake2b(body, digest_size=DIGEST_BYTES).hexdigest().encode()
