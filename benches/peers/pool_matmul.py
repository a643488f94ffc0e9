"""A batch of matrix products by a process pool: what a user would write in ten lines.

usage: pool_matmul.py FOLDER OUT COUNT WORKERS CHUNKSIZE
"""

import os
import sys

# One BLAS thread per worker: the workers are the parallelism. Must be said before NumPy is imported.
for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
    os.environ[name] = "1"

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np

FOLDER, OUT = sys.argv[1:3]
COUNT, WORKERS, CHUNKSIZE = map(int, sys.argv[3:6])


def product(at):
    a = np.load(f"{FOLDER}/a{at}.npy")
    b = np.load(f"{FOLDER}/b{at}.npy")
    np.save(f"{OUT}/{at}.npy", a @ b)
    return at


if __name__ == "__main__":
    # fork: the workers inherit the imported NumPy, the fastest start there is.
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("fork")) as pool:
        done = sum(1 for _ in pool.map(product, range(COUNT), chunksize=CHUNKSIZE))
    assert done == COUNT
