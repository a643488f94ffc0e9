"""A batch of matrix products by one process whose BLAS uses every core.

usage: numpy_matmul.py FOLDER OUT COUNT
"""

import sys

import numpy as np

FOLDER, OUT, COUNT = sys.argv[1], sys.argv[2], int(sys.argv[3])

for at in range(COUNT):
    a = np.load(f"{FOLDER}/a{at}.npy")
    b = np.load(f"{FOLDER}/b{at}.npy")
    np.save(f"{OUT}/{at}.npy", a @ b)
