"""Reductions over any axes, running ones, order statistics, and norms."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tests.conformance.elementwise import shape, spread
from tests.conformance.page import NotExpressible, OutOfScope, Page, Value, broadcast, names, number, ranges, swap, without
from tests.conformance.shapes import copy, expand, ravel, reshape, select, transpose

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
    return over(w, x, dim, keepdim, lambda r, i, e: f"(sum[{r}] (if {e} != {e} then 0 else {e})) / sum[{r} where {e} == {e}] 1")


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
    def row(w: Page, x: Value, *args: Any, dim: Any = None, unbiased: Any = None, correction: Any = None,
            keepdim: bool = False) -> Any:
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
        m, v, below = moments(w, x, dim, keepdim, correction)
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
    return w(x.shape, lambda i: f"if {n.wide(i)} > {number(maxnorm)} then "
             f"{x[i]} * {number(maxnorm)} / ({n.wide(i)} + 0.0000001) else {x[i]}")


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
    return w(x.shape, lambda i: f"if {x[i]} == -inf then 0 else {e(i)} / {s[swap(i, d, '0')]}")


def softmax_backward(w: Page, g: Value, y: Value, dim: int, dtype: Any) -> Value:
    d = y.dim(dim)
    return w(y.shape, lambda i: f"{y[i]} * ({g[i]} - sum[r < {y.shape[d]}] {g[swap(i, d, 'r')]} * {y[swap(i, d, 'r')]})")


# running reductions: recurrences, or sums of what stands before
def running(step: str) -> Callable[..., Any]:
    """A statement that reads itself one place earlier: {b} is what came before, {x} the element."""
    def row(w: Page, x: Value, dim: int, dtype: Any = None, **_: Any) -> Value:
        if not x.rank:
            return copy(w, x)
        d = x.dim(dim)

        def body(i: Index) -> str:
            name = f"y{len(w.statements)}"
            before = f"{name}[{', '.join(swap(i, d, f'{i[d]} - 1'))}; {'1' if step[4:5] == '*' else '0'}]"
            return step.format(b=before, x=x[i])

        return w(x.shape, body)

    return row


def running_extreme(kind: str) -> Callable[..., Any]:
    sign = ">=" if kind == "max" else "<="

    def row(w: Page, x: Value, dim: int) -> Any:
        if not x.rank:
            return copy(w, x), w((), lambda i: "0", dtype="int")
        d = x.dim(dim)
        last, n = x.shape[d] - 1, x.shape[d]
        # the last of equals, as PyTorch has it: the first in the other direction
        def place(i: Index) -> str:
            e = f"{x[swap(i, d, f'{last} - r')]}"
            return f"{last} - arg{kind}[r < {n} where {last} - r <= {i[d]}] {e}"

        at = w(x.shape, place, dtype="int")
        at = w(x.shape, lambda i: f"clip({at[i]}, 0, {last})", dtype=f"index {n}") if n else at
        return w(x.shape, lambda i: x[swap(i, d, at[i])]), at

    return row


def logcumsumexp(w: Page, x: Value, dim: int) -> Value:
    if not x.rank:
        return copy(w, x)
    d = x.dim(dim)
    before = f"r < {x.shape[d]} where r <= i{d}"
    top = w(x.shape, lambda i: f"max[{before}] {x[swap(i, d, 'r')]}", stop=True)
    return w(x.shape, lambda i: f"{top[i]} + log(sum[{before}] exp({x[swap(i, d, 'r')]} - {top[i]}))")


# order: an element's place is the number of those that go before it
def ordered(w: Page, x: Value, d: int, descending: bool = False) -> tuple[Value, Value]:
    """The sorted tensor, and where each element was; equal ones in their order, NaN as the greatest."""
    n, greater = x.shape[d], ">" if descending else "<"

    def before(i: Index) -> str:
        e, o = x[i], x[swap(i, d, "r")]
        nan = f"({o} != {o} and {e} == {e})" if descending else f"({e} != {e} and {o} == {o})"
        tie = f"({o} == {e} or ({o} != {o} and {e} != {e})) and r < {i[d]}"
        return f"sum[r < {n} where {o} {greater} {e} or {nan} or ({tie})] 1"

    rank = w(x.shape, before, dtype="int")
    at = w(x.shape, lambda i: f"sum[r < {n} where {rank[swap(i, d, 'r')]} == {i[d]}] r", dtype="int")
    at = w(x.shape, lambda i: f"clip({at[i]}, 0, {n - 1})", dtype=f"index {n}")
    return w(x.shape, lambda i: x[swap(i, d, at[i])]), at


def sort(w: Page, x: Value, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    if not x.rank:
        return copy(w, x), w((), lambda i: "0", dtype="int")
    if not x.size:
        return copy(w, x), w(x.shape, lambda i: "0", dtype="int")
    return ordered(w, x, x.dim(dim), descending)


def msort(w: Page, x: Value) -> Value:
    return sort(w, x, 0)[0]


def topk(w: Page, x: Value, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    if not x.rank:
        return copy(w, x), w((), lambda i: "0", dtype="int")
    d = x.dim(dim)
    values, at = ordered(w, x, d, largest)
    kept = swap(x.shape, d, k)
    return w(kept, lambda i: values[i]), w(kept, lambda i: at[i], dtype="int")


def kthvalue(w: Page, x: Value, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    if not x.rank:
        return copy(w, x), w((), lambda i: "0", dtype="int")
    d = x.dim(dim)
    values, at = ordered(w, x, d)
    found = [select(w, values, d, k - 1), w(without(x.shape, d), lambda i: at[(*i[:d], str(k - 1), *i[d:])], dtype="int")]
    if keepdim:
        shape = swap(x.shape, d, 1)
        return reshape(w, found[0], shape), w(shape, lambda i: at[swap(i, d, str(k - 1))], dtype="int")
    return found


def median(w: Page, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None:
        line = ravel(w, x)
        return select(w, ordered(w, line, 0)[0], 0, (x.size - 1) // 2)
    return kthvalue(w, x, (x.shape[x.dim(dim)] + 1) // 2 if x.rank else 1, dim, keepdim)


def quantile(w: Page, x: Value, q: Any, dim: int | None = None, keepdim: bool = False, interpolation: str = "linear") -> Value:
    rank = x.rank
    if dim is None or not rank:
        x, dim, whole = ravel(w, x), 0, True
    else:
        whole = False
    d, n = x.dim(dim), x.shape[x.dim(dim)]
    values, _ = ordered(w, x, d)
    many = isinstance(q, Value) and q.rank == 1
    at = q["i0"] if many else (q.name if isinstance(q, Value) else number(q))
    shape = swap(x.shape, d, 1) if keepdim and not whole else without(x.shape, d)
    shape = (1,) * rank if keepdim and whole else shape

    def body(i: Index) -> str:
        own = i[1:] if many else i
        own = () if whole else swap(own, d, "r") if keepdim else (*own[:d], "r", *own[d:])
        e = values["r"] if whole else values[own]
        t = f"({at} * {n - 1})"
        weight = {"linear": f"max(1 - abs({t} - r), 0)", "lower": f"(if floor({t}) == r then 1 else 0)",
                  "higher": f"(if ceil({t}) == r then 1 else 0)", "nearest": f"(if round({t}) == r then 1 else 0)",
                  "midpoint": f"((if floor({t}) == r then 1 else 0) + (if ceil({t}) == r then 1 else 0)) / 2"}
        return f"sum[r < {n}] {weight[interpolation]} * {e}"

    return w((*(q.shape if many else ()), *shape), body)


def cummulative_trapezoid(w: Page, y: Value, x: Any = None, dx: float = 1, dim: int = -1) -> Value:
    d = y.dim(dim)
    pieces = trapezia(w, y, x, dx, d)
    return running("{b} + {x}")(w, pieces, d)


def trapezia(w: Page, y: Value, x: Any, dx: float, d: int) -> Value:
    n = max(y.shape[d] - 1, 0)
    if x is not None and x.rank == 1:
        wide = lambda i, k: x[k]  # noqa: E731
    elif x is not None:
        d_x = d - (y.rank - x.rank)
        wide = lambda i, k: x.wide(swap(i, d_x + len(i) - x.rank, k))  # noqa: E731
    shape = y.shape if x is None or x.rank == 1 else broadcast(y.shape, x.shape)
    d += len(shape) - y.rank

    def body(i: Index) -> str:
        step = number(dx) if x is None else f"({wide(i, f'{i[d]} + 1')} - {wide(i, i[d])})"
        return f"{step} * ({y.wide(swap(i, d, f'{i[d]} + 1'))} + {y.wide(i)}) / 2"

    return w(swap(shape, d, n), body)


def trapezoid(w: Page, y: Value, x: Any = None, dx: float = 1, dim: int = -1) -> Value:
    d = y.dim(dim)
    return total(w, trapezia(w, y, x, dx, d), d - y.rank)


def sum_to_size(w: Page, x: Value, *shape: Any) -> Value:
    to = tuple(shape[0]) if shape and isinstance(shape[0], (tuple, list)) else shape
    lead = x.rank - len(to)
    dims = [*range(lead), *(d for d in range(lead, x.rank) if to[d - lead] == 1)]
    return reshape(w, total(w, x, dims), to) if dims else copy(w, x)


def cov(w: Page, x: Value, correction: Any = 1, fweights: Any = None, aweights: Any = None) -> Value:
    rank = x.rank
    x = x if x.rank > 1 else reshape(w, x, (1, x.size))
    n = x.shape[1]
    f = (lambda k: f"float({fweights[k]})") if fweights is not None else lambda k: "1"
    a = (lambda k: aweights[k]) if aweights is not None else lambda k: "1"
    weight = w((n,), lambda i: f"{f(i[0])} * {a(i[0])}")
    all_of = w((), lambda i: f"sum[k < {n}] {weight['k']}")
    m = w((x.shape[0],), lambda i: f"(sum[k < {n}] {weight['k']} * {x[i[0], 'k']}) / {all_of.name}")
    c = number(correction)
    if aweights is None:
        below = w((), lambda i: f"max({all_of.name} - {c}, 0)")
    else:
        below = w((), lambda i: f"{all_of.name} - {c} * (sum[k < {n}] {weight['k']} * {a('k')}) / {all_of.name}")
    found = w((x.shape[0],) * 2, lambda i: f"(sum[k < {n}] {weight['k']} * ({x[i[0], 'k']} - {m[i[0]]}) * "
              f"({x[i[1], 'k']} - {m[i[1]]})) / {below.name}")
    return reshape(w, found, ()) if rank < 2 or x.shape[0] == 1 else found


def corrcoef(w: Page, x: Value) -> Value:
    c = cov(w, x)
    if not c.rank:
        return w((), lambda i: f"{c.name} / {c.name}")
    return w(c.shape, lambda i: f"{c[i]} / (sqrt({c[i[0], i[0]]}) * sqrt({c[i[1], i[1]]}))")


# reductions of what a mask lets through; elsewhere they see their identity
def masked(kind: str) -> Callable[..., Any]:
    def row(w: Page, x: Value, dim: Any = None, keepdim: bool = False, mask: Any = None, dtype: Any = None,
            unbiased: Any = None, correction: Any = None, ord: Any = None) -> Value:
        m = mask
        shown = (lambda i: m.wide(i)) if m is not None else (lambda i: "true")
        if kind in ("sum", "prod", "mean", "amax", "amin"):
            word = {"amax": "max", "amin": "min"}.get(kind, kind)

            def body(r: str, i: Index, e: str) -> str:
                if kind == "mean":
                    return f"(sum[{r} where {shown(i)}] {e}) / sum[{r} where {shown(i)}] 1"
                return f"{word}[{r} where {shown(i)}] {e}"

            return over(w, x, dim, keepdim, body)
        if kind == "logsumexp":
            return over(w, x, dim, keepdim, lambda r, i, e: f"log(sum[{r} where {shown(i)}] exp({e}))")
        raise NotExpressible("not yet written")

    def var(w: Page, x: Value, dim: Any = None, unbiased: Any = None, keepdim: bool = False, mask: Any = None,
            dtype: Any = None, correction: Any = None) -> Value:
        m = mask
        shown = (lambda i: m.wide(i)) if m is not None else (lambda i: "true")
        count = over(w, x, dim, True, lambda r, i, e: f"sum[{r} where {shown(i)}] 1")
        average = over(w, x, dim, True, lambda r, i, e: f"(sum[{r} where {shown(i)}] {e}) / sum[{r} where {shown(i)}] 1")
        less = number((0 if unbiased is False else 1) if correction is None else correction)
        squares = over(w, x, dim, True, lambda r, i, e: f"sum[{r} where {shown(i)}] ({e} - {average.wide(i) if x.rank else average.name})^2")
        found = w(squares.shape, lambda i: f"{squares[i]} / max({count[i]} - {less}, 0)")
        found = w(found.shape, lambda i: f"sqrt({found[i]})") if kind == "std" else found
        if keepdim or not x.rank:
            return found
        return reshape(w, found, [n for d, n in enumerate(x.shape) if d not in x.dims(dim)])

    def norm(w: Page, x: Value, ord: Any, dim: Any = None, keepdim: bool = False, mask: Any = None, dtype: Any = None) -> Value:
        fill = math.inf if ord == -math.inf else 0
        y = x if mask is None else w(broadcast(x.shape, mask.shape), lambda i: f"if {mask.wide(i)} then {x.wide(i)} else {number(fill)}")
        return norm_of(w, y, ord, dim, keepdim)

    return {"var": var, "std": var, "norm": norm}.get(kind, row)


def masked_map(kind: str) -> Callable[..., Any]:
    """Maps along an axis: what is masked counts as the identity."""
    def row(w: Page, x: Value, *args: Any, dim: Any = None, mask: Any = None, dtype: Any = None, **named: Any) -> Value:
        ord_, dim = (args[0], args[1] if len(args) > 1 else dim) if kind == "normalize" else (2, args[0] if args else dim)
        if not x.rank:
            mask = reshape_mask(w, mask) if mask is not None else None
            return reshape(w, row(w, reshape(w, x, (1,)), *( (ord_, 0) if kind == "normalize" else (0,)), mask=mask), ())
        fill = {"softmax": "-inf", "log_softmax": "-inf", "softmin": "inf", "normalize": "0", "cumsum": "0", "cumprod": "1"}[kind]
        y = x if mask is None else w(x.shape, lambda i: f"if {mask.wide(i)} then {x[i]} else {fill}")
        if kind in ("softmax", "log_softmax", "softmin"):
            found = softmax(kind)(w, y, dim)
            if mask is None:
                return found
            # PyTorch's row of nothing is NaN, the language's 0
            d = x.dim(dim)
            some = w(x.shape, lambda i: f"any[r < {x.shape[d]}] {mask.wide(swap(i, d, 'r'))}", dtype="bool")
            return w(x.shape, lambda i: f"if {some[i]} then {found[i]} else nan")
        if kind == "normalize":
            return normalize(w, y, ord_, dim)
        return running("{b} + {x}" if kind == "cumsum" else "{b} * {x}")(w, y, dim)

    return row


def reshape_mask(w: Page, mask: Value) -> Value:
    return w((1,), lambda i: mask[("0",) * mask.rank], dtype="bool")


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
    **{f"{kind}{form}": deviation(kind) for kind in ("std", "var", "std_mean", "var_mean") for form in ("", ".unbiased")},
    "linalg.vector_norm": vector_norm,
    **{f"norm{form}": norm for form in ("", ".fro", ".inf")},
    **{f"linalg.norm{form}": linalg_norm for form in ("", ".subgradients_at_zero")},
    "linalg.matrix_norm": matrix_norm,
    "dist": dist,
    "nn.functional.normalize": normalize,
    "renorm": renorm,
    "logsumexp": logsumexp,
    **{name: softmax(name.split(".")[0]) for name in ("softmax", "softmax.with_dtype", "log_softmax", "log_softmax.with_dtype")},
    "nn.functional.softmin": softmax("softmin"),
    "nn.functional.softmin.with_dtype": softmax("softmin"),
    "torch.ops.aten._safe_softmax.default": safe_softmax,
    "_softmax_backward_data": softmax_backward,
    "cumsum": running("{b} + {x}"),
    "cumprod": running("{b} * {x}"),
    "cummax": running_extreme("max"),
    "cummin": running_extreme("min"),
    "logcumsumexp": logcumsumexp,
    "sort": sort,
    "msort": msort,
    "topk": topk,
    "kthvalue": kthvalue,
    "median": median,
    "quantile": quantile,
    "trapz": trapezoid,
    "trapezoid": trapezoid,
    "cumulative_trapezoid": cummulative_trapezoid,
    "sum_to_size": sum_to_size,
    "cov": cov,
    "corrcoef": corrcoef,
    **{f"masked.{kind}": masked(kind) for kind in ("sum", "prod", "mean", "amax", "amin", "logsumexp", "var", "std", "norm")},
    **{f"masked.{kind}": masked_map(kind) for kind in ("softmax", "log_softmax", "softmin", "normalize", "cumsum", "cumprod")},
    "masked.logaddexp": lambda w, x, y, input_mask=None, other_mask=None: masked_logaddexp(w, x, y, input_mask, other_mask),
}


def masked_logaddexp(w: Page, x: Value, y: Value, a: Any, b: Any) -> Value:
    u = x if a is None else w(x.shape, lambda i: f"if {a.wide(i)} then {x[i]} else -inf")
    v = y if b is None else w(y.shape, lambda i: f"if {b.wide(i)} then {y[i]} else -inf")
    return w(shape(u, v), lambda i: f"if {u.wide(i)} == -inf then {v.wide(i)} else if {v.wide(i)} == -inf then {u.wide(i)} "
             f"else log(exp({u.wide(i)}) + exp({v.wide(i)}))")
