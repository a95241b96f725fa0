"""What a bank knows about itself: anchors, gene statistics and heads; a new version whenever its sections change.

A version is made from what stands in the sections' files, and from nothing else: it is the same whether its sections
came at once or one by one. Memory holds a section or two and what the head is fitted on.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.folds import Folds, cut_folds, fold_groups
from genrag_cli.backbones.probe import Head, fit_folds
from genrag_cli.genes.align import columns
from genrag_cli.genes.moments import pool_statistics
from genrag_cli.genes.scales import to_scale
from genrag_cli.pipeline.anchors import SCALES, STATISTICS, AnchorOptions, choose_anchors, stored_statistics
from genrag_cli.retrieval.dictionary import standardise
from genrag_cli.stores.bank import Bank, SectionReader, read_embeddings, read_predicted
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import Doubles, Floats, Ints, Listener, Progress, Scale, Strings, fingerprint

HEAD_SPOTS = 100_000
"""Spots that a head is fitted on at most. On made-up sections of 250 patients, with the covariance of real embeddings,
errors on new patients were .98086 of the variance with 100,000 spots and .98053 with 200,000 (25,000: .98222)."""

READERS = 2
"""Sections that are read at a time; memory holds as many."""


@dataclass(frozen=True, eq=False)
class HeadProblem:
    """What a version's heads are fitted on: all spots up to `HEAD_SPOTS`, else the same share of each section."""

    features: Floats
    """(n, d) standardised embeddings."""
    targets: dict[Scale, Floats]
    """(n, A) anchors in each scale."""
    mean: Doubles
    """(d,) of the embeddings over all spots of the version."""
    sd: Doubles
    """(d,)"""
    section_of: Ints
    """(n,) by number."""
    centres: Doubles
    """(n, 2) in a version of one section; zeros where they do not matter."""
    n_spots: int
    """Of the version."""


def add_version(
    writer: BankWriter, backbone: str, names: Sequence[str], options: AnchorOptions, listener: Listener
) -> None:
    """Gives a backbone a version of some sections, where its newest is not already that.

    Args:
        writer: of the bank.
        backbone: one that has embeddings of all of them.
        names: of the sections, in order.
        options: which anchors.
        listener: told what was made.

    Raises:
        BankError: for files that are missing or damaged.
        CohortError: for anchors that some section did not measure.
    """
    key = version_key(writer.manifest, backbone, names, options)
    current = writer.current_version(backbone)
    if current and current["key"] == key:
        listener.say(f"{writer.folder}: nothing to do for {backbone}, version {current['version']} is up to date")
        return
    arrays, entry = derive(writer.folder, writer.manifest, backbone, names, options, listener)
    writer.add_version(backbone, arrays, {"key": key, **entry})
    bank = Bank.open(writer.folder, backbone)
    listener.say(
        f"{writer.folder}: {bank.n_spots} spots of {len(names)} sections, {len(bank.genes)} genes, backbone {backbone}"
    )


def version_key(manifest: dict[str, Any], backbone: str, names: Sequence[str], options: AnchorOptions) -> str:
    """What a version depends on; equal keys mean that there is nothing to recompute."""
    entries = {s["name"]: s for s in manifest["sections"]}
    embedded = manifest["backbones"][backbone]["sections"]
    facts = [(n, entries[n]["sha256"], entries[n]["patient"], embedded[n]["sha256"]) for n in names]
    predicts = (manifest["backbones"][backbone].get("predicts") or {}).get("sha256", "")
    return fingerprint(facts, options.recipe, HEAD_SPOTS, predicts)


def derive(
    folder: Path,
    manifest: dict[str, Any],
    backbone: str,
    names: Sequence[str],
    options: AnchorOptions,
    listener: Listener,
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Computes one version.

    Args:
        folder: the bank.
        manifest: its manifest.
        backbone: whose embeddings are used.
        names: of the sections, in order.
        options: which anchors.
        listener: told what was chosen.

    Returns:
        arrays by `stores.layout.DERIVED`, and the version's entry.
    """
    entries = {s["name"]: s for s in manifest["sections"]}
    sections = [SectionReader.open(folder, entries[name]) for name in names]
    genes: Strings = np.asarray(manifest["genes"], np.str_)
    predicted = read_predicted(folder, manifest["backbones"][backbone])
    anchors, source = choose_anchors(genes, sections, options, listener, among=predicted)
    arrays: dict[str, NDArray[Any]] = {}
    for scale in SCALES:
        pooled = pool_statistics(stored_statistics(sections, scale))
        arrays |= {f"genes/{scale.name}/{name}": getattr(pooled, name) for name in STATISTICS}
    problem = gather(sections, manifest["backbones"][backbone], columns(genes, anchors), listener)
    arrays |= {"features/mean": problem.mean, "features/sd": problem.sd}
    folds = cut(problem, sections)
    heads: dict[str, Any] = {}
    for scale, targets in problem.targets.items():
        head = fit_folds(folds, targets)
        arrays |= store_head(head, scale)
        heads[scale.name] = {"strength": head.strength, "rule": head.rule, "curve": head.curve}
    fitted_on = len(problem.features)
    share = "" if fitted_on == problem.n_spots else f" on {fitted_on} of {problem.n_spots} spots"
    listener.say(f"anchors: {len(anchors)} ({source}); head: ridge{share}, strength by {folds.rule}")
    return arrays, {
        "sections": list(names), "anchors": anchors.tolist(), "panel": source, "recipe": options.recipe,
        "heads": heads, "rule": folds.rule, "head_spots": fitted_on, "n_spots": problem.n_spots,
    }  # fmt: skip


def gather(
    sections: Sequence[SectionReader], embedded: dict[str, Any], anchors: Ints, listener: Listener
) -> HeadProblem:
    """Reads each section once for what its embeddings' moments and the heads need.

    Args:
        sections: of the version, in order.
        embedded: the backbone's entry in the manifest.
        anchors: (A,) columns of the bank's genes.
        listener: told how far it is.
    """
    chosen = sample_rows([len(s) for s in sections], HEAD_SPOTS)
    ends = np.cumsum([0, *(len(rows) for rows in chosen)])
    dim, name = embedded["card"]["dim"], embedded["card"]["name"]
    features = np.empty((ends[-1], dim), np.float32)
    targets = {scale: np.empty((ends[-1], len(anchors)), np.float32) for scale in SCALES}
    n, mean, squares = 0, np.zeros(dim), np.zeros(dim)

    def read(section: SectionReader, rows: Ints) -> tuple[Floats, dict[Scale, Floats], Doubles, Doubles]:
        values = read_embeddings(section.folder, embedded["sections"][section.name], name)
        own_mean, own_sd = measure_spread(values)
        counts, totals = section.counts()[rows][:, anchors], section.totals[rows]
        scaled = {scale: to_scale(counts, totals, scale).toarray() for scale in SCALES}
        return standardise(values[rows], own_mean, own_sd), scaled, own_mean, own_sd

    for number, (own, scaled, own_mean, own_sd) in enumerate(_ahead(read, list(zip(sections, chosen, strict=True)))):
        # Chan, Golub and LeVeque 1983, as for genes.
        size = len(sections[number])
        together = n + size
        squares += size * (own_sd**2 + n / together * (own_mean - mean) ** 2)
        mean += size / together * (own_mean - mean)
        n = together
        part = slice(ends[number], ends[number + 1])
        features[part] = own
        for scale, target in targets.items():
            target[part] = scaled[scale]
        listener.progress(Progress(f"read sections for {name}", number + 1, len(sections)))
    centres = sections[0].centres[chosen[0]] if len(sections) == 1 else np.zeros((len(features), 2))
    section_of = np.repeat(np.arange(len(sections)), np.diff(ends))
    return HeadProblem(features, targets, mean, np.sqrt(squares / n), section_of, centres, n)


def _ahead(read: Callable[..., Any], items: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
    """Results in order, at most `READERS` of them in the making."""
    with ThreadPoolExecutor(READERS) as pool:
        waiting = deque(pool.submit(read, *item) for item in items[:READERS])
        for item in [*items[READERS:], *[None] * len(waiting)]:
            yield waiting.popleft().result()
            if item is not None:
                waiting.append(pool.submit(read, *item))


def measure_spread(values: Floats) -> tuple[Doubles, Doubles]:
    """Mean and sd (d,) of embeddings (n, d), in float64."""
    wide = values.astype(np.float64)
    mean = wide.mean(axis=0)
    wide -= mean
    return mean, np.sqrt(np.einsum("nd,nd->d", wide, wide) / len(wide))


def sample_rows(sizes: Sequence[int], most: int) -> list[Ints]:
    """Rows of each section, ascending: all, or the same share of each so that they are about `most` together.

    Every spot has the same chance, so sums over the sample stand for sums over all spots. Which rows of a section are
    drawn depends on its size and the share alone, not on its neighbours, and there is at least one of each.
    """
    total = sum(sizes)
    if total <= most:
        return [np.arange(n) for n in sizes]
    counts = [max(1, n * most // total) for n in sizes]
    return [np.sort(np.random.default_rng(0).permutation(n)[:k]) for n, k in zip(sizes, counts, strict=True)]


def cut(problem: HeadProblem, sections: Sequence[SectionReader]) -> Folds:
    """The folds by which the heads' strength is chosen."""
    patients = np.asarray([s.patient or "" for s in sections], np.str_)[problem.section_of]
    names = np.asarray([s.name for s in sections], np.str_)[problem.section_of]
    labels, rule = fold_groups(patients, names, problem.centres)
    return cut_folds(problem.features, labels, rule=rule)


def standardise_sections(embeddings: list[Floats]) -> list[Floats]:
    """Each section by its own mean and sd (definitions section 1, S_f)."""
    return [standardise(e, *measure_spread(e)) for e in embeddings]


def store_head(head: Head, scale: Scale) -> dict[str, NDArray[Any]]:
    """A head as arrays of `stores.layout.DERIVED`."""
    prefix = f"heads/{scale.name}"
    arrays: dict[str, NDArray[Any]] = {
        f"{prefix}/centre": head.centre, f"{prefix}/coef": head.coef, f"{prefix}/intercept": head.intercept,
    }  # fmt: skip
    if head.components is not None:
        arrays[f"{prefix}/components"] = head.components
    return arrays


def load_head(arrays: dict[str, NDArray[Any]], entry: dict[str, Any], scale: Scale) -> Head:
    """The head that `store_head` stored."""
    prefix, facts = f"heads/{scale.name}", entry["heads"][scale.name]
    return Head(
        centre=arrays[f"{prefix}/centre"],
        components=arrays.get(f"{prefix}/components"),
        coef=arrays[f"{prefix}/coef"],
        intercept=arrays[f"{prefix}/intercept"],
        strength=facts["strength"],
        rule=facts["rule"],
        curve=tuple((s, e) for s, e in facts["curve"]),
    )
