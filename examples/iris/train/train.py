"""Trains a logistic regression on Fisher's iris and writes ../model/iris.onnx.

    python -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/python train.py

The model reads `X` f32[N,4] (sepal length and width, petal length and width, in cm) and gives
`label` i64[N] (0 setosa, 1 versicolor, 2 virginica) and `probabilities` f32[N,3]. Without the
option `zipmap: False` skl2onnx would give a list of maps, which no tensor holds.

Held-out accuracy: 0.98 (49 of 50 flowers). The data is scikit-learn's `load_iris` (UCI *Iris*,
R. A. Fisher, CC BY 4.0).
"""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

MODEL = Path(__file__).resolve().parent.parent / "model" / "iris.onnx"


def main():
    iris = load_iris()
    rows, labels = iris.data.astype(np.float32), iris.target
    train, held_out, train_labels, held_out_labels = train_test_split(
        rows, labels, test_size=50, random_state=0, stratify=labels
    )
    classifier = LogisticRegression(max_iter=1000).fit(train, train_labels)
    model = to_onnx(
        classifier,
        train[:1],
        options={"zipmap": False},
        target_opset={"": 17, "ai.onnx.ml": 3},
    )
    # The exporter leaves the batch dimension nameless; a name says that all three agree.
    model.graph.name = "iris"
    for value in [*model.graph.input, *model.graph.output]:
        value.type.tensor_type.shape.dim[0].dim_param = "N"
    # It also names the default operator set twice.
    sets = {imported.domain: imported for imported in model.opset_import}
    model.ClearField("opset_import")
    model.opset_import.extend(sets.values())
    onnx.checker.check_model(model, full_check=True)
    MODEL.parent.mkdir(exist_ok=True)
    MODEL.write_bytes(model.SerializeToString())
    print(f"wrote {MODEL.name}, {MODEL.stat().st_size} bytes")

    session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"X": held_out})
    difference = np.abs(probabilities - classifier.predict_proba(held_out)).max()
    print(f"onnxruntime: greatest difference {difference:.1e}")
    check_tract(held_out, label, probabilities)
    accuracy = float((label == held_out_labels).mean())
    print(f"ACCURACY held-out {accuracy:.2f} ({len(held_out)} flowers)")
    if accuracy < 0.94:
        raise SystemExit("the held-out accuracy is below 0.94")


def check_tract(rows, label, probabilities):
    import tract

    for fact, n in (("N,4,f32", len(rows)), ("1,4,f32", 1)):
        model = tract.onnx().load(str(MODEL))
        model.set_input_fact(0, fact)
        outputs = model.into_model().into_runnable().run([rows[:n]])
        got_label, got_probabilities = (output.to_numpy() for output in outputs)
        difference = float(np.abs(got_probabilities - probabilities[:n]).max())
        print(f"tract, {fact}: greatest difference {difference:.1e}")
        if (got_label != label[:n]).any() or not difference < 1e-5:
            raise SystemExit("the exported model differs in tract")


if __name__ == "__main__":
    main()
