"""Slide -> grid -> embeddings -> anchors -> query -> sparse codes -> expression -> AnnData."""

import json
import platform
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli._version import __version__
from genrag_cli.backbones.base import Backbone
from genrag_cli.errors import OutputError, UsageError
from genrag_cli.outputs import keys
from genrag_cli.outputs.prediction import Prediction, read_about, write_prediction
from genrag_cli.pipeline.fit import check_fit, expect_features
from genrag_cli.pipeline.gene_choice import choose_genes, describe_genes
from genrag_cli.pipeline.guess import ForeignGuess, first_guess, forget_guess
from genrag_cli.pipeline.loading import Loaded
from genrag_cli.pipeline.options import RunOptions, SlideOptions, SolveOptions
from genrag_cli.pipeline.provenance import about_inputs, about_search, about_solution
from genrag_cli.pipeline.query import Query, query_features, query_slide
from genrag_cli.pipeline.query_space import FEWEST_TILES, QuerySpace, bank_blocks
from genrag_cli.pipeline.reported import describe_trust, describe_weights
from genrag_cli.pipeline.solver import Solver
from genrag_cli.pipeline.tuning.tuning import Tuning
from genrag_cli.reconstruction import Presence, reconstruct
from genrag_cli.retrieval.strength import FoundStrength, StrengthRule
from genrag_cli.slides import sample_rows
from genrag_cli.stores.atomic import Parts, new_file, new_folder, tidy
from genrag_cli.stores.bank import Bank
from genrag_cli.stores.foreign import ForeignRows
from genrag_cli.stores.layout import file_word
from genrag_cli.stores.zipped import settled
from genrag_cli.types import Expression, Floats, Ints, Listener, Progress, SparseCodes, fingerprint, join_codes

SOLVE_BLOCK = 1024
"""Queries between two checkpoints; the codes do not depend on it."""


@dataclass(frozen=True)
class Retrieved:
    """What became of one slide."""

    path: Path
    n_spots: int
    skipped: bool
    """It was already there, or nothing was to be done (dry run)."""
    median_refs: float | None = None
    """None where there is no prediction (dry run)."""
    worst_gap: float | None = None
    n_stalled: int = 0
    mean_passes: float | None = None
    solve_s: float | None = None
    """Seconds in the solver; None where the file was there. Not in the file, which a rerun must make again."""


def retrieve_slide(
    path: Path,
    out: Path,
    bank: Bank,
    space: QuerySpace,
    backbone: Backbone | Loaded,
    *,
    slide_options: SlideOptions,
    solve_options: SolveOptions,
    genes: str,
    expression: bool,
    run: RunOptions,
    listener: Listener,
    foreign: ForeignGuess | None = None,
    argv: str = "",
) -> Retrieved:
    """`generag retrieve` for one slide.

    Args:
        path: the slide.
        out: folder, or the file to write (.h5ad or .zarr).
        bank: opened with the backbone's name.
        space: `QuerySpace.of(bank, solve_options, ...)`.
        backbone: loaded, and with what; must be the one that the bank was built with.
        slide_options: pixel size, spots.
        solve_options: problem and accuracy.
        genes: `all`, a number, names, or a file of names (`--genes`).
        expression: False keeps only the weights.
        run: device, workers, seed, overwrite, dry run.
        listener: told what happens.
        foreign: first guesses of a file, instead of the head's or the model's.
        argv: the command line, for the record.

    Raises:
        BackboneError: where the backbone is not the bank's.
        BankError: where a field of view was asked that is not the bank's.
        SlideError: for a slide that cannot be read or has no tissue.
        OutputError: where the output cannot be written or is not ours to replace.
    """
    loaded = backbone if isinstance(backbone, Loaded) else Loaded(backbone)
    check_fit(bank, loaded.backbone, slide_options)
    with query_slide(path, bank, loaded, slide_options, run, listener) as query:
        return retrieve_spots(
            query, out, bank, space, loaded.backbone, foreign, solve_options=solve_options, genes=genes,
            expression=expression, run=run, listener=listener, argv=argv,
        )  # fmt: skip


def retrieve_features(
    features: ForeignRows,
    slide: Path | None,
    out: Path,
    bank: Bank,
    space: QuerySpace,
    *,
    slide_options: SlideOptions,
    solve_options: SolveOptions,
    genes: str,
    expression: bool,
    run: RunOptions,
    listener: Listener,
    foreign: ForeignGuess | None = None,
    same_encoder: bool = False,
    argv: str = "",
) -> Retrieved:
    """`generag retrieve --features`: spots whose embeddings stand in a file; what is not said is as `retrieve_slide`.

    `features` are as read, `slide` gives pixel size and thumbnail where there is one, and `same_encoder` takes whatever
    the file calls its encoder for the bank's backbone.

    Raises:
        FeaturesError: for features that are not the bank's backbone's, or do not join with the spots.
    """
    doubts = expect_features(bank, features, slide_options, same_encoder=same_encoder, has_guess=foreign is not None)
    for text in doubts:
        listener.warn(text)
    query = query_features(features, slide, bank, slide_options, run, listener)
    query.about["features_unchecked"] = doubts
    return retrieve_spots(
        query, out, bank, space, None, foreign, solve_options=solve_options, genes=genes, expression=expression,
        run=run, listener=listener, argv=argv,
    )  # fmt: skip


def retrieve_spots(
    query: Query,
    out: Path,
    bank: Bank,
    space: QuerySpace,
    backbone: Backbone | None,
    foreign: ForeignGuess | None,
    *,
    solve_options: SolveOptions,
    genes: str,
    expression: bool,
    run: RunOptions,
    listener: Listener,
    argv: str = "",
) -> Retrieved:
    """Predicts the spots of a query, wherever embeddings and first guesses come from; arguments as `retrieve_slide`.

    Raises:
        FeaturesError: for rows of files that do not join with the spots.
        OutputError: where the output cannot be written or is not ours to replace.
    """
    chosen = choose_genes(bank, genes, space.scale) if expression else np.zeros(0, np.int64)
    grid, slide_id = query.grid, query.slide_id
    taken = None if foreign is None else foreign.take(query, space.anchors.genes)
    target = out if out.suffix in (".h5ad", ".zarr") else out / f"{slide_id}.{file_word(query.card.name)}.h5ad"
    key = fingerprint(
        query.digest,
        grid,
        query.card,
        dict(query.options),
        () if taken is None else (taken.values, taken.genes, taken.scale),
        bank.fingerprint,
        solve_options,
        "" if space.tuning is None else space.tuning.key,
        chosen,
        expression,
        run.seed,
        __version__,
    )
    if (done := _find_done(target, key, run.overwrite, listener)) is not None:
        facts = (float(done["median_references"]), float(done["gap_worst"]), int(done["n_stalled"]))
        return Retrieved(target, len(grid), True, *facts, float(done["passes_mean"]))
    if run.dry_run:
        listener.say(f"would write {target}: {len(grid)} spots, {len(chosen)} genes")
        return Retrieved(target, len(grid), skipped=True)
    features, sample = query.embed(target.parent)
    statistics = space.statistics(sample, "tissue tiles" if query.pixels else "spots")
    listener.say(f"{slide_id}: embeddings standardised by {statistics.source}")
    y_init, about_guess = first_guess(
        query, features, statistics, space, bank, backbone=backbone, foreign=foreign, taken=taken, target=target,
        seed=run.seed, listener=listener,
    )  # fmt: skip
    ready, n_context = space.features(features, statistics, grid)
    queries = space.queries(ready, y_init)
    stands_for = queries
    if query.own_sample and space.guessed is None and len(sample) and not space.needs_places:
        # Only the bank itself can guess for tiles that nobody asked for.
        stands_for = space.queries(space.features(sample, statistics, None)[0], space.guess(sample, statistics, None))
    elif len(queries) > len(sample) > 0:
        stands_for = queries[sample_rows(grid, seed=run.seed)]
    strength, found = space.strength(solve_options, stands_for, run.seed)
    if found and not found.reached:
        listener.warn(
            f"{slide_id}: no strength gives {space.references(solve_options)} references in the median; "
            f"{found.median_active:g} is the most"
        )
    parts = Parts(target, fingerprint(key, strength, run.device), "codes")
    began = time.monotonic()
    codes = _solve(space.solver, queries, strength, solve_options, parts, listener, slide_id)
    solve_s = round(time.monotonic() - began, 3)
    l1, l2 = strength.of(queries.T)
    _warn_of_median(codes, space.references(solve_options), found, listener, slide_id)
    about = {
        "generag_version": __version__,
        "argv": argv,
        "key": key,
        **query.about,
        **about_inputs(grid, query.card, bank),
        **about_guess,
        **about_solution(solve_options, strength, queries.T, codes, omega=space.blocks.omega),
        **about_search(found, len(queries)),
        **(space.tuning.provenance() if space.tuning else {"tuning": 0}),
        **space.solver.about(),
        "crop": bank.geometry.get("crop", "fov"),
        "slide_statistics": statistics.source,
        "centred": space.standardised,
        "bank_mean_total": float(bank.derived[f"genes/{space.scale.name}/mean"].sum()),
        "device": run.device,
        "seed": run.seed,
        "packages": {p: version(p) for p in ("torch", "numpy", "anndata", "zarr")},
        "python": platform.python_version(),
    }
    morphology, anchor = space.solver.residuals(queries, codes, space.dim)
    obs, obsm, patients = describe_weights(codes, bank)
    prediction = Prediction(
        grid=grid,
        codes=codes,
        bank_spots=bank.spot_names,
        bank_sections=np.asarray([s["name"] for s in bank.sections], np.str_),
        y_init=Expression(y_init, grid.names, space.anchors.genes, space.anchors.scale),
        genes=bank.genes[chosen],
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
        obsm=obsm | ({} if space.tuning is None else {keys.COMPONENTS: space.tuning.basis.scores(ready)}),
        bank_patients=patients,
        var=describe_genes(bank, chosen, space.scale, space.anchors.genes, space.tuning),
        thumbnail=query.thumbnail(),
    )
    write_expression(
        target, prediction, bank, chosen, centred=space.standardised, tuning=space.tuning, listener=listener
    )
    parts.clear()
    forget_guess(target)
    n_stalled = int((codes.status != "solved").sum())
    return Retrieved(
        target, len(grid), False, float(np.median(codes.n_active)), float(codes.gap.max(initial=0.0)), n_stalled,
        float(codes.passes.mean()), solve_s,
    )  # fmt: skip


def strength_of(path: Path, options: SolveOptions, *, backbone: str, first_guess_from_file: bool) -> StrengthRule:
    """The strength of an earlier prediction, for another slide or a rerun in the same space.

    Args:
        path: the prediction.
        options: of now.
        backbone: by name.
        first_guess_from_file: whether a file gives the first guess (and the anchors) now.

    Raises:
        OutputError: where the file is no prediction.
        UsageError: where it was made in another space, so that its strength means something else.
    """
    about = read_about(path)
    asked = {"preset": options.preset, "omega": options.weight, "signed": options.signed, "backbone": backbone}
    card = json.loads(str(about.get("backbone", "{}")))
    there = {**about, "backbone": card.get("name"), "guess from a file": about.get("first_guess") == "file"}
    asked["guess from a file"] = first_guess_from_file
    if int(about.get("tuning", 0)):
        raise UsageError(
            f"--strength-from {path}: made with tuned settings, of which the strength is a part",
            "Leave --strength-from out: the bank's tuned settings are used for every slide.",
        )
    wrong = [f"{k} {there.get(k)} there, {v} here" for k, v in asked.items() if there.get(k) != v]
    if wrong or "l1_scale" not in about:
        raise UsageError(
            f"--strength-from {path}: made in another space ({', '.join(wrong) or 'no strength is recorded'})",
            "Give the same --preset, --omega, --signed, --backbone and first guess, or leave --strength-from out.",
        )
    return StrengthRule(float(about["l1_scale"]), float(about["l2_scale"]), float(about["l1_power"]))


def write_expression(
    target: Path, prediction: Prediction, bank: Bank, chosen: Ints, *, centred: bool, tuning: Tuning | None = None,
    listener: Listener,
) -> None:  # fmt: skip
    """Reconstructs the chosen genes block by block into a file that appears when it is whole; says what is missing."""
    scale = prediction.scale
    mean = bank.derived[f"genes/{scale.name}/mean"][chosen]
    section_of = np.repeat(np.arange(len(bank.sections)), [section["n_spots"] for section in bank.sections])
    presence = Presence.of(bank.measured[:, chosen], section_of, mean)
    walk, centre = bank_blocks(bank, chosen, scale), mean if centred else None
    blend = None if tuning is None else tuning.blend(prediction.obsm[keys.COMPONENTS], bank, chosen)
    blocks = reconstruct(prediction.codes, walk, len(chosen), centre, presence, blend)
    total, n_missing = len(prediction.grid), 0

    def watched() -> Any:
        nonlocal n_missing
        done = 0
        for values, present in blocks:
            done += len(values)
            n_missing += 0 if present is None else int(present.size - present.sum())
            yield values, present
            listener.progress(Progress(f"write {target.name}", done, total))

    making = new_folder if target.suffix == ".zarr" else new_file
    with making(target) as temporary, settled():
        write_prediction(temporary, prediction, watched(), as_h5ad=target.suffix == ".h5ad")
    if presence is not None:
        listener.say(
            f"{target}: {len(presence.columns)} of {len(chosen)} genes were not measured in every section of the bank; "
            f"{n_missing} of {total * len(chosen)} values are missing (layers['{keys.PRESENT}'])"
        )


def _find_done(target: Path, key: str, overwrite: bool, listener: Listener) -> dict[str, Any] | None:
    """The provenance of the output where it stands and was made in just this way, else None."""
    if not target.exists() or overwrite:
        return None
    try:
        about = read_about(target)
    except OutputError as error:
        raise OutputError(error.message, "Give another --out, or --overwrite to replace it.") from error
    if about.get("key") == key:
        listener.say(f"{target}: already done")
        tidy(target)
        return about
    listener.say(f"{target}: made with other options, slide or bank; doing it again")
    return None


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

    for number, low in enumerate(range(0, len(queries), SOLVE_BLOCK)):
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
