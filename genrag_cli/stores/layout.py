"""The format as data: what a bank and an embeddings file hold, in which type and shape.

Letters: n spots of a section, G genes, d embedding dimensions, A anchor genes, p components.
Every store is an AnnData in Zarr v3 in a zip that adds no compression; `derived` stores are plain groups of arrays.

A bank is a folder: `manifest.json`, `genes.json`, one file per section in `sections/`, one per section and backbone in
`embeddings/`, one per version in `derived/`, in `predicts/` the genes that a backbone predicts by itself, and where it
was asked for one per section in `thumbnails/`, on which no prediction depends. The manifest is replaced in one step
whenever a file is finished, so it holds what is short: what grows with the genes stands in `genes.json`, what grows
with the versions in their own files. Entries of files have their `sha256`, the manifest its own, `manifest_sha256`;
one without is of an earlier version, and is read.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

FORMAT = "generag-bank"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
MANIFEST_KEYS = ("train", "genes_file", "geometry", "sections", "skipped", "dropped_genes", "backbones")
"""What every manifest has, from its creation on. Entries with a `file` have its `sha256` and `bytes` too."""
MANIFEST_NOTES = ("format", "format_version", "generag_version", "genes", "gene_ids", "species", "asked", "merged_from",
                  "removed", "leaving")  # fmt: skip
"""What it may have beside these and its digest; one without a digest that has anything else has lost its digest."""
GENES = "genes.json"
"""`genes` (symbols, frozen at creation) and `gene_ids` (stable ids, or null); part of the manifest once it is read."""
VERSION_KEYS = ("key", "panel", "rule", "recipe")
"""What the manifest says of a version, beside its number, its file, how many sections and anchors it has, and
`withdrawn`: sections that it used and that were taken out since, which makes it history without a file. The rest of its
entry are attributes of its file."""


@dataclass(frozen=True)
class Element:
    """One array of a store: `kind` is numpy's letter for the type, `shape` names its axes."""

    path: str
    kind: str
    shape: tuple[str, ...]
    meaning: str


SECTION = (
    Element("X", "csr", ("n", "G"), "counts of the bank's genes, as measured"),
    Element("obs/_index", "OUT", ("n",), "spot names, unique within the section"),
    Element("obs/array_row", "iu", ("n",), "row in the lattice"),
    Element("obs/array_col", "iu", ("n",), "column in the lattice"),
    Element("obs/total_counts", "f", ("n",), "counts over all genes of the section, those outside the bank too"),
    Element("var/_index", "OUT", ("G",), "gene symbols, those of `genes.json` in its order"),
    Element("var/measured", "b", ("G",), "whether the section measured the gene; without counts where it did not"),
    Element(
        "var/{scale}_{statistic}", "fiu", ("G",), "mean, sd, detected, spots: of the gene over the section's spots"
    ),
    Element("obsm/spatial", "f", ("n", "2"), "x, y of the centres in level-0 px"),
)
"""`sections/NAME.zarr.zip`"""

EMBEDDING = (
    Element("obs/_index", "OUT", ("n",), "spot names, as in the section's store"),
    Element("obsm/{backbone}", "f", ("n", "d"), "embeddings as the backbone gave them, not standardised"),
)
"""`embeddings/BACKBONE/NAME.zarr.zip`, and `SLIDE.BACKBONE.zarr.zip` of `generag embed`"""

DERIVED = (
    Element("features/mean", "f", ("d",), "mean embedding over the bank's spots"),
    Element("features/sd", "f", ("d",), "sd of the embedding over the bank's spots"),
    Element("genes/{scale}/mean", "f", ("G",), "mean expression over the spots that measured the gene"),
    Element("genes/{scale}/sd", "f", ("G",), "sd of expression over these"),
    Element("genes/{scale}/detected", "f", ("G",), "share of these with a count"),
    Element("genes/{scale}/spots", "iu", ("G",), "how many these are"),
    Element("heads/{scale}/centre", "f", ("d",), "subtracted from standardised features"),
    Element("heads/{scale}/components", "f", ("d", "p"), "projection to components; absent where d <= 128"),
    Element("heads/{scale}/coef", "f", ("p", "A"), "ridge coefficients"),
    Element("heads/{scale}/intercept", "f", ("A",), "ridge intercept"),
)
"""`derived/BACKBONE.vK.zarr.zip`; its attributes are the version's sections, the digests of the files that it was made
from, anchors and facts of the heads."""

THUMBNAILS = (
    Element("jpeg", "u", ("bytes",), "JPEG files of the spots' tiles, one after the other"),
    Element("offsets", "iu", ("n + 1",), "where each begins, and where the last one ends"),
)
"""`thumbnails/NAME.zarr.zip`, where a bank keeps them; its attribute `spots` (n) names the spots in order."""


TUNING = (
    Element("basis/centre", "f", ("d",), "subtracted from features"),
    Element("basis/directions", "f", ("d", "p"), "principal directions of features"),
    Element("regression/coef", "f", ("p + 1", "G"), "of every gene on scores; the last row is the value at the centre"),
    Element("anchors/centre", "f", ("A",), "subtracted from anchors, in the scale of the anchor block"),
    Element("anchors/scale", "f", ("A",), "what anchors are then multiplied by"),
    Element("genes/oof_pcc", "f", ("G",), "correlation on sections left out; NaN where undefined"),
    Element("genes/expected_pcc", "f", ("G",), "what to expect of another section, from all genes and folds"),
    Element("genes/q_value", "f", ("G",), "of the correlation on sections left out, against turned sections"),
    Element("genes/low", "f", ("G",), "lower end of the interval, less the prediction"),
    Element("genes/high", "f", ("G",), "upper end"),
    Element("spots/morphology", "f", ("q",), "quantiles of the residual of spots left out"),
    Element("spots/anchor", "f", ("q",), "quantiles of the residual of spots left out"),
)
"""`derived/BACKBONE.vK.tJ.zarr.zip`: tuned settings; its attributes are the settings, the folds, all that was tried."""


def section_file(name: str) -> str:
    """Where the store of a section stands within a bank."""
    return f"sections/{name}.zarr.zip"


def file_word(backbone: str) -> str:
    """A backbone's name within names of files: copying tools take `slide.timm:resnet18.h5ad` for a file on a host."""
    return backbone.replace(":", "-")


def embedding_file(backbone: str, name: str) -> str:
    """Where a section's embeddings stand within a bank."""
    return f"embeddings/{file_word(backbone)}/{name}.zarr.zip"


def statistic_column(scale: str, statistic: str) -> str:
    """Column of a section's `var` that holds a statistic of every gene in a scale."""
    return f"{scale}_{statistic}"


def tuning_file(backbone: str, version: int, number: int) -> str:
    """Where tuned settings of a version stand within a bank."""
    return f"derived/{file_word(backbone)}.v{version}.t{number}.zarr.zip"


def predicts_file(backbone: str) -> str:
    """Where the genes that a model predicts by itself stand within a bank."""
    return f"predicts/{file_word(backbone)}.json"


def thumbnail_file(name: str) -> str:
    """Where the small pictures of a section's spots stand within a bank."""
    return f"thumbnails/{name}.zarr.zip"


def derived_file(backbone: str, version: int) -> str:
    """Where anchors' head and gene statistics of one version stand within a bank."""
    return f"derived/{file_word(backbone)}.v{version}.zarr.zip"


def digest_manifest(manifest: dict[str, Any]) -> str:
    """What stands as `manifest_sha256` in a manifest: the digest of everything else in its file."""
    content = {k: v for k, v in manifest.items() if k != "manifest_sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_escapes(manifest: Any) -> list[str]:
    """Files that a manifest names and that would lie outside the bank; a manifest may come from anybody."""
    if isinstance(manifest, dict):
        named = manifest.get("file")
        files = [named] if isinstance(named, str) else []
        files += [f for f in manifest.get("leaving", []) if isinstance(f, str)]
        wrong = [f for f in files if PurePosixPath(f).is_absolute() or ".." in PurePosixPath(f).parts or "\\" in f]
        return wrong + [f for value in manifest.values() for f in find_escapes(value)]
    return [f for value in manifest for f in find_escapes(value)] if isinstance(manifest, list) else []
