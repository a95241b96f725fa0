"""Measured sections -> bank: counts and geometry per section, embeddings per backbone, then one derived version each.

What is finished is skipped: sections by the content of their files, embeddings by slide, tile size and backbone. A bank
keeps what it has: sections given later are added to it.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.backbones.base import Backbone
from genrag_cli.cohorts.base import Cohort, Section
from genrag_cli.cohorts.names import warn_of_patients
from genrag_cli.errors import BankError, CohortError, FeaturesError, SlideError, SomeInputsFailed, UsageError, nearest
from genrag_cli.evaluation.splits import leave_patients_out
from genrag_cli.genes.align import columns
from genrag_cli.genes.panels import read_panel_file
from genrag_cli.pipeline.anchors import AnchorOptions, summarise
from genrag_cli.pipeline.bank_options import BankOptions
from genrag_cli.pipeline.derive import add_version
from genrag_cli.pipeline.embed_sections import FeatureFolder, Source, embed_section, expect_same, note_source
from genrag_cli.pipeline.geometry import describe_tiles, expect_geometry, find_geometry
from genrag_cli.pipeline.loading import Loaded
from genrag_cli.pipeline.mix_ups import digest_counts, other_size, refuse_names, refuse_twin
from genrag_cli.pipeline.new_bank import (
    as_names,
    expect_species,
    expect_stated_species,
    freeze_genes,
    match_section,
)
from genrag_cli.pipeline.options import RunOptions
from genrag_cli.pipeline.sections import (
    SectionIdentity,
    keep_imaged,
    lattice_pitch,
    load_section,
    open_image,
    read_genes,
    settle_pixel_size,
    tell,
)
from genrag_cli.pipeline.thumbnails import keep_thumbnails
from genrag_cli.stores.atomic import writer_lock
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.types import Listener, Progress, fingerprint


@dataclass(frozen=True)
class _Given:
    """A section and where it was given."""

    section: Section
    source: str


def build_bank(
    cohorts: Sequence[Cohort],
    folder: Path,
    sources: Sequence[Backbone | Source],
    options: BankOptions,
    run: RunOptions,
    listener: Listener,
) -> None:
    """`generag build-bank`: makes a bank, finishes one, or adds sections or backbones to one.

    Args:
        cohorts: the sections.
        folder: the bank.
        sources: backbones, loaded, or files of embeddings; each gets embeddings and a head.
        options: of the bank.
        run: device, workers, overwrite, dry run.
        listener: told what happens.

    Raises:
        BankError: where the bank is held by another writer, or was built with another geometry.
        CohortError: for sections that cannot be read or do not fit.
        SlideError: for slides that cannot be read, and spots outside them.
        SomeInputsFailed: where `skip_bad` left sections out; the rest is done.
    """
    taken = [s if isinstance(s, Loaded | FeatureFolder) else Loaded(s) for s in sources]
    if run.dry_run:
        plan_bank(cohorts, folder, [s.name for s in taken], options, listener)
        return
    chosen = _choose(cohorts, options, listener)
    anchors = _settle_anchors(cohorts, options, listener)
    with writer_lock(folder, BankError):
        writer = BankWriter(folder)
        # First of all: neither genes nor geometry of a new bank may come from a section that is left out.
        chosen = _settle_patients(writer, _leave_removed(writer, chosen, listener), options, listener)
        if writer.is_new:
            _create(writer, _readable(chosen, options), options, listener)
        manifest = writer.manifest
        expect_geometry(
            folder, manifest["geometry"], crop=options.crop, fov_um=options.fov_um, pitch_um=options.pitch_um
        )
        expect_stated_species(manifest.get("species"), options.species, folder)
        refuse_names([g.section.name for g in chosen], [s["name"] for s in manifest["sections"]])
        if anchors.file is not None:  # before the long work, not after it
            columns(manifest["genes"], read_panel_file(anchors.file))
        writer.note(
            skipped=[list(pair) for c in cohorts for pair in c.skipped],
            train=list(dict.fromkeys([*manifest["train"], *(str(c.root) for c in cohorts)])),
            asked=manifest.get("asked", {}) | options.words(),
        )
        failed: dict[str, str] = {}
        genes_key = fingerprint(manifest["genes"], manifest.get("gene_ids"))

        def add(given: _Given, label: str) -> None:
            _add_section(writer, given, genes_key, options, listener, label)

        _each(chosen, "add sections", options, listener, failed, add)
        for source in taken:
            in_bank = [g for g in chosen if g.section.name not in failed]
            names_in = [g.section.name for g in in_bank]

            if isinstance(source, Loaded):  # first of all, so that a run that is stopped can be taken up
                expect_same(writer, source.backbone.card, run, names_in)
                note_source(writer, source)

            def embed(given: _Given, _: str, source: Source = source, names: list[str] = names_in) -> None:
                embed_section(writer, given.section, source, run, names, listener)

            _each(in_bank, f"embed with {source.name}", options, listener, failed, embed)
            note_source(writer, source)
            in_version = _version_sections(writer, source.name, chosen, failed, options, listener)
            add_version(writer, source.name, in_version, anchors, listener)
        bare: dict[str, str] = {}
        if options.thumbnails:
            there = [g.section for g in chosen if g.section.name not in failed]
            bare = keep_thumbnails(writer, there, run, listener, skip_bad=options.skip_bad)
    if failed:
        shown = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
        raise SomeInputsFailed(f"{len(failed)} of {len(chosen)} sections are not in the bank. {shown}")
    if bare:
        raise SomeInputsFailed(f"{len(bare)} of {len(chosen)} sections have no thumbnails: {', '.join(bare)}")


def plan_bank(
    cohorts: Sequence[Cohort], folder: Path, names: Sequence[str], options: BankOptions, listener: Listener
) -> None:
    """Says what `build_bank` would build, with its refusals of what is asked; needs no backbone, and writes nothing.

    Args:
        cohorts: the sections.
        folder: the bank.
        names: of the backbones.
        options: of the bank.
        listener: told.
    """
    chosen = _choose(cohorts, options, listener)
    _settle_anchors(cohorts, options, listener)
    listener.say(f"would build {folder} from {len(chosen)} sections with {', '.join(names)}")


def _choose(cohorts: Sequence[Cohort], options: BankOptions, listener: Listener) -> list[_Given]:
    given: list[_Given] = []
    for cohort in cohorts:
        for text in cohort.warnings:
            listener.warn(text)
        for name, reason in cohort.skipped:
            listener.say(f"{name}: skipped, {reason}")
        given += [_Given(s, str(cohort.root)) for s in cohort.sections]
    known = [s.name for c in cohorts for s in (*c.sections, *c.without_slide)]
    for name in options.exclude:
        if name not in known:
            roots = ", ".join(str(c.root) for c in cohorts)
            raise UsageError(f"--exclude {name}: no such section in {roots}", nearest(name, known))
    chosen = [g for g in given if g.section.name not in options.exclude]
    names = [g.section.name for g in chosen]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise CohortError(
            f"section {twice[0]} is in several of the cohorts given",
            "Rename sections in a table (generag cohort scan), or --exclude some.",
        )
    refuse_names(names, [])
    for g in chosen:
        tell(listener, g.section.name, g.section.notes)
    if not chosen:
        raise CohortError("no section is left for the bank", "Exclude fewer sections.")
    return chosen


def _settle_anchors(cohorts: Sequence[Cohort], options: BankOptions, listener: Listener) -> AnchorOptions:
    """The anchors asked for; `hest-bench` is the list that its task brings, where a cohort is one."""
    asked = options.anchors
    lists = [c.panel for c in cohorts if c.panel is not None]
    if asked.panel != "hest-bench" or asked.file is not None or asked.number is not None or len(lists) != 1:
        return asked
    listener.say(f"anchors are the task's own, {lists[0]}: it was chosen over all its slides, test slides too")
    return dataclasses.replace(asked, file=lists[0])


def _readable(chosen: list[_Given], options: BankOptions) -> list[Section]:
    """The sections that a gene list can be made of: all, or with `skip_bad` those whose genes can be read."""
    sections = [g.section for g in chosen]
    if not options.skip_bad:
        return sections
    kept = []
    for section in sections:
        with contextlib.suppress(CohortError):  # said when its turn comes
            read_genes(section, options.genes)
            kept.append(section)
    if not kept:
        raise CohortError("no section has genes that can be read", "Look at them: generag cohort info")
    return kept


def _create(writer: BankWriter, chosen: list[Section], options: BankOptions, listener: Listener) -> None:
    frozen = freeze_genes(chosen, options.genes, options.missing_genes, options.species, listener)
    geometry = find_geometry(chosen, crop=options.crop or "fov", fov_um=options.fov_um, pitch_um=options.pitch_um)
    writer.create(genes=frozen.genes.names, gene_ids=frozen.genes.ids, geometry=geometry, train=[])
    writer.note(dropped_genes=frozen.dropped, species=frozen.species)
    listener.say(f"spots of {geometry['spot_um']:g} um every {geometry['pitch_um']:g} um; {describe_tiles(geometry)}")


def _leave_removed(writer: BankWriter, chosen: list[_Given], listener: Listener) -> list[_Given]:
    """The sections that were never taken out of the bank; a consent that was withdrawn stays so."""
    removed = [g.section.name for g in chosen if g.section.name in writer.manifest.get("removed", [])]
    if removed:
        listener.warn(f"{', '.join(removed)} was taken out of the bank (generag bank remove) and stays out of it")
    return [g for g in chosen if g.section.name not in removed]


def _settle_patients(
    writer: BankWriter, chosen: list[_Given], options: BankOptions, listener: Listener
) -> list[_Given]:
    """The sections with their patients: as stated now, else as the bank knows them; without those left out."""
    there = {s["name"]: s["patient"] for s in writer.manifest.get("sections", [])}
    patients = {g.section.name: g.section.patient or there.get(g.section.name) for g in chosen}
    unknown = [name for name, patient in patients.items() if patient is None]
    if unknown and options.unknown_patient == "section":
        patients |= {name: f"unknown:{name}" for name in unknown}
        listener.warn(f"the patient of {len(unknown)} sections is unknown; each counts as a patient of its own")
    elif unknown:
        listener.warn(
            f"the patient of {len(unknown)} of {len(chosen)} sections is unknown, so held-out choices go by section; "
            "name patients with --patients"
        )
    # Those in the bank that are not given now count too: they stay in its next version.
    every = {**there, **patients}
    for text in warn_of_patients(every.values()):
        listener.warn(text)
    kept = leave_patients_out(every, options.leave_out_patients)
    settled = [
        _Given(dataclasses.replace(g.section, patient=patients[g.section.name]), g.source)
        for g in chosen
        if g.section.name in kept
    ]
    if writer.is_new and not settled:
        raise CohortError("no section is left for the bank", "Leave fewer patients out.")
    return settled


def _each(
    chosen: list[_Given], stage: str, options: BankOptions, listener: Listener, failed: dict[str, str],
    act: Callable[[_Given, str], None],
) -> None:  # fmt: skip
    """Does something for every section; an expected failure stops it, or with `skip_bad` is noted."""
    for number, given in enumerate(chosen, 1):
        try:
            act(given, f"[{number}/{len(chosen)}] {given.section.name}")
        except (CohortError, SlideError, FeaturesError) as error:
            if not options.skip_bad:
                hint = f"{error.hint} Or go" if error.hint else "Go"
                raise type(error)(error.message, f"{hint} on without such sections (--skip-bad).") from error
            failed[given.section.name] = error.message
            listener.warn(f"{given.section.name}: left out, {error.message}")
        listener.progress(Progress(stage, number, len(chosen)))


def _add_section(
    writer: BankWriter, given: _Given, genes_key: str, options: BankOptions, listener: Listener, label: str
) -> None:
    section, manifest = given.section, writer.manifest
    aliases = sorted(options.genes.table.items())
    asked = (genes_key, options.pixels, aliases)
    identity = SectionIdentity.of(section, asked)
    entry = writer.section(section.name)
    key = entry["key"] if entry and identity.matches(entry) else identity.key(section)
    made_of = {"key": key, "how": identity.how, "files": identity.files}
    if entry and entry["key"] == key:
        if entry["patient"] != section.patient:
            listener.say(f"{label}: patient {entry['patient'] or 'unknown'} is now {section.patient}")
        now = {**made_of, "patient": section.patient}
        if any(entry.get(k) != v for k, v in now.items()):
            writer.update_section(section.name, **now)
        listener.say(f"{label}: already in the bank")
        return
    if entry and entry["source"] != given.source:
        raise CohortError(
            f"section {section.name} is in the bank already, from {entry['source']}; the one from {given.source} is "
            "another",
            "Rename one in a table (generag cohort scan), or take the old one out (generag bank remove).",
        )
    bank_genes = as_names(manifest)
    genes = read_genes(section, options.genes)
    expect_species(manifest.get("species"), section.name, genes)
    measured = load_section(section, options.genes)
    with open_image(section) as image:
        measured = keep_imaged(section, image, measured)
        pixel_size, warnings = settle_pixel_size(section, image, lattice_pitch(section, measured), options.pixels)
        warnings += other_size(section, image)
    for text in warnings:
        listener.warn(f"{section.name}: {text}")
    found = match_section(bank_genes, section, measured.gene_names, options.missing_genes, listener)
    tell(listener, section.name, measured.notes)
    content = digest_counts(measured)
    refuse_twin(section, content, manifest["sections"])
    if genes.species and not manifest.get("species"):
        writer.note(species=genes.species)
    counts, known = _take_columns(measured.counts, found.columns), found.columns >= 0
    writer.add_section(
        section.name,
        names=measured.names,
        counts=counts,
        totals=measured.total_counts,
        centres=measured.centres,
        array_rc=measured.array_rc,
        measured=known,
        statistics=summarise(counts, measured.total_counts, known),
        entry={
            **made_of,
            "content": content,
            "source": given.source,
            "patient": section.patient,
            "technology": section.technology,
            "slide": str(section.image),
            "pixel_size": dataclasses.asdict(pixel_size),
            "n_genes_measured": len(measured.genes),
            "metadata": section.metadata,
            "notes": [*section.notes, *measured.notes, *warnings],
        },
    )
    listener.say(
        f"{label}: {len(measured)} spots, {pixel_size.mpp:.4g} um/px ({pixel_size.source}), "
        f"patient {section.patient or 'unknown'}"
    )


def _take_columns(counts: Any, wanted: Any) -> Any:
    """Columns of a CSR in the order wanted; nothing in those that are -1."""
    from scipy import sparse

    if (wanted >= 0).all():
        return counts[:, wanted]
    wide = sparse.hstack([counts, sparse.csr_matrix((counts.shape[0], 1), dtype=counts.dtype)], format="csr")
    return wide[:, np.where(wanted < 0, counts.shape[1], wanted)]


def _version_sections(
    writer: BankWriter, backbone: str, chosen: list[_Given], failed: dict[str, str], options: BankOptions,
    listener: Listener,
) -> list[str]:  # fmt: skip
    """The sections of the bank's next version: what it has, what was given, less what was left out."""
    given = {g.section.name for g in chosen}
    embedded = writer.manifest["backbones"].get(backbone, {}).get("sections", {})
    left_out = {*options.exclude, *failed}
    names: list[str] = []
    kept: list[str] = []
    waiting: list[str] = []
    for entry in writer.manifest["sections"]:
        name = entry["name"]
        if name in left_out or entry["patient"] in options.leave_out_patients:
            continue
        if name not in embedded:
            waiting.append(name)
            continue
        names.append(name)
        kept += [name] if name not in given else []
    if kept:
        listener.say(f"{len(kept)} more sections were in the bank and stay: {', '.join(kept[:10])}")
    if waiting:
        listener.warn(
            f"{len(waiting)} sections have no {backbone} embeddings and are not in this version: {waiting[:5]}"
        )
    if not names:
        raise CohortError("no section is left for the bank", "Correct the sections named above.")
    return names
