"""How often `diagnose` names an injected fault first, and how often it finds something in healthy runs.

    python benchmarks/diagnosis.py --base FOLDER [--seeds unseen|development] [--most 12] [--whole 1] [--out FILE]
    python benchmarks/diagnosis.py --report FILE ...

Each seed makes a world, its data and a run for each of twelve faults (`tests/workflows/injected_faults.py`) and one
that is healthy, trained for real where a fault shows only in a model; else the run is stopped before it trains and
diagnosed as one that is going on. The first `--whole` seeds are run to their end whatever the fault: there stands
beside it what the gates alone say (the failed gate that misses its threshold most names the issue, and counts as
right if it names the common issue that the fault brings about), and, of all, what always naming one issue gets.
The base model is made in FOLDER, or was.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from realign_cluster.coordinator.workflow_diagnosis import diagnosis_of
from realign_cluster.coordinator.workflow_status import gate_rows
from realign_cluster.workflows.diagnosis import SYMPTOMS
from tests.workflows.injected_faults import DEVELOPMENT_SEEDS, FAULTS, UNSEEN_SEEDS, Fault, run_of
from tests.workflows.small_workflow import make_base

HEALTHY = "healthy"
SEEDS = {"unseen": UNSEEN_SEEDS, "development": DEVELOPMENT_SEEDS}


def gates_alone(run: Path) -> str:
    """The common issue of the failed gate that misses most, as a part of its threshold; "none" if none failed."""
    misses: list[tuple[float, str]] = []
    for row in gate_rows(run):
        issue = "capability loss" if row["gate"].startswith("retention_") else SYMPTOMS.get(row["gate"])
        if row["outcome"] == "FAIL" and issue is not None and row["value"] is not None:
            misses.append((abs(row["value"] - row["threshold"]) / row["threshold"], issue))
    return max(misses)[1] if misses else "none"


def diagnosed(fault: Fault | None, seed: int, base: Path, *, whole: bool) -> dict[str, Any]:
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        run = run_of(fault, seed, Path(scratch), base, whole=True if whole else None)
        found = diagnosis_of(run)
        return {
            "fault": fault.name if fault else HEALTHY,
            "seed": seed,
            "expected": fault.issue if fault else "none",
            "found": [each["issue"] for each in found],
            "gates_alone": gates_alone(run) if whole else None,
            "gates_right": (fault.symptom if fault else "none"),
            "seconds": time.perf_counter() - started,
        }


def rows_of(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def report(rows: list[dict[str, Any]]) -> None:
    faulty = [row for row in rows if row["fault"] != HEALTHY]
    clean = [row for row in rows if row["fault"] == HEALTHY]
    first = [bool(row["found"]) and row["found"][0] == row["expected"] for row in faulty]
    print(f"\n{'fault':32} {'named first':>12} {'among all':>10}   first where another")
    for name in dict.fromkeys(row["fault"] for row in faulty):
        own = [row for row in faulty if row["fault"] == name]
        right = sum(row["found"][:1] == [row["expected"]] for row in own)
        among = sum(row["expected"] in row["found"] for row in own)
        others = Counter((row["found"] or ["none"])[0] for row in own if row["found"][:1] != [row["expected"]])
        print(f"{name:32} {right:>5} of {len(own):>3} {among:>10}   {', '.join(others)}")
    common = Counter(row["expected"] for row in faulty).most_common(1)[0][1] if faulty else 0
    print(f"named first: {sum(first)} of {len(faulty)}; always the same issue: {common} of {len(faulty)}")
    whole = [row for row in faulty if row["gates_alone"] is not None]
    if whole:
        ours = sum(row["found"][:1] == [row["expected"]] for row in whole)
        gates = sum(row["gates_alone"] == row["gates_right"] for row in whole)
        print(f"of the {len(whole)} run to their end: named first {ours}, by the gates alone (its symptom) {gates}")
    alarms = [row for row in clean if row["found"]]
    print(f"false alarms: {len(alarms)} of {len(clean)} healthy runs {[row['found'] for row in alarms] or ''}")
    print(f"{sum(row['seconds'] for row in rows):.0f} s in all")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", type=Path)
    parser.add_argument("--report", type=Path, nargs="+", help="of rows that were made before, and nothing else")
    parser.add_argument("--seeds", choices=SEEDS, default="unseen")
    parser.add_argument("--first", type=int, default=0, help="of the seeds: left out before it")
    parser.add_argument("--most", type=int, default=12)
    parser.add_argument("--whole", type=int, default=1)
    parser.add_argument("--out", type=Path, help="rows go to it; what it has is not made again")
    options = parser.parse_args()
    if not options.base and not options.report:
        parser.error("--base: name a folder")
    if options.report:
        report(rows_of(options.report))
        return
    base = make_base(options.base)
    rows = rows_of([options.out]) if options.out and options.out.exists() else []
    known = {(row["fault"], row["seed"]) for row in rows}
    for at, seed in enumerate(SEEDS[options.seeds][options.first : options.first + options.most], options.first):
        for fault in (*FAULTS, None):
            if (fault.name if fault else HEALTHY, seed) in known:
                continue
            row = diagnosed(fault, seed, base, whole=at < options.whole)
            rows.append(row)
            print(json.dumps(row), flush=True)
            if options.out:
                with options.out.open("a") as file:
                    file.write(json.dumps(row) + "\n")
    report(rows)


if __name__ == "__main__":
    main()
