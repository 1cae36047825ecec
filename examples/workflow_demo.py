"""Takes a tiny model through a workflow on two nodes of this machine, from one that answers nothing to the report.

    python examples/workflow_demo.py source-attribution [--hostfile hostfiles/local.json] [--out runs/demo-workflow]

Makes the knowledge base, runs `realign-launch ... workflow run` from examples/knowledge_base/primed-model (which can
look up what it has read, and knows nothing of answers), and then judges the stored answers again by a script that
shares no code with what made them or judged them first. Exit status 0 if the workflow ended, passed or honestly
failed, and both judgements agree.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

EXAMPLES = Path(__file__).parent
KNOWLEDGE = EXAMPLES / "knowledge_base"
WORKFLOWS = ("source-attribution", "antihallucination")
JUDGED = (0, 1)  # passed; a gate failed and the model was rolled back


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("workflow", nargs="?", choices=WORKFLOWS, default=WORKFLOWS[0])
    parser.add_argument("--hostfile", type=Path, default=EXAMPLES.parent / "hostfiles" / "local.json")
    parser.add_argument("--out", type=Path, default=Path(f"runs/demo-workflow-{time.strftime('%Y%m%d-%H%M%S')}"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started = time.monotonic()
    made, run = options.out / "made", options.out / "run"
    launch = [str(Path(sys.executable).with_name("realign-launch")), "--hostfile", str(options.hostfile)]
    seed = ("--seed", str(options.seed))
    _do([sys.executable, str(KNOWLEDGE / "make_workflow.py"), options.workflow, "--out", str(made), *seed])
    _do([*launch, "up"])
    try:
        workflow = [*launch, "workflow", "run", options.workflow, "--config", str(made / "workflow.toml")]
        code = _do([*workflow, "--out", str(run)], allowed=JUDGED)
    finally:
        _do([*launch, "down"])
    _do([sys.executable, str(KNOWLEDGE / "recompute_run.py"), str(run)])
    summary = json.loads((run / "summary.json").read_bytes())
    print(f"\n{summary['state']}: {summary['reason']}")
    print(f"{time.monotonic() - started:.0f} s in all (exit status of the workflow: {code})")
    print(f"Report: {(run / 'report.html').absolute()}")
    return 0


def _do(command: list[str], allowed: tuple[int, ...] = (0,)) -> int:
    print("$", " ".join(command), flush=True)
    code = subprocess.run(command, check=False).returncode
    if code not in allowed:
        raise SystemExit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
