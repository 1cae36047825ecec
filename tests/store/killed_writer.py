"""A process that writes parts into a folder without end, the two newest kept, and says which step is there.

Started by test_state_part.py: python killed_writer.py FOLDER FIRST_STEP. A step's tensors follow from its number.
"""

import sys
from pathlib import Path

import numpy as np

from realign_cluster.store.state_part import PartHeader, list_parts, remove_part, write_part


def tensors_of(step):
    return [(f"weights/{at}", "U32", (64, 1000), np.full((64, 1000), step * 20 + at, np.uint32)) for at in range(20)]


def main():
    folder, step = Path(sys.argv[1]), int(sys.argv[2])
    print("begin", flush=True)
    while True:
        write_part(folder, PartHeader(kind="snapshot", step=step), tensors_of(step), durable=step % 4 == 0)
        print(step, flush=True)
        for old in list_parts(folder)[2:]:
            remove_part(folder, old)
        step += 1


if __name__ == "__main__":
    main()
