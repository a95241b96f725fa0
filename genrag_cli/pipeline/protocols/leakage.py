"""Test sections, patients and panels that a bank should not know, looked for in every fold."""

import numpy as np

from genrag_cli.errors import GeneragError
from genrag_cli.evaluation.leaks import CountedSection, Leak, find_leaks, judge_panel
from genrag_cli.genes.panels import core_panel
from genrag_cli.genes.published_panels import PANELS
from genrag_cli.pipeline.anchors import AnchorOptions, stored_statistics
from genrag_cli.pipeline.protocols.plan import Held
from genrag_cli.stores.bank import Bank, SectionReader
from genrag_cli.types import LOG1P_CP10K, Strings


def look_for_leaks(bank: Bank, held: Held) -> list[Leak]:
    """Leaks between the two sides of a fold, worst first.

    Args:
        bank: all sections.
        held: which train and which are tested.
    """
    readers = [SectionReader.open(bank.folder, entry) for entry in bank.sections]
    counted = [CountedSection(r.name, r.patient, r.counts()) for r in readers]
    found = _find(counted, held)
    shared = bank.measured.all(axis=0)
    if not shared.all():  # the same spots, where one side lacks genes, are equal only in the genes of both
        narrow = [CountedSection(c.name, c.patient, c.counts[:, np.flatnonzero(shared)]) for c in counted]
        known = {(leak.kind, leak.sections) for leak in found}
        found += [leak for leak in _find(narrow, held) if (leak.kind, leak.sections) not in known]
        found.sort(key=lambda leak: leak.kind != "section")
    panel = AnchorOptions.recall(bank.version["recipe"]).listed()
    if panel is not None:
        leak = judge_listed_panel(panel, [readers[i] for i in held.train], [readers[i] for i in held.test], bank.genes)
        found += [leak] if leak is not None else []
    return found


def _find(counted: list[CountedSection], held: Held) -> list[Leak]:
    return find_leaks([counted[i] for i in held.test], [counted[i] for i in held.train])


def judge_listed_panel(
    panel: Strings, train: list[SectionReader], test: list[SectionReader], genes: Strings
) -> Leak | None:
    """Whether a list of anchors is what the recipe chooses with the test sections rather than without them."""
    shared = np.ones(len(genes), bool)
    for section in (*train, *test):
        if section.entry["n_missing"]:
            shared &= section.measured
    rows = np.flatnonzero(shared)

    def choose(recipe: str, sections: list[SectionReader]) -> list[str]:
        pick = PANELS[recipe].choose
        try:
            if pick is None:
                chosen = core_panel(genes[rows], stored_statistics(sections, LOG1P_CP10K, rows), len(panel))
            else:
                chosen = pick(genes[rows], lambda: (s.counts()[:, rows] for s in sections), len(panel))
        except GeneragError:  # fewer genes pass than the list has, so it does not come from there
            return []
        return [str(g) for g in genes[rows][chosen]]

    names = [str(g) for g in panel]
    with_test, without = (
        {recipe: choose(recipe, sections) for recipe in PANELS if recipe != "hest-bench"}
        for sections in ([*train, *test], train)
    )
    return judge_panel(names, with_test, without)
