"""What every file keeps to: no addresses of package indexes, no paths of one machine, locks that hold."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LOCKS = {"linux-x86_64": ("linux", "x86_64"), "macos-arm64": ("darwin", "arm64")}
BINARY = {".safetensors", ".parquet", ".gz", ".zst", ".arrow", ".png"}
# Spelled apart, so that this file passes its own test.
INDEX_ADDRESS = re.compile(
    r"pypi\." + r"(org|python)|pythonhosted\." + r"org|--(extra-)?index" + r"-url\b.*:|--find" + r"-links\b.*[/:]"
)
MACHINE_PATH = re.compile(r"(?<![\w.-])/(wo" + r"rk|ho" + r"me|Use" + r"rs)/[a-z0-9_]+")
PATHS_OF_NOBODY = re.compile(r"/(Users|home)/(you|name|USER|user|me|ada|alice|realign|admin|ml|runner)\b")


def committed_files() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("not a git checkout: there is no list of committed files")
    names = [name for name in listed.stdout.decode().split("\0") if name]
    return [ROOT / name for name in names if (ROOT / name).is_file()]


def text_files() -> list[tuple[Path, str]]:
    found = []
    for path in committed_files():
        if path.suffix in BINARY:
            continue
        found.append((path.relative_to(ROOT), path.read_text(encoding="utf-8", errors="replace")))
    return found


def lines_with(pattern: re.Pattern[str], allowed: re.Pattern[str] | None = None) -> list[str]:
    return [
        f"{path}:{number}: {line.strip()[:160]}"
        for path, text in text_files()
        if path != Path("tests/project/test_hygiene.py")
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line) and not (allowed and allowed.search(line))
    ]


def test_no_address_of_a_package_index():
    assert lines_with(INDEX_ADDRESS) == []


def test_no_path_of_one_machine():
    assert lines_with(MACHINE_PATH, PATHS_OF_NOBODY) == []


def test_no_large_file():
    assert [str(path) for path in committed_files() if path.stat().st_size > 5_000_000] == []


@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / ".ci").iterdir()))
def test_ci_scripts_can_be_run(script: str):
    path = ROOT / ".ci" / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.parametrize("platform", sorted(LOCKS))
class TestLock:
    def text(self, platform: str) -> str:
        return (ROOT / "locks" / f"{platform}.txt").read_text()

    def pins(self, platform: str) -> dict[str, str]:
        found = re.findall(r"^([a-z0-9._-]+)==([^\s;]+)", self.text(platform), re.M)
        return dict(found)

    def test_it_names_no_place_to_get_things_from(self, platform: str):
        options = [
            line for line in self.text(platform).splitlines() if re.match(r"\s*--(?!hash=)|.*(https?|file)://", line)
        ]
        assert options == []

    def test_every_pin_has_a_hash(self, platform: str):
        blocks = re.split(r"^(?=[a-z0-9])", self.text(platform), flags=re.M)[1:]
        assert [block.split()[0] for block in blocks if "--hash=sha256:" not in block] == []

    def test_it_holds_what_the_project_asks_for(self, platform: str):
        """Editing pyproject.toml without `make locks` is found here, not by the next fresh install."""
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
        pins = self.pins(platform)
        system, machine = LOCKS[platform]
        for requirement in map(Requirement, wanted):
            if requirement.marker and not requirement.marker.evaluate(
                {"sys_platform": system, "platform_machine": machine}
            ):
                continue
            name = requirement.name.lower().replace("_", "-")
            assert name in pins, f"{name} is not in locks/{platform}.txt: make locks"
            assert requirement.specifier.contains(pins[name]), f"{requirement} but locked at {pins[name]}: make locks"

    def test_it_brings_no_other_framework(self, platform: str):
        assert not {"torch", "tensorflow", "jax"} & self.pins(platform).keys()


def test_the_version_stands_in_one_form():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert f'__version__ = "{project["version"]}"' in (ROOT / "realign_cluster" / "__init__.py").read_text()
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "target", ["demo", "demo-train", "test", "check", "protos", "bench", "soak", "clean", "setup", "locks"]
)
def test_make_knows(target: str):
    run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
