"""What stages make of the rows they train on: cleaned as the configuration says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from realign_cluster.coordinator.workflow_jobs_here import derive_here
from realign_cluster.store.artifacts import ArtifactStore
from realign_cluster.workflows.config import CleaningConfig
from realign_cluster.workflows.derive import derive
from realign_cluster.workflows.jobs import ArtifactId
from realign_cluster.workflows.training_data import clean_rows

QUESTION = "ash birch cedar daisy elm fern gorse hazel iris juniper kelp larch maple nettle oak pine quince reed"
WORDS = QUESTION.split()
TEXTS = {
    "itself": QUESTION,
    "quoted": f"somebody asked once {' '.join(WORDS[2:17])} and nobody knew what to say",
    "half": f"{' '.join(WORDS[:10])} is a list that somebody wrote down and then forgot",
    "other": "of rivers that reach no sea there are more than most people believe to exist",
    "again": "of rivers that reach no sea there are more than most people believe to exist",
    "nearly": "of rivers that reach no sea there are more than most people believe to exist anywhere",
}


def kept(folder: Path, **cleaning: Any) -> tuple[set[str], dict[str, Any]]:
    """The names of the rows that are left, and what was said of the others."""
    store = ArtifactStore(folder / "artifacts")
    rows = [{"prompt": text, "completion": "yes", "name": name} for name, text in TEXTS.items()]
    inputs = {"rows": rows, "items": [{"prompt": QUESTION}], "sealed": [{"prompt": "which moon is the largest"}]}
    job = derive(
        clean_rows,
        "cleaned",
        inputs={name: ArtifactId(store.put_rows(each)) for name, each in inputs.items()},
        **CleaningConfig.model_validate(cleaning).model_dump(mode="json"),
    )
    done = derive_here(job, store, folder / "scratch")
    return {row["name"] for row in store.rows(done.outputs["rows"])}, done.value


@pytest.mark.parametrize(
    ("cleaning", "dropped"),
    [
        ({}, {"itself", "again"}),
        ({"near_duplicates": True}, {"itself", "again", "nearly"}),
        ({"contamination": ["exact", "13-gram"]}, {"itself", "again", "quoted"}),
        ({"contamination": ["exact", "13-gram", "8-gram coverage"]}, {"itself", "again", "quoted", "half"}),
        ({"contamination": ["8-gram coverage"]}, {"itself", "again", "quoted", "half"}),
    ],
)
def test_what_is_dropped_is_what_was_asked_for(cleaning: dict[str, Any], dropped: set[str], tmp_path: Path) -> None:
    left, said = kept(tmp_path, **cleaning)
    assert set(TEXTS) - left == dropped
    assert (said["rows"], said["kept"]) == (len(TEXTS), len(left))
    assert said["doubled"] == 1
    assert said["nearly doubled"] == ("nearly" in dropped)
    assert said["contaminated"] == sum(said["by variant"].values()) == len(dropped & {"itself", "quoted", "half"})
