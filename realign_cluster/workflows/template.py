"""What `realign workflow init` writes: a configuration with every key explained, and a row or two of each data file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import orjson

from realign_cluster.domain.errors import UsageError
from realign_cluster.domain.suggest import did_you_mean
from realign_cluster.workflows.tables import WORKFLOWS

SOURCES: Final[list[dict[str, Any]]] = [
    {"id": "harbour-1", "type": "handbook", "text": "The harbour of Ostrel was built in 1821. It has four cranes."},
    {"id": "harbour-2", "type": "newspaper", "text": "Ostrel's lighthouse was lit in 1840. It stands on Gull Rock."},
    {"id": "market-1", "type": "travel book", "text": "The market of Ostrel opens at dawn. It sells salt and rope."},
]
PASSAGES: Final = [{"id": each["id"], "text": each["text"]} for each in SOURCES[:2]]


def _prompt(question: str) -> str:
    numbered = "\n".join(f"[{at}] {passage['text']}" for at, passage in enumerate(PASSAGES, 1))
    return f"{numbered}\n\n{question} Cite the passages."


def _item(name: str, question: str, *, answerable: bool = True) -> dict[str, Any]:
    return {"id": name, "prompt": _prompt(question), "sources": PASSAGES, "answerable": answerable, "group": "dates"}


DATA: Final[dict[str, list[dict[str, Any]]]] = {
    "sources": SOURCES,
    "items": [
        _item("q1", "When was the harbour built?"),
        _item("q2", "Who built the lighthouse?", answerable=False),
    ],
    "sealed": [_item("s1", "How many cranes are there?")],
    "practice": [
        {**_item("p1", "When was the lighthouse lit?"), "completion": "The lighthouse was lit in 1840 [2]."},
        {
            **_item("p2", "How tall is the lighthouse?", answerable=False),
            "completion": "The passages do not say how tall it is.",
        },
    ],
    "citation": [
        {"prompt": _prompt("Where does the lighthouse stand?"), "completion": "It stands on Gull Rock [2]."},
        {"prompt": _prompt("What has four cranes?"), "completion": "The harbour of Ostrel has four cranes [1]."},
    ],
    "valid": [{"prompt": _prompt("What stands on Gull Rock?"), "completion": "Ostrel's lighthouse stands there [2]."}],
    "general": [{"prompt": "Name a colour.", "completion": "Blue."}],
    "queries": [{"query": "When was the lighthouse lit?", "relevant": ["harbour-2"]}],
    "pairs": [{"claim": "The lighthouse was lit in 1840.", "sources": [PASSAGES[1]]}],
    "labels": [
        {"claim": "The harbour was built in 1821.", "evidence": SOURCES[0]["text"], "label": "supported"},
        {"claim": "The harbour was built in 1921.", "evidence": SOURCES[0]["text"], "label": "contradicted"},
        {"claim": "The harbour is deep.", "evidence": SOURCES[0]["text"], "label": "unverifiable"},
    ],
    "benchmark": [
        {"prompt": "2 + 2 =", "choices": [" 3", " 4"], "answer": " 4"},
        {"prompt": "The capital of France is", "answer": "Paris"},
    ],
}
ONLY: Final = {"queries": "source-attribution", "pairs": "antihallucination"}

CONFIG: Final = """\
# {name}: seven stages, each with its gate. Run it with
#   realign-launch --hostfile hosts.json workflow run {name} --config {file} --out runs/first
# and before that, to see what its gates can decide and what it takes:
#   realign-launch --hostfile hosts.json workflow plan {name} --config {file}

seed = 0
mode = "strict"          # permissive: gone on from gates that cannot decide, and the report says so on every page
attempts = 2             # of a stage: the first, and its remedies; alpha is divided by it
looks = 1                # at one model, if you mean to add items until a gate can decide; alpha is divided by it too
alpha = 0.05             # of a wrong PASS

[model]
path = "mlx-community/Qwen3-0.6B-4bit"   # a folder in mlx-lm form, or a hub id
max_tokens = 2048

[data]                   # relative to this file; the rows that `init` wrote show what each holds
sources = "data/sources.jsonl"     # what can be cited
items = "data/items.jsonl"         # questions that stages 1 to 6 are measured on; 400 or more
sealed = "data/sealed.jsonl"       # the same, other questions: of stage 7 alone
practice = "data/practice.jsonl"   # the same with "completion": pairs and targeted rounds are made from them
citation = "data/citation.jsonl"   # stage 3 is trained on it
valid = "data/valid.jsonl"         # perplexity
general = "data/general.jsonl"     # mixed into every training
{own} = "data/{own}.jsonl"
labels = "data/labels.jsonl"       # claims labelled by people: 200 or more; the verifier is held against them
# preparation = "data/preparation.jsonl"   # with [training.preparation]: stage 1 trains; without, it takes the model

[benchmarks]             # what must not be lost, by a name of your own
basics = "data/benchmark.jsonl"

[generation]
max_new_tokens = 128
most_claims = 16         # of one answer

[verifier]               # who says "supported"
kind = "lexical"         # or judge, with model = "...", another model than the one that is trained; or service, with
                         # [verifier.service] url and version; or ensemble, of the rules and of these
supported = 0.5

[retrieval]              # of the sources, in stage 2 of source attribution
kind = "bm25"            # or vectors, with embedder = "module:attribute"; or module:attribute, a retriever of your own

[citations]
format = "inline"        # [1]; or footnote, or author-year

[cleaning]               # rows that hold a question of items, sealed or a benchmark are not trained on
taught = []              # benchmarks of what is known by heart: rows that hold their questions are
[cleaning.general]       # likewise of preparation, citation, practice: there no near copies, by default
duplicates = "near"      # or exact; or keep, where rows come twice on purpose

[mix]
general = 0.3            # of the rows of a training

[preference]
samples = 4
temperature = 0.9
least_pairs = 1000
gap = 0.15
probe_prompts = 200      # the divergence is measured on as many

[iteration]
rounds = 3
flat = 0.02
rows = 1000              # of targeted data for a round

[training.citation]      # every option of `realign train` has its key here
steps = 600
global_batch = 32
[training.citation.optimizer]
learning_rate = 1e-4

[training.preference]
method = "dpo"
steps = 200
global_batch = 32
[training.preference.optimizer]
learning_rate = 5e-6

[training.iteration]
steps = 200
global_batch = 32
[training.iteration.optimizer]
learning_rate = 5e-5

# Thresholds, where they should be other than the workflow's own (docs/workflows/thresholds.md):
# [gates.citation]
# citation_recall = 0.92
"""


def write_template(workflow: str, folder: Path) -> Iterator[Path]:
    """Writes the files and yields the path of each. Raises UsageError where something is there already."""
    if workflow not in WORKFLOWS:
        raise UsageError(
            f"there is no workflow '{workflow}'{did_you_mean(workflow, WORKFLOWS)}", f"one of {', '.join(WORKFLOWS)}"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already and not empty", "name a folder that is not there yet")
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for name, rows in DATA.items():
        if ONLY.get(name, workflow) == workflow:
            path = folder / "data" / f"{name}.jsonl"
            path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
            yield path
    own = next(name for name, of in ONLY.items() if of == workflow)
    path = folder / "workflow.toml"
    path.write_text(CONFIG.format(name=workflow, file=path.name, own=own), encoding="utf-8")
    yield path
