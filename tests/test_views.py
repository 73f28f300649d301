"""What is asked of a model besides running it: the check of its gradients at a point that it chooses."""

import pytest

from chainrule import views
from chainrule.errors import SourceError
from chainrule.options import Options
from chainrule.source import Source

ASKED = Options("gradient", dtype="float64")


def source(*lines):
    head = ("model m:", "    dim n", "    input x[n, 3]", "    param w[3] ~ ones")
    return Source("\n".join((*head, *(f"    {line}" for line in lines))) + "\n", "m.graph")


def test_a_state_that_was_updated_is_held_while_the_gradients_are_checked():
    report = views.check(
        source("state s[3] = 1", "m[j] = sum[n] x[n, j] * w[j]", "s[j] <- s[j] + m[j]", "loss = sum[j] s[j] * w[j]"),
        ASKED,
    )
    assert report.passed
    assert report.worst < 1e-9


def test_a_loss_that_is_no_number_is_told_with_the_place_where_it_begins():
    mask = "mask[n, j] = if j > 0 then -inf else x[n, j]"  # infinite, as is meant
    with pytest.raises(SourceError) as caught:
        views.check(
            source(mask, "a[n] = sum[j] log(-1 - x[n, j]^2) * exp(mask[n, j])", "loss = sum[n] a[n] * w[0]"), ASKED
        )
    assert str(caught.value).startswith("m.graph:6:5: loss is nan at the points tried")
    assert "a is the first tensor that is not finite" in str(caught.value)
