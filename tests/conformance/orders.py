"""Running reductions, order statistics, covariances, and reductions under masks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tests.conformance.elementwise import shape
from tests.conformance.page import (
    NotExpressible,
    Page,
    Value,
    broadcast,
    number,
    swap,
    without,
)
from tests.conformance.reductions import norm_of, normalize, over, softmax, total
from tests.conformance.shapes import copy, ravel, reshape, select

Index = tuple[str, ...]


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
    found = [
        select(w, values, d, k - 1),
        w(without(x.shape, d), lambda i: at[(*i[:d], str(k - 1), *i[d:])], dtype="int"),
    ]
    if keepdim:
        shape = swap(x.shape, d, 1)
        return reshape(w, found[0], shape), w(shape, lambda i: at[swap(i, d, str(k - 1))], dtype="int")
    return found


def median(w: Page, x: Value, dim: int | None = None, keepdim: bool = False) -> Any:
    if dim is None:
        line = ravel(w, x)
        return select(w, ordered(w, line, 0)[0], 0, (x.size - 1) // 2)
    return kthvalue(w, x, (x.shape[x.dim(dim)] + 1) // 2 if x.rank else 1, dim, keepdim)


def quantile(
    w: Page, x: Value, q: Any, dim: int | None = None, keepdim: bool = False, interpolation: str = "linear"
) -> Value:
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
        weight = {
            "linear": f"max(1 - abs({t} - r), 0)",
            "lower": f"(if floor({t}) == r then 1 else 0)",
            "higher": f"(if ceil({t}) == r then 1 else 0)",
            "nearest": f"(if round({t}) == r then 1 else 0)",
            "midpoint": f"((if floor({t}) == r then 1 else 0) + (if ceil({t}) == r then 1 else 0)) / 2",
        }
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
    found = w(
        (x.shape[0],) * 2,
        lambda i: (
            f"(sum[k < {n}] {weight['k']} * ({x[i[0], 'k']} - {m[i[0]]}) * ({x[i[1], 'k']} - {m[i[1]]})) / {below.name}"
        ),
    )
    return reshape(w, found, ()) if rank < 2 or x.shape[0] == 1 else found


def corrcoef(w: Page, x: Value) -> Value:
    c = cov(w, x)
    if not c.rank:
        return w((), lambda i: f"{c.name} / {c.name}")
    return w(c.shape, lambda i: f"{c[i]} / (sqrt({c[i[0], i[0]]}) * sqrt({c[i[1], i[1]]}))")


# reductions of what a mask lets through; elsewhere they see their identity
def masked(kind: str) -> Callable[..., Any]:
    def row(
        w: Page,
        x: Value,
        dim: Any = None,
        keepdim: bool = False,
        mask: Any = None,
        dtype: Any = None,
        unbiased: Any = None,
        correction: Any = None,
        ord: Any = None,
    ) -> Value:
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

    def var(
        w: Page,
        x: Value,
        dim: Any = None,
        unbiased: Any = None,
        keepdim: bool = False,
        mask: Any = None,
        dtype: Any = None,
        correction: Any = None,
    ) -> Value:
        m = mask
        shown = (lambda i: m.wide(i)) if m is not None else (lambda i: "true")
        count = over(w, x, dim, True, lambda r, i, e: f"sum[{r} where {shown(i)}] 1")
        average = over(
            w, x, dim, True, lambda r, i, e: f"(sum[{r} where {shown(i)}] {e}) / sum[{r} where {shown(i)}] 1"
        )
        less = number((0 if unbiased is False else 1) if correction is None else correction)
        squares = over(
            w,
            x,
            dim,
            True,
            lambda r, i, e: f"sum[{r} where {shown(i)}] ({e} - {average.wide(i) if x.rank else average.name})^2",
        )
        found = w(squares.shape, lambda i: f"{squares[i]} / max({count[i]} - {less}, 0)")
        found = w(found.shape, lambda i: f"sqrt({found[i]})") if kind == "std" else found
        if keepdim or not x.rank:
            return found
        return reshape(w, found, [n for d, n in enumerate(x.shape) if d not in x.dims(dim)])

    def norm(
        w: Page, x: Value, ord: Any, dim: Any = None, keepdim: bool = False, mask: Any = None, dtype: Any = None
    ) -> Value:
        fill = math.inf if ord == -math.inf else 0
        y = (
            x
            if mask is None
            else w(broadcast(x.shape, mask.shape), lambda i: f"if {mask.wide(i)} then {x.wide(i)} else {number(fill)}")
        )
        return norm_of(w, y, ord, dim, keepdim)

    return {"var": var, "std": var, "norm": norm}.get(kind, row)


def masked_map(kind: str) -> Callable[..., Any]:
    """Maps along an axis: what is masked counts as the identity."""

    def row(w: Page, x: Value, *args: Any, dim: Any = None, mask: Any = None, dtype: Any = None, **named: Any) -> Value:
        ord_, dim = (
            (args[0], args[1] if len(args) > 1 else dim) if kind == "normalize" else (2, args[0] if args else dim)
        )
        if not x.rank:
            mask = reshape_mask(w, mask) if mask is not None else None
            return reshape(w, row(w, reshape(w, x, (1,)), *((ord_, 0) if kind == "normalize" else (0,)), mask=mask), ())
        fill = {
            "softmax": "-inf",
            "log_softmax": "-inf",
            "softmin": "inf",
            "normalize": "0",
            "cumsum": "0",
            "cumprod": "1",
        }[kind]
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


def masked_logaddexp(w: Page, x: Value, y: Value, a: Any, b: Any) -> Value:
    u = x if a is None else w(x.shape, lambda i: f"if {a.wide(i)} then {x[i]} else -inf")
    v = y if b is None else w(y.shape, lambda i: f"if {b.wide(i)} then {y[i]} else -inf")
    return w(
        shape(u, v),
        lambda i: (
            f"if {u.wide(i)} == -inf then {v.wide(i)} else if {v.wide(i)} == -inf then {u.wide(i)} "
            f"else log(exp({u.wide(i)}) + exp({v.wide(i)}))"
        ),
    )


ROWS: dict[str, Callable[..., Any]] = {
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
    **{
        f"masked.{kind}": masked(kind)
        for kind in ("sum", "prod", "mean", "amax", "amin", "logsumexp", "var", "std", "norm")
    },
    **{
        f"masked.{kind}": masked_map(kind)
        for kind in ("softmax", "log_softmax", "softmin", "normalize", "cumsum", "cumprod")
    },
    "masked.logaddexp": lambda w, x, y, input_mask=None, other_mask=None: masked_logaddexp(
        w, x, y, input_mask, other_mask
    ),
}
