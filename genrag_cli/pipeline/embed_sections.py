"""Embeddings of a bank's sections, one section at a time: from pixels by a backbone, or from files made elsewhere."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrag_cli.backbones.base import ExpressionModel
from genrag_cli.cohorts.base import Section
from genrag_cli.errors import BackboneError, FeaturesError, UsageError
from genrag_cli.pipeline.apart import read_apart
from genrag_cli.pipeline.embedding import embed_blocks
from genrag_cli.pipeline.fit import card_of_features, differences, identity, made_elsewhere, not_stated, same_fov
from genrag_cli.pipeline.geometry import tile_um
from genrag_cli.pipeline.loading import Loaded, record
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.pipeline.query import JOIN_SHARE, doubt_places
from genrag_cli.pipeline.sections import open_image
from genrag_cli.slides import n_beyond_edge, plan_spots
from genrag_cli.stores.atomic import Parts
from genrag_cli.stores.bank import SectionReader
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.foreign import ForeignRows, in_pixels, join_rows, read_features
from genrag_cli.stores.layout import embedding_file
from genrag_cli.types import BackboneCard, Listener, PixelSize, fingerprint
from genrag_cli.units import Mpp


@dataclass(frozen=True)
class FeatureFolder:
    """Embeddings of sections in files, one a section, under a name that stands for whatever made them."""

    name: str
    folder: Path
    key: str | None = None
    """Which array of each file, where there are several."""
    names_from: Path | None = None
    """Folder of files that name the rows, one a section; None: the files do it themselves."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:+-]*", self.name):
            raise UsageError(
                f"--backbone {self.name!r} cannot be part of a file's name", "Use letters, digits and . _ -"
            )

    def read(self, section: str, others: Sequence[str]) -> ForeignRows:
        """The rows of a section, in the order of their file.

        Args:
            section: its name.
            others: names of all sections, whose files are not taken for its.

        Raises:
            FeaturesError: for a file that cannot be read, is not there, or is one of several.
        """
        names = None if self.names_from is None else _find_file(self.names_from, section, others)
        path = _find_file(self.folder, section, others)
        return read_apart(path, FeaturesError, read_features, path, key=self.key, names_from=names)


Source = Loaded | FeatureFolder


def _find_file(folder: Path, section: str, others: Sequence[str]) -> Path:
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise FeaturesError(f"{folder}: no such folder", "Give the folder that holds one file per section.")
    longer = [name for name in others if name != section and name.startswith(section)]
    theirs = tuple(name + end for name in longer for end in "._-")
    files = [p for p in sorted(folder.iterdir()) if not p.name.startswith(theirs)]
    exact = [p for p in files if p.name.startswith(f"{section}.")]
    found = exact or [p for p in files if p.name.startswith((f"{section}_", f"{section}-"))]
    if len(found) == 1:
        return found[0]
    if found:
        raise FeaturesError(
            f"section {section}: {len(found)} files of {folder} could be its: {', '.join(p.name for p in found[:4])}",
            "Leave one file per section in the folder.",
        )
    here = ", ".join(sorted(p.name for p in folder.iterdir())[:4]) or "nothing"
    raise FeaturesError(
        f"section {section}: no file of {folder} is called like it; it holds {here}",
        f"Call the file {section}.h5 or {section}_ANYTHING, or leave the section out (--exclude {section}).",
    )


def embed_section(
    writer: BankWriter, section: Section, source: Source, run: RunOptions, given: Sequence[str], listener: Listener
) -> None:
    """Gives a section of a bank its embeddings, where it does not have the very same.

    Args:
        writer: of the bank.
        section: one that the bank has.
        source: a backbone, or files.
        run: workers, overwrite.
        given: names of all sections that are embedded in this run.
        listener: told what happens.

    Raises:
        BackboneError: where the bank has embeddings of that name that were made otherwise.
        FeaturesError: for files that do not fit the section's spots.
        SlideError: for slides that cannot be read.
    """
    entry = writer.section(section.name)
    assert entry is not None
    stored = SectionReader.open(writer.folder, entry)
    size = entry["pixel_size"]
    pixel_size = PixelSize(Mpp(size["mpp"]), size["source"], tuple((s, v) for s, v in size["others"]))
    if isinstance(source, FeatureFolder):
        _take_features(writer, stored, source, pixel_size, run, given, listener)
        return
    backbone, geometry = source.backbone, writer.manifest["geometry"]
    expect_same(writer, backbone.card, run, given)
    with open_image(section) as slide:
        grid = plan_spots(
            slide, pixel_size, (stored.names, stored.centres), fov_um=tile_um(geometry, pixel_size.mpp),
            pitch_um=geometry["pitch_um"], tile_px=backbone.card.tile_px, array_rc=stored.array_rc,
        )  # fmt: skip
        key = fingerprint(slide.digest(), grid.names, grid.centres, grid.side_px, identity(backbone.card))
        if writer.embedded(backbone.card, section.name, key) and not run.overwrite:
            return
        beyond = n_beyond_edge(slide, grid)
        if beyond:
            listener.say(f"{section.name}: {beyond} tiles reach past the edge of the slide; white there")
        parts = Parts(writer.folder / embedding_file(backbone.card.name, section.name), key, "parts")
        stage = f"embed {section.name} with {backbone.card.name}"
        blocks = embed_blocks(slide, grid, backbone, parts, run, listener, stage)
        writer.add_embeddings(backbone.card, section.name, stored.names, blocks, key)
        parts.clear()


def _take_features(
    writer: BankWriter, stored: SectionReader, source: FeatureFolder, pixel_size: PixelSize, run: RunOptions,
    given: Sequence[str], listener: Listener,
) -> None:  # fmt: skip
    pitch_px = writer.manifest["geometry"]["pitch_um"] / pixel_size.mpp
    rows = in_pixels(source.read(stored.name, given), pixel_size.mpp)
    card = card_of_features(source.name, rows, pixel_size.mpp)
    expect_same(writer, card, run, given)
    order = join_rows(rows, stored.names, stored.centres, within_px=JOIN_SHARE * pitch_px)
    values = np.ascontiguousarray(rows.values[order])
    key = fingerprint(values, stored.names, identity(card))  # joined: which array, and whose names, is in it
    if writer.embedded(card, stored.name, key) and not run.overwrite:
        return
    for note in (*rows.notes, *not_stated(rows)):
        listener.say(f"{stored.name}: {note}")
    if text := doubt_places(rows, order, stored.centres, pitch_px):
        listener.warn(f"{stored.name}: {text}")
    writer.add_embeddings(card, stored.name, stored.names, iter([values]), key)
    listener.say(f"{stored.name}: {len(order)} spots with {rows.kind} features of {rows.path}")


def expect_same(writer: BankWriter, card: BackboneCard, run: RunOptions, given: Sequence[str]) -> None:
    """Refuses embeddings that are not like those that the bank has under the same name.

    With `--overwrite` they may differ where every section that has some is embedded anew in this run; the old ones are
    then forgotten before the first new one is written, so that no bank ever mixes the two.

    Raises:
        BackboneError: naming what is on both sides.
    """
    there = writer.manifest["backbones"].get(card.name, {})
    embedded = there.get("sections", {})
    if not embedded:
        return
    old = BackboneCard(**there["card"])
    found = differences(card, old)
    if not found and made_elsewhere(card) and not same_fov(card.fov_um, old.fov_um):
        found = [("fov_um", card.fov_um, old.fov_um)]
    if found and run.overwrite and set(embedded) <= set(given):
        writer.drop_embeddings(card.name)
        return
    for what, a, b in found:
        raise BackboneError(
            f"backbone {card.name} has {what} {a or 'none'}; its embeddings in the bank {writer.folder} were made "
            f"with {what} {b or 'none'}",
            "Build another bank (--bank), or embed all its sections anew (--overwrite, with all of them given).",
        )


def note_source(writer: BankWriter, source: Source) -> None:
    """Records what the next run needs to know of a backbone: what it was loaded with, and which genes it predicts.

    A backbone without any embeddings has no entry yet, and is left alone.
    """
    if source.name not in writer.manifest["backbones"]:
        return
    if isinstance(source, FeatureFolder):
        paths = {"features": source.folder, "names_from": source.names_from}
        named = {flag: str(path.resolve()) for flag, path in paths.items() if path is not None}
        facts = named | ({"features_key": source.key} if source.key else {})
        writer.note_backbone(source.name, loading=facts, predicts=None)
        return
    backbone = source.backbone
    genes = backbone.genes if isinstance(backbone, ExpressionModel) and len(backbone.genes) else None
    writer.note_backbone(source.name, loading=record(source.loading), predicts=genes)
