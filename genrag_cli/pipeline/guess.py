"""The first guess y_init of the anchor genes: by the bank's head, by a model, or from a file.

What a model or a file says is brought to the scale of the bank's anchors on the way; how is part of the record.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.backbones.base import Backbone, ExpressionModel, SpotContext
from genrag_cli.errors import FeaturesError, GeneragError
from genrag_cli.pipeline.anchor_space import Guessed, bring, expect_finite, take_genes
from genrag_cli.pipeline.bank_rows import make_reference
from genrag_cli.pipeline.query import JOIN_SHARE, Query
from genrag_cli.pipeline.query_space import QuerySpace, SlideStatistics
from genrag_cli.stores.atomic import Parts
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.foreign import ForeignRows, in_pixels, join_rows
from genrag_cli.types import Expression, Floats, Listener, Progress, Scale, fingerprint


@dataclass(frozen=True, eq=False)
class ForeignGuess:
    """First guesses of a file, for spots that are not joined yet."""

    rows: ForeignRows
    scale: Scale

    @staticmethod
    def of(rows: ForeignRows, asked: str | None) -> "ForeignGuess":
        """With the scale that the file states, or that a person says it is in.

        Raises:
            FeaturesError: where neither says, or the two differ.
        """
        stated: Scale | None = None
        with contextlib.suppress(GeneragError):  # other tools have other words, which only a person can tell
            stated = Scale.from_name(rows.scale) if rows.scale else None
        wanted = Scale.from_name(asked) if asked else stated
        if wanted is None:
            words = f"only says {rows.scale!r} of the scale of its values" if rows.scale else "states no scale"
            raise FeaturesError(
                f"{rows.path} {words}, and none is guessed from values",
                "Give --anchors-scale: counts, log1p_cp10k (ln, per 10,000 of all genes), log2_counts or ln_counts.",
            )
        if stated is not None and wanted != stated:
            raise FeaturesError(
                f"--anchors-scale {asked} asked; {rows.path} says that its values are in scale {stated.name}",
                "Leave --anchors-scale out.",
            )
        return ForeignGuess(rows, wanted)

    @property
    def guessed(self) -> Guessed:
        """Genes and scale."""
        assert self.rows.columns is not None
        return Guessed(str(self.rows.path), self.rows.columns, self.scale)

    def digest(self) -> str:
        """Identity of genes, scale and values, whatever the order of the rows."""
        order = np.lexsort(self.rows.values.T[:8]) if self.rows.names is None else np.argsort(self.rows.names)
        return fingerprint(self.rows.columns, self.scale, self.rows.values[order])


def guessed_by(backbone: Backbone | None, foreign: ForeignGuess | None) -> Guessed | None:
    """What is guessed by something else than the bank's head; None where the head does."""
    if foreign is not None:
        return foreign.guessed
    if isinstance(backbone, ExpressionModel):
        return Guessed(f"backbone {backbone.card.name}", backbone.genes, backbone.scale)
    return None


def first_guess(
    query: Query, features: Floats, statistics: SlideStatistics, space: QuerySpace, bank: Bank,
    *, backbone: Backbone | None, foreign: ForeignGuess | None, target: Path, seed: int, listener: Listener,
) -> tuple[Floats, dict[str, Any]]:  # fmt: skip
    """y_init of all spots of a query, in the scale of the bank's anchors.

    Args:
        query: the spots.
        features: (n, d) their embeddings.
        statistics: that standardise them.
        space: of the bank.
        bank: the bank.
        backbone: loaded; None where features come from a file.
        foreign: guesses of a file.
        target: the output, beside which a model's prediction is kept until the output stands.
        seed: of models that draw.
        listener: told how far a model is.

    Returns:
        (n, A), and what is to be recorded.
    """
    about: dict[str, Any] = {
        "first_guess": "head", "anchors_scale": space.anchors.scale.name,
        "anchors_left_out": list(space.anchors.dropped), "first_guess_below_0": 0,
    }  # fmt: skip
    if foreign is not None:
        guess = _from_file(query, foreign)
        about |= {
            "first_guess": "file", "first_guess_scale": foreign.scale.name, "anchors_file": str(foreign.rows.path),
            "anchors_kind": foreign.rows.kind, "anchors_sha256": foreign.digest(),
        }  # fmt: skip
    elif isinstance(backbone, ExpressionModel):
        guess = _by_model(query, features, space, bank, backbone, target, seed, listener)
        about |= {"first_guess": "model", "first_guess_scale": guess.scale.name}
    else:
        return space.guess(features, statistics), about
    expect_finite(guess, f"the first guess of {about['first_guess']}")
    brought, below = bring(take_genes(guess, space.anchors.genes), space.anchors.scale)
    if guess.scale != space.anchors.scale:
        listener.say(f"{query.slide_id}: first guess brought from {guess.scale.name} to {space.anchors.scale.name}")
    if below:
        listener.warn(f"{query.slide_id}: {below} of {guess.values.size} first guesses were below 0 and count as 0")
    return brought.values, about | {"first_guess_below_0": below}


def _from_file(query: Query, foreign: ForeignGuess) -> Expression:
    grid = query.grid
    rows = in_pixels(foreign.rows, grid.pixel_size.mpp)
    within = JOIN_SHARE * grid.pitch_um / grid.pixel_size.mpp
    order = join_rows(rows, grid.names, grid.centres, within_px=within)
    assert rows.columns is not None
    return Expression(np.ascontiguousarray(rows.values[order]), grid.names, rows.columns, foreign.scale)


def _by_model(
    query: Query, features: Floats, space: QuerySpace, bank: Bank, model: ExpressionModel, target: Path, seed: int,
    listener: Listener,
) -> Expression:  # fmt: skip
    """A model's own prediction of the anchors; done once, a rerun takes it up."""
    grid, stage = query.grid, f"predict {query.slide_id} with {model.card.name}"
    made_of = (query.digest, grid, model.card, dict(query.options), bank.fingerprint, space.anchors, seed)
    parts = Parts(target, fingerprint(*made_of), "guess")
    genes = space.anchors.genes
    if not parts.has(0):
        context = SpotContext(
            features=features,
            centres=grid.centres,
            array_rc=grid.array_rc,
            mpp=grid.pixel_size.mpp,
            pitch_um=grid.pitch_um,
            fov_um=grid.fov_um,
            tiles=query.tiles,
            reference=make_reference(bank, space.anchors) if "bank" in model.card.needs else None,
            seed=seed,
            progress=lambda done, total: listener.progress(Progress(stage, done, total)),
        )
        parts.write(0, values=model.predict(context, genes).values)
    scale = model.scale or space.anchors.scale
    return Expression(parts.read(0)["values"], grid.names, genes, scale)


def forget_guess(target: Path) -> None:
    """Throws away what a model predicted, once the output stands."""
    Parts(target, "", "guess").clear()
