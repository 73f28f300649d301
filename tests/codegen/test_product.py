"""Products: tiles, packed panels and OpenBLAS against NumPy in float64, at every size and however rows are divided."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.strategies import booleans, integers, sampled_from

from chainrule.codegen import product, tile
from chainrule.codegen.objects import Array, Job, Size
from chainrule.codegen.packing import PAD
from chainrule.codegen.product import Bound, Extent, Operand, Shape, Way, choose, product_lines
from chainrule.codegen.target import Target, host
from tests.codegen.native_kernels import run, run_plain

ELEMENTS = ("float32", "float64")


def matrix_product(
    kind: str, shape: tuple[int | str, int | str, int | str], element: str, target: Target, method=None, **options
) -> Job:
    """``z[r, c] = sum[k] x[r, k] w[k, c]`` over rows [lo, hi); in `kind` a T marks the operand that is stored turned.

    A size is a number, or the name M, N or K of one known at run time.
    """
    m, n, k = map(str, shape)
    left = Operand("x", "k", k, "0", ("1",)) if kind[0] == "N" else Operand("x", f"k * {m}", "1", "0", (m,))
    right = Operand("w", f"k * {n}", "0", "1", (n,)) if kind[1] == "N" else Operand("w", "k", "0", k, ("1",))
    into = Operand("z", "0", n, "1")
    known = [size if isinstance(size, int) else None for size in shape]
    adds = {"accumulate": options.get("accumulate", False)}
    way = choose(Shape(None, known[1], known[2]), element, target, left, right, into, **adds)
    if method is not None or way.method == "direct":
        way = (
            method(way)
            if method
            else replace(product.choose(Shape(99, known[1], 99), element, target, left, right, into, **adds), rows=4)
        )
    names, parameters = (
        ["x", "w", "z"],
        [
            Array(element, (shape[0], shape[2]) if kind[0] == "N" else (shape[2], shape[0])),
            Array(element, (shape[2], shape[1]) if kind[1] == "N" else (shape[1], shape[2])),
            Array(element, (shape[0], shape[1])),
        ],
    )
    if way.panel is not None:
        names.append("panel")
        parameters.append(Array(element, (way.depth or shape[2], way.panel[1]), scratch=True))
    if way.strip:
        names.append("strip")
        parameters.append(Array(element, (64, (way.depth or int(k)) + PAD), scratch=True))
    for name, size in zip("MNK", shape, strict=True):
        if isinstance(size, str):
            names.append(name)
            parameters.append(Size())
    extents = Extent("r", "lo", "hi"), Extent("c", "0", n), (Extent("k", "0", k),)
    lines = product_lines(way, into, left, right, *extents, panel="panel", strip="strip", **options)
    body = "\n".join("    " + line for line in lines)
    return Job(f"def kernel({', '.join(names)}, lo, hi):\n{body}\n", "kernel", tuple(parameters))


def operands(kind: str, m: int, n: int, k: int, element: str) -> tuple[dict, np.ndarray]:
    """Arrays, and the product in float64."""
    rng = np.random.default_rng(m + 100 * n + 10_000 * k)
    x, w = rng.normal(size=(m, k)).astype(element), rng.normal(size=(k, n)).astype(element)
    stored = {"x": x if kind[0] == "N" else x.T.copy(), "w": w if kind[1] == "N" else w.T.copy()}
    return {**stored, "z": rng.normal(size=(m, n)).astype(element)}, x.astype(float) @ w.astype(float)


def close(found: np.ndarray, want: np.ndarray) -> None:
    tolerance = 2e-5 if found.dtype == np.float32 else 1e-12
    np.testing.assert_allclose(found, want, rtol=tolerance, atol=tolerance * 10)


@pytest.mark.parametrize("level", ["native", "avx2"])
@pytest.mark.parametrize("kind", ["NN", "NT", "TN", "TT"])
@settings(max_examples=12, deadline=None)
@given(m=integers(0, 35), n=integers(0, 70), k=integers(0, 40), element=sampled_from(ELEMENTS), add=booleans())
def test_a_product_whose_sizes_are_known_at_run_time_is_numpys(kind, level, m, n, k, element, add):
    job = matrix_product(kind, ("M", "N", "K"), element, host(level), accumulate=add, scale="-0.5")
    arrays, want = operands(kind, m, n, k, element)
    found = run(job, arrays, {"M": m, "N": n, "K": k}, 0, m, host(level))["z"]
    close(found, -0.5 * want + add * arrays["z"].astype(float))


@pytest.mark.parametrize("shape", [(32, 32, 64), (32, 10, 32), (64, 33, 20), (7, 100, 17), (29, 16, 9), (1, 40, 16)])
@pytest.mark.parametrize("kind", ["NN", "NT", "TN"])
def test_a_product_of_known_sizes_is_numpys_compiled_and_plain(kind, shape):
    job = matrix_product(kind, shape, "float32", host("avx2"))
    arrays, want = operands(kind, *shape, "float32")
    for found in (run(job, arrays, {}, 0, shape[0], host("avx2")), run_plain(job, arrays, {}, 0, shape[0])):
        close(found["z"], want)


@pytest.mark.parametrize("kind", ["NN", "NT", "TN"])
def test_no_division_of_the_rows_changes_a_bit(kind):
    job = matrix_product(kind, ("M", 50, 33), "float32", host())
    arrays, _ = operands(kind, 45, 50, 33, "float32")
    whole = run(job, arrays, {"M": 45}, 0, 45)["z"]
    for cuts in ((0, 1, 2, 45), (0, 13, 30, 45), (0, 44, 45)):
        z = arrays["z"]
        for lo, hi in pairwise(cuts):
            z = run(job, {**arrays, "z": z}, {"M": 45}, lo, hi)["z"]
        assert np.array_equal(z, whole)


def test_rows_whose_number_is_known_are_cut_into_tiles_that_fit():
    for rows in (1, 5, 13, 14, 15, 29, 64):
        way = choose(Shape(rows, 64, 64), "float32", host("avx2"), *PLAIN)
        assert 1 <= way.rows * way.vectors <= 13


PLAIN = Operand("x", "k", "64", "0", ("1",)), Operand("w", "k * 64", "0", "1", ("64",)), Operand("z", "0", "64", "1")


def test_tiny_and_scattered_products_are_loops_and_large_ones_are_openblas():
    left, right, into = PLAIN
    assert choose(Shape(2, 2, 2), "float32", host(), left, right, into).method == "direct"
    assert choose(Shape(64, 64, 64), "float32", host(), left, right, replace(into, column="64")).method == "direct"
    assert choose(Shape(64, 64, 64), "float32", host(), left, right, into).method == "tile"
    assert choose(Shape(1024, 1024, 1024), "float32", host(), left, right, into).method == "blas"
    several = replace(left, inner=("1", "3"))
    assert choose(Shape(1024, 1024, 1024), "float32", host(), several, right, into).method == "tile"


@pytest.mark.parametrize("kind", ["NN", "NT", "TN", "TT"])
@settings(max_examples=10, deadline=None)
@given(m=integers(0, 20), n=integers(0, 20), k=integers(0, 20), element=sampled_from(ELEMENTS), add=booleans())
def test_openblas_is_called_as_numpy_multiplies(kind, m, n, k, element, add):
    job = matrix_product(
        kind, ("M", "N", "K"), element, host(), method=lambda way: product.Way("blas"), accumulate=add, scale="2.0"
    )
    arrays, want = operands(kind, m, n, k, element)
    sizes = {"M": m, "N": n, "K": k}
    for how in (run, run_plain):
        close(how(job, arrays, sizes, 0, m)["z"], 2 * want + add * arrays["z"].astype(float))


def test_rows_that_collide_in_the_cache_are_packed():
    left, right, into = PLAIN
    far = replace(right, inner=("1024",))
    assert choose(Shape(64, 1024, 100), "float32", host(), left, far, into).panel is not None
    assert choose(Shape(64, 1024, 100), "float32", host(), left, right, into).panel is None
    job = matrix_product("NN", (72, 1024, 80), "float32", host())
    arrays, want = operands("NN", 72, 1024, 80, "float32")
    close(run(job, arrays, {}, 0, 72)["z"], want)


def test_a_convolution_is_a_product_with_more_inner_indices():
    # y[o, j] = sum[c, s] x[c, j + s] K[o, c, s]: rows o, columns j, inner c and s
    way = choose(Shape(None, 50, 9), "float32", host(), LEFT, RIGHT, INTO)
    assert way.panel is None
    inner = Extent("c", "0", "3"), Extent("s", "0", "3")
    lines = product_lines(way, INTO, LEFT, RIGHT, Extent("o", "lo", "hi"), Extent("j", "0", "50"), inner)
    source = "def kernel(x, w, z, lo, hi):\n" + "\n".join("    " + line for line in lines) + "\n"
    job = Job(source, "kernel", (Array("float32", (3, 52)), Array("float32", (20, 3, 3)), Array("float32", (20, 50))))
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(3, 52)).astype(np.float32), rng.normal(size=(20, 3, 3)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(float), 3, axis=1)  # c, j, s
    want = np.einsum("cjs,ocs->oj", windows, w.astype(float))
    arrays = {"x": x, "w": w, "z": np.zeros((20, 50), np.float32)}
    for how in (run, run_plain):
        close(how(job, arrays, {}, 0, 20)["z"], want)


LEFT = Operand("w", "c * 3 + s", "9", "0", ("3", "1"))
RIGHT = Operand("x", "c * 52 + s", "0", "1", ("52", "1"))
INTO = Operand("z", "0", "50", "1")


def test_a_panel_of_several_inner_indices_is_packed_in_their_order():
    # y[o, j] = sum[c, s] w[o, c, s] x[2 j + s, c]: columns are 2 * 3 elements apart
    right = Operand("x", "c + s * 3", "0", "6", ("1", "3"))
    way = choose(Shape(None, 50, 9), "float32", host(), LEFT, right, INTO)
    assert way.panel == (9, way.vectors * way.lanes)
    inner = Extent("c", "0", "3"), Extent("s", "0", "3")
    lines = product_lines(way, INTO, LEFT, right, Extent("o", "lo", "hi"), Extent("j", "0", "50"), inner, panel="panel")
    source = "def kernel(x, w, z, panel, lo, hi):\n" + "\n".join("    " + line for line in lines) + "\n"
    views = Array("float32", (101, 3)), Array("float32", (20, 3, 3)), Array("float32", (20, 50))
    job = Job(source, "kernel", (*views, Array("float32", way.panel, scratch=True)))
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(101, 3)).astype(np.float32), rng.normal(size=(20, 3, 3)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(x.astype(float), 3, axis=0)[::2]  # j, c, s
    want = np.einsum("jcs,ocs->oj", windows, w.astype(float))
    arrays = {"x": x, "w": w, "z": np.zeros((20, 50), np.float32)}
    for how in (run, run_plain):
        close(how(job, arrays, {}, 0, 20)["z"], want)


def test_rows_of_several_inner_indices_that_collide_are_packed():
    # U_bar[j, o] = sum[n, t] h[n, t - 1, j] z_bar[n, t, o], the gradient of a recurrence's weights
    left = Operand("h", "n * 640 + t * 128", "1", "0", ("640", "128"))
    right = Operand("z", "n * 2560 + t * 512", "0", "1", ("2560", "512"))
    way = choose(Shape(128, 512, None), "float32", host(), left, right, replace(INTO, row="512"))
    assert way.panel is not None
    assert way.depth is None
    deep = choose(Shape(128, 512, 1 << 16), "float32", host(), left, right, replace(INTO, row="512"))
    assert deep.panel is None


def test_a_panel_of_several_inner_indices_is_turned_in_squares():
    # y[n, k] = sum[h, d] v[n, h, d] W[k, h, d], the gradient of a projection into heads
    heads, width = 3, 20
    left = Operand("v", f"h * {width} + d", f"{heads * width}", "0", (f"{width}", "1"))
    right = Operand("w", f"h * {width} + d", "0", f"{heads * width}", (f"{width}", "1"))
    way = choose(Shape(None, 50, heads * width), "float32", host(), left, right, INTO)
    inner = Extent("h", "0", f"{heads}"), Extent("d", "0", f"{width}")
    lines = product_lines(way, INTO, left, right, Extent("n", "lo", "hi"), Extent("k", "0", "50"), inner, panel="panel")
    assert any("transpose(" in line for line in lines)
    source = "def kernel(v, w, z, panel, lo, hi):\n" + "\n".join("    " + line for line in lines) + "\n"
    views = (Array("float32", (rows, heads, width)) for rows in (20, 50))
    job = Job(source, "kernel", (*views, Array("float32", (20, 50)), Array("float32", way.panel, scratch=True)))
    rng = np.random.default_rng(0)
    v, w = (rng.normal(size=(rows, heads, width)).astype(np.float32) for rows in (20, 50))
    want = np.einsum("nhd,khd->nk", v.astype(float), w.astype(float))
    for how in (run, run_plain):
        close(how(job, {"v": v, "w": w, "z": np.zeros((20, 50), np.float32)}, {}, 0, 20)["z"], want)


def test_a_left_operand_whose_places_collide_is_packed():
    into = Operand("z", "0", "128", "1")
    right = Operand("w", "k * 128", "0", "1", ("128",))
    near, far = (Operand("x", f"k * {step}", "1", "0", (f"{step}",)) for step in (96, 512))
    assert not choose(Shape(32, 128, 2048), "float32", host(), near, right, into).strip
    assert choose(Shape(32, 128, 2048), "float32", host(), far, right, into).strip
    assert not choose(Shape(32, 128, 32), "float32", host(), far, right, into).strip
    apart = Operand("x", "k * 784", "1", "0", ("784",))  # pays where many panels read it
    assert not choose(Shape(32, 128, 2048), "float32", host(), apart, right, into).strip
    assert choose(Shape(32, 1024, 2048), "float32", host(), apart, right, into).strip
    assert not choose(Shape(32, 128, 2048), "float32", host(), far, right, into, accumulate=True).strip


def strips(lanes: int, depth: int | None, inner: int | None, packed: bool) -> Way:
    panel = (depth or inner, 2 * lanes) if packed else None
    return Way("tile", 4, 2, lanes, panel, depth, strip=True)


@settings(max_examples=8, deadline=None)
@given(m=integers(0, 40), n=integers(1, 70), k=integers(0, 70), element=sampled_from(ELEMENTS), packed=booleans())
def test_a_packed_left_operand_changes_no_bit(m, n, k, element, packed):
    arrays, _ = operands("TN", m, n, k, element)
    lanes = host().lanes(element)
    plain = matrix_product("TN", (m, n, k), element, host(), lambda way: Way("tile", 4, 2, lanes), scale="0.5")
    want = run(plain, arrays, {}, 0, m)["z"]
    for shape, depth in (((m, n, k), None), ((m, n, k), 16), (("M", "N", "K"), 16)):
        way = strips(lanes, depth, k, packed)
        job = matrix_product("TN", shape, element, host(), lambda _, way=way: way, scale="0.5")
        np.testing.assert_array_equal(run(job, arrays, {"M": m, "N": n, "K": k}, 0, m)["z"], want)


@pytest.mark.parametrize("bounds", [(), (Bound("row", "inner", "0"),)])
@pytest.mark.parametrize("rows", [8, 11])
def test_a_packed_left_operand_is_added_to_what_is_there(rows, bounds):
    arrays, _ = operands("TN", rows, 40, 16, "float32")
    if bounds:
        arrays["x"] = arrays["x"] * (np.arange(rows) <= np.arange(16)[:, None])
    way = strips(host().lanes("float32"), None, 16, packed=False)
    job = matrix_product("TN", (rows, 40, 16), "float32", host(), lambda _: way, accumulate=True, bounds=bounds)
    want = arrays["z"].astype(float) + arrays["x"].T.astype(float) @ arrays["w"].astype(float)
    for how in (run, run_plain):
        close(how(job, arrays, {}, 0, rows)["z"], want)


def test_a_short_sum_that_is_added_packs_a_left_operand_that_collides():
    into, right = Operand("z", "0", "256", "1"), Operand("w", "256 * k", "0", "1", ("256",))
    far = Operand("x", "1024 * k", "1", "0", ("1024",))
    for rows, inner, packs in ((1024, 64, True), (1024, 1024, False), (1024, None, False), (8192, 64, False)):
        way = choose(Shape(rows, 256, inner), "float32", host("native"), far, right, into, accumulate=True)
        assert way.strip == packs
        assert way.depth is None or not way.strip


def test_an_extent_of_whole_runs_has_no_rest():
    assert Extent("s", "0", "64 * t + 64", 64).is_whole(32)
    assert not Extent("s", "0", "64 * t + 63").is_whole(8)
    assert Extent("s", "8", "24").is_whole(16)
    assert not Extent("s", "8", "24").is_whole(12)


@pytest.mark.parametrize("scale", ["1.0", "0.125"])
@pytest.mark.parametrize(
    "bound", [Bound("row", "inner", "3"), Bound("inner", "row", "-2"), Bound("row", "column", "1")]
)
def test_parts_of_a_masked_product_that_nobody_needs_are_left_out(bound, scale):
    m, n, k = 40, 50, 45
    places = dict(zip(("row", "column", "inner"), np.ogrid[:m, :n, :k], strict=True))
    needed = np.broadcast_to(places[bound.low] <= places[bound.high] + int(bound.shift), (m, n, k))
    arrays, _ = operands("TN", m, n, k, "float32")
    if "inner" in (bound.low, bound.high):  # the left operand is 0 elsewhere
        arrays["x"] = arrays["x"] * needed[:, 0, :].T
    want = float(scale) * arrays["x"].T.astype(float) @ arrays["w"].astype(float)
    for packed in (False, True):
        way = strips(host().lanes("float32"), 16, k, packed)
        job = matrix_product("TN", (m, n, k), "float32", host(), lambda _, way=way: way, scale=scale, bounds=(bound,))
        for how in (run, run_plain):
            found = how(job, arrays, {}, 0, m)["z"]
            close(np.where(needed.any(axis=2), found, 0), np.where(needed.any(axis=2), want, 0))


def test_a_strip_of_which_a_part_is_not_packed_is_noticed(monkeypatch):
    whole = product.pack_left
    monkeypatch.setattr(product, "pack_left", lambda leaf: [next(whole(leaf)), "    pass"])
    job = matrix_product("TN", (12, 40, 20), "float32", host(), lambda way: strips(way.lanes, 16, 20, True))
    arrays, want = operands("TN", 12, 40, 20, "float32")
    with pytest.raises(AssertionError):
        close(run_plain(job, arrays, {}, 0, 12)["z"], want)


def test_a_tile_that_forgets_its_last_rows_is_noticed(monkeypatch):
    monkeypatch.setattr(product, "_tile", lambda *a, f=product._tile: f(*a[:-1], "1" if "hi" in a[-1] else a[-1]))
    job = matrix_product("NN", ("M", 32, 16), "float32", host())
    arrays, want = operands("NN", 11, 32, 16, "float32")
    with pytest.raises(AssertionError):
        close(run(job, arrays, {"M": 11}, 0, 11)["z"], want)


def test_what_a_leaf_calls_is_among_the_functions_of_kernels():
    job = matrix_product("NT", ("M", "N", "K"), "float32", host())
    named = product.calls(job.source.splitlines())
    assert {"tile", "store_tile", "transpose", "element"} <= named
    assert named <= set(tile.__all__) | {"store", "load_part", "minimum"}


@pytest.mark.parametrize("kind", ["NN", "NT"])
def test_a_panel_that_is_cut_gives_the_same_bits(kind):
    def packed(inner: int | str, depth: int | None):
        def method(way):
            return replace(way, depth=depth, panel=(depth or 700, way.vectors * way.lanes))

        return matrix_product(kind, (40, 512, inner), "float32", host(), method)

    whole, cut, unknown = packed(700, None), packed(700, 256), packed("K", 64)
    assert "load_tile" in cut.source
    arrays, want = operands(kind, 40, 512, 700, "float32")
    for scale in (whole, cut, unknown):
        found = run(scale, arrays, {"K": 700}, 0, 40)["z"]
        np.testing.assert_array_equal(found, run(whole, arrays, {}, 0, 40)["z"])
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-3)
