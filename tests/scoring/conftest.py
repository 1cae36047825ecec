from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from tests.fixtures.models import TINY_MODEL, make_model
from tests.scoring.reference import Reference


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Hashes of files are remembered under the home: not under the user's."""
    patch = pytest.MonkeyPatch()
    patch.setenv("REALIGN_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="session")
def tiny_model() -> Path:
    return TINY_MODEL


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`model_folder(name, bits=None)`: a random-weight model, made once a session; 16 bits are bfloat16, fewer
    quantised.
    """
    made: dict[tuple[str, int | None], Path] = {}

    def make(name: str, bits: int | None = None) -> Path:
        if name == "tiny":
            return TINY_MODEL
        if (name, bits) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{bits}") / name
            if bits == 16:
                made[name, bits] = make_model(folder, name, dtype=mx.bfloat16)
            else:
                made[name, bits] = make_model(folder, name, bits=bits)
        return made[name, bits]

    return make


@pytest.fixture(scope="session")
def reference(model_folder: Callable[..., Path]) -> Callable[..., Reference]:
    made: dict[Path, Reference] = {}

    def make(name: str, bits: int | None = None) -> Reference:
        folder = model_folder(name, bits)
        if folder not in made:
            made[folder] = Reference(folder)
        return made[folder]

    return make
