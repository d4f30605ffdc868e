"""Models as scikit-learn's converter writes them by default: `ZipMap`, `Scaler`, integer labels and all.

`models()` yields (file, about, ModelProto, runs) for onnx_models.py. Nothing is set but what makes training short, so
that these are the files a user of `skl2onnx.to_onnx(estimator, X[:1])` has.
"""

import warnings

import numpy as np
from sklearn.cluster import KMeans
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    Binarizer,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    OrdinalEncoder,
    PolynomialFeatures,
    StandardScaler,
)
from sklearn.svm import SVR, LinearSVC
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from skl2onnx import to_onnx

ROWS = 24


def estimators():
    """(name, estimator, features, labels); -1 stands for a missing value, since NaN cannot be in JSON."""
    scaled = StandardScaler
    logistic = LogisticRegression(max_iter=300)
    iris, cancer = load_iris(return_X_y=True), load_breast_cancer(return_X_y=True)
    diabetes = load_diabetes(return_X_y=True)
    classifiers = {
        "logistic": logistic,
        "scaled-logistic": make_pipeline(scaled(), logistic),
        "minmax-logistic": make_pipeline(MinMaxScaler(), logistic),
        "normalised-logistic": make_pipeline(Normalizer(), logistic),
        "imputed-logistic": make_pipeline(SimpleImputer(missing_values=-1.0), scaled(), logistic),
        "selected-logistic": make_pipeline(SelectKBest(k=2), scaled(), logistic),
        "polynomial-logistic": make_pipeline(scaled(), PolynomialFeatures(2), logistic),
        "components-logistic": make_pipeline(scaled(), PCA(2), logistic),
        "sgd": make_pipeline(scaled(), SGDClassifier(loss="log_loss", random_state=0)),
        "linear-svc": LinearSVC(max_iter=20000),
        "tree": DecisionTreeClassifier(max_depth=4, random_state=0),
        "forest": RandomForestClassifier(10, max_depth=5, random_state=0),
        "boosting": GradientBoostingClassifier(n_estimators=10, random_state=0),
        "mlp": make_pipeline(scaled(), MLPClassifier((16,), max_iter=60, random_state=0)),
        "bayes": GaussianNB(),
        "neighbours": KNeighborsClassifier(),
    }
    for data, (features, labels) in (("iris", iris), ("cancer", cancer)):
        for name, estimator in classifiers.items():
            # Of 30 features it makes 496, each by nodes of its own, over which the backend takes longer than a trial may.
            if (data, name) == ("cancer", "polynomial-logistic"):
                continue
            yield f"{data}-{name}", estimator, features, labels
    regressors = {
        "linear": LinearRegression(),
        "scaled-linear": make_pipeline(scaled(), LinearRegression()),
        "tree": DecisionTreeRegressor(max_depth=4, random_state=0),
        "forest": RandomForestRegressor(10, max_depth=5, random_state=0),
        "boosting": GradientBoostingRegressor(n_estimators=10, random_state=0),
        "svr": SVR(),
    }
    for name, estimator in regressors.items():
        yield f"diabetes-{name}", estimator, *diabetes
    pair = np.stack([diabetes[1], -diabetes[1]], axis=1)
    yield "diabetes-two-targets", DecisionTreeRegressor(max_depth=3, random_state=0), diabetes[0], pair
    yield "iris-kmeans", make_pipeline(scaled(), KMeans(3, n_init=1, random_state=0)), iris[0], None
    yield "iris-components", PCA(2), iris[0], None
    yield "iris-scaler", scaled(), iris[0], None
    yield "iris-binarizer", Binarizer(threshold=2.0), iris[0], None
    yield "iris-labels", DecisionTreeClassifier(max_depth=3, random_state=0), iris[0], iris[1] * 10 - 5
    whole = np.round(iris[0]).astype(np.int64)
    yield "iris-one-hot", make_pipeline(OneHotEncoder(handle_unknown="ignore"), logistic), whole, iris[1]
    yield "iris-ordinal", make_pipeline(OrdinalEncoder(), logistic), whole, iris[1]


def models():
    for name, estimator, features, labels in estimators():
        features = features if features.dtype == np.int64 else features.astype(np.float32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            estimator.fit(features, labels)
            model = to_onnx(estimator, features[:1])
        rows = features[np.random.default_rng(1).permutation(len(features))[:ROWS]].copy()
        if "imputed" in name:
            rows[3, 1] = -1
        value = model.graph.input[0].name
        yield f"sklearn-{name}.onnx", f"{estimator}", model, [{value: rows}, {value: rows[:1]}]
