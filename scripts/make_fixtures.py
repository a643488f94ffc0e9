#!/usr/bin/env python3
"""Writes tests/fixtures/arrays: what NumPy itself writes and computes.

Run it from anywhere: python3 scripts/make_fixtures.py. Seeded, so the same NumPy gives the same bytes; the tests were
written against 2.4. Files named read_* are read and compared, bad_* must be refused, in_* and out_* are inputs of
kernels and what NumPy makes of them.
"""

import hashlib
import io
import json
import pathlib
import warnings

import numpy as np
from numpy.lib import format as npy

HERE = pathlib.Path(__file__).resolve().parent.parent / "tests" / "fixtures" / "arrays"
DTYPES = {
    "f32": "f4", "f64": "f8", "i32": "i4", "i64": "i8", "u8": "u1", "u32": "u4", "u64": "u8", "c64": "c8", "c128": "c16",
}
SHAPES = {"0d": (), "empty": (0, 3), "1d": (7,), "2d": (3, 5), "3d": (2, 3, 4)}


def counting(shape, descr):
    """Element i in C order is 3 i + 1, complex ones have -i as their imaginary part."""
    count = int(np.prod(shape, dtype=int))
    values = np.arange(count)
    out = (values * 3 + 1).astype(descr)
    if out.dtype.kind == "c":
        out = (out - 1j * values).astype(descr)
    return out.reshape(shape)


def save(name, array):
    np.save(HERE / f"{name}.npy", array, allow_pickle=True)


def save_version(name, array, version):
    with open(HERE / f"{name}.npy", "wb") as file:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            npy.write_array(file, array, version=version)


def raw(name, header, data=b"", version=(1, 0)):
    size = 2 if version[0] == 1 else 4
    text = header.encode()
    (HERE / f"{name}.npy").write_bytes(
        b"\x93NUMPY" + bytes(version) + len(text).to_bytes(size, "little") + text + data
    )


def reading():
    for name, descr in DTYPES.items():
        for shape_name, shape in SHAPES.items():
            array = counting(shape, "<" + descr)
            save(f"read_{name}_{shape_name}_c", array)
            if len(shape) > 1:
                save(f"read_{name}_{shape_name}_fortran", np.asfortranarray(array))
            save(f"read_{name}_{shape_name}_big", array.astype(array.dtype.newbyteorder(">")))
        both = np.asfortranarray(counting((3, 5), ">" + descr))
        save(f"read_{name}_2d_bigfortran", both)
    array = counting((3, 5), "<f8")
    for version in [(1, 0), (2, 0), (3, 0)]:
        save_version(f"read_f64_2d_v{version[0]}", array, version)
    # As a NumPy of Python 2 wrote it, and at an address that no element is aligned to.
    raw("read_f64_2d_odd", "{'descr': '<f8', 'fortran_order': False, 'shape': (3L, 5L)}", array.tobytes())


def refusing():
    good = io.BytesIO()
    np.save(good, counting((3, 5), "<f8"))
    good = good.getvalue()
    (HERE / "bad_empty.npy").write_bytes(b"")
    (HERE / "bad_garbage.npy").write_bytes(bytes(np.random.default_rng(1).integers(0, 256, 300, dtype=np.uint8)))
    (HERE / "bad_zip.npy").write_bytes(b"PK\x03\x04" + bytes(60))
    (HERE / "bad_magic_only.npy").write_bytes(good[:6])
    (HERE / "bad_header_cut.npy").write_bytes(good[:50])
    (HERE / "bad_data_cut.npy").write_bytes(good[:-1])
    (HERE / "bad_no_data.npy").write_bytes(good[:128])
    (HERE / "bad_version.npy").write_bytes(good[:6] + b"\x04\x00" + good[8:])
    save("bad_f16", np.zeros(3, "<f2"))
    save("bad_text", np.array(["a", "bcd"]))
    save("bad_bool", np.zeros(3, "?"))
    save("bad_i16", np.zeros(3, "<i2"))
    save("bad_object", np.array([None, 1], dtype=object))
    save("bad_struct", np.zeros(2, [("a", "<f4"), ("b", "<i4", (2,))]))
    save("bad_date", np.zeros(2, "<M8[s]"))
    raw("bad_huge", "{'descr': '<f8', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807)}")
    raw("bad_large", "{'descr': '<f8', 'fortran_order': False, 'shape': (1099511627776,)}", bytes(8))
    raw("bad_negative", "{'descr': '<f8', 'fortran_order': False, 'shape': (-1,)}", bytes(8))
    raw("bad_dict", "['descr', '<f8']", bytes(8))


def kernels():
    rng = np.random.default_rng(20261121)
    expected = {}
    for name, descr in [("f32", "<f4"), ("f64", "<f8")]:
        a = rng.standard_normal((13, 17)).astype(descr)
        b = rng.standard_normal((17, 9)).astype(descr)
        save(f"in_a_{name}", a)
        save(f"in_b_{name}", b)
        # In double precision: our f32 answer is compared with what is right, not with another rounding.
        save(f"out_matmul_{name}", (a.astype("<f8") @ b.astype("<f8")).astype(descr))
        x = rng.standard_normal(301).astype(descr)
        y = rng.standard_normal(301).astype(descr)
        save(f"in_x_{name}", x)
        save(f"in_y_{name}", y)
        wide_x, wide_y = x.astype("<f8"), y.astype("<f8")
        save(f"out_axpy_{name}", (2.5 * wide_x + wide_y).astype(descr))
        expected[f"dot_{name}"] = float(wide_x @ wide_y)

        cube = rng.standard_normal((4, 5, 6)).astype(descr)
        save(f"in_cube_{name}", cube)
        wide = cube.astype("<f8")
        operations = {
            "sum": np.sum, "mean": np.mean, "min": np.min, "max": np.max, "std": np.std,
            "norm2": lambda v, axis=None: np.sqrt(np.sum(v * v, axis=axis)),
        }
        for word, operation in operations.items():
            expected[f"reduce_{word}_{name}"] = float(operation(wide))
            for axis in range(3):
                save(f"out_reduce_{word}_{axis}_{name}", operation(wide, axis=axis).astype(descr))

        loose = rng.standard_normal((4, 530)).astype(descr)
        loose[1, 3] = np.nan
        loose[1, 500] = -np.nan
        loose[2, 7] = np.inf
        loose[2, 9] = -np.inf
        save(f"in_sort_{name}", loose)
        save(f"out_sort_{name}", np.sort(loose, axis=-1))

        clean = loose[np.isfinite(loose)]
        save(f"in_histogram_{name}", clean)
        counts, edges = np.histogram(clean, bins=64)
        save(f"out_histogram_{name}", counts.astype("<u8"))
        expected[f"histogram_{name}"] = [float(edges[0]), float(edges[-1])]
        counts, _ = np.histogram(clean, bins=10, range=(-1.0, 1.5))
        save(f"out_histogram_range_{name}", counts.astype("<u8"))

        grid = rng.standard_normal((11, 14)).astype(descr)
        save(f"in_grid_{name}", grid)
        u = grid.astype("<f8")
        alpha = float(np.array(0.2, descr))
        for _ in range(7):
            v = u.copy()
            around = u[:-2, 1:-1] + u[2:, 1:-1] + u[1:-1, :-2] + u[1:-1, 2:]
            v[1:-1, 1:-1] = u[1:-1, 1:-1] + alpha * (around - 4 * u[1:-1, 1:-1])
            u = v
        save(f"out_stencil5_{name}", u.astype(descr))

        queries = rng.standard_normal((6, 12)).astype(descr)
        corpus = rng.standard_normal((90, 12)).astype(descr)
        corpus[70] = corpus[20]
        corpus[80] = queries[2]
        save(f"in_queries_{name}", queries)
        save(f"in_corpus_{name}", corpus)
        q, c = queries.astype("<f8"), corpus.astype("<f8")
        scores = {
            "ip": q @ c.T,
            "cosine": (q @ c.T) / np.linalg.norm(q, axis=1)[:, None] / np.linalg.norm(c, axis=1)[None, :],
            "l2": np.sqrt(((q[:, None, :] - c[None, :, :]) ** 2).sum(axis=2)),
        }
        for metric, score in scores.items():
            score[:, 70] = score[:, 20]
            key = score if metric == "l2" else -score
            order = np.argsort(key, axis=1, kind="stable")[:, :10]
            save(f"out_knn_{metric}_{name}", order.astype("<i8"))
            save(f"out_knn_scores_{metric}_{name}", np.take_along_axis(score, order, axis=1).astype(descr))

    for name in ["i32", "i64", "u8", "u32", "u64"]:
        info = np.iinfo(DTYPES[name])
        values = rng.integers(info.min, info.max, size=(2, 530), dtype=np.dtype(DTYPES[name]), endpoint=True)
        values[0, :2] = info.min, info.max
        save(f"in_sort_{name}", values)
        save(f"out_sort_{name}", np.sort(values, axis=-1))
        small = rng.integers(0, 100, size=(4, 6), dtype=np.dtype(DTYPES[name]))
        save(f"in_small_{name}", small)
        for word, operation in {"sum": np.sum, "mean": np.mean, "min": np.min, "max": np.max}.items():
            save(f"out_reduce_{word}_0_{name}", operation(small, axis=0))
            save(f"out_reduce_{word}_1_{name}", operation(small, axis=1))
            expected[f"reduce_{word}_{name}"] = operation(small).item()
        counts, _ = np.histogram(small, bins=7)
        save(f"out_histogram_{name}", counts.astype("<u8"))

    for name, descr in [("c64", "<c8"), ("c128", "<c16")]:
        z = (rng.standard_normal((3, 60)) + 1j * rng.standard_normal((3, 60))).astype(descr)
        save(f"in_fft_{name}", z)
        save(f"out_fft_{name}", np.fft.fft(z.astype("<c16")).astype(descr))
        save(f"out_ifft_{name}", np.fft.ifft(z.astype("<c16")).astype(descr))
    for name, real in [("c64", "f32"), ("c128", "f64")]:
        x = np.load(HERE / f"in_x_{real}.npy")
        save(f"out_fft_real_{real}", np.fft.fft(x.astype("<f8")).astype("<" + DTYPES[name]))
    more_kernels(expected)
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


def more_kernels(expected):
    """With a generator of its own, so that the files above stay as they are."""
    rng, rng_of_weights = np.random.default_rng(20261122), np.random.default_rng(20261123)
    for name, descr in [("f32", "<f4"), ("f64", "<f8")]:
        cube = np.load(HERE / f"in_cube_{name}.npy")
        wide = cube.astype("<f8")
        save(f"out_cumsum_{name}", np.cumsum(wide).astype(descr))
        for axis in range(3):
            save(f"out_cumsum_{axis}_{name}", np.cumsum(wide, axis=axis).astype(descr))
            powers = np.exp(wide - wide.max(axis=axis, keepdims=True))
            save(f"out_softmax_{axis}_{name}", (powers / powers.sum(axis=axis, keepdims=True)).astype(descr))

        few = rng.integers(-9, 9, size=(3, 700)).astype(descr)
        few[1, 5], few[1, 600], few[2, 3], few[2, 4] = np.nan, -np.nan, np.inf, -np.inf
        save(f"in_few_{name}", few)
        save(f"out_argsort_{name}", np.argsort(few, axis=-1, kind="stable").astype("<i8"))
        for order, key in [("smallest", few), ("largest", -few)]:
            places = np.argsort(key, axis=-1, kind="stable")[:, :12]
            save(f"out_places_{order}_{name}", places.astype("<i8"))
            save(f"out_top_k_{order}_{name}", np.take_along_axis(few, places, axis=-1))

        grid = np.load(HERE / f"in_grid_{name}.npy").astype("<f8")
        weights = rng_of_weights.standard_normal((4, 3)).astype(descr)
        save(f"in_weights_{name}", weights)
        full = np.zeros((grid.shape[0] + 3, grid.shape[1] + 2))
        for p, q in np.ndindex(weights.shape):
            full[p:p + grid.shape[0], q:q + grid.shape[1]] += float(weights[p, q]) * grid
        save(f"out_convolve2d_full_{name}", full.astype(descr))
        save(f"out_convolve2d_same_{name}", full[1:1 + grid.shape[0], 1:1 + grid.shape[1]].astype(descr))
        save(f"out_convolve2d_valid_{name}", full[3:-3, 2:-2].astype(descr))

        dense = np.where(rng.random((19, 31)) < 0.3, rng.standard_normal((19, 31)), 0).astype(descr)
        dense[4] = 0
        rows, columns = np.nonzero(dense)
        x = rng.standard_normal(31).astype(descr)
        save(f"in_spmv_data_{name}", dense[rows, columns])
        save(f"in_spmv_indices_{name}", columns.astype("<i8" if name == "f32" else "<i4"))
        indptr = np.searchsorted(rows, np.arange(20))
        save(f"in_spmv_indptr_{name}", indptr.astype("<i8" if name == "f32" else "<i4"))
        save(f"in_spmv_x_{name}", x)
        save(f"out_spmv_{name}", (dense.astype("<f8") @ x.astype("<f8")).astype(descr))

    for name in ["i32", "i64", "u8", "u32", "u64"]:
        values = np.load(HERE / f"in_sort_{name}.npy")
        save(f"out_cumsum_{name}", np.cumsum(values, axis=1))
        save(f"out_argsort_{name}", np.argsort(values, axis=-1, kind="stable").astype("<i8"))
        smallest = np.argsort(values, axis=-1, kind="stable")[:, :12]
        # Complements stand in the opposite order, and unlike negatives they never overflow.
        largest = np.argsort(~values, axis=-1, kind="stable")[:, :12]
        for order, places in [("smallest", smallest), ("largest", largest)]:
            save(f"out_places_{order}_{name}", places.astype("<i8"))
            save(f"out_top_k_{order}_{name}", np.take_along_axis(values, places, axis=-1))
    for name, descr in [("c64", "<c8"), ("c128", "<c16")]:
        z = np.load(HERE / f"in_fft_{name}.npy").astype("<c16")
        save(f"out_fft_2d_{name}", np.fft.fft2(z).astype(descr))
        save(f"out_ifft_2d_{name}", np.fft.ifft2(z).astype(descr))
    for name, descr in [("f32", "<c8"), ("f64", "<c16")]:
        save(f"out_rfft_{name}", np.fft.rfft(np.load(HERE / f"in_x_{name}.npy").astype("<f8")).astype(descr))
        cube = np.load(HERE / f"in_cube_{name}.npy").astype("<f8")
        save(f"out_rfft_2d_{name}", np.fft.rfft2(cube).astype(descr))
    for name, descr in [("c64", "<f4"), ("c128", "<f8")]:
        z = np.load(HERE / f"in_fft_{name}.npy").astype("<c16")
        for word, n in [("all", None), ("cut", 51), ("padded", 150)]:
            save(f"out_irfft_{word}_{name}", np.fft.irfft(z, n).astype(descr))
            lengths = None if n is None else (len(z), n)
            save(f"out_irfft_2d_{word}_{name}", np.fft.irfft2(z, lengths).astype(descr))
    for name in ["f32", "f64"]:
        x = np.load(HERE / f"in_x_{name}.npy").astype("<f8")
        save(f"out_irfft_real_{name}", np.fft.irfft(x).astype("<" + DTYPES[name]))
    for name in ["f32", "i64", "c128"]:
        array = np.load(HERE / f"read_{name}_3d_c.npy")
        expected[f"sha256_{name}"] = hashlib.sha256(array.tobytes()).hexdigest()


if __name__ == "__main__":
    HERE.mkdir(parents=True, exist_ok=True)
    for old in HERE.iterdir():
        old.unlink()
    reading()
    refusing()
    kernels()
    total = sum(path.stat().st_size for path in HERE.iterdir())
    print(f"{len(list(HERE.iterdir()))} files, {total} bytes in {HERE}")
