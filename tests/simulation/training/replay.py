"""Runs seeds and prints what happened: `python -m tests.simulation.training.replay SEED [FIRST LAST]`.

One seed prints its script and every event with its commands; a range prints only what fails, and how fast it went.
"""

from __future__ import annotations

import sys
import time
from collections import deque

from .script import make_script
from .world import Violation, World

_WRONG = (AssertionError, KeyError, ValueError, TypeError, AttributeError, IndexError)


def run_seed(seed: int) -> World:
    """Raises Violation with the script and the end of the trace."""
    world = World(make_script(seed))
    try:
        world.run()
    except _WRONG as error:
        raise Violation(explain(seed, error)) from error
    return world


def explain(seed: int, error: BaseException) -> str:
    """The same seed again, with its trace."""
    tail: deque[str] = deque(maxlen=80)
    script = make_script(seed)
    try:
        World(script, trace=tail.append).run()
    except _WRONG as same:
        error = same
    lines = (str(script), "...", *tail, f"{type(error).__name__}: {error}")
    return "\n".join((*lines, f"replay: python -m tests.simulation.training.replay {seed}"))


def main(arguments: list[str]) -> int:
    if len(arguments) == 1:
        script = make_script(int(arguments[0]))
        print(script)
        world = World(script, trace=print)
        world.run()
        print(f"holds: {world.over}, {world.clock.count} events, {world.sittings} sittings")
        return 0
    first, last = int(arguments[0]), int(arguments[1])
    began = time.perf_counter()
    failed = 0
    for seed in range(first, last):
        try:
            run_seed(seed)
        except Violation as violation:
            failed += 1
            print(str(violation).splitlines()[-2], f"| seed {seed}")
    seconds = time.perf_counter() - began
    print(f"{last - first} schedules, {failed} failed, {seconds / (last - first) * 1000:.1f} ms each")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
