"""One split of a bank: fitted on some of its spots, asked about others, as `retrieve` would be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from genrag_cli.backbones.folds import fold_groups
from genrag_cli.backbones.regression import Basis, Regression, number_folds, regress
from genrag_cli.pipeline.tuning.data import BankData
from genrag_cli.pipeline.tuning.settings import Settings, to_anchor_scale
from genrag_cli.retrieval.objective import Strength
from genrag_cli.retrieval.residuals import block_residuals
from genrag_cli.retrieval.scan import Scan
from genrag_cli.retrieval.solve import prepare, solve
from genrag_cli.retrieval.strength import find_strength, solve_path
from genrag_cli.types import Doubles, Floats, Ints, SparseCodes

SEARCHED_ON = 160
"""Spots of a section on which a number of references is searched, as for a slide."""
ROUGHLY_ON = 48
"""The same while settings are compared: there the number that comes out is what counts."""
STEPS = (2.0, 1.0, 0.5)
"""Strengths beside the one that gives the settings' number of references, strongest first."""


@dataclass(frozen=True, eq=False)
class Fit:
    """What does not depend on how codes are found: regression of some genes on features."""

    data: BankData
    features: Floats
    """(n, d) of all spots of the bank's data."""
    feature_scale: float
    """What brought those of the training spots to a mean square of 1."""
    train: Ints
    """Rows that it was fitted to."""
    genes: Ints
    """(g,) columns of the bank's genes that it predicts, anchors among them."""
    anchors: Ints
    """(A,) columns of the bank's genes."""
    core: Ints
    """Places of the anchors in `genes`."""
    wide: Ints
    """Places of the global panel in `genes`."""
    mean: Doubles
    """(g,) over the training spots."""
    basis: Basis
    scores: Floats
    """(n_train, p)"""
    regression: Regression
    rule: str
    """What its own folds leave out."""

    @property
    def guesses(self) -> Floats:
        """(n_train, A) first guesses of the training spots, by the regression that saw them."""
        return self.regression.predict(self.scores, self.core)


@dataclass(frozen=True, eq=False)
class Parts:
    """Pieces of a prediction of some spots of one section."""

    rows: Ints
    regression: Floats
    """(r, g)"""
    retrieval: Floats
    """(r, g) mu + sum a (y - mu)"""
    truth: Floats
    """(r, g)"""
    references: float
    """Median number."""
    codes: SparseCodes

    def predict(self, share: float) -> Floats:
        """(r, g) with a share of the references."""
        return np.asarray((1 - share) * self.regression + share * self.retrieval, np.float32)


def fit(data: BankData, settings: Settings, train: Ints, genes: Ints | None = None, *, as_head: bool = False) -> Fit:
    """Fits a split.

    Args:
        data: the bank.
        settings: of which only those that decide over features count, and whether they are the published ones.
        train: rows of its spots.
        genes: to predict; None: core and global panel of the training sections.
        as_head: judge the strength by the anchors alone, as the bank's head is, which guesses where nothing is tuned.
    """
    features, scale = data.features(settings, train)
    core, wide, statistics = data.panels(np.unique(data.section_of[train]))
    chosen = np.union1d(core, wide) if genes is None else np.union1d(genes, core)
    section_of, centres = data.section_of[train], data.centres()[train]
    labels, rule = fold_groups(data.patients[section_of], data.names[section_of], centres)
    basis = Basis.of(features[train])
    scores = basis.scores(features[train])
    places = np.searchsorted(chosen, core)
    by = core if as_head or settings.published else np.union1d(core, wide)
    judged = np.searchsorted(chosen, np.intersect1d(chosen, by))
    return Fit(
        data=data, features=features, feature_scale=scale, train=train, genes=chosen, anchors=core, core=places,
        wide=np.searchsorted(chosen, np.intersect1d(wide, chosen)), mean=statistics.mean[chosen], basis=basis,
        scores=scores,
        regression=regress(
            scores, data.expression[train][:, chosen], number_folds(labels), judged=judged, times=settings.ridge
        ),
        rule=rule,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Retriever:
    """A fit with a dictionary: answers queries in one setting."""

    fit: Fit
    settings: Settings
    scan: Scan
    blocks: Any
    expression: Any
    """CSR (n_train, g)"""

    @staticmethod
    def of(fitted: Fit, settings: Settings) -> "Retriever":
        """The training spots as a dictionary."""
        data, train = fitted.data, fitted.train
        measured = data.anchors_in(fitted.anchors, settings.anchors_in, train)
        wide = measured.astype(np.float64)
        guesses = to_anchor_scale(fitted.guesses, settings)
        features = fitted.features[train] if not settings.published else data.raw(train)
        blocks = settings.blocks(features.shape[1], wide.mean(axis=0), wide.std(axis=0), guesses.std(axis=0))
        rows = blocks.rows(features, measured)
        return Retriever(
            fitted, settings, prepare(np.ascontiguousarray(rows.T)), blocks, data.expression[train][:, fitted.genes]
        )

    def queries(self, rows: Ints) -> Floats:
        """(r, d + A) of spots of the bank's data."""
        guess = self.fit.regression.predict(self.fit.basis.scores(self.fit.features[rows]), self.fit.core)
        features = self.fit.features[rows] if not self.settings.published else self.fit.data.raw(rows)
        return np.asarray(self.blocks.rows(features, to_anchor_scale(guess, self.settings)), np.float32)

    def ask(
        self, rows: Ints, steps: Sequence[float] = (1.0,), *, gap: float = 1e-4, searched_on: int = SEARCHED_ON
    ) -> list[SparseCodes]:
        """Codes of spots of one section at the strength that gives the wanted references, and at multiples of it.

        Args:
            rows: of the bank's data.
            steps: multiples, strongest first.
            gap: relative duality gap.
            searched_on: spots at most on which the strength is searched.
        """
        queries = self.queries(rows)
        if self.settings.alpha is not None:
            named = Strength.from_code(self.settings.alpha, self.settings.l1_ratio, self.scan.atoms.m)
            return [solve(self.scan, queries.T, l1=named.l1 * s, l2=named.l2 * s, gap=gap) for s in steps]
        chosen = np.sort(np.random.default_rng(0).permutation(len(rows))[:searched_on])
        rule = find_strength(
            self.scan, queries[chosen].T, active=self.settings.references, l1_ratio=self.settings.l1_ratio
        ).rule
        return [codes for _, codes in solve_path(self.scan, queries.T, [rule.scaled(s) for s in steps], gap=gap)]

    def parts(self, rows: Ints, codes: SparseCodes) -> Parts:
        """The pieces of a prediction."""
        import scipy.sparse as sp

        fitted = self.fit
        scores = fitted.basis.scores(fitted.features[rows])
        weights = sp.csr_matrix((codes.weights, codes.indices, codes.indptr), shape=(len(codes), codes.n_bank))
        plain = (weights.astype(np.float64) @ self.expression.astype(np.float64)).toarray()
        total = np.asarray(weights.sum(axis=1)).ravel()
        return Parts(
            rows=rows,
            regression=fitted.regression.predict(scores),
            retrieval=np.asarray(
                plain if self.settings.published else plain + np.outer(1 - total, fitted.mean), np.float32
            ),
            truth=np.asarray(fitted.data.expression[rows][:, fitted.genes].toarray(), np.float32),
            references=float(np.median(codes.n_active)) if len(codes) else 0.0,
            codes=codes,
        )

    def residuals(self, rows: Ints, codes: SparseCodes) -> tuple[Floats, Floats]:
        """Morphology and anchor residuals of spots (r,), as `retrieve` writes them."""
        return block_residuals(self.scan, self.queries(rows), codes, self.fit.features.shape[1])
