"""Generation with a cache of keys and values: place by place, what attention gives all at once."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from chainrule.api.model import Model
from chainrule.source import Source

PAGE = (Path(__file__).parents[2] / "docs" / "language.md").read_text("utf-8")
WHOLE = "model whole:\n    dim n, t\n    input x[n, t, 8]\n    output y = multi_head(x, heads = 2)\n"


def test_places_one_by_one_give_what_all_at_once_give():
    (text,) = (block for block in re.findall(r"```graph\n(.*?)```", PAGE, re.DOTALL) if "model generate" in block)
    whole, part = Model(Source(WHOLE, "whole.graph")), Model(Source(text, "generate.graph"))
    whole.dtype = part.dtype = "float64"
    rng = np.random.default_rng(0)
    for name, value in whole.params.items():
        drawn = rng.normal(size=value.shape)
        whole.params[name] = part.params[name.replace("multi_head", "cached_multi_head")] = drawn
    x = rng.normal(size=(3, 5, 8))
    expected = whole.predict(outputs=("y",), x=x)["y"]
    keys = values = np.zeros((3, 2, 0, 4))
    found = []
    for places in (x[:, :2], x[:, 2:3], x[:, 3:4], x[:, 4:]):  # a prompt of two, then one at a time
        result = part.predict(x=places, past_keys=keys, past_values=values)
        keys, values = result["keys"], result["values"]
        found.append(result["y"])
    np.testing.assert_allclose(np.concatenate(found, 1), expected, rtol=1e-12, atol=1e-12)
