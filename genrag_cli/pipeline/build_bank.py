"""Measured sections -> bank: counts and geometry per section, embeddings per backbone, then one derived version each.

What is finished is skipped: sections by the content of their files, embeddings by slide, field of view and backbone.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from genrag_cli.backbones.base import Backbone
from genrag_cli.cohorts.base import Cohort, Section
from genrag_cli.errors import BankError, CohortError, SlideError, UsageError, nearest
from genrag_cli.genes.align import columns, common_genes
from genrag_cli.genes.panels import read_panel_file
from genrag_cli.pipeline.derive import AnchorOptions, derive, version_key
from genrag_cli.pipeline.embed import embed_blocks, name_source
from genrag_cli.pipeline.options import RunOptions, expect_lengths
from genrag_cli.slides import n_beyond_edge, open_slide, plan_spots, resolve_pixel_size
from genrag_cli.slides.base import content_digest
from genrag_cli.stores.atomic import Parts, digest_file, writer_lock
from genrag_cli.stores.bank import Bank, SectionReader
from genrag_cli.stores.bank_writer import BankWriter
from genrag_cli.stores.layout import embedding_file
from genrag_cli.types import Listener, PixelSize, Strings, fingerprint
from genrag_cli.units import Mpp


@dataclass(frozen=True)
class BankOptions:
    """What a new bank is made of; a bank that is there keeps its geometry."""

    fov_um: float | None = None
    """None: twice the spot diameter."""
    pitch_um: float | None = None
    """None: the sections' own."""
    mpp: float | None = None
    strict_mpp: bool = False
    exclude: tuple[str, ...] = ()
    """Sections to leave out, by name."""
    patients: str | None = None
    """How patients were named, for the record: the line that adds a backbone repeats it."""
    anchors: AnchorOptions = dataclasses.field(default_factory=AnchorOptions)

    def __post_init__(self) -> None:
        expect_lengths(fov_um=self.fov_um, pitch_um=self.pitch_um)


def build_bank(
    cohort: Cohort, folder: Path, backbones: list[Backbone], options: BankOptions, run: RunOptions, listener: Listener
) -> None:
    """`generag build-bank`: makes a bank, finishes one, or adds sections or backbones to one.

    Args:
        cohort: the sections.
        folder: the bank.
        backbones: loaded; each gets embeddings and a head.
        options: of the bank.
        run: device, workers, overwrite, dry run.
        listener: told what happens.

    Raises:
        BankError: where the bank is held by another writer, or was built with another geometry.
        CohortError: for sections that cannot be read or do not fit.
        SlideError: for slides that cannot be read, and spots outside them.
    """
    chosen = _choose(cohort, options, listener)
    if run.dry_run:
        listener.say(
            f"would build {folder} from {len(chosen)} sections with {', '.join(b.card.name for b in backbones)}"
        )
        return
    with writer_lock(folder, BankError):
        writer = BankWriter(folder)
        if writer.is_new:
            _create(writer, cohort, chosen, options, listener)
        _check_geometry(writer, options)
        if options.anchors.file is not None:  # before the long work, not after it
            columns(writer.manifest["genes"], read_panel_file(options.anchors.file))
        chosen = _recall_patients(writer, chosen, listener)
        writer.note(
            skipped=[list(pair) for pair in cohort.skipped],
            excluded=list(options.exclude),
            patients=options.patients or writer.manifest.get("patients"),
        )
        for number, section in enumerate(chosen, 1):
            _add_section(writer, section, options, listener, f"[{number}/{len(chosen)}] {section.name}")
        names = [s.name for s in chosen]
        for backbone in backbones:
            for section in chosen:
                _embed_section(writer, section, backbone, run, listener)
            _add_version(writer, names, backbone.card.name, options, listener)


def _choose(cohort: Cohort, options: BankOptions, listener: Listener) -> list[Section]:
    for text in cohort.warnings:
        listener.warn(text)
    for name, reason in cohort.skipped:
        listener.say(f"{name}: skipped, {reason}")
    known = [s.name for s in (*cohort.sections, *cohort.without_slide)]
    for name in options.exclude:
        if name not in known:
            raise UsageError(f"--exclude {name}: no such section in {cohort.root}", nearest(name, known))
    chosen = [s for s in cohort.sections if s.name not in options.exclude]
    if not chosen:
        raise CohortError(f"{cohort.root}: no section is left for the bank", "Exclude fewer sections.")
    return chosen


def _recall_patients(writer: BankWriter, chosen: list[Section], listener: Listener) -> list[Section]:
    """The sections with their patients: as stated now, else as the bank knows them."""
    known = {s["name"]: s["patient"] for s in writer.manifest["sections"]}
    recalled = [dataclasses.replace(s, patient=s.patient or known.get(s.name)) for s in chosen]
    if unknown := sum(s.patient is None for s in recalled):
        listener.warn(
            f"the patient of {unknown} of {len(chosen)} sections is unknown, so held-out choices go by section; "
            "name patients with --patients"
        )
    return recalled


def _create(
    writer: BankWriter, cohort: Cohort, chosen: list[Section], options: BankOptions, listener: Listener
) -> None:
    genes, dropped = common_genes([s.read_genes().names for s in chosen])
    if len(genes) == 0:
        raise CohortError(f"the {len(chosen)} sections of {cohort.root} share no gene name", "Are these one species?")
    counts = {s.name: d.tolist() for s, d in zip(chosen, dropped, strict=True)}
    listener.say(
        f"{len(genes)} genes are in all {len(chosen)} sections; dropped per section: "
        + ", ".join(f"{name} {len(d)}" for name, d in counts.items())
    )
    geometry = _find_geometry(chosen, options)
    writer.create(genes=genes, gene_ids=None, geometry=geometry, train=str(cohort.root))
    writer.note(dropped_genes=counts)
    listener.say(
        f"spots of {geometry['spot_um']:g} um every {geometry['pitch_um']:g} um; tiles of {geometry['fov_um']:g} um"
    )


def _find_geometry(chosen: list[Section], options: BankOptions) -> dict[str, float]:
    diameters = {s.name: s.spot_diameter_um for s in chosen}
    pitches = {s.name: s.spot_pitch_um for s in chosen}
    spot = _agree("spot diameter", diameters, "--fov-um", options.fov_um and options.fov_um / 2)
    pitch = _agree("spot pitch", pitches, "--pitch-um", options.pitch_um)
    return {"fov_um": options.fov_um or 2 * spot, "pitch_um": options.pitch_um or pitch, "spot_um": spot}


def _agree(what: str, values: dict[str, float | None], flag: str, given: float | None) -> float:
    known = {name: v for name, v in values.items() if v is not None}
    if known and max(known.values()) <= 1.05 * min(known.values()):
        return float(np.median(list(known.values())))
    if given:
        return given
    found = ", ".join(f"{name} {v:g} um" for name, v in list(known.items())[:6]) or "none"
    raise CohortError(f"the sections' {what} is unknown or differs; found: {found}", f"Settle it with {flag}.")


def _check_geometry(writer: BankWriter, options: BankOptions) -> None:
    geometry = writer.manifest["geometry"]
    for name, asked in (("fov_um", options.fov_um), ("pitch_um", options.pitch_um)):
        if asked is not None and abs(asked - geometry[name]) > 0.01 * geometry[name]:
            raise BankError(
                f"the bank {writer.folder} was built with {name} {geometry[name]:g}, {asked:g} was asked",
                "Build another bank (--bank), or leave the option out.",
            )


def _section_key(section: Section, genes: list[str], options: BankOptions) -> str:
    files = [section.counts] + [
        value for value in vars(section.reader).values() if isinstance(value, Path) and value != section.counts
    ]
    digests = [digest_file(f) for f in files if f.is_file()]
    if section.slide is not None:  # it may hold the pixel size
        digests.append(content_digest([section.slide]))
    asked = (options.mpp, options.strict_mpp, section.mpp_given, section.spot_pitch_um, section.pixel_size_candidates)
    return fingerprint(digests, genes, asked)


def _add_section(writer: BankWriter, section: Section, options: BankOptions, listener: Listener, label: str) -> None:
    genes: list[str] = writer.manifest["genes"]
    key = _section_key(section, genes, options)
    entry = writer.section(section.name)
    if entry and entry["key"] == key:
        if entry["patient"] != section.patient:
            listener.say(f"{label}: patient {entry['patient'] or 'unknown'} is now {section.patient}")
            writer.update_section(section.name, patient=section.patient)
        listener.say(f"{label}: already in the bank")
        return
    measured = section.load()
    missing = sorted(set(genes) - set(measured.genes.tolist()))
    if missing:
        raise CohortError(
            f"section {section.name} lacks {len(missing)} of the bank's {len(genes)} genes, such as {missing[0]}",
            "The gene list was frozen when the bank was made. Build a new bank with this section, or --exclude it.",
        )
    pixel_size = _settle_pixel_size(section, measured.pitch_px if section.spot_pitch_um else None, options, listener)
    for note in measured.notes:
        listener.say(f"{section.name}: {note}")
    writer.add_section(
        section.name,
        names=measured.names,
        counts=measured.counts[:, columns(measured.genes, genes)],
        totals=measured.total_counts,
        centres=measured.centres,
        array_rc=measured.array_rc,
        entry={
            "key": key,
            "patient": section.patient,
            "technology": section.technology,
            "slide": str(section.slide),
            "pixel_size": dataclasses.asdict(pixel_size),
            "n_genes_measured": len(measured.genes),
            "notes": list(measured.notes),
        },
    )
    listener.say(
        f"{label}: {len(measured)} spots, {pixel_size.mpp:.4g} um/px ({pixel_size.source}), "
        f"patient {section.patient or 'unknown'}"
    )


def _settle_pixel_size(section: Section, pitch_px: float | None, options: BankOptions, listener: Listener) -> PixelSize:
    assert section.slide is not None
    with open_slide(section.slide, pictures=True) as slide:
        candidates = [*slide.pixel_size_candidates(), *section.pixel_size_candidates]
    pitch = section.spot_pitch_um / pitch_px if section.spot_pitch_um and pitch_px else None
    given = section.mpp_given if options.mpp is None else options.mpp
    try:
        pixel_size, warnings = resolve_pixel_size(candidates, given=given, pitch=pitch, strict=options.strict_mpp)
    except SlideError as error:
        raise name_source(error, section.slide) from error
    for text in warnings:
        listener.warn(f"{section.name}: {text}")
    return pixel_size


def _embed_section(
    writer: BankWriter, section: Section, backbone: Backbone, run: RunOptions, listener: Listener
) -> None:
    assert section.slide is not None
    entry = writer.section(section.name)
    assert entry is not None
    stored = SectionReader.open(writer.folder, entry)
    size = entry["pixel_size"]
    pixel_size = PixelSize(Mpp(size["mpp"]), size["source"], tuple((s, v) for s, v in size["others"]))
    geometry = writer.manifest["geometry"]
    with open_slide(section.slide, pictures=True) as slide:
        grid = plan_spots(
            slide, pixel_size, (stored.names, stored.centres), fov_um=geometry["fov_um"],
            pitch_um=geometry["pitch_um"], tile_px=backbone.card.tile_px, array_rc=stored.array_rc,
        )  # fmt: skip
        key = fingerprint(slide.digest(), grid.centres, grid.side_px, backbone.card)
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


def _add_version(writer: BankWriter, names: list[str], backbone: str, options: BankOptions, listener: Listener) -> None:
    entries = [s for s in writer.manifest["sections"] if s["name"] in names]
    entries.sort(key=lambda s: names.index(s["name"]))
    embedded = writer.manifest["backbones"][backbone]["sections"]
    key = version_key(entries, embedded, options.anchors)
    current = writer.current_version(backbone)
    if current and current["key"] == key:
        listener.say(f"{writer.folder}: nothing to do for {backbone}, version {current['version']} is up to date")
        return
    sections = [SectionReader.open(writer.folder, e) for e in entries]
    values = [writer.read_embeddings(backbone, name) for name in names]
    genes: Strings = np.asarray(writer.manifest["genes"], np.str_)
    arrays, entry = derive(sections, values, genes, options.anchors, listener)
    writer.add_version(backbone, arrays, {"key": key, "sections": names, **entry})
    bank = Bank.open(writer.folder, backbone)
    listener.say(
        f"{writer.folder}: {bank.n_spots} spots of {len(names)} sections, {len(genes)} genes, backbone {backbone}"
    )
