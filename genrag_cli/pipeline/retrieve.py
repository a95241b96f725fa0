"""Slide -> grid -> embeddings -> anchors -> query -> sparse codes -> expression -> AnnData."""

import functools
import platform
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli import stopping
from genrag_cli._version import __version__
from genrag_cli.backbones.base import Backbone
from genrag_cli.errors import OutputError
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import Prediction
from genrag_cli.pipeline.batch.inputs import Job
from genrag_cli.pipeline.batch.work import Finished
from genrag_cli.pipeline.embedding import embeddings_path
from genrag_cli.pipeline.fit import check_fit, expect_features
from genrag_cli.pipeline.gene_choice import choose_genes, describe_genes
from genrag_cli.pipeline.guess import ForeignGuess, first_guess, forget_guess
from genrag_cli.pipeline.loading import Loaded, record
from genrag_cli.pipeline.options import RunOptions, SlideOptions, SolveOptions
from genrag_cli.pipeline.provenance import about_inputs, about_search, about_solution
from genrag_cli.pipeline.query import Query, query_features, query_slide
from genrag_cli.pipeline.query_space import FEWEST_TILES, QuerySpace
from genrag_cli.pipeline.reported import describe_trust, describe_weights
from genrag_cli.pipeline.slide_options import digest_of_options, digest_of_slide
from genrag_cli.pipeline.solver import Solver
from genrag_cli.pipeline.stored import read_stored_about
from genrag_cli.pipeline.write import write_expression
from genrag_cli.retrieval.strength import FoundStrength, StrengthRule
from genrag_cli.slides import sample_rows
from genrag_cli.stores.atomic import Parts
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.foreign import ForeignRows
from genrag_cli.stores.layout import file_word
from genrag_cli.types import Expression, Floats, Ints, Listener, Progress, SparseCodes, fingerprint, join_codes

SOLVE_BLOCK = 1024
"""Queries between two checkpoints; the codes do not depend on it."""


@dataclass(frozen=True, eq=False)
class Retrieval:
    """`generag retrieve`: everything but the slide."""

    bank: Bank
    """Opened with the backbone's name."""
    space: QuerySpace
    """`QuerySpace.of(bank, solve_options, ...)`."""
    loaded: Loaded | None
    """The backbone that the bank was built with, and with what it was loaded; None where features come from a file."""
    out: Path
    """Folder, or the file to write (.h5ad or .zarr)."""
    slide_options: SlideOptions
    solve_options: SolveOptions
    run: RunOptions
    genes: str = "5000"
    """`all`, a number, names, or a file of names (`--genes`)."""
    expression: bool = True
    """False keeps only the weights."""
    foreign: ForeignGuess | None = None
    """First guesses of a file, instead of the head's or the model's."""
    features: ForeignRows | None = None
    """Embeddings of a file."""
    same_encoder: bool = False
    """Take whatever the file of features calls its encoder for the bank's backbone."""
    argv: str = ""
    """The command line, for the record."""
    ending: str = ".h5ad"
    """Of files that are not named."""
    kind: str = "retrieve"

    @functools.cached_property
    def chosen(self) -> Ints:
        """Columns of the bank's genes that are written."""
        none = np.zeros(0, np.int64)
        return choose_genes(self.bank, self.genes, self.space.scale) if self.expression else none

    @functools.cached_property
    def _constant(self) -> str:
        """Fingerprint of everything that is the same for all slides."""
        foreign, features, loaded = self.foreign, self.features, self.loaded
        return fingerprint(
            self.bank.fingerprint,
            self.bank.card if loaded is None else loaded.backbone.card,
            {} if loaded is None else record(loaded.loading)["options"],
            () if foreign is None else (foreign.rows.digest, foreign.scale),
            () if features is None else features.digest,
            self.solve_options,
            "" if self.space.tuning is None else self.space.tuning.key,
            self.chosen,
            self.expression,
            self.run.seed,
            __version__,
        )

    def target(self, job: Job) -> Path:
        """The file that a job's prediction goes to."""
        out = job.out or self.out
        name = f"{job.name}.{file_word(self.bank.card.name)}{self.ending}"
        return out if out.suffix in (".h5ad", ".zarr") else out / name

    def options_key(self, job: Job) -> str:
        """Fingerprint of everything but the slide."""
        return fingerprint(self._constant, digest_of_options(job.settle(self.slide_options)))

    def digest(self, source: Path | None) -> str:
        """Of the slide, or of the features in its place."""
        features = "" if self.features is None else self.features.digest
        return (digest_of_slide(source) if source is not None else "") + features

    def find_done(self, target: Path, key: str, listener: Listener) -> Finished | None:
        """What an output that stands says, where it was made in just this way; None where it was not.

        Raises:
            OutputError: where it is not ours.
        """
        try:
            about = read_stored_about(target)
        except OutputError as error:
            raise OutputError(error.message, "Give another --out, or --overwrite to replace it.") from error
        if about.get("key") != key:
            listener.say(f"{target}: made with other options, slide or bank; doing it again")
            return None
        facts = {
            "median_references": float(about["median_references"]), "worst_gap": float(about["gap_worst"]),
            "stalled": int(about["n_stalled"]), "mean_passes": float(about["passes_mean"]),
        }  # fmt: skip
        return Finished(int(about["n_spots"]), int(about["n_bad_tiles"]), facts)

    def begin(self, job: Job, source: Path | None, listener: Listener) -> Query:
        """Opens a slide, plans its spots and begins to read them; close what is returned.

        Raises:
            BackboneError: where the backbone is not the bank's.
            BankError: where a field of view was asked that is not the bank's.
            FeaturesError: for features that are not the bank's backbone's, or do not join with the spots.
            SlideError: for a slide that cannot be read.
        """
        options = job.settle(self.slide_options)
        if self.features is None:
            assert self.loaded is not None
            assert source is not None
            check_fit(self.bank, self.loaded.backbone, options)
            folder = self.target(job).parent
            return query_slide(source, self.bank, self.loaded, options, self.run, folder, listener)
        doubts = expect_features(
            self.bank, self.features, options, same_encoder=self.same_encoder, has_guess=self.foreign is not None
        )
        for text in doubts:
            listener.warn(text)
        query = query_features(self.features, source, self.bank, options, self.run, listener)
        query.about["features_unchecked"] = doubts
        return query

    def plan(self, query: Query, target: Path) -> str:
        """What would be written, in words."""
        return f"would write {target}: {len(query.grid)} spots, {len(self.chosen)} genes"

    def finish(self, query: Query, job: Job, target: Path, key: str, listener: Listener) -> Finished:
        """Predicts the spots of a query and writes them.

        Raises:
            SlideError: where too many tiles cannot be read, or the slide is no longer what it was.
            FeaturesError: for rows of files that do not join with the spots.
            OutputError: where the output cannot be written.
            Stopped: at a checkpoint, where that was asked for.
        """
        space, bank, slide_id = self.space, self.bank, query.slide_id
        features, sample, grid, bad = query.embed()
        query = replace(query, grid=grid)
        taken = None if self.foreign is None else self.foreign.take(query, space.anchors.genes)
        statistics = space.statistics(sample, "tissue tiles" if query.pixels else "spots")
        listener.say(f"{slide_id}: embeddings standardised by {statistics.source}")
        backbone: Backbone | None = None if self.loaded is None else self.loaded.backbone
        with listener.timed("guess"):
            y_init, about_guess = first_guess(
                query, features, statistics, space, bank, backbone=backbone, foreign=self.foreign, taken=taken,
                target=target, seed=self.run.seed, listener=listener,
            )  # fmt: skip
        with listener.timed("solve"):
            ready, n_context = space.features(features, statistics, grid)
            queries = space.queries(ready, y_init)
            components = {} if space.tuning is None else {keys.COMPONENTS: space.tuning.basis.scores(ready)}
            del features, ready  # what is as large as the slide goes as soon as it can
            stands_for = queries
            if query.own_sample and space.guessed is None and len(sample) and not space.needs_places:
                # Only the bank itself can guess for tiles that nobody asked for.
                stands_for = space.queries(
                    space.features(sample, statistics, None)[0], space.guess(sample, statistics, None)
                )
            elif len(queries) > len(sample) > 0:
                stands_for = queries[sample_rows(grid, seed=self.run.seed)]
            strength, found = space.strength(self.solve_options, stands_for, self.run.seed)
            if found and not found.reached and len(queries):
                listener.warn(
                    f"{slide_id}: no strength gives {space.references(self.solve_options)} references in the median; "
                    f"{found.median_active:g} is the most"
                )
            parts = Parts(target, fingerprint(key, grid.names, strength, self.run.device), "codes")
            codes = _solve(space.solver, queries, strength, self.solve_options, parts, listener, slide_id)
            morphology, anchor = space.solver.residuals(queries, codes, space.dim)
        l1, l2 = strength.of(queries.T)
        _warn_of_median(codes, space.references(self.solve_options), found, listener, slide_id)
        about = {
            "generag_version": __version__,
            "argv": self.argv,
            "key": key,
            "n_spots": len(grid),
            "n_bad_tiles": len(bad),
            "bad_tiles": dict(bad),
            "spots": job.settle(self.slide_options).spots or "",
            "manifest": dict(job.more),
            **query.about,
            **about_inputs(grid, query.card, bank),
            **about_guess,
            **about_solution(self.solve_options, strength, queries.T, codes, omega=space.blocks.omega),
            **about_search(found, len(queries)),
            **(space.tuning.provenance() if space.tuning else {"tuning": 0}),
            **space.solver.about(),
            "crop": bank.geometry.get("crop", "fov"),
            "slide_statistics": statistics.source,
            "centred": space.standardised,
            "bank_mean_total": float(bank.derived[f"genes/{space.scale.name}/mean"].sum()),
            "device": self.run.device,
            "seed": self.run.seed,
            "packages": {p: version(p) for p in ("torch", "numpy", "anndata", "zarr")},
            "python": platform.python_version(),
        }
        obs, obsm, patients = describe_weights(codes, bank)
        del sample, queries, stands_for
        prediction = Prediction(
            grid=grid,
            codes=codes,
            bank_spots=bank.spot_names,
            bank_sections=np.asarray([s["name"] for s in bank.sections], np.str_),
            y_init=Expression(y_init, grid.names, space.anchors.genes, space.anchors.scale),
            genes=bank.genes[self.chosen],
            scale=space.scale,
            spot_um=bank.geometry["spot_um"],
            about=about,
            obs={
                keys.MORPHOLOGY_RESIDUAL: morphology,
                keys.ANCHOR_RESIDUAL: anchor,
                keys.L1: l1,
                keys.L2: l2,
                **obs,
                **describe_trust(space, morphology, anchor, n_context),
            },
            obsm=obsm | components,
            bank_patients=patients,
            var=describe_genes(bank, self.chosen, space.scale, space.anchors.genes, space.tuning),
            thumbnail=query.thumbnail(),
        )
        with listener.timed("write"):
            write_expression(
                target, prediction, bank, self.chosen, centred=space.standardised, tuning=space.tuning,
                threads=self.run.workers, listener=listener,
            )  # fmt: skip
        parts.clear()
        forget_guess(target)
        return Finished(len(grid), len(bad), _facts(codes))

    def describe(self, job: Job, target: Path, done: Finished, seconds: dict[str, float], listener: Listener) -> None:
        """Says what became of a slide."""
        facts = done.facts
        if done.n_spots:
            listener.say(
                f"{target}: {done.n_spots} spots solved in {seconds.get('solve', 0):.1f} s, "
                f"{facts['median_references']:g} references each (median), relative gap at most "
                f"{facts['worst_gap']:.1e}, {facts['mean_passes']:.1f} passes"
            )
        if facts["stalled"]:
            listener.warn(
                f"{job.slide}: {facts['stalled']} of {done.n_spots} spots did not reach gap "
                f"{self.solve_options.gap:g}; see obs generag_status"
            )

    def embeddings_of(self, job: Job) -> Path:
        """Where a slide's embeddings are kept."""
        kind = "" if job.settle(self.slide_options).spots is None else "spots"
        return embeddings_path(self.target(job).parent, job.name, self.bank.card.name, kind)


def _facts(codes: SparseCodes) -> dict[str, Any]:
    n = len(codes)
    return {
        "median_references": float(np.median(codes.n_active)) if n else 0.0,
        "worst_gap": float(codes.gap.max(initial=0.0)),
        "stalled": int((codes.status != "solved").sum()),
        "mean_passes": float(codes.passes.mean()) if n else 0.0,
    }


def _solve(
    solver: Solver, queries: Floats, strength: StrengthRule, options: SolveOptions, parts: Parts, listener: Listener,
    slide_id: str,
) -> SparseCodes:  # fmt: skip
    """Codes of all queries, in checkpointed blocks."""
    done, blocks = 0, []

    def tell(more: int) -> None:
        nonlocal done
        done += more
        listener.progress(Progress(f"retrieve {slide_id}", done, len(queries)))

    for number, low in enumerate(range(0, max(1, len(queries)), SOLVE_BLOCK)):
        stopping.check()
        block = queries[low : low + SOLVE_BLOCK]
        if not parts.has(number):
            l1, l2 = strength.of(block.T)
            codes = solver.solve(
                block.T, l1=l1, l2=l2, nonnegative=not options.signed, gap=options.gap, method=options.solver,
                on_progress=tell,
            )  # fmt: skip
            parts.write(number, **{k: v for k, v in vars(codes).items() if k != "n_bank"})
        else:
            tell(len(block))
        blocks.append(SparseCodes(n_bank=solver.scan.n, **parts.read(number)))
    return join_codes(blocks)


def _warn_of_median(
    codes: SparseCodes, wanted: int, found: FoundStrength | None, listener: Listener, slide_id: str
) -> None:
    """Says where the search missed what was asked by more than a tenth."""
    if not len(codes):
        return
    median = float(np.median(codes.n_active))
    if found and found.reached and len(codes) >= FEWEST_TILES and abs(median - wanted) > 0.1 * wanted:
        listener.warn(f"{slide_id}: {wanted} references in the median were asked, the strength found gives {median:g}")
