"""What retrieval is compared with: fitted on the same training spots, asked about the same spots, in the same scale."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.folds import cut_folds, fold_groups
from genrag_cli.backbones.probe import fit_folds
from genrag_cli.pipeline.tuning.data import BankData
from genrag_cli.pipeline.tuning.model import Fit
from genrag_cli.types import Floats, Ints

NEIGHBOURS = 50
Predict = Callable[[Ints], Floats]
"""(r, g) of rows of the bank's data."""


def ridge_from_embedding(plain: Fit, genes: Ints) -> Predict:
    """Ridge regression from the standardised embedding straight to every gene, as the bank's heads are fitted.

    Args:
        plain: a fit on features without neighbours.
        genes: (g,) columns of the bank's genes.
    """
    return _ridge(plain.data, plain.train, plain.features, genes)


def ridge_from_anchors(plain: Fit, genes: Ints) -> Predict:
    """Ridge regression from measured anchors to every gene, fed with the first guess of the anchors."""
    data = plain.data
    measured = np.asarray(data.expression[plain.train][:, plain.anchors].toarray(), np.float64)
    mean, sd = measured.mean(axis=0), np.maximum(measured.std(axis=0), 1e-6)
    inputs = np.zeros((len(data), len(plain.anchors)), np.float32)
    inputs[plain.train] = (measured - mean) / sd
    asked = np.setdiff1d(np.arange(len(data)), plain.train)
    guess = plain.regression.predict(plain.basis.scores(plain.features[asked]), plain.core)
    inputs[asked] = (guess - mean) / sd
    return _ridge(data, plain.train, inputs, genes)


def nearest_neighbours(plain: Fit, genes: Ints) -> Predict:
    """Mean of the 50 spots whose standardised embeddings are nearest (Euclidean), each weighed by 1 / distance."""
    expression = plain.data.expression[plain.train][:, genes]
    features = plain.features[plain.train]

    def predict(rows: Ints) -> Floats:
        distance = _distances(plain.features[rows], features)
        near = np.argsort(distance, axis=1, kind="stable")[:, :NEIGHBOURS]
        weight = 1 / np.maximum(np.take_along_axis(distance, near, axis=1), 1e-6)
        return _average(expression, near, weight)

    return predict


def bleep_uniform(plain: Fit, genes: Ints) -> Predict:
    """Plain mean of the 50 spots of the most similar embeddings (cosine), as BLEEP averages."""
    expression = plain.data.expression[plain.train][:, genes]
    unit = _unit(plain.features)

    def predict(rows: Ints) -> Floats:
        near = np.argsort(-(unit[rows] @ unit[plain.train].T), axis=1, kind="stable")[:, :NEIGHBOURS]
        return _average(expression, near, np.ones(near.shape))

    return predict


def _ridge(data: BankData, train: Ints, features: Floats, genes: Ints) -> Predict:
    section_of = data.section_of[train]
    labels, rule = fold_groups(data.patients[section_of], data.names[section_of], data.centres()[train])
    folds = cut_folds(features[train], labels, rule=rule)
    head = fit_folds(folds, data.expression[train][:, genes])
    return lambda rows: head.predict(features[rows])


def _average(expression: Any, near: Ints, weight: NDArray[Any]) -> Floats:
    import scipy.sparse as sp

    n, k = near.shape
    values = weight / weight.sum(axis=1, keepdims=True, dtype=np.float64)
    weights = sp.csr_matrix((values.ravel(), near.ravel(), np.arange(n + 1) * k), shape=(n, expression.shape[0]))
    return np.asarray((weights @ expression).toarray(), np.float32)


def _distances(one: Floats, other: Floats) -> Floats:
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(one, other), np.float32)


def _unit(values: Floats) -> Floats:
    return np.asarray(values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12), np.float32)
