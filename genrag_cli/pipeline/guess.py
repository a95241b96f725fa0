"""The first guess y_init of the anchor genes: by the bank's head, by a model, or from a file.

What a model or a file says is brought to the scale of the bank's anchors on the way; how is part of the record.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.backbones.base import Backbone, ExpressionModel, SpotContext
from genrag_cli.errors import BackboneError, FeaturesError, GeneragError, UsageError
from genrag_cli.genes.align import columns
from genrag_cli.pipeline.anchor_space import Guessed, bring, expect_finite, take_genes
from genrag_cli.pipeline.bank_rows import make_reference
from genrag_cli.pipeline.query import JOIN_SHARE, Query, doubt_places
from genrag_cli.pipeline.query_space import QuerySpace, SlideStatistics
from genrag_cli.stores.atomic import Parts
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.foreign import ForeignRows, in_pixels, join_rows
from genrag_cli.types import Expression, Floats, Ints, Listener, Progress, Scale, Strings, TileBatch, fingerprint
from genrag_cli.units import Microns, TilePx

SPOTS_EACH = 256
"""Spots between two checkpoints of a model that looks at one tile at a time."""


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
        try:
            wanted = Scale.from_name(asked) if asked else stated
        except GeneragError as error:
            raise UsageError(f"--anchors-scale {asked} asked: {error.message}", error.hint) from error
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

    def take(self, query: Query, genes: Strings) -> Expression:
        """The guesses of a query's spots, some genes of them, in the scale of the file.

        Raises:
            FeaturesError: for rows that do not join with the spots.
            GeneragError: for values that are not finite.
        """
        grid = query.grid
        rows, pitch_px = in_pixels(self.rows, grid.pixel_size.mpp), grid.pitch_um / grid.pixel_size.mpp
        order = join_rows(rows, grid.names, grid.level0, within_px=JOIN_SHARE * pitch_px)
        assert rows.columns is not None
        where = columns(rows.columns, genes)
        guess = Expression(np.ascontiguousarray(rows.values[np.ix_(order, where)]), grid.names, genes, self.scale)
        expect_finite(guess, str(rows.path))
        return guess

    def doubt(self, query: Query) -> str:
        """A line where rows lie elsewhere than the spots that they are joined with by name; empty otherwise."""
        grid = query.grid
        rows, pitch_px = in_pixels(self.rows, grid.pixel_size.mpp), grid.pitch_um / grid.pixel_size.mpp
        order = join_rows(rows, grid.names, grid.level0, within_px=JOIN_SHARE * pitch_px)
        return doubt_places(rows, order, grid.level0, pitch_px)


def guessed_by(backbone: Backbone | None, foreign: ForeignGuess | None) -> Guessed | None:
    """What is guessed by something else than the bank's head; None where the head does."""
    if foreign is not None:
        return foreign.guessed
    if isinstance(backbone, ExpressionModel):
        return Guessed(f"backbone {backbone.card.name}", backbone.genes, backbone.scale)
    return None


def first_guess(
    query: Query, features: Floats, statistics: SlideStatistics, space: QuerySpace, bank: Bank,
    *, backbone: Backbone | None, foreign: ForeignGuess | None, taken: Expression | None, target: Path, seed: int,
    listener: Listener,
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
        taken: what `foreign.take` gave for the anchors of the space; None where no file guesses.
        target: the output, beside which a model's prediction is kept until the output stands.
        seed: of models that draw.
        listener: told how far a model is.

    Returns:
        (n, A), and what is to be recorded.
    """
    about: dict[str, Any] = {
        "first_guess": "head" if space.tuning is None else "regression", "anchors_scale": space.anchors.scale.name,
        "anchors_left_out": list(space.anchors.dropped), "first_guess_below_0": 0,
    }  # fmt: skip
    if foreign is not None and taken is not None:
        guess = taken
        if text := foreign.doubt(query):
            listener.warn(f"{query.slide_id}: {text}")
        about |= {
            "first_guess": "file", "first_guess_scale": foreign.scale.name, "anchors_file": str(foreign.rows.path),
            "anchors_kind": foreign.rows.kind, "anchors_sha256": fingerprint(taken.values, taken.genes),
        }  # fmt: skip
    elif isinstance(backbone, ExpressionModel):
        guess = _by_model(query, features, space, bank, backbone, target, seed, listener)
        about |= {"first_guess": "model", "first_guess_scale": guess.scale.name}
    else:
        return space.guess(features, statistics, query.grid), about
    brought, below = bring(guess, space.anchors.scale)
    expect_finite(brought, f"the first guess, brought from {guess.scale.name} to {brought.scale.name},")
    if guess.scale != space.anchors.scale:
        listener.say(f"{query.slide_id}: first guess brought from {guess.scale.name} to {space.anchors.scale.name}")
    if below:
        listener.warn(f"{query.slide_id}: {below} of {guess.values.size} first guesses were below 0 and count as 0")
    return brought.values, about | {"first_guess_below_0": below}


def _by_model(
    query: Query, features: Floats, space: QuerySpace, bank: Bank, model: ExpressionModel, target: Path, seed: int,
    listener: Listener,
) -> Expression:  # fmt: skip
    """A model's own prediction of the anchors; a rerun takes up what is done.

    A model whose card says that it needs nothing beside the tile goes block by block; others see all spots at once.
    """
    grid, genes = query.grid, space.anchors.genes
    stage = f"predict {query.slide_id} with {model.card.name}"
    made_of = (query.digest, grid, model.card, dict(query.options), bank.fingerprint, space.anchors, seed)
    parts = Parts(target, fingerprint(*made_of), "guess")
    step = len(grid) if model.card.needs else SPOTS_EACH
    lows = range(0, max(1, len(grid)), max(1, step))
    reference = None
    for number, low in enumerate(lows):
        rows = np.arange(low, min(low + step, len(grid)))
        if parts.has(number):
            continue
        if "bank" in model.card.needs and reference is None:
            reference = make_reference(bank, space.anchors)

        def tell(done: int, total: int, low: int = low, n: int = len(rows)) -> None:
            listener.progress(Progress(stage, low + done * n // max(1, total), len(grid)))

        context = SpotContext(
            features=features[rows],
            centres=grid.centres[rows],
            array_rc=grid.array_rc[rows],
            mpp=grid.pixel_size.mpp,
            pitch_um=grid.pitch_um,
            fov_um=grid.fov_um,
            tiles=_tiles_of(query, rows),
            reference=reference,
            seed=seed,
            progress=tell,
        )
        parts.write(number, values=_predict(model, context, genes, space.anchors.scale).values)
        listener.progress(Progress(stage, int(rows[-1]) + 1 if len(rows) else 0, len(grid)))
    values = np.concatenate([parts.read(number)["values"] for number in range(len(lows))])
    return Expression(values, grid.names, genes, model.scale or space.anchors.scale)


def _tiles_of(query: Query, rows: Ints) -> Callable[[float, int], Iterator[TileBatch]] | None:
    tiles, grid = query.tiles, query.grid
    if tiles is None:
        return None
    return lambda fov_um, tile_px: tiles(replace(grid.rows(rows), fov_um=Microns(fov_um), tile_px=TilePx(tile_px)))


def _predict(model: ExpressionModel, spots: SpotContext, genes: Strings, scale: Scale) -> Expression:
    """A model's prediction, with everything that it promised: rows, genes by name, scale, finite values.

    Raises:
        BackboneError: where it fails, or breaks a promise.
    """
    what, wanted = f"backbone {model.card.name}", model.scale or scale
    try:
        found = model.predict(spots, genes)
    except GeneragError:
        raise
    except Exception as error:  # a plug-in may fail in any way, and the other slides go on
        raise BackboneError(
            f"{what} failed to predict: {type(error).__name__}: {error}", "Look at its own messages (--debug)."
        ) from error
    if found.scale != wanted or len(found.values) != len(spots):
        raise BackboneError(
            f"{what} predicted {len(found.values)} spots in scale {found.scale.name}; {len(spots)} in {wanted.name} "
            "were asked for",
            "Test it with ExpressionModelContract.",
        )
    taken = take_genes(found, genes)
    expect_finite(taken, what)
    return taken


def forget_guess(target: Path) -> None:
    """Throws away what a model predicted, once the output stands."""
    Parts(target, "", "guess").clear()
