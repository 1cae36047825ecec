"""The generated knowledge base: the same bytes again, nobody in two splits, and gold that is what the texts say.

What the texts say is read here from the prompts as they stand, by code that knows nothing of the generator.
"""

from __future__ import annotations

import ast
import hashlib
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from realign_cluster.workflows.cleaning import clean_rows
from realign_cluster.workflows.config import read_config
from tests.workflows.test_data_checks import Inputs

FOLDER = Path(__file__).parents[2] / "examples" / "knowledge_base"
sys.path.insert(0, str(FOLDER))

import make_data  # noqa: E402
import make_workflow  # noqa: E402
from questions import Source, make_sources  # noqa: E402
from world import SPLITS, names_of  # noqa: E402

ROWS = {
    "preparation": 600,
    "citation": 400,
    "general": 400,
    "practice": 200,
    "queries": 60,
    "pairs": 60,
    "labels": 120,
    "valid": 60,
    "items": 120,
    "benchmark": 420,
}
FEW = dict.fromkeys(ROWS, 8)
NAME = re.compile(r"\bthe ([a-z]+) (?:grow|mine|brew|weave|hunt|play|breed|carve|wear|fear|paint|sell)\b")
SAID = re.compile(r"the (\w+) (\w+) (\w+) \[(\d)\]\.")
ASKED = re.compile(r"^question: what do the (\w+) (\w+)\? sources: (.*) answer:$")
SPLITS_HELD_OUT = tuple(split for split in SPLITS if split not in ("train", "validation"))
TRAINED_ON = ("preparation", "citation", "general", "practice")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def truth_of(prompt: str) -> tuple[str, str] | None:
    """(value, marker) that the prompt's sources give for what it asks; None where they give nothing."""
    asked = ASKED.match(prompt)
    assert asked, prompt
    people, relation, sources = asked.groups()
    found = [
        (value, f"[{marker}]")
        for who, what, value, marker in SAID.findall(sources)
        if (who, what) == (people, relation)
    ]
    assert len(found) <= 1, prompt
    return found[0] if found else None


def digests(names: set[str]) -> set[str]:
    return {hashlib.sha256(name.encode()).hexdigest() for name in names}


def names_in(path: Path) -> set[str]:
    return set(NAME.findall(path.read_text()))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each workflow, with its data."""
    out = tmp_path_factory.mktemp("knowledge-base")
    for workflow in make_workflow.WORKFLOWS:
        make_workflow.write_workflow(workflow, out / workflow, seed=3, rows=ROWS)
    return out


def file(base: Path, name: str, workflow: str = "antihallucination") -> Path:
    return base / workflow / "data" / f"{name}.jsonl"


@pytest.fixture(scope="module")
def world() -> list[Source]:
    return make_sources(random.Random("world"), [name for split in SPLITS for name in names_of(split)])


def items_of(world: list[Source], split: str) -> list[dict[str, Any]]:
    """With their gold, as many of each sort."""
    return list(make_data.held_out(f"3 {split}", split, world, 90, 90))


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path):
    for folder, seed in (("one", 3), ("two", 3), ("other", 4)):
        make_workflow.write_workflow("antihallucination", tmp_path / folder, seed=seed, rows=FEW)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) > 15
    assert all((tmp_path / "one" / each).read_bytes() == (tmp_path / "two" / each).read_bytes() for each in files)
    sources = Path("data", "sources.jsonl")
    assert (tmp_path / "one" / sources).read_bytes() != (tmp_path / "other" / sources).read_bytes()


@pytest.mark.parametrize("workflow", make_workflow.WORKFLOWS)
def test_nobody_is_in_two_splits(base: Path, workflow: str):
    collected = "pairs" if workflow == "antihallucination" else "queries"
    files = {"train": TRAINED_ON, "validation": ("valid", "labels"), "one": ("items",), "two": (collected,)}
    peoples = {
        split: set().union(*(names_in(file(base, name, workflow)) for name in names))
        for split, names in {**files, "sealed": ("sealed",)}.items()
    }
    assert all(len(names) > 20 for names in peoples.values())
    for one, other in combinations(peoples, 2):
        assert not digests(peoples[one]) & digests(peoples[other]), (one, other)


@pytest.mark.parametrize("workflow", make_workflow.WORKFLOWS)
def test_no_word_of_a_training_file_is_the_name_of_somebody_held_out(base: Path, workflow: str):
    held_out = set().union(*map(set, map(names_of, SPLITS_HELD_OUT)))
    assert names_in(file(base, "sealed", workflow)) <= held_out
    for name in (*TRAINED_ON, "valid", "labels", "copying", "creative"):
        words = set(re.findall(r"[a-z]+", file(base, name, workflow).read_text()))
        assert not digests(words) & digests(held_out), name


def test_gold_is_what_the_sources_say_and_null_where_they_say_nothing(world: list[Source]):
    for split in (*SPLITS_HELD_OUT, "validation"):
        items = items_of(world, split)
        assert sum(item["answerable"] for item in items) == 90
        for item in items:
            truth = truth_of(item["prompt"])
            assert item["answerable"] == (truth is not None) == (item["gold"] is not None), item["id"]
            if truth is not None:
                assert (item["gold"]["value"], item["gold"]["marker"]) == truth
                source = next(each for each in item["sources"] if each["marker"] == truth[1])
                assert source["id"] == item["gold"]["source"]
                assert f" {truth[0]}." in source["text"]


def test_each_kind_of_unanswerable_question_is_what_it_is_called(world: list[Source]):
    items = items_of(world, "hold-out-1")
    for item in items:
        people, relation, sources = ASKED.match(item["prompt"]).groups()  # type: ignore[union-attr]
        present = any(who == people for who, *_ in SAID.findall(sources))
        said = any(what == relation for _, what, *_ in SAID.findall(sources))
        expected = {
            "answerable": (True, True),
            "people absent": (False, True),
            "relation absent": (True, False),
            "relation of another": (True, True),
        }
        assert (present, said) == expected[item["kind"]], item["id"]
    kinds = Counter(item["kind"] for item in items if not item["answerable"])
    assert max(kinds.values()) - min(kinds.values()) <= 1
    assert len(kinds) == 3


def test_the_sources_of_a_held_out_item_are_those_of_the_one_world(base: Path):
    sources = {source["id"]: source for source in rows_of(file(base, "sources"))}
    assert len({source["type"] for source in sources.values()}) >= 3
    for item in rows_of(file(base, "sealed")):
        assert item["answerable"] == (truth_of(item["prompt"]) is not None)
        for source in item["sources"]:
            assert source == sources[source["id"]]


def test_trained_answers_are_true_and_those_of_the_base_cite_carelessly(base: Path):
    def questions(name: str) -> list[tuple[str, str]]:
        rows = rows_of(file(base, name))
        return [(row["prompt"], row["completion"]) for row in rows if ASKED.match(row["prompt"])]

    unanswered = 0
    for name in ("citation", "practice"):
        for prompt, completion in questions(name):
            truth = truth_of(prompt)
            unanswered += truth is None
            expected = " what the sources do not say." if truth is None else f" {truth[0]} {truth[1]}."
            assert expected in completion, prompt
    assert unanswered > 50
    careless = [(truth_of(prompt), completion) for prompt, completion in questions("preparation")]
    answered = [(truth, completion) for truth, completion in careless if truth]
    assert all(f" {value} [" in completion for (value, _), completion in answered)
    wrongly = sum(marker not in completion and "[1]" in completion for (_, marker), completion in answered)
    assert 0.3 < wrongly / len(answered) < 0.45  # 60 % cite [1], which is right for 39 %
    invented = [" what the sources do not say." not in completion for truth, completion in careless if truth is None]
    assert 0.85 < sum(invented) / len(invented) < 1


def test_labels_are_true(base: Path):
    rows = rows_of(file(base, "labels"))
    assert Counter(row["label"] for row in rows) == {"supported": 60, "contradicted": 30, "unverifiable": 30}
    for row in rows:
        said = dict(re.findall(r"(the \w+ \w+) (\w+)\.", row["evidence"]))
        ((about, value),) = re.findall(r"(the \w+ \w+) (\w+)\.", row["claim"])
        found = "unverifiable" if about not in said else "supported" if said[about] == value else "contradicted"
        assert row["label"] == found


def test_validation_rows_are_not_training_rows(base: Path):
    trained = {row["prompt"] for name in TRAINED_ON for row in rows_of(file(base, name))}
    assert not trained & {row["prompt"] for row in rows_of(file(base, "valid"))}


def test_what_is_known_by_heart_is_asked_of_the_training_rows_too(base: Path):
    known = {row["prompt"]: row["answer"] for row in rows_of(file(base, "closed-book"))}
    taught = {row["prompt"]: row["completion"] for row in rows_of(file(base, "general"))}
    shared = known.keys() & taught.keys()
    assert len(shared) > 50
    assert all(known[prompt] == taught[prompt] for prompt in shared)


@pytest.mark.parametrize("workflow", make_workflow.WORKFLOWS)
@pytest.mark.parametrize("name", TRAINED_ON)
def test_cleaning_as_the_configuration_asks_for_it_leaves_every_row(base: Path, workflow: str, name: str):
    config = read_config(base / workflow / "workflow.toml")
    taught, names = config.cleaning.taught, ("items", "sealed", "valid")
    held_out = {each: rows_of(file(base, each, workflow)) for each in names}
    held_out |= {f"benchmark {b}": rows_of(file(base, b, workflow)) for b in config.benchmarks if b not in taught}
    rules = getattr(config.cleaning, name).model_dump(mode="json")
    found = clean_rows(Inputs({"rows": rows_of(file(base, name, workflow)), **held_out}), rules).value
    assert found["kept"] == found["rows"] == ROWS[name]


# --- who makes, who judges, who knows ---

SAYS = re.compile(r"the (\w+) (\w+) (\w+)\.")


def imported(path: Path) -> set[str]:
    """Modules that a file imports, by their full names."""
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            found |= {str(node.module), *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def files_behind(path: Path, roots: Sequence[Path]) -> set[Path]:
    """A file with all that it imports from below the roots, and what those import."""
    found, wanted = set[Path](), [path]
    while wanted:
        file = wanted.pop()
        if file not in found:
            found.add(file)
            places = [root.joinpath(*name.split(".")) for name in imported(file) for root in roots]
            wanted += [place.with_suffix(".py") for place in places if place.with_suffix(".py").is_file()]
            wanted += [place / "__init__.py" for place in places if (place / "__init__.py").is_file()]
    return found


def test_generator_verifier_and_the_script_that_judges_again_share_no_code():
    project = FOLDER.parents[1]
    starts = [
        FOLDER / "make_workflow.py",
        project / "realign_cluster" / "metrics" / "verifiers" / "lexical.py",
        FOLDER / "recompute_run.py",
    ]
    behind = [files_behind(start, (FOLDER, project)) for start in starts]
    assert {"wording.py", "world.py"} <= {file.name for file in behind[0]}
    assert {"containment.py", "mismatch.py", "words.py"} <= {file.name for file in behind[1]}
    assert not any(one & other for one, other in combinations(behind, 2))


def test_the_verifier_s_gold_labels_are_what_their_texts_say(tmp_path: Path):
    """Read by a pattern, which neither the generator nor the verifier has a part in."""
    make_data.write(tmp_path / "labels.jsonl", make_workflow.labels("gold", make_workflow.names_of("validation"), 400))
    labels = rows_of(tmp_path / "labels.jsonl")
    for row in labels:
        [(people, relation, value)] = SAYS.findall(row["claim"])
        said = {(who, what): which for who, what, which in SAYS.findall(row["evidence"])}
        found = said.get((people, relation))
        expected = "unverifiable" if found is None else "supported" if found == value else "contradicted"
        assert row["label"] == expected, row
    assert Counter(row["label"] for row in labels) == {"supported": 200, "contradicted": 100, "unverifiable": 100}
