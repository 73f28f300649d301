"""What a library makes of a product is what the kernels make of it, and what the CPU does."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba.cuda")

from chainrule.api.model import Model
from chainrule.runtime.cuda import present
from chainrule.source import Source
from tests.cuda.device import Interpreter

TEXT = """model ended():
    dim batch
    input x[batch, 20]
    a = relu(linear(x, 200))
    b = gelu_tanh(linear(a, 200))
    param W[200, 200] ~ normal(0.2)
    z[n, o] = sum[i] b[n, i] * W[i, o]
    c[n, o] = a[n, o] / 2 - z[n, o]
    output y = linear(c, 3)
    loss = mean[n, o] y[n, o]^2
"""
X = np.random.default_rng(0).normal(size=(40, 20)).astype(np.float32)


@pytest.mark.parametrize("library", [True, False])
def test_a_library_and_the_kernels_end_products_alike(library):
    device = Interpreter(1 << 24)
    if not library:
        device.multiply = lambda product: False
    with present.use(device):
        there, here = Model(Source(TEXT, "m.graph", "ended")), Model(Source(TEXT, "m.graph", "ended"))
        there.to("cuda")
        found, wanted = (m.predict(outputs=("y",), x=X)["y"] for m in (there, here))
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
        steps = [m.compile("adam", rate=0.01, target=t) for m, t in ((there, "cuda"), (here, "cpu"))]
        for _ in range(2):  # by launches, then as a graph
            losses = [float(step(x=X)) for step in steps]
            assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    done = [(p.activation, p.bias is not None, p.added is not None, p.beta) for p in device.multiplied[:4]]
    assert done == (
        [("relu", True, False, 0), ("gelu", True, False, 0), ("", False, True, 0.5), ("", True, False, 0)]
        if library
        else []
    )
