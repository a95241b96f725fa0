"""A bank as rows of the problem, made section by section: held in memory where they fit, else streamed from disk."""

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genrag_cli.backbones.base import Reference
from genrag_cli.backbones.probe import Head
from genrag_cli.errors import BackboneError
from genrag_cli.genes.align import columns
from genrag_cli.pipeline.anchor_space import AnchorSpace
from genrag_cli.pipeline.derive import standardise_sections
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.retrieval.atoms import Atoms, HeldAtoms, StreamedAtoms
from genrag_cli.retrieval.dictionary import Blocks
from genrag_cli.retrieval.memory import free_bytes
from genrag_cli.stores.bank import Bank, SectionReader
from genrag_cli.stores.rows import row_reader, write_rows
from genrag_cli.types import Doubles, Expression, Floats, Listener, Strings

SHARE = 0.5
"""Of free memory that a bank may take where nothing was asked."""
BYTES_EACH = 6
"""Per number: float32, and a copy in bfloat16."""


def section_features(bank: Bank, *, standardised: bool) -> Iterator[Floats]:
    """Embeddings (n, d) of each section, standardised by its own mean and sd (preset default) or as they are."""
    for embeddings in bank.embeddings:
        yield standardise_sections([embeddings])[0] if standardised else embeddings


def guess_spread(bank: Bank, head: Head) -> Doubles:
    """sd (A,) of a head's guesses over the bank."""
    n, total, squares = 0, np.zeros(len(head.intercept)), np.zeros(len(head.intercept))
    for features in section_features(bank, standardised=True):
        guess = head.predict(features).astype(np.float64)
        n, total, squares = n + len(guess), total + guess.sum(0), squares + (guess**2).sum(0)
    return np.asarray(np.sqrt(np.maximum(squares / n - (total / n) ** 2, 0)))


def row_blocks(bank: Bank, blocks: Blocks, anchors: AnchorSpace, features: Iterator[Floats]) -> Iterator[Floats]:
    """D' (N, d + A) in blocks of one section, from features (n, d) of each."""
    for some, expression in zip(features, anchors.rows(bank), strict=True):
        yield blocks.rows(some, expression)


def make_reference(bank: Bank, anchors: AnchorSpace) -> Reference:
    """The bank as a model that retrieves wants it, with expression of the anchors in their scale."""

    def counts(genes: Strings) -> Iterator[tuple[Any, Doubles]]:
        where = columns(bank.genes, genes)
        for entry in bank.sections:
            section = SectionReader.open(bank.folder, entry)
            if entry["n_missing"] and len(lost := genes[~section.measured[where]]):
                raise BackboneError(
                    f"section {section.name} of the bank {bank.folder} did not measure {len(lost)} genes that the "
                    f"model takes in, such as {lost[0]}, and missing is not 0",
                    "Build a bank without such sections (--exclude), or take another backbone.",
                )
            yield section.counts()[:, where], section.totals

    values = np.concatenate(list(anchors.rows(bank)))
    sizes = [section["n_spots"] for section in bank.sections]
    return Reference(
        features=np.concatenate(list(bank.embeddings)),
        expression=Expression(values, bank.spot_names, anchors.genes, anchors.scale),
        section_of=np.repeat(np.arange(len(sizes)), sizes),
        counts=counts,
    )


@contextlib.contextmanager
def place_rows(
    rows: Iterator[Floats], m: int, share: slice, run: RunOptions, scratch: Path, listener: Listener
) -> Iterator[tuple[Atoms, bool]]:
    """Puts rows where they fit and says where; a scratch file is taken away at the end.

    Args:
        rows: blocks that together are (N, m).
        m: columns.
        share: the rows that this process keeps.
        run: device, and memory that the bank may take.
        scratch: folder for rows that do not fit.
        listener: told when rows go to disk.
    """
    kept, device = share.stop - share.start, torch.device(run.device)
    own = _cut(rows, share)
    here = torch.device("cpu")
    budget = SHARE * free_bytes(here) if run.bank_memory_gb is None else run.bank_memory_gb * 1e9
    on_card = device.type != "cuda" or BYTES_EACH * kept * m <= SHARE * free_bytes(device)
    if (BYTES_EACH if device.type == "cpu" else 4) * kept * m <= budget:
        held, row = np.empty((kept, m), np.float32), 0
        for block in own:
            held[row : row + len(block)] = block
            row += len(block)
        if on_card:
            yield HeldAtoms(torch.from_numpy(held).to(device)), False
        else:
            yield StreamedAtoms(kept, m, lambda low, high: held[low:high], device=device), True
        return
    path = scratch / f".generag-rows-{uuid.uuid4().hex[:12]}.npy"
    listener.say(f"the bank takes {BYTES_EACH * kept * m / 1e9:.1f} GB, more than it may: it streams from {path}")
    try:
        write_rows(path, (kept, m), own)
        yield StreamedAtoms(kept, m, row_reader(path), device=device), True
    finally:
        path.unlink(missing_ok=True)


def _cut(rows: Iterator[Floats], share: slice) -> Iterator[Floats]:
    first = 0
    for block in rows:
        part = block[max(0, share.start - first) : max(0, share.stop - first)]
        if len(part):
            yield part
        first += len(block)
