"""Training in float64 goes as in PyTorch, step by step: the same weights, data, draws and optimizer, the same losses.

The twins in tests/references are written from the papers. Sizes are those of a quick run; `python -m tests.references
NAME --agree 50` takes the recipe's own.
"""

from __future__ import annotations

from functools import cache

import pytest

from chainrule.errors import ChainruleError

torch = pytest.importorskip("torch")

from tests.references import agreement, twins, weights  # noqa: E402

STEPS = 50
BOUND = 1e-6  # relative; what is found is 1e-12 or less, see docs/models.md
SMALLER = {"lenet": {"channels": 4, "hidden": 16}}


@cache
def trained(name):
    torch.set_num_threads(1)
    try:
        return agreement.compared(name, STEPS, arguments=SMALLER.get(name))
    except ChainruleError as error:
        if "not installed here" in str(error):
            pytest.skip(str(error).splitlines()[0])
        raise


@pytest.mark.parametrize("name", twins.TWINS)
def test_losses_are_those_of_pytorch_step_by_step(name):
    found = trained(name)
    assert len(found.ours) == STEPS
    assert found.ours[-1] < found.ours[0]
    assert found.losses_apart < BOUND


@pytest.mark.parametrize("name", twins.TWINS)
def test_parameters_and_running_statistics_end_where_pytorch_s_do(name):
    found = trained(name)
    assert found.stores_apart < BOUND
    assert any("running_var" in path for path, _, _ in found.stores) == (name == "resnet20")


def test_another_mask_of_dropout_is_noticed(monkeypatch):
    drawn = weights.drawn
    monkeypatch.setattr(weights, "drawn", lambda key, shape, seed, step: drawn(key, shape, seed, step + 1))
    assert agreement.compared("gcn", 3).losses_apart > BOUND
