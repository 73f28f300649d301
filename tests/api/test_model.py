"""Models and steps as their users meet them: what they take, give back, keep, refuse, and how they show themselves."""

from __future__ import annotations

import os
import threading
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

import numpy as np
import pytest

import chainrule as cr

X = np.random.default_rng(0).normal(size=(5, 6))
LABEL = np.array([0, 1, 2, 0, 1])


def network(**more):
    x = cr.input("x", [cr.dim("batch"), 6])
    label = cr.input("label", [cr.dim("batch")], index=3)
    logits = cr.linear(x, 3, name="logits")
    return cr.Model(cr.mean(cr.cross_entropy(logits, label)), logits=logits, **more)


@pytest.fixture
def model():
    return network()


@pytest.fixture
def step(model):
    return model.compile("sgd", rate=0.1, seed=0)


# ---------------------------------------------------------------- what a step takes


@dataclass
class WithArray:
    of: np.ndarray

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.of, dtype)


@dataclass
class WithDLPack:
    of: np.ndarray

    def __dlpack__(self, **how):
        return self.of.__dlpack__(**how)

    def __dlpack_device__(self):
        return self.of.__dlpack_device__()


def of_jax(array):
    jnp = pytest.importorskip("jax.numpy")
    return jnp.asarray(array)


def of_torch(array):
    torch = pytest.importorskip("torch")
    return torch.tensor(array)


KINDS = {
    "lists": np.ndarray.tolist,
    "__array__": WithArray,
    "DLPack": WithDLPack,
    "jax": of_jax,
    "torch": of_torch,
    "the other byte order": lambda a: a.astype(a.dtype.newbyteorder()),
    "reversed": lambda a: a[::-1].copy()[::-1],
    "Fortran's order": np.asfortranarray,
    "read-only": lambda a: np.broadcast_to(a, a.shape),
    "fewer bits": lambda a: a.astype(np.float32) if a.dtype.kind == "f" else a.astype(np.int32),
    "other integers": lambda a: a if a.dtype.kind == "f" else a.astype(np.uint8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_takes_whatever_holds_the_same_numbers(step, kind):
    expected = step(x=X.astype(np.float32), label=LABEL)
    step.steps, step.params["logits.linear.W"] = 0, network().compile("sgd", rate=0.1, seed=0).params["logits.linear.W"]
    step.params["logits.linear.b"] = np.zeros(3)
    assert step(x=KINDS[kind](X), label=KINDS[kind](LABEL)) == expected


def test_what_is_passed_is_not_changed_and_what_comes_back_is_a_copy(model):
    step = model.compile("sgd", rate=0.1, outputs=["logits"], seed=0)
    x, label = X.astype(np.float32), LABEL.copy()
    _, logits = step(x=x, label=label)
    seen = logits.copy()
    logits[:] = 7
    _, again = step(x=x, label=label)
    assert (x == X.astype(np.float32)).all() and (label == LABEL).all()
    assert not (again == 7).any()
    first = model.predict(outputs=["logits"], x=x)["logits"]
    model.predict(outputs=["logits"], x=2 * x)
    assert (model.predict(outputs=["logits"], x=x)["logits"] == first).all()
    assert not (seen == again).all()  # the parameters have moved


WRONG = {
    "a label that is no integer": (
        {"x": X, "label": LABEL + 0.5},
        ["input label has dtype float64, int64 is declared", "shape (5,)", "label.astype('int64')"],
    ),
    "complex numbers": ({"x": X + 1j, "label": LABEL}, ["input x has dtype complex128", "x.astype('float32')"]),
    "words": ({"x": "words", "label": LABEL}, ["input x has dtype <U5"]),
    "nothing": ({"x": None, "label": LABEL}, ["input x has dtype object"]),
    "rows of different length": ({"x": [[1, 2], [3]], "label": LABEL}, ["input x cannot be read as an array", "list"]),
    "integers too large": ({"x": X, "label": np.full(5, 2**63, np.uint64)}, ["input label has dtype uint64"]),
    "a missing input": ({"x": X}, ["input label is missing", "given: x", "pass x, label"]),
    "an unknown input": ({"x": X, "lable": LABEL}, ["no input 'lable'", "did you mean 'label'?", "pass x, label"]),
    "a wrong extent": (
        {"x": X[:, :5], "label": LABEL},
        ["x has shape (5, 5)", "x[batch, 6]", "pass x with shape (5, 6)"],
    ),
    "extents that disagree": (
        {"x": X[:3], "label": LABEL},
        ["label has shape (5,)", "label[batch]", "batch = 3, from input x of shape (3, 6)"],
    ),
    "a wrong rank": ({"x": X[0], "label": LABEL}, ["input x has 1 axes, 2 are declared", "shape (6,)", "x[batch, 6]"]),
    "a label out of range": (
        {"x": X, "label": LABEL + 1},
        ["input label holds an index that is out of range", "label[2] is 3, and 0 <= label < 3", "no step was done"],
    ),
    "a symbolic tensor": ({"x": cr.input("x", [5, 6]), "label": LABEL}, ["input x cannot be read", "is symbolic"]),
}


@pytest.mark.parametrize("problem", WRONG)
def test_what_does_not_fit_is_named_with_a_way_out_and_nothing_changes(step, problem):
    before = dict(step.params)
    batch, told = WRONG[problem]
    with pytest.raises(cr.ChainruleError) as error:
        step(**batch)
    for words in [*told, "Way out"]:
        assert words in str(error.value)
    assert error.traceback[0].path.samefile(__file__)
    assert step.steps == 0
    assert all((step.params[name] == value).all() for name, value in before.items())


REFUSED = {
    "an unknown optimizer": (lambda m: m.compile("sgdd"), "did you mean 'sgd'"),
    "an unknown argument of it": (lambda m: m.compile("sgd", rte=0.1), "did you mean 'rate'"),
    "an argument that is no number": (lambda m: m.compile("sgd", rate=[1]), "neither a tensor nor a number"),
    "an unknown output": (lambda m: m.compile(outputs=["logit"]), "did you mean 'logits'"),
    "an unknown loss": (lambda m: m.compile(loss="los"), "did you mean 'loss'"),
    "a loss that is no number": (lambda m: m.compile(loss="logits"), "logits is [batch, 3], and a loss is one number"),
    "another target": (lambda m: m.compile(target="tpu"), "target='cpu' or 'cuda'"),
    "another dtype": (lambda m: m.compile(dtype="float16"), "float32"),
    "no threads": (lambda m: m.compile(threads=0), "from 1 to"),
    "threads in words": (lambda m: m.compile(threads="two"), "from 1 to"),
    "the gradient of a label": (lambda m: cr.grad(m, wrt=["label"])(x=X, label=LABEL), "label is int"),
    "the gradient of nothing": (lambda m: cr.grad(m, wrt=["logit"])(x=X, label=LABEL), "did you mean 'logits'"),
    "a prediction of nothing": (lambda m: m.predict(outputs=["logit"], x=X), "did you mean 'logits'"),
    "a prediction from nothing": (lambda m: m.predict(outputs=["logits"]), "input x is missing"),
    "no such file": (lambda _: cr.load("nowhere.graph"), "nowhere.graph cannot be read"),
    "an argument of a file": (lambda _: cr.load("nowhere.graph", width=[1]), "neither a tensor nor a number"),
}


@pytest.mark.parametrize("problem", REFUSED)
def test_what_cannot_be_done_is_said_at_the_line_that_asks_for_it(model, problem):
    ask, told = REFUSED[problem]
    with pytest.raises(cr.ChainruleError) as error:
        ask(model)
    assert told in str(error.value)
    assert error.traceback[0].path.samefile(__file__)


# ---------------------------------------------------------------- what is asked of a model


def test_a_prediction_needs_only_the_inputs_upstream_of_it(model):
    alone = model.predict(outputs=["logits"], x=X)["logits"]
    assert (model.predict(outputs="logits", x=X, label=LABEL)["logits"] == alone).all()
    assert model.predict(x=X, label=LABEL).keys() == {"loss", "logits"}


def test_a_model_may_name_its_loss_or_have_none(model):
    x = cr.input("x", [cr.dim("batch"), 6])
    assert cr.Model(loss=cr.mean(x)).source.text == cr.Model(cr.mean(x)).source.text
    assert np.allclose(cr.Model(double=2 * x).predict(x=X)["double"], 2 * X)
    with pytest.raises(cr.ChainruleError, match="without outputs"):
        cr.Model()


def test_gradients_are_plain_functions_of_parameters_and_inputs(model):
    f, g = cr.value_and_grad(model, dtype="float64"), cr.grad(model, wrt=["x"], dtype="float64")
    given = {"logits.linear.W": np.eye(6, 3), "logits.linear.b": np.arange(3)}
    before = dict(model.params)
    loss, gradients = f(given, x=X, label=LABEL)
    z = X @ given["logits.linear.W"] + given["logits.linear.b"]
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    assert loss == pytest.approx(-np.log(p[range(5), LABEL]).mean(), rel=1e-12)
    z_bar = (p - np.eye(3)[LABEL]) / 5
    assert np.allclose(gradients["logits.linear.W"], X.T @ z_bar, rtol=1e-12, atol=1e-14)
    assert np.allclose(gradients["logits.linear.b"], z_bar.sum(0), rtol=1e-12, atol=1e-14)
    assert np.allclose(g(given, x=X, label=LABEL)["x"], z_bar @ given["logits.linear.W"].T, rtol=1e-12, atol=1e-14)
    assert all((model.params[name] == value).all() for name, value in before.items())
    assert f(x=X, label=LABEL)[0] == f(before, x=X, label=LABEL)[0] == f({}, x=X, label=LABEL)[0]


NOISY = """model noisy:
    dim batch
    input x[batch, 4]
    state seen = 0
    d = dropout(linear(x, 64), rate = 0.5)
    seen <- 0.9 * seen + sum(d^2)
    loss = mean(d^2) + seen
"""


def test_to_look_at_gradients_changes_nothing(tmp_path):
    (tmp_path / "noisy.graph").write_text(NOISY)
    model = cr.load(tmp_path / "noisy.graph")
    step = model.compile("adam", seed=3)
    x = X[:, :4]
    step(x=x)
    before, seen, f = dict(step.params), step.states["seen"], cr.value_and_grad(model)
    first, second = model.gradients(x=x)[0], f(x=x)[0]
    assert first == model.gradients(x=x)[0] == second == f(x=x)[0]
    assert (step.steps, step.states["seen"]) == (1, seen)
    assert all((step.params[name] == value).all() for name, value in before.items())


def test_one_model_has_one_set_of_parameters_whatever_the_dtype(model):
    step = model.compile("sgd", rate=0.5, dtype="float64", seed=0)
    for _ in range(3):
        step(x=X, label=LABEL)
    wanted = step.predict(outputs=["logits"], x=X)["logits"]
    assert (model.predict(outputs=["logits"], x=X)["logits"] == wanted).all()
    assert model.params["logits.linear.W"].dtype == np.float64
    assert np.allclose(model.predict(outputs=["logits"], dtype="float32", x=X)["logits"], wanted, atol=1e-5)
    single = model.compile("sgd", rate=0.5)
    assert single.params["logits.linear.W"].dtype == np.float32
    assert np.allclose(single.predict(outputs=["logits"], x=X)["logits"], wanted, atol=1e-5)
    single.params["logits.linear.b"] = [5, 6, 7]
    assert (model.predict(outputs=["logits"], dtype="float64", x=0 * X)["logits"] == [5, 6, 7]).all()


def test_threads_of_python_may_share_a_step(step):
    before, failed = step.steps, []

    def work():
        try:
            for size in (1, 3, 5):
                step(x=X[:size], label=LABEL[:size])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert step.steps == before + 12


# ---------------------------------------------------------------- parameters


def test_parameters_are_a_mapping_that_reads_copies_and_writes_in_place(model, step):
    assert list(step.params) == ["logits.linear.W", "logits.linear.b"]
    taken = step.params["logits.linear.b"]
    taken[:] = 9
    assert not step.params["logits.linear.b"].any()
    model.params["logits.linear.b"] = [1, 2, 3]
    assert step.params["logits.linear.b"].tolist() == [1, 2, 3]
    assert (step.predict(outputs=["logits"], x=0 * X)["logits"] == [1, 2, 3]).all()
    assert "bias" not in step.params
    assert step.params.get("bias") is None
    with pytest.raises(KeyError, match="there is no parameter 'bias'"):
        step.params["bias"]
    with pytest.raises(cr.ChainruleError, match=r"shape \(3,\), given: \(2,\)"):
        step.params["logits.linear.b"] = [1, 2]
    with pytest.raises(cr.ChainruleError, match="belongs to the model"):
        del step.params["logits.linear.b"]
    step.scalars["rate"] = 0
    step(x=X, label=LABEL)
    assert step.params["logits.linear.b"].tolist() == [1, 2, 3]
    with pytest.raises(cr.ChainruleError, match="scalar rate is a number, given: 'fast'"):
        step.scalars["rate"] = "fast"


def test_parameters_are_saved_and_read_to_the_last_bit(model, step, tmp_path):
    step(x=X, label=LABEL)
    model.save(tmp_path / "model.safetensors")
    other = network()
    other.restore(tmp_path / "model.safetensors")
    assert all(other.params[name].tobytes() == value.tobytes() for name, value in step.params.items())
    assert os.listdir(tmp_path) == ["model.safetensors"]
    safetensors = pytest.importorskip("safetensors.numpy")
    found = safetensors.load_file(tmp_path / "model.safetensors")  # a file as any other of that format
    safetensors.save_file({name: 2 * value for name, value in found.items()}, tmp_path / "other.safetensors")
    other.restore(tmp_path / "other.safetensors")
    assert (other.params["logits.linear.W"] == 2 * step.params["logits.linear.W"]).all()


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: flipped(data, 3),
        lambda data: flipped(data, 20),
        lambda data: flipped(data, len(data) - 5),
        lambda data: data + b"more",
        lambda data: b"\x80\x04K\x01.",  # a pickle
    ],
)
def test_a_damaged_file_of_parameters_is_found_and_nothing_is_taken_from_it(model, step, tmp_path, damage):
    step(x=X, label=LABEL)
    path = tmp_path / "model.safetensors"
    model.save(path)
    path.write_bytes(damage(path.read_bytes()))
    other = network()
    before = dict(other.params)
    with pytest.raises(cr.ChainruleError, match=r"model.safetensors (cannot be read|is damaged)(.|\n)*Way out"):
        other.restore(path)
    assert all((other.params[name] == value).all() for name, value in before.items())


def test_parameters_of_another_model_are_refused_by_name_and_by_shape(model, tmp_path):
    path = tmp_path / "other.safetensors"
    x = cr.input("x", [cr.dim("batch"), 6])
    cr.Model(cr.mean(cr.linear(x, 3, name="z"))).save(path)
    with pytest.raises(cr.ChainruleError, match=r"missing: logits.linear.W(.|\n)*unknown: z.linear.W"):
        model.restore(path)
    cr.Model(cr.mean(cr.linear(x, 4, name="logits"))).save(path)
    before = dict(model.params)
    with pytest.raises(cr.ChainruleError, match=r"shape \(6, 3\), given: \(6, 4\)"):
        model.restore(path)
    assert all((model.params[name] == value).all() for name, value in before.items())
    with pytest.raises(cr.ChainruleError, match="cannot be written"):
        model.save(tmp_path / "no" / "folder")


# ---------------------------------------------------------------- what they look like


def words(html):
    assert html.startswith("<svg")
    return " ".join(ElementTree.fromstring(html).itertext())


def test_a_notebook_shows_pictures(model, step):
    assert "logits" in words(model._repr_html_())
    assert "logits.linear.W_bar" in words(step._repr_html_())
    x = cr.input("x", [cr.dim("batch"), 6])
    shown = words(cr.tanh(2 * x, name="h")._repr_html_())
    assert "tanh" in shown


def test_where_no_picture_can_be_drawn_a_notebook_shows_why():
    x = cr.input("x", [3])
    shown = cr.Model(cr.mean(cr.formula("y[i] = x[i] < & <b>", x=x)))._repr_html_()
    assert shown.startswith("<pre>")
    assert "&lt;b&gt;" in shown


def test_text_shows_what_it_is(model, step, tmp_path):
    assert repr(model) == "Model(<network>)"
    assert repr(step) == "Step(Model(<network>), sgd, float32: x, label -> loss)"
    assert repr(step.params) == "{logits.linear.W[6, 3], logits.linear.b[3]}"
    (tmp_path / "noisy.graph").write_text(NOISY)
    assert repr(cr.load(tmp_path / "noisy.graph", width=np.int64(3))).endswith("noisy.graph, width=3)")


def test_an_input_that_the_loss_does_not_depend_on_may_be_given(tmp_path):
    text = "model m:\n    dim n\n    input x[n, 2]\n    input label[n] : index 3\n    loss = mean(linear(x, 1))\n"
    (tmp_path / "m.graph").write_text(text + "    output first = mean[n] float(label[n])\n")
    step = cr.load(tmp_path / "m.graph").compile()
    x, label = np.ones((4, 2)), np.arange(4) % 3
    step(x=x, label=label)
    assert step.run(2, x=x, label=label).shape == (2,)
    assert step.predict(x=x, label=label, outputs=["first"])["first"] == 0.75
