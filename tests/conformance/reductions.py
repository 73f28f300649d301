"""Reductions over any axes, running ones, order statistics, and norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.elementwise import spread
from tests.conformance.page import (
    NotExpressible,
    Page,
    Value,
    names,
    number,
    ranges,
    swap,
)
from tests.conformance.shapes import copy, reshape

Index = tuple[str, ...]


def over(
    w: Page, x: Value, dim: Any, keepdim: bool, body: Callable[[str, Index, str], str], dtype: str = "float"
) -> Value:
    """A reduction of axes: body gives the text from the ranges reduced over, the place read, and the read itself."""
    if not x.rank:
        return reshape(w, over(w, reshape(w, x, (1,)), (0,), False, body, dtype), ())
    dims = x.dims(dim)
    r = dict(zip(dims, names("r", len(dims)), strict=True))
    shape = [1 if d in r else n for d, n in enumerate(x.shape) if keepdim or d not in r]
    listed = ranges(tuple(r.values()), [x.shape[d] for d in dims])

    def text(i: Index) -> str:
        kept = iter(i)
        place = []
        for d in range(x.rank):
            if d in r:
                place.append(r[d])
                if keepdim:
                    next(kept)
            else:
                place.append(next(kept))
        return body(listed, tuple(place), x[tuple(place)])

    return w(shape, text, dtype=dtype)


def simple(kind: str, initial: str = "") -> Callable[..., Any]:
    def row(w: Page, x: Value, dim: Any = None, keepdim: bool = False, dtype: Any = None, **_: Any) -> Value:
        return over(w, x, dim, keepdim, lambda r, i, e: f"{kind}[{r}] {e}")

    return row


total, mean, product = simple("sum"), simple("mean"), simple("prod")


def extreme(kind: str) -> Callable[..., Any]:
    """amax, amin: PyTorch sends equal parts to equal values, which the mean over them says."""

    def row(w: Page, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
        return over(w, x, dim, keepdim, lambda r, i, e: f"{kind}[{r}] {e}")

    return row


def with_place(kind: str) -> Callable[..., Any]:
    def row(w: Page, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            return extreme(kind)(w, x)
        values = extreme(kind)(w, x, dim, keepdim)
        return values, over(w, x, dim, keepdim, lambda r, i, e: f"arg{kind}[{r}] {e}", "int")

    return row


def aminmax(w: Page, x: Value, dim: Any = None, keepdim: bool = False) -> Any:
    return extreme("min")(w, x, dim, keepdim), extreme("max")(w, x, dim, keepdim)


def nansum(w: Page, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return over(w, x, dim, keepdim, lambda r, i, e: f"sum[{r}] (if {e} != {e} then 0 else {e})")


def nanmean(w: Page, x: Value, dim: Any = None, keepdim: bool = False, **_: Any) -> Value:
    return over(
        w, x, dim, keepdim, lambda r, i, e: f"(sum[{r}] (if {e} != {e} then 0 else {e})) / sum[{r} where {e} == {e}] 1"
    )


def moments(w: Page, x: Value, dim: Any = None, keepdim: bool = False, correction: Any = 1) -> tuple[Value, Value, Any]:
    """The mean, the variance, and what divides the squares."""
    dims = x.dims(dim)
    n = math.prod(x.shape[d] for d in dims)
    m = mean(w, x, dim, True) if x.rank else copy(w, x)
    below = max(n - correction, 0)

    def body(r: str, i: Index, e: str) -> str:
        squares = f"(sum[{r}] ({e} - {m.wide(i) if x.rank else e})^2)"
        return f"{squares} / {number(below)}" if below else f"{squares} * (if {n} == 1 then nan else inf)"

    if not x.rank:
        return m, w((), lambda i: f"({x.name} - {m.name})^2 / {number(below)}" if below else f"{x.name} * nan"), below
    v = over(w, x, dim, keepdim, body)
    return (mean(w, x, dim, keepdim), v, below)


def deviation(kind: str) -> Callable[..., Any]:
    def row(
        w: Page,
        x: Value,
        *args: Any,
        dim: Any = None,
        unbiased: Any = None,
        correction: Any = None,
        keepdim: bool = False,
    ) -> Any:
        args = list(args)
        if args and isinstance(args[0], bool):
            unbiased = args.pop(0)
        if args:
            dim = args.pop(0)
        if args:
            unbiased = args.pop(0)
        if args:
            keepdim = args.pop(0)
        correction = int(bool(unbiased)) if unbiased is not None else 1 if correction is None else correction
        m, v, _ = moments(w, x, dim, keepdim, correction)
        s = w(v.shape, lambda i: f"sqrt({v[i]})") if "std" in kind else v
        if "mean" not in kind:
            return s
        return s, m

    return row


def norm_of(w: Page, x: Value, p: Any, dim: Any, keepdim: bool) -> Value:
    """The vector norm over `dim`: every exponent has its own line."""

    def body(r: str, i: Index, e: str) -> str:
        if p == math.inf:
            return f"max[{r}] abs({e})"
        if p == -math.inf:
            return f"min[{r}] abs({e})"
        if p == 0:
            return f"sum[{r}] (if {e} == 0 then 0 else 1)"
        if p == 1:
            return f"sum[{r}] abs({e})"
        if p == 2:
            return f"sqrt(sum[{r}] {e}^2)"
        return f"(sum[{r}] abs({e})^{number(p)})^{number(1 / p)}"

    return over(w, x, dim, keepdim, body)


def vector_norm(w: Page, x: Value, ord: float = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    return norm_of(w, x, ord, dim, keepdim)


def norm(w: Page, x: Value, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    if p == "nuc":
        raise NotExpressible("singular values")
    return norm_of(w, x, 2 if p in ("fro", None) else p, dim, keepdim)


def linalg_norm(w: Page, x: Value, ord: Any = None, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Value:
    dims = x.dims(dim)
    if ord is None or (isinstance(dim, int) or len(dims) == 1):
        return norm_of(w, x, 2 if ord is None else ord, dim, keepdim)
    return matrix_norm(w, x, ord, (0, 1) if dim is None else dim, keepdim)


def matrix_norm(
    w: Page, x: Value, ord: Any = "fro", dim: Sequence[int] = (-2, -1), keepdim: bool = False, dtype: Any = None
) -> Value:
    if ord in ("nuc", 2, -2):
        raise NotExpressible("singular values")
    if ord == "fro":
        return norm_of(w, x, 2, dim, keepdim)
    a, b = x.dim(dim[0]), x.dim(dim[1])
    first, then = (a, b) if abs(ord) == 1 else (b, a)
    sums = norm_of(w, x, 1, first, True)
    found = extreme("max" if ord > 0 else "min")(w, sums, then, True)
    return found if keepdim else reshape(w, found, [n for d, n in enumerate(x.shape) if d not in (a, b)])


def dist(w: Page, x: Value, y: Value, p: float = 2) -> Value:
    return norm_of(w, spread(w, "{x} - {y}", x=x, y=y), p, None, False)


def normalize(w: Page, x: Value, p: float = 2.0, dim: Any = 1, eps: float = 1e-12, out: Any = None) -> Value:
    n = norm_of(w, x, p, dim, True)
    return w(x.shape, lambda i: f"{x[i]} / max({n.wide(i)}, {number(eps)})")


def renorm(w: Page, x: Value, p: float, dim: int, maxnorm: float) -> Value:
    d = x.dim(dim)
    n = norm_of(w, x, p, [k for k in range(x.rank) if k != d], True)
    return w(
        x.shape,
        lambda i: (
            f"if {n.wide(i)} > {number(maxnorm)} then "
            f"{x[i]} * {number(maxnorm)} / ({n.wide(i)} + 0.0000001) else {x[i]}"
        ),
    )


def logsumexp(w: Page, x: Value, dim: Any, keepdim: bool = False) -> Value:
    return over(w, x, dim, keepdim, lambda r, i, e: f"log(sum[{r}] exp({e}))")


def softmax(kind: str) -> Callable[..., Any]:
    def row(w: Page, x: Value, dim: int, dtype: Any = None, **_: Any) -> Value:
        if not x.rank:
            return reshape(w, row(w, reshape(w, x, (1,)), 0), ())
        d, sign = x.dim(dim), "-" if kind == "softmin" else ""
        r = f"r < {x.shape[d]}"

        def body(i: Index) -> str:
            s = f"sum[{r}] exp({sign}{x[swap(i, d, 'r')]})"
            return f"{x[i]} - log({s})" if kind == "log_softmax" else f"exp({sign}{x[i]}) / {s}"

        return w(x.shape, body)

    return row


def safe_softmax(w: Page, x: Value, dim: int, dtype: Any = None) -> Value:
    """Rows of -inf are 0: what is -inf counts for nothing."""
    d, r = x.dim(dim), f"r < {x.shape[x.dim(dim)]}"
    e = lambda i: f"exp({x[i]} - {top[swap(i, d, '0')]})"  # noqa: E731
    top = w(swap(x.shape, d, 1), lambda i: f"max[{r}] {x[swap(i, d, 'r')]}", stop=True)
    s = w(swap(x.shape, d, 1), lambda i: f"sum[{r} where {x[swap(i, d, 'r')]} > -inf] {e(swap(i, d, 'r'))}")
    s = w(s.shape, lambda i, s=s: f"if {s[i]} == 0 then 1 else {s[i]}")
    return w(x.shape, lambda i: f"if {x[i]} == -inf then 0 else {e(i)} / {s[swap(i, d, '0')]}")


def softmax_backward(w: Page, g: Value, y: Value, dim: int, dtype: Any) -> Value:
    d = y.dim(dim)
    return w(
        y.shape, lambda i: f"{y[i]} * ({g[i]} - sum[r < {y.shape[d]}] {g[swap(i, d, 'r')]} * {y[swap(i, d, 'r')]})"
    )


ROWS: dict[str, Callable[..., Any]] = {
    "sum": total,
    "mean": mean,
    "prod": product,
    "nansum": nansum,
    "nanmean": nanmean,
    "amax": extreme("max"),
    "amin": extreme("min"),
    "aminmax": aminmax,
    "max.reduction_no_dim": with_place("max"),
    "min.reduction_no_dim": with_place("min"),
    "max.reduction_with_dim": with_place("max"),
    "min.reduction_with_dim": with_place("min"),
    **{
        f"{kind}{form}": deviation(kind)
        for kind in ("std", "var", "std_mean", "var_mean")
        for form in ("", ".unbiased")
    },
    "linalg.vector_norm": vector_norm,
    **{f"norm{form}": norm for form in ("", ".fro", ".inf")},
    **{f"linalg.norm{form}": linalg_norm for form in ("", ".subgradients_at_zero")},
    "linalg.matrix_norm": matrix_norm,
    "dist": dist,
    "nn.functional.normalize": normalize,
    "renorm": renorm,
    "logsumexp": logsumexp,
    **{
        name: softmax(name.split(".")[0])
        for name in ("softmax", "softmax.with_dtype", "log_softmax", "log_softmax.with_dtype")
    },
    "nn.functional.softmin": softmax("softmin"),
    "nn.functional.softmin.with_dtype": softmax("softmin"),
    "torch.ops.aten._safe_softmax.default": safe_softmax,
    "_softmax_backward_data": softmax_backward,
}
