"""What the documents say is there: their links lead somewhere, their commands and options exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from realign_launcher.child import ON_A_CLUSTER
from realign_launcher.main import VERBS, parse
from typer.main import get_command

from realign_cluster.cli.main import app
from realign_cluster.cli.plan_train import joined

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *ROOT.glob("*.md"),
    *(
        ROOT / name
        for name in (
            "docs/training.md",
            "docs/generation.md",
            "docs/training_metrics.md",
            "docs/hardware_calibrator.md",
            "hostfiles/README.md",
            "benchmarks/README.md",
            "examples/README.md",
            "examples/knowledge_base/README.md",
        )
    ),
    *sorted((ROOT / "docs" / "workflows").glob("*.md")),
]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+")
OF_OTHERS = {
    *("--adapter-path", "--prompt", "--save-path", "--hf-path", "--q-bits", "--over", "--output", "--state"),
    *("--no-deps", "--force-reinstall", "--seconds", "--kill", "--back", "--allow-run-as-root"),
}  # mlx-lm's, MLX's, pip's, the benchmarks'


def documents() -> list[Any]:
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in DOCUMENTS]


def anchor_of(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", documents())
def test_links_lead_somewhere(document: Path):
    text = document.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name) if name else document
        assert target.exists(), f"{link} leads nowhere"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            assert anchor in {anchor_of(heading) for heading in headings}, link


@pytest.mark.parametrize("document", documents())
def test_tables_and_headings_are_shown_as_such(document: Path):
    """A table without a line of dashes, and what runs on from a paragraph, are shown as running text."""
    lines = re.sub(r"^```.*?^```$", "", document.read_text(encoding="utf-8"), flags=re.M | re.S).splitlines()
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        begins_a_table = line.startswith("|") and not before.startswith("|")
        if begins_a_table:
            assert re.fullmatch(r"\|(-+:?\|)+", after), f"no table: {line}"
        if begins_a_table or line.startswith("#"):
            assert not before, f"runs on: {line}"


def commands(document: Path) -> Iterator[list[str]]:
    """The words of every realign command in an indented block; a line that offers several is left out."""
    text = re.sub(r"\\\n\s*", "", document.read_text(encoding="utf-8"))
    for line in re.findall(r"^    (realign(?:-launch)? .*)$", text, re.M):
        if "|" not in (words := shlex.split(line, comments=True)):
            yield words


def options_of(words: list[str]) -> set[str]:
    """Every option that the command which these words name has."""
    command: Any = get_command(app)
    for word in joined(words):
        if (found := getattr(command, "commands", {}).get(word)) is None:
            break
        command = found
    assert not getattr(command, "commands", {}), f"realign {' '.join(words)} names no command"
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("document", documents())
def test_commands_and_their_options_exist(document: Path):
    for program, *words in commands(document):
        if program == "realign-launch":
            launched = parse(["--hostfile", "x", *words]).command  # exits where it does not know an option
            assert launched[0] in (*VERBS, *ON_A_CLUSTER)
            words = [] if launched[0] in VERBS else launched
        if not words:
            continue
        unknown = {word for word in words if word.startswith("--")} - options_of(words)
        assert not unknown, f"realign {' '.join(words)}"


def test_every_option_that_the_guide_to_training_names_is_one():
    known = options_of(["train"]) | options_of(["calibrate"]) | {"--help"}
    known |= {"--install", "--min-nodes", "--dry-run"}  # realign-launch's
    named = set(OPTION.findall((ROOT / "docs" / "training.md").read_text(encoding="utf-8")))
    assert named - known - OF_OTHERS == set()


def test_the_guide_names_every_option_that_shapes_a_training():
    shaping = options_of(["train"]) - {"--json", "--discover", "--allow-skew", "--env", "--nice", "--out", "--help"}
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    plain = {option for option in shaping if not option.startswith("--no-")}
    missing = {option for option in plain if option not in text and f"--no-{option.removeprefix('--')}" not in text}
    assert missing <= {"--beta1", "--beta2", "--eps", "--pad-to", "--evaluate-rows", "--kl-new-tokens", "--chat"}


def test_the_page_on_answers_names_their_options():
    text = (ROOT / "docs" / "generation.md").read_text(encoding="utf-8")
    named = set(OPTION.findall(text))
    assert named <= options_of(["curate"]) | {"--hostfile"}
    assert {"--temperature", "--top-p", "--top-k", "--max-new-tokens", "--stop", "--seed", "--samples"} <= named
    assert {"--adapter", "--reference-model", "--reference-adapter"} <= named


@pytest.mark.parametrize("workflow", ["source-attribution", "antihallucination"])
def test_every_page_of_a_workflow_is_reached_from_its_index(workflow: str):
    """Its own pages, that is: the other one's stages are reached from the other's index."""
    pages = {path.name for path in (ROOT / "docs" / "workflows").glob("*.md")}
    others = {
        "source-attribution": {"factuality-data.md", "detection.md"},
        "antihallucination": {"source-data.md", "verification.md"},
    }
    text = (ROOT / "docs" / "workflows" / f"{workflow}.md").read_text(encoding="utf-8")
    linked = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)}
    assert pages - {f"{workflow}.md"} - others[workflow] <= linked


def test_pages_of_workflows_name_options_that_exist():
    known = {
        option for command in ("run", "gates", "rollback", "report") for option in options_of(["workflow", command])
    }
    known |= options_of(["curate"]) | options_of(["train"]) | {"--keep", "--hostfile"}
    for path in (ROOT / "docs" / "workflows").glob("*.md"):
        named = set(OPTION.findall(path.read_text(encoding="utf-8")))
        assert named - known - OF_OTHERS == set(), path.name
