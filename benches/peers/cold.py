"""The shortest useful program with a process pool: one no-op, its answer printed.

usage: cold.py WORKERS
"""

import sys
from concurrent.futures import ProcessPoolExecutor


def noop(value):
    return value


if __name__ == "__main__":
    with ProcessPoolExecutor(int(sys.argv[1])) as executor:
        print(executor.submit(noop, 42).result(), flush=True)
