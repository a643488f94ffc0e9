"""No-op tasks by one peer, one at a time and in bulk; prints one JSON object.

usage: noop.py PEER WORKERS SINGLES BULK
PEER: pool, loky, dask, ray. Exit code 4: an answer was wrong.
"""

import json
import sys
import time
from statistics import quantiles

PEER = sys.argv[1]
WORKERS, SINGLES, BULK = map(int, sys.argv[2:5])


def noop(value):
    return value


def round_trips(call):
    """Microseconds of single tasks, each waited for, and each answer checked."""
    for value in range(50):
        assert call(value) == value
    times = []
    for value in range(SINGLES):
        began = time.perf_counter()
        answer = call(value)
        times.append((time.perf_counter() - began) * 1e6)
        assert answer == value
    cuts = quantiles(times, n=100)
    return {"p50_us": cuts[49], "p99_us": cuts[98]}


def rate(count, call):
    """Tasks per second when all are handed over together, every answer checked."""
    began = time.perf_counter()
    answers = call(range(count))
    seconds = time.perf_counter() - began
    assert sum(answers) == count * (count - 1) // 2, "an answer is wrong"
    return count / seconds


def pool():
    from concurrent.futures import ProcessPoolExecutor

    with ProcessPoolExecutor(WORKERS) as executor:
        figures = round_trips(lambda value: executor.submit(noop, value).result())
        figures["map_rate"] = rate(BULK, lambda values: list(executor.map(noop, values, chunksize=256)))
        singly = max(BULK // 20, 1000)
        figures["submit_rate"] = rate(
            singly, lambda values: [future.result() for future in [executor.submit(noop, value) for value in values]]
        )
    return figures


def loky():
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    executor = get_reusable_executor(max_workers=WORKERS)
    figures = round_trips(lambda value: executor.submit(noop, value).result())
    # Parallel wants an executor of its own making; it is warm when the clock starts.
    executor.shutdown()
    count = max(BULK // 10, 1000)
    with Parallel(n_jobs=WORKERS) as parallel:
        parallel(delayed(noop)(value) for value in range(100))
        figures["map_rate"] = rate(count, lambda values: parallel(delayed(noop)(value) for value in values))
    return figures


def dask():
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=WORKERS, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster, Client(cluster) as client:
        figures = round_trips(lambda value: client.submit(noop, value, pure=False).result())
        count = max(BULK // 200, 200)
        figures["map_rate"] = rate(count, lambda values: client.gather(client.map(noop, values, pure=False)))
    return figures


def ray():
    import ray as ray_package

    ray_package.init(num_cpus=WORKERS, include_dashboard=False, logging_level="error", log_to_driver=False)
    task = ray_package.remote(noop)
    figures = round_trips(lambda value: ray_package.get(task.remote(value)))
    count = max(BULK // 100, 200)
    figures["map_rate"] = rate(count, lambda values: ray_package.get([task.remote(value) for value in values]))
    ray_package.shutdown()
    return figures


if __name__ == "__main__":
    try:
        print(json.dumps({"pool": pool, "loky": loky, "dask": dask, "ray": ray}[PEER]()))
    except AssertionError as wrong:
        print(f"a wrong answer: {wrong}", file=sys.stderr)
        sys.exit(4)
