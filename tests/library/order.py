"""Order along the last axis, against PyTorch's."""

from tests.library.rows import Row, wide

SOME = {"k": 2}


def places(x, index):
    """Numbers of places have no gradient."""
    return index.double() + 0 * x.sum()


LIBRARY = {
    "rank": Row("x[n, k]", "float(rank(x))", lambda x: places(x, x.argsort(dim=-1, stable=True).argsort(-1))),
    "sort": Row("x[n, k]", "sort(x)", lambda x: x.sort(-1).values),
    "argsort": Row("x[n, k]", "float(argsort(x))", lambda x: places(x, x.argsort(dim=-1, stable=True))),
    "topk": Row("x[n, k]", "topk(x, 2)", lambda x: x.topk(2).values, SOME),
    "topk_places": Row("x[n, k]", "float(topk_places(x, 2))", lambda x: places(x, x.topk(2).indices), SOME),
    "kthvalue": Row("x[n, k]", "kthvalue(x, 2)", lambda x: x.kthvalue(2).values, SOME),
    "median": Row("x[n, k]", "median(x)", lambda x: x.median(-1).values, SOME),
    "nanmedian": Row("x[n, k]", "nanmedian(x)", lambda x: x.nanmedian(-1).values, SOME),
    "quantile": Row("x[n, k]", "quantile(x, q = 0.3)", lambda x: x.quantile(0.3, -1), {"n": 1, "k": 2}, {"x": wide}),
}

SETTINGS = {
    "sort, descending": Row("x[n, k]", "sort(x, descending = true)", lambda x: x.sort(-1, descending=True).values),
    "topk, least": Row("x[n, k]", "topk(x, 2, largest = false)", lambda x: x.topk(2, largest=False).values, SOME),
}
