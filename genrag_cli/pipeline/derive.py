"""What a bank knows about itself: anchors, gene statistics and heads; a new version whenever its sections change."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.probe import Head, fit_head, fold_groups
from genrag_cli.errors import UsageError
from genrag_cli.genes.align import columns
from genrag_cli.genes.moments import GeneStatistics, gene_statistics, pool_statistics
from genrag_cli.genes.panels import N_CORE, core_panel, count_core, read_panel_file
from genrag_cli.genes.scales import to_scale
from genrag_cli.retrieval.dictionary import standardise
from genrag_cli.stores.bank import SectionReader
from genrag_cli.types import COUNTS, LOG1P_CP10K, Floats, Listener, Scale, Strings, fingerprint

SCALES = (LOG1P_CP10K, COUNTS)


@dataclass(frozen=True)
class AnchorOptions:
    """Which anchor genes: a number taken by the recipe, or a file of names."""

    number: int | None = None
    """None: 300, or as many as pass the recipe where those are fewer (said and stored)."""
    file: Path | None = None
    panel: str = "corrected"

    def __post_init__(self) -> None:
        if self.panel != "corrected":
            raise UsageError(f"unknown panel {self.panel!r}", "Known: corrected; or give names with --anchors FILE")
        if self.number is not None and self.number < 1:
            raise UsageError(f"--anchors {self.number} asked; at least 1 is possible", "The usual number is 300.")

    @staticmethod
    def parse(text: str | None, panel: str) -> "AnchorOptions":
        """From `--anchors FILE|N`."""
        if text is None:
            return AnchorOptions(panel=panel)
        return AnchorOptions(int(text), None, panel) if text.isdigit() else AnchorOptions(None, Path(text), panel)


def standardise_sections(embeddings: list[Floats]) -> list[Floats]:
    """Each section by its own mean and sd (definitions section 1, S_f)."""
    return [standardise(e, e.mean(0, dtype=np.float64), e.std(0, dtype=np.float64)) for e in embeddings]


def derive(
    sections: list[SectionReader], embeddings: list[Floats], genes: Strings, options: AnchorOptions, listener: Listener
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Computes one version.

    Args:
        sections: of the bank, in order.
        embeddings: (n, d) of each.
        genes: (G,) of the bank.
        options: which anchors.
        listener: told what was chosen.

    Returns:
        arrays by `stores.layout.DERIVED`, and the version's entry for the manifest.
    """
    log_statistics = [gene_statistics([(s.counts(), s.totals)], LOG1P_CP10K) for s in sections]
    if options.file is not None:
        anchors = read_panel_file(options.file)
        columns(genes, anchors)
        source = f"file {options.file.name}"
    else:
        wanted = options.number or min(N_CORE, count_core(genes, log_statistics))
        if options.number is None and wanted < N_CORE:
            listener.warn(f"{wanted} genes pass the recipe for anchors, fewer than the usual {N_CORE}; all are taken")
        anchors = genes[core_panel(genes, log_statistics, wanted)]
        source = options.panel
    stacked = np.concatenate(embeddings).astype(np.float64)
    arrays: dict[str, NDArray[Any]] = {"features/mean": stacked.mean(0), "features/sd": stacked.std(0)}
    del stacked
    pooled: dict[Scale, GeneStatistics] = {
        LOG1P_CP10K: pool_statistics(log_statistics),
        COUNTS: gene_statistics(((s.counts(), s.totals) for s in sections), COUNTS),
    }
    for scale, statistics in pooled.items():
        for name in ("mean", "sd", "detected"):
            arrays[f"genes/{scale.name}/{name}"] = getattr(statistics, name)
    features = np.concatenate(standardise_sections(embeddings))
    where = columns(genes, anchors)
    labels, rule = fold_groups(
        np.concatenate([np.repeat(s.patient or "", len(s.names)) for s in sections]),
        np.concatenate([np.repeat(s.name, len(s.names)) for s in sections]),
        np.concatenate([s.centres for s in sections]),
    )
    heads: dict[str, Any] = {}
    for scale in SCALES:
        targets = np.concatenate([to_scale(s.counts()[:, where], s.totals, scale).toarray() for s in sections])
        head = fit_head(features, targets, labels, rule=rule)
        arrays |= store_head(head, scale)
        heads[scale.name] = {"strength": head.strength, "rule": head.rule, "curve": head.curve}
    listener.say(f"anchors: {len(anchors)} ({source}); head: ridge, strength by {rule}")
    return arrays, {"anchors": anchors.tolist(), "panel": source, "heads": heads, "rule": rule}


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


def version_key(entries: list[dict[str, Any]], embedded: dict[str, Any], options: AnchorOptions) -> str:
    """What a version depends on; equal keys mean that there is nothing to recompute."""
    named = read_panel_file(options.file) if options.file else None
    facts = [(s["name"], s["sha256"], s["patient"], embedded[s["name"]]["sha256"]) for s in entries]
    return fingerprint(facts, options.number, options.panel, named)
