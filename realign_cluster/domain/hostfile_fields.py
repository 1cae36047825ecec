"""The "realign" object of a hostfile's host: its fields, their types, and what each should be when it is not."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

DEFAULT_PORT = 47100
DEFAULT_STATE = "~/.realign/node"
NAME = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
VARIABLE = r"[A-Za-z_][A-Za-z0-9_]*"
_ADDRESS = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?"
_STATE = r"(?:~|\$HOME|)/[^\x00-\x1f]+"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of a size such as "96GB" (10^9) or "96GiB" (2^30). ValueError when it is none."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(text)
    number, prefix, binary = match.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))


def _read_bytes(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


_Bytes = Annotated[int, BeforeValidator(_read_bytes), Field(gt=0)]
_Variable = Annotated[str, Field(pattern=f"^{VARIABLE}$")]


class RealignFields(BaseModel):
    """The "realign" object of a host. Each description completes "it should be ..."."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    name: str | None = Field(None, pattern=f"^{NAME}$", description='letters, digits, . _ and -, such as "alpha"')
    port: int = Field(DEFAULT_PORT, ge=1, le=65535, description=f"a TCP port, such as {DEFAULT_PORT}")
    python: str | None = Field(None, min_length=1, description='a path, such as "/opt/homebrew/bin/python3.12"')
    state: str = Field(
        DEFAULT_STATE,
        pattern=f"^{_STATE}$",
        description='an absolute path or one below ~, such as "~/.realign/node"',
    )
    env: dict[_Variable, str] = Field({}, description='names with strings, such as {"MLX_METAL_FAST_SYNCH": "1"}')
    memory_limit: _Bytes | None = Field(None, description='bytes, or a size such as "96GB"')
    cores: int | None = Field(None, ge=1, description="a number of CPU cores from 1")
    nice: int | None = Field(None, ge=-20, le=19, description="a CPU priority from -20 (highest, root only) to 19")
    address: str | None = Field(
        None, pattern=f"^{_ADDRESS}$", description='what the coordinator dials, such as "192.168.1.20"'
    )
