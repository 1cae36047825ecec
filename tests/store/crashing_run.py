"""A run that can be killed anywhere: scans, scores and writes, and says on standard output what was acknowledged.

Started by test_ledger_crash.py: python crashing_run.py RUN_FOLDER INPUT
"""

import sys
import time
from pathlib import Path

from realign_cluster.store.output import OutputOptions, write_outputs
from tests.store.kit import Run


def main() -> None:
    folder, source = Path(sys.argv[1]), Path(sys.argv[2])
    with Run(folder, [source]) as run:
        run.scan(unit_rows=8)
        run.open()
        print("open", flush=True)
        exhausted = False
        while not exhausted:
            units, exhausted = run.ledger.load_pending(3)
            if not units:
                continue
            entry, attempts = run.grant(units)
            run.ledger.record([entry], time.time())
            run.ledger.record([run.result(unit, attempt) for unit, attempt in attempts.items()], time.time())
            print(*attempts, flush=True)  # only now is it acknowledged
        tally = write_outputs(run.ledger, run.sources, folder, OutputOptions(part_rows=1000))
        run.ledger.close_epoch(time.time())
        assert tally.accounted
        print("complete", flush=True)


if __name__ == "__main__":
    main()
