"""The generated float32 kernels of all functions of elements, from tiny to huge arguments, against PyTorch."""

import re

import numpy as np
import pytest

from chainrule.api.model import Model
from chainrule.source import Source

torch = pytest.importorskip("torch")
from tests.library import elementwise, losses, reductions, rows  # noqa: E402

TABLE = elementwise.BUILT_IN | elementwise.LIBRARY | elementwise.ACTIVATIONS
EASY = """
    prelu, rrelu, relu, relu6, leaky_relu, hardtanh, hardsigmoid, hardswish, hardshrink, softshrink, threshold, clip,
    positive_part, negative_part, deg2rad, rad2deg, square, reciprocal, abs, sign, floor, ceil, round, trunc, frac,
    isnan, isinf, isfinite
"""
ONE = {
    name: row
    for name, row in TABLE.items()
    if row.declare == "x[n, k]" and not row.least and name not in re.split(r",\s+", EASY.strip())
}
TWO = {n: TABLE[n] for n in ("atan2", "logaddexp", "logaddexp2", "xlogy", "hypot", "copysign", "maximum")}
ALL = reductions.LIBRARY | reductions.SETTINGS | losses.LIBRARY | losses.SETTINGS
HARD = "p_norm 1.5, cumulative_max, cumulative_logsumexp, cumulative_product, info_nce, ctc"
REDUCING = {name: ALL[name] for name in HARD.split(", ")}  # all of ALL pass, in a minute
SHAPES = {"n": 3, "k": 4}
SIZES = np.array(
    [1e-30, 1e-10, 1e-4, 0.03, 0.4, 0.9999, 1.7, 3.3, 6.5, 11, 20, 60, 95, 700, 1e4, 1e7, 1e10, 1e19, 1e30]
)
POINTS = np.concatenate([SIZES, -SIZES]).astype(np.float32)
FEW = np.array([s * x for x in (1e-4, 0.4, 1.7, 20, 95, 1e4, 1e10, 1e18) for s in (1, -1)], np.float32)
TOLERANCE = 4e-6
DOMAINS = {  # by what a row draws
    rows.positive: lambda x: x > 0,
    rows.above_one: lambda x: x >= 1.2,
    rows.inside: lambda x: np.abs(x) < 0.99,
    rows.share: lambda x: (x > 0) & (x < 0.99),
}


def program(rows, names):
    """One program for all: inputs x0, t0, w0 for the first function, whose value is the gradient by w0."""
    lines = [f"input {x}{k}[n]" for k in range(len(rows)) for x in (*names, "w")]
    lines += [f"y{k} = " + re.sub(r"\b([xt])\b", rf"\g<1>{k}", row.call) for k, row in enumerate(rows.values())]
    lines += [f"loss = {' + '.join(f'sum(w{k} * y{k})' for k in range(len(rows)))}"]
    return Model(Source("model m():\n    dim n\n" + "".join(f"    {line}\n" for line in lines), "functions.graph"))


@pytest.mark.parametrize("names", ["x", "xt"])
def test_float32_kernels_are_right_from_tiny_to_huge_arguments(names):
    table = ONE if names == "x" else TWO
    points = POINTS[None] if names == "x" else np.stack([g.ravel() for g in np.meshgrid(FEW, FEW)])
    inputs = {f"{x}{k}": points[j] for k in range(len(table)) for j, x in enumerate(names)}
    inputs |= {f"w{k}": np.ones(len(points[0]), np.float32) for k in range(len(table))}
    _, found = program(table, names).gradients(tuple(inputs), **inputs)
    wrong = []
    for k, (name, row) in enumerate(table.items()):
        tensors = [torch.tensor(p.astype(np.float64), requires_grad=True) for p in points]
        y = row.oracle(*tensors)
        slopes = torch.autograd.grad(y.sum(), tensors, allow_unused=True)
        within = np.all([DOMAINS.get(row.draw.get(x), np.isfinite)(p) for x, p in zip(names, points, strict=True)], 0)
        for what, want in zip(("w", *names), (y, *slopes), strict=True):
            want = np.zeros(len(within)) if want is None else want.detach().numpy()
            got = found[f"{what}{k}"]
            with np.errstate(over="ignore", invalid="ignore"):
                known = within & np.isfinite(want.astype(np.float32))
                bad = known & ~(np.abs(got - want) <= TOLERANCE * np.maximum(np.abs(want), 1))
            wrong += [(name, what, *(float(p[i]) for p in points), got[i], want[i]) for i in np.flatnonzero(bad)[:4]]
    assert not wrong, "\n".join(map(str, wrong))


def joint(table):
    """One program for all: inputs x_0 … of the first row, x_1 … of the second; the loss sums all squares."""
    lines, terms = [], []
    for j, row in enumerate(table.values()):
        names = [d.strip().partition("[")[0] for d in row.declare.split(";")]
        renamed = re.compile(rf"\b({'|'.join(names)})\b(?! =)")
        lines += ["input " + renamed.sub(rf"\g<1>_{j}", d.strip(), count=1) for d in row.declare.split(";")]
        lines += [f"y_{j} = " + renamed.sub(rf"\g<1>_{j}", row.call)]
        terms += [f"sum(y_{j} * y_{j})"]
    lines += [f"loss = {' + '.join(terms)}"]
    return Model(Source("model m():\n    dim n, k\n" + "".join(f"    {x}\n" for x in lines), "losses.graph"))


def numbers(row, seed):
    """Inputs of a row, by name, rounded to float32."""
    rng, values = np.random.default_rng(seed), {}
    for declared in row.declare.split(";"):
        name, shape, bound = re.match(r"\s*(\w+)\[(.*?)\](?: : index (\w+))?", declared).groups()
        size = tuple(SHAPES.get(d.strip()) or int(d) for d in shape.split(","))
        if bound:
            values[name] = rng.integers(0, SHAPES.get(bound) or int(bound), size)
        else:
            values[name] = np.float32(row.draw.get(name, lambda r, s: r.normal(size=s))(rng, size))
    return values


def test_float32_kernels_of_reductions_and_losses_are_right():
    given = {name: numbers(row, 7) for name, row in REDUCING.items()}
    inputs = {f"{x}_{j}": v for j, values in enumerate(given.values()) for x, v in values.items()}
    wrt = tuple(x for x, v in inputs.items() if v.dtype == np.float32)
    _, found = joint(REDUCING).gradients(wrt, **inputs)
    wrong = []
    for j, (name, row) in enumerate(REDUCING.items()):
        tensors = {x: torch.tensor(v if v.dtype == np.int64 else v.astype(np.float64)) for x, v in given[name].items()}
        moving = [x for x in tensors if tensors[x].is_floating_point() and (row.wrt is None or x in row.wrt)]
        for x in moving:
            tensors[x].requires_grad_(True)
        loss = (row.oracle(*tensors.values()) ** 2).sum()
        slopes = torch.autograd.grad(loss, [tensors[x] for x in moving], allow_unused=True)
        for x, slope in zip(moving, slopes, strict=True):
            want = np.zeros(given[name][x].shape) if slope is None else slope.numpy(force=True)
            error = np.abs(found[f"{x}_{j}"] - want).max() / max(np.abs(want).max(), 1e-3)
            wrong += [(name, x, error, found[f"{x}_{j}"], want)] * (not error <= 2e-5)
    assert not wrong, "\n".join(map(str, wrong))


def values(lines, **inputs):
    text = "".join(f"    input {x}[{len(v)}]\n" for x, v in inputs.items())
    text += "".join(f"    output y{k} = {line}\n" for k, line in enumerate(lines))
    found = Model(Source(f"model m:\n{text}", "values.graph")).predict(**inputs)
    return [found[f"y{k}"] for k in range(len(lines))]


def test_nan_and_infinities_are_what_numpy_says():
    x = np.array([np.nan, np.inf, -np.inf, 0, -1.5, np.nan, 2], np.float32)
    t = np.array([1, np.nan, 3, np.nan, -2, np.nan, np.inf], np.float32)
    names = ("isnan", "isinf", "isfinite", "nan_to_num")
    for name, found in zip(names, values([f"{name}(x)" for name in names], x=x), strict=True):
        np.testing.assert_array_equal(found, getattr(np, name)(x), err_msg=name)
    for name, found in zip(("fmax", "fmin"), values(["fmax(x, t)", "fmin(x, t)"], x=x, t=t), strict=True):
        np.testing.assert_array_equal(found, getattr(np, name)(x, t), err_msg=name)


def test_float32_remainders_are_exact_while_their_quotient_is():
    """An x / y that rounds up to an integer leaves no remainder of the wrong sign, and an infinite y leaves x."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=400) * 10 ** rng.uniform(-3, 5, 400), [0, 1, -1, 5, -5]]).astype(np.float32)
    y = np.concatenate([rng.normal(size=400), [3, np.inf, -np.inf, -np.inf, np.inf]]).astype(np.float32)
    x[:100] = y[:100] * rng.integers(-900, 900, 100).astype(np.float32)  # on the integers, but for a rounding
    f, r = values(["fmod(x, t)", "remainder(x, t)"], x=x, t=y)
    small = np.abs(x / y) < 2**22
    np.testing.assert_array_equal(f[small], np.fmod(x, y)[small])
    wide = np.remainder(x.astype(np.float64), y.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(r[small], wide[small], rtol=1e-6)
    assert np.all((np.abs(f) < np.abs(y)) & (np.abs(r) <= np.abs(y)) | ~small)


@pytest.mark.parametrize("declared", ["x[0, 3]", "x[n, 3]"])
def test_the_mean_of_nothing_is_nan(declared):
    dims = "    dim n\n" if "n" in declared else ""
    text = f"model m:\n{dims}    input {declared}\n    output y[k < 3] = mean[i] x[i, k]\n    output z = mean(x)\n"
    found = Model(Source(text, "empty.graph")).predict(x=np.zeros((0, 3)))
    assert np.isnan(found["y"]).all() and found["y"].shape == (3,) and np.isnan(found["z"])
