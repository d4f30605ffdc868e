"""Trains the digit classifier and writes ../model/digits.onnx.

    python -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/python train.py

The model reads `image` f32[N,1,8,8], ink 0..1, and gives `probs` f32[N,10].

1. Data: scikit-learn's 1,797 handwritten digits; a stratified quarter is held out.
2. Augmentation: every training digit is drawn large, turned, sheared, stretched, made thinner or
   thicker, and brought back to 8x8 just as the function does with a visitor's picture.
3. Training: two convolutions and two dense layers, in numpy, with Adam. Seeds are fixed, and one
   BLAS thread keeps sums in one order, so a machine gives the same model every time.
4. Export with onnx.helper, and a check in onnxruntime and in tract, with N free and N fixed.
"""

import os

for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"

import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SEED = 20
EPOCHS = 30
COPIES = 12  # augmented copies of each training digit
BATCH = 64
CANVAS = 48  # side of the large drawing
MODEL = Path(__file__).resolve().parent.parent / "model" / "digits.onnx"


def main():
    train, held_out, train_labels, held_out_labels, _, _ = split()
    rng = np.random.default_rng(SEED)
    images, labels = augmented(rng, train, train_labels)
    print(f"{len(train)} digits, {len(images)} with augmented copies; {len(held_out)} held out")

    parameters = fit(rng, images, labels, unit_peak(held_out), held_out_labels)
    MODEL.parent.mkdir(exist_ok=True)
    onnx.save(graph(parameters), MODEL)
    print(f"wrote {MODEL.name}, {MODEL.stat().st_size} bytes")

    probs = forward(parameters, unit_peak(held_out)[:, None])[-1]
    check_onnxruntime(unit_peak(held_out), probs)
    check_tract(unit_peak(held_out), probs)
    accuracy = float((probs.argmax(1) == held_out_labels).mean())
    drawn = normalised(enlarged(held_out))
    drawn_accuracy = float((predict(parameters, drawn) == held_out_labels).mean())
    print(f"ACCURACY held-out {accuracy:.4f}, drawn large and brought back {drawn_accuracy:.4f}")
    if accuracy < 0.99:
        raise SystemExit("the held-out accuracy is below 0.99")


# 1. Data


def split():
    """Returns images, labels and indices in the data set, each as (train, held out)."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)
    index = np.arange(len(images))
    return train_test_split(
        images, digits.target, index, test_size=0.25, random_state=0, stratify=digits.target
    )


def unit_peak(images):
    """Divides each image by its own greatest value."""
    return images / images.max(axis=(1, 2), keepdims=True)


# 2. Augmentation


def augmented(rng, images, labels):
    """Returns the images themselves and COPIES altered ones of each, shuffled."""
    large = enlarged(images)
    sets = [unit_peak(images)]
    for _ in range(COPIES):
        altered = normalised(inked(rng, warped(rng, large)))
        shifted = unit_peak(shift(rng, altered, 0.5))
        # Half of them stay where the function would put them.
        sets.append(np.where(rng.random((len(images), 1, 1)) < 0.5, altered, shifted))
    order = rng.permutation(len(sets) * len(images))
    return np.concatenate(sets)[order].astype(np.float32), np.tile(labels, len(sets))[order]


def enlarged(images):
    """Draws 8x8 images smoothly on a CANVAS with a margin."""
    # Catmull-Rom weights of the 8 samples at each point; outside is paper.
    at = (np.arange(CANVAS) + 0.5) / CANVAS * 12 - 2.5
    far = np.abs(at[:, None] - np.arange(8)[None])
    weights = np.where(
        far < 1,
        1.5 * far**3 - 2.5 * far**2 + 1,
        np.where(far < 2, -0.5 * far**3 + 2.5 * far**2 - 4 * far + 2, 0),
    )
    return np.clip(weights @ images @ weights.T, 0, 1)


def warped(rng, large):
    """Turns, shears and stretches each image a little."""
    n = len(large)
    angle = rng.uniform(-0.22, 0.22, n)
    shear = rng.uniform(-0.2, 0.2, n)
    stretch = np.exp(rng.uniform(-0.15, 0.15, (n, 2)))
    cos, sin = np.cos(angle), np.sin(angle)
    centre = (CANVAS - 1) / 2
    y, x = np.mgrid[0:CANVAS, 0:CANVAS] - centre
    y, x = y[None], x[None]
    a = (cos * stretch[:, 0])[:, None, None]
    b = ((shear - sin) * stretch[:, 0])[:, None, None]
    c = (sin * stretch[:, 1])[:, None, None]
    d = (cos * stretch[:, 1])[:, None, None]
    return bilinear(large, c * x + d * y + centre, a * x + b * y + centre)


def inked(rng, large):
    """Draws with another pen: a random threshold (thickness) and a random hardness of the edge."""
    n = (len(large), 1, 1)
    threshold = rng.uniform(0.3, 0.65, n)
    hardness = np.exp(rng.uniform(np.log(1.2), np.log(10), n))
    return np.clip((large - threshold) * hardness + 0.5, 0, 1)


def shift(rng, images, by):
    """Moves each image by a part of a pixel."""
    side = images.shape[1]
    y, x = np.mgrid[0:side, 0:side][:, None] + rng.uniform(-by, by, (2, len(images), 1, 1))
    return bilinear(images, y, x)


def bilinear(images, y, x):
    """Samples images[i] at (y[i], x[i]); outside is paper."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)))
    limit = images.shape[1] + 1
    y, x = np.clip(y + 1, 0, limit), np.clip(x + 1, 0, limit)
    top = np.minimum(y.astype(int), limit - 1)
    left = np.minimum(x.astype(int), limit - 1)
    dy, dx = y - top, x - left
    i = np.arange(len(images))[:, None, None]
    above = padded[i, top, left] * (1 - dx) + padded[i, top, left + 1] * dx
    below = padded[i, top + 1, left] * (1 - dx) + padded[i, top + 1, left + 1] * dx
    return above * (1 - dy) + below * dy


def normalised(large):
    """Crops each image to its ink, centres it in a square and averages it down to 8x8."""
    return np.stack([to_8x8(image) for image in large]).astype(np.float32)


def to_8x8(image):
    dark = image > image.max() / 4
    rows, columns = np.flatnonzero(dark.any(1)), np.flatnonzero(dark.any(0))
    crop = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = crop.shape
    side = max(height, width)
    square = np.zeros((side, side))
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = crop
    edges = np.arange(9) * side / 8
    pixel = np.arange(side)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    overlap = np.clip(overlap, 0, None)
    small = overlap @ square @ overlap.T
    return small / small.max()


# 3. Training


def fit(rng, images, labels, held_out, held_out_labels):
    """Trains for EPOCHS and returns the running average of the parameters."""
    parameters = initial(rng)
    average = [p.copy() for p in parameters]
    first = [np.zeros_like(p) for p in parameters]
    second = [np.zeros_like(p) for p in parameters]
    steps = EPOCHS * (len(images) // BATCH)
    step, started = 0, time.time()
    for epoch in range(EPOCHS):
        order = rng.permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            step += 1
            batch = order[start : start + BATCH]
            gradients = backward(rng, parameters, images[batch][:, None], labels[batch])
            rate = 2e-3 * 0.5 * (1 + np.cos(np.pi * step / steps))
            keep = min(0.995, step / (step + 10))
            for p, g, m, v, a in zip(parameters, gradients, first, second, average):
                m += 0.1 * (g - m)
                v += 0.001 * (g * g - v)
                p -= rate * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
                p -= rate * 1e-2 * p
                a += (1 - keep) * (p - a)
        if epoch % 5 == 4:
            accuracy = (predict(average, held_out) == held_out_labels).mean()
            print(f"epoch {epoch + 1}: held-out {accuracy:.4f}, {time.time() - started:.0f} s")
    return average


def initial(rng):
    shapes = [(16, 1, 3, 3), (16,), (32, 16, 3, 3), (32,), (512, 64), (64,), (64, 10), (10,)]
    fans = [9, None, 144, None, 512, None, 64, None]
    return [
        (rng.standard_normal(s) * np.sqrt(2 / f) if f else np.zeros(s)).astype(np.float32)
        for s, f in zip(shapes, fans)
    ]


def patches(x):
    """[N,C,H,W] -> [N*H*W, C*9], the 3x3 neighbourhood of every point."""
    n, c, h, w = x.shape
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return windows.transpose(0, 2, 3, 1, 4, 5).reshape(n * h * w, c * 9)


def convolve(columns, weight, bias, n):
    """The convolution of an 8x8 image given as `patches`, then the rectifier."""
    out = np.maximum(columns @ weight.reshape(len(weight), -1).T + bias, 0)
    return out.reshape(n, 8, 8, -1).transpose(0, 3, 1, 2)


def forward(parameters, x, drop=None):
    w1, b1, w2, b2, w3, b3, w4, b4 = parameters
    n = len(x)
    columns1 = patches(x)
    h1 = convolve(columns1, w1, b1, n)
    columns2 = patches(h1)
    h2 = convolve(columns2, w2, b2, n)
    cells = h2.reshape(n, 32, 4, 2, 4, 2)
    pooled = cells.max(axis=(3, 5))
    flat = pooled.reshape(n, 512)
    h3 = np.maximum(flat @ w3 + b3, 0)
    if drop is not None:
        h3 = h3 * drop
    logits = h3 @ w4 + b4
    exp = np.exp(logits - logits.max(1, keepdims=True))
    return columns1, h1, columns2, h2, pooled, flat, h3, exp / exp.sum(1, keepdims=True)


def backward(rng, parameters, x, labels):
    """Gradients of the cross entropy, labels smoothed by 0.05, a quarter of the units dropped."""
    _, _, w2, _, w3, _, w4, _ = parameters
    n = len(x)
    drop = ((rng.random((n, 64)) < 0.75) / 0.75).astype(np.float32)
    columns1, h1, columns2, h2, pooled, flat, h3, probs = forward(parameters, x, drop)
    target = np.full((n, 10), 0.005, np.float32)
    target[np.arange(n), labels] += 0.95
    d = (probs - target) / n
    g4, gb4 = h3.T @ d, d.sum(0)
    d = (d @ w4.T) * drop * (h3 > 0)
    g3, gb3 = flat.T @ d, d.sum(0)
    d = (d @ w3.T).reshape(pooled.shape)
    winner = h2.reshape(n, 32, 4, 2, 4, 2) == pooled[:, :, :, None, :, None]
    d = (winner * d[:, :, :, None, :, None]).reshape(n, 32, 8, 8) * (h2 > 0)
    rows = d.transpose(0, 2, 3, 1).reshape(-1, 32)
    g2, gb2 = (rows.T @ columns2).reshape(w2.shape), rows.sum(0)
    # The gradient of a 3x3 convolution is the convolution with the turned kernel.
    turned = w2[:, :, ::-1, ::-1].transpose(1, 0, 2, 3).reshape(16, -1)
    d = (patches(d) @ turned.T).reshape(n, 8, 8, 16).transpose(0, 3, 1, 2) * (h1 > 0)
    rows = d.transpose(0, 2, 3, 1).reshape(-1, 16)
    g1, gb1 = (rows.T @ columns1).reshape(16, 1, 3, 3), rows.sum(0)
    return g1, gb1, g2, gb2, g3, gb3, g4, gb4


def predict(parameters, images):
    return forward(parameters, images[:, None].astype(np.float32))[-1].argmax(1)


# 4. Export


def graph(parameters):
    names = ["conv1.w", "conv1.b", "conv2.w", "conv2.b", "fc1.w", "fc1.b", "fc2.w", "fc2.b"]
    weights = [numpy_helper.from_array(p, name) for p, name in zip(parameters, names)]
    pads = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    halve = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Conv", ["image", "conv1.w", "conv1.b"], ["c1"], "conv1", **pads),
        helper.make_node("Relu", ["c1"], ["h1"], "relu1"),
        helper.make_node("Conv", ["h1", "conv2.w", "conv2.b"], ["c2"], "conv2", **pads),
        helper.make_node("Relu", ["c2"], ["h2"], "relu2"),
        helper.make_node("MaxPool", ["h2"], ["pooled"], "pool", **halve),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten", axis=1),
        helper.make_node("Gemm", ["flat", "fc1.w", "fc1.b"], ["d1"], "fc1"),
        helper.make_node("Relu", ["d1"], ["h3"], "relu3"),
        helper.make_node("Gemm", ["h3", "fc2.w", "fc2.b"], ["logits"], "fc2"),
        helper.make_node("Softmax", ["logits"], ["probs"], "softmax", axis=1),
    ]
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "digits",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 1, 8, 8])],
            [helper.make_tensor_value_info("probs", TensorProto.FLOAT, ["N", 10])],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
        producer_name="sandpiper-digits",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def check_onnxruntime(images, probs):
    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    for batch in (1, 2, len(images)):
        (got,) = session.run(["probs"], {"image": images[:batch, None]})
        same(got, probs[:batch], f"onnxruntime, N={batch}")


def check_tract(images, probs):
    import tract

    for fact, batches in (("N,1,8,8,f32", (1, 2, len(images))), ("1,1,8,8,f32", (1,))):
        model = tract.onnx().load(str(MODEL))
        model.set_input_fact(0, fact)
        plan = model.into_model().into_runnable()
        for batch in batches:
            (got,) = plan.run([np.ascontiguousarray(images[:batch, None])])
            same(got.to_numpy(), probs[:batch], f"tract, {fact}, N={batch}")


def same(got, expected, where):
    difference = float(np.abs(got - expected).max())
    print(f"{where}: greatest difference {difference:.1e}")
    if not difference < 1e-5:
        raise SystemExit("the exported model differs")


if __name__ == "__main__":
    main()
