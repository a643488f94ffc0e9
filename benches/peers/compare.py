"""Measures ai_swarm and what a user would take instead, in turns, on this host, now. `run.sh` calls it.

Every contender of a comparison runs once per round, each round in another order, so that whatever else the
host does falls on all of them alike. A figure is the median of the rounds, with the smallest and the largest.
Every output array of every contender in every round is compared with NumPy's product in 64 bits.
"""

import argparse
import importlib.util
import json
import os
import platform
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parent
CORES = len(os.sched_getaffinity(0))
SIDE = 512
TOLERANCE = 1e-4
CHUNKS = (1, 4, 10, 25, 50, 100)
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Wrong(Exception):
    """A contender's output is not right, or there is none."""


class Unable(Exception):
    """A peer did not run at all."""


def say(text):
    print(text, file=sys.stderr, flush=True)


class Bench:
    def __init__(self, options):
        self.options = options
        self.scratch = Path(options.scratch)
        # As a user's shell has it: nobody limits BLAS, and the swarm has a state folder of its own.
        self.environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
        self.environment["XDG_STATE_HOME"] = str(self.scratch / "state")
        self.environment["PYTHONDONTWRITEBYTECODE"] = "1"
        self.rows = []

    # How things are run and timed.

    def run(self, command):
        """Runs a command to its end; seconds, and its standard output."""
        began = time.perf_counter()
        done = subprocess.run(command, env=self.environment, cwd=self.scratch, stdin=subprocess.DEVNULL, capture_output=True)
        seconds = time.perf_counter() - began
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip()[-2000:]
            kind = Unable if "noop.py" in str(command[1]) and done.returncode != 4 else Wrong
            raise kind(f"{' '.join(map(str, command[:3]))} ... ended with {done.returncode}\n{words}")
        return seconds, done.stdout.decode()

    def swarm(self, *words):
        return [self.options.binary, *words]

    def python(self, script, *words):
        return [sys.executable, str(HERE / script), *map(str, words)]

    def rounds(self, contenders, count):
        """Every contender once per round, in an order that changes: name to list of what it returned."""
        order = random.Random(1)
        results = {name: [] for name in contenders}
        for number in range(count):
            say(f"  round {number + 1} of {count}, load {os.getloadavg()[0]:.1f}")
            for name in order.sample(list(contenders), len(contenders)):
                results[name].append(contenders[name]())
        return results

    def table(self, title, results, unit, scale=1.0, better="less"):
        """Rows of one comparison; the first contender is the one the others are compared with."""
        base = None
        for name, values in results.items():
            values = sorted(value * scale for value in values)
            middle = median(values)
            base = middle if base is None else base
            ratio = middle / base if better == "less" else base / middle
            self.rows.append((title, name, middle, values[0], values[-1], unit, ratio))
            title = ""

    # (a) 200 products from files to files, from a cold shell.

    def batch(self):
        import numpy as np

        count = 40 if self.options.quick else 200
        folder = self.scratch / "batch"
        folder.mkdir()
        say(f"batch: {count} products of {SIDE}x{SIDE} float32, .npy to .npy, {CORES} cores")
        random_numbers = np.random.default_rng(7)
        truths = []
        for at in range(count):
            a, b = (random_numbers.standard_normal((SIDE, SIDE), dtype=np.float32) for _ in range(2))
            np.save(folder / f"a{at}.npy", a)
            np.save(folder / f"b{at}.npy", b)
            truths.append(a.astype(np.float64) @ b.astype(np.float64))

        def out_folder():
            out = folder / "out"
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            return out

        def checked(name, seconds, out):
            for at, truth in enumerate(truths):
                path = out / f"{at}.npy"
                if not path.is_file():
                    raise Wrong(f"{name}: {path.name} was not written")
                found = np.load(path)
                if found.shape != truth.shape or found.dtype != np.float32:
                    raise Wrong(f"{name}: {path.name} is {found.dtype} {found.shape}")
                error = float(np.abs(found - truth).max() / np.abs(truth).max())
                if not error <= TOLERANCE:
                    raise Wrong(f"{name}: {path.name} is off by {error:.1e} of its largest value")
            return seconds

        tasks = [
            {"id": f"p{at}", "kernel": "matmul", "inputs": [f"a{at}.npy", f"b{at}.npy"], "output": f"out/{at}.npy"}
            for at in range(count)
        ]
        (folder / "job.json").write_text(json.dumps({"tasks": tasks}))

        def swarm():
            out = out_folder()
            seconds, _ = self.run(self.swarm("run", str(folder / "job.json"), "--quiet"))
            return checked("ai_swarm", seconds, out)

        def pool(chunk):
            out = out_folder()
            seconds, _ = self.run(self.python("pool_matmul.py", folder, out, count, CORES, chunk))
            return checked(f"pool, chunksize {chunk}", seconds, out)

        def one_process():
            out = out_folder()
            seconds, _ = self.run(self.python("numpy_matmul.py", folder, out, count))
            return checked("one process", seconds, out)

        # Once each unmeasured: pages come into memory. Then the best chunk size, which the pool may use.
        swarm(), pool(1), one_process()
        say("  looking for the pool's best chunksize")
        tried = {chunk: min(pool(chunk) for _ in range(2)) for chunk in CHUNKS if chunk <= max(1, count // CORES)}
        best = min((chunk for chunk in tried if chunk > 1), key=tried.get)
        results = self.rounds(
            {
                "ai_swarm run job.json": swarm,
                "ProcessPool, chunksize 1": lambda: pool(1),
                f"ProcessPool, chunksize {best} (best above 1)": lambda: pool(best),
                f"NumPy, one process, {CORES} BLAS threads": one_process,
            },
            self.options.rounds,
        )
        self.table(f"{count} products, command", results, "s")
        shutil.rmtree(folder)

    # (b) No-op tasks in a warm system.

    def noop(self):
        say("noop: single round trips, and rates in bulk")
        singles, bulk = (1000, 100_000) if self.options.quick else (3000, 400_000)

        def swarm():
            _, text = self.run(self.swarm("bench", "dispatch", "--quick", "--json"))
            figures = {line["name"]: line for line in map(json.loads, text.splitlines())}
            return {name: figures[name] for name in ("noop_round_trip", "noop_round_trip_asleep", "noop_rate")}

        def peer(name):
            return lambda: json.loads(self.run(self.python("noop.py", name, CORES, singles, bulk))[1])

        contenders = {"ai_swarm": swarm, "ProcessPool": peer("pool")}
        results = self.rounds(contenders, self.options.rounds)
        ours, pool = results["ai_swarm"], results["ProcessPool"]
        self.table(
            "no-op round trip, p50",
            {
                "ai_swarm, agent awake": [run["noop_round_trip"]["p50"] for run in ours],
                "ai_swarm, agent asleep": [run["noop_round_trip_asleep"]["p50"] for run in ours],
                "ProcessPool, submit().result()": [run["p50_us"] for run in pool],
            },
            "us",
        )
        self.table(
            "no-op round trip, p99",
            {
                "ai_swarm, agent awake": [run["noop_round_trip"]["p99"] for run in ours],
                "ProcessPool, submit().result()": [run["p99_us"] for run in pool],
            },
            "us",
        )
        self.table(
            "no-op rate",
            {
                "ai_swarm, every task on its own": [run["noop_rate"]["value"] for run in ours],
                "ProcessPool, map(chunksize=256)": [run["map_rate"] for run in pool],
                "ProcessPool, submit each": [run["submit_rate"] for run in pool],
            },
            "k/s",
            scale=1e-3,
            better="more",
        )

    # (c) From a cold shell to the first result.

    def cold(self):
        say("cold: command to first result")

        def first_line(command):
            """Seconds to the first line on standard output, and to the end."""
            began = time.perf_counter()
            child = subprocess.Popen(
                command, env=self.environment, cwd=self.scratch, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
            line = child.stdout.readline()
            first = time.perf_counter() - began
            child.stdout.read()
            child.stdout.close()
            if child.wait() != 0 or line.strip() != b"42":
                raise Wrong(f"{command[1]}: the answer was {line!r}")
            return first, time.perf_counter() - began

        contenders = {
            "ai_swarm": lambda: self.run(self.swarm("run", "--kernel", "noop", "--quiet"))[0],
            "pool": lambda: first_line(self.python("cold.py", 2)),
            "version": lambda: self.run(self.swarm("--version"))[0],
            "python": lambda: self.run([sys.executable, "-c", "pass"])[0],
        }
        for contender in contenders.values():
            contender()
        results = self.rounds(contenders, self.options.rounds * 4)
        self.table(
            "cold command",
            {
                "ai_swarm run --kernel noop, ended": results["ai_swarm"],
                "ProcessPool(2), first result": [first for first, _ in results["pool"]],
                "ProcessPool(2), ended": [end for _, end in results["pool"]],
                "floor: ai_swarm --version": results["version"],
                "floor: python3 -c pass": results["python"],
            },
            "ms",
            scale=1e3,
        )

    # (d) Others, where they are installed.

    def others(self):
        present = []
        for peer, module in (("loky", "joblib"), ("dask", "distributed"), ("ray", "ray")):
            if importlib.util.find_spec(module):
                present.append(peer)
            else:
                say(f"others: {peer} skipped, the Python package {module} is not installed")
        if not present:
            return
        say(f"others: no-op tasks by {', '.join(present)}")
        singles, bulk = (200, 20_000) if self.options.quick else (500, 100_000)
        contenders = {"ai_swarm": lambda: self.run(self.swarm("bench", "dispatch", "--quick", "--json"))[1]}
        for peer in present:
            command = self.python("noop.py", peer, CORES, singles, bulk)

            def peer_figures(command=command):
                return json.loads(self.run(command)[1].splitlines()[-1])

            try:
                peer_figures()
            except Unable as error:
                say(f"others: {peer} left out, it does not run here: {error}")
                continue
            contenders[peer] = peer_figures
        results = self.rounds(contenders, max(3, self.options.rounds // 2))
        ours = [{line["name"]: line for line in map(json.loads, text.splitlines())} for text in results.pop("ai_swarm")]
        round_trip = {"ai_swarm, agent awake": [run["noop_round_trip"]["p50"] for run in ours]}
        rate = {"ai_swarm, every task on its own": [run["noop_rate"]["value"] for run in ours]}
        for peer, runs in results.items():
            round_trip[peer] = [run["p50_us"] for run in runs]
            rate[f"{peer}, its own batching"] = [run["map_rate"] for run in runs]
        self.table("no-op round trip, p50", round_trip, "us")
        self.table("no-op rate", rate, "k/s", scale=1e-3, better="more")

    def print(self):
        def number(value):
            return f"{value:.0f}" if value >= 1000 else f"{value:.1f}" if value >= 10 else f"{value:.3f}"

        heads = ("what", "contender", "median", "min", "max", "unit", "ratio")
        lines = [
            (title, name, number(middle), number(low), number(high), unit, f"{ratio:.2f}x")
            for title, name, middle, low, high, unit, ratio in self.rows
        ]
        widths = [max(len(line[at]) for line in [heads, *lines]) for at in range(len(heads))]
        left = (0, 1, 5)
        for line in [heads, *lines]:
            cells = [cell.ljust(width) if at in left else cell.rjust(width) for at, (cell, width) in enumerate(zip(line, widths))]
            print("  ".join(cells).rstrip())
        print("ratio: how many times better the first row of each group is than this one; below 1 it is worse")


def main():
    parser = argparse.ArgumentParser(prog="benches/peers/run.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--binary", help=argparse.SUPPRESS, required="-h" not in sys.argv and "--help" not in sys.argv)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, help="rounds per comparison, at least 3 [default: 5, with --quick 3]")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller batch")
    parser.add_argument("--only", action="append", choices=("batch", "noop", "cold", "others"), help="only this; may be repeated")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 3 if options.quick else 5
    if options.rounds < 3:
        parser.error("--rounds needs at least 3")
    import numpy as np

    bench = Bench(options)
    version = bench.run(bench.swarm("--version"))[1].strip()
    model = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
    say(f"{version}; Python {platform.python_version()}, NumPy {np.__version__}; {CORES} cores, {model}, Linux {platform.release()}")
    wrong = None
    try:
        for part in options.only or ("batch", "noop", "cold", "others"):
            getattr(bench, part)()
    except (Wrong, Unable) as error:
        wrong = error
    if bench.rows:
        bench.print()
    if wrong:
        say(f"error: {wrong}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
