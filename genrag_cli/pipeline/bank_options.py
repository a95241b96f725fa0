"""Everything that `generag build-bank` can be told about a bank."""

from dataclasses import dataclass, field

from genrag_cli.cohorts import Reading
from genrag_cli.errors import UsageError
from genrag_cli.pipeline.anchors import AnchorOptions
from genrag_cli.pipeline.geometry import expect_crop
from genrag_cli.pipeline.options import Crop, MissingGenes, UnknownPatient, expect_lengths
from genrag_cli.pipeline.sections import GeneRules, PixelRules


@dataclass(frozen=True)
class BankOptions:
    """What a new bank is made of; a bank that is there keeps its genes and its geometry."""

    fov_um: float | None = None
    """None: twice the spot diameter."""
    pitch_um: float | None = None
    """None: the sections' own."""
    crop: Crop | None = None
    """None: the bank's, `fov` for a new one."""
    pixels: PixelRules = field(default_factory=PixelRules)
    exclude: tuple[str, ...] = ()
    """Sections to leave out, by name."""
    leave_out_patients: tuple[str, ...] = ()
    """Patients to leave out, with all their sections."""
    patients: str | None = None
    """How patients were named, for the record."""
    format: str | None = None
    """Layout that was asked for, for the record."""
    reading: Reading = field(default_factory=Reading)
    """How the sections were read, for the record."""
    unknown_patient: UnknownPatient | None = None
    """`section`: a section of unknown patient counts as a patient of its own, and says so."""
    species: str | None = None
    genes: GeneRules = field(default_factory=GeneRules)
    missing_genes: MissingGenes = "refuse"
    anchors: AnchorOptions = field(default_factory=AnchorOptions)
    skip_bad: bool = False
    """Go on without sections that cannot be used, and say which at the end."""
    thumbnails: bool = False
    """Keep small pictures of the tiles of the sections given."""

    def __post_init__(self) -> None:
        expect_lengths(fov_um=self.fov_um, pitch_um=self.pitch_um)
        expect_crop(self.crop or "fov", self.fov_um)
        for flag, value, known in (
            ("--missing-genes", self.missing_genes, ("refuse", "mask")),
            ("--unknown-patient", self.unknown_patient, (None, "section")),
        ):
            if value not in known:
                raise UsageError(f"{flag} {value} asked", f"Known: {', '.join(k for k in known if k)}")

    def words(self) -> dict[str, list[str]]:
        """Flags and values that say which sections these are and how they are read, for the line that repeats them."""
        given: dict[str, object] = {
            "--patients": self.patients,
            "--format": self.format,
            "--exclude": self.exclude,
            "--leave-out-patient": self.leave_out_patients,
            "--unknown-patient": self.unknown_patient,
            "--missing-genes": None if self.missing_genes == "refuse" else self.missing_genes,
            "--gene-aliases": self.genes.aliases,
            "--duplicate-genes": None if self.genes.repeats == "sum" else self.genes.repeats,
            "--species": self.species,
            "--mpp": self.pixels.mpp,
            "--spot-um": self.reading.spot_um,
            "--bin-um": self.reading.bin_um,
        }
        listed = {flag: v if isinstance(v, tuple) else (v,) for flag, v in given.items() if v is not None}
        return {flag: [str(v) for v in values] for flag, values in listed.items() if values}
