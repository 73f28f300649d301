"""Programs of models as users write them: derived, optimized, scheduled, and compared with the reference."""

from __future__ import annotations

import pytest

from chainrule import compiler
from chainrule.ir.validate_program import validate_program
from chainrule.options import Options
from chainrule.schedule import schedule
from chainrule.source import Source
from tests.schedule.laws import assert_law

MODELS = {
    "classifier": """
model classifier(hidden = 8):
    dim batch
    input x[batch, 6]
    input label[batch] : index 5
    h      = relu(linear(x, hidden))
    logits = linear(h, 5)
    loss   = mean(cross_entropy(logits, label))
    output accuracy = mean(argmax[k] logits[*, k] == label[*])
""",
    "regression": """
model regression:
    dim batch
    input x[batch, 3]
    input y[batch, 2]
    z    = linear(tanh(linear(x, 16)), 2)
    loss = sum[n, o] (z[n, o] - y[n, o])^2
""",
}


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("name", MODELS)
def test_a_training_step_keeps_the_law(name: str, optimizer: str) -> None:
    graph = compiler.derive(Source(MODELS[name], "test.graph"), Options("train", optimizer=optimizer)).graph
    for hint in (1, 32, 10**5):
        program = schedule(graph, training=True, sizes={"batch": hint})
        validate_program(program)
        assert_law(graph, {"batch": 3}, program=program, blocks=reversed)


def test_a_prediction_keeps_the_law() -> None:
    options = Options("predict", outputs=("logits", "accuracy"))
    graph = compiler.derive(Source(MODELS["classifier"], "test.graph"), options).graph
    program = schedule(graph, training=False)
    validate_program(program)
    assert_law(graph, {"batch": 4}, program=program)
