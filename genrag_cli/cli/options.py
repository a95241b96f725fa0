"""Every option that more than one command takes, declared once."""

from pathlib import Path
from typing import Annotated

import typer

from genrag_cli.pipeline.options import AnchorScale, Lattice, Repeats

Bank = Annotated[
    Path,
    typer.Option("--bank", envvar="GENERAG_BANK", help="Bank to read or write.", rich_help_panel="Bank and backbone"),
]
DEFAULT_BANK = Path("generag-bank.zarr")
BackboneName = Annotated[str, typer.Option("--backbone", help="Backbone by name.", rich_help_panel="Bank and backbone")]
DEFAULT_BACKBONE = "lite0"
_LOADING = "Bank and backbone"
Weights = Annotated[
    list[str] | None,
    typer.Option(
        "--weights", metavar="[NAME=]PATH",
        help="Weights of the backbone: a file or a folder; PART=PATH for a part of it, BACKBONE=PATH or "
        "BACKBONE:PART=PATH where several are asked for. Repeat.",
        show_default=False, rich_help_panel=_LOADING,
    ),
]  # fmt: skip
BackboneOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--backbone-option", metavar="KEY=VALUE",
        help="What else the backbone takes, see `generag backbones info NAME`; BACKBONE:KEY=VALUE where several are "
        "asked for. Repeat.",
        show_default=False, rich_help_panel=_LOADING,
    ),
]  # fmt: skip
UnsafePickle = Annotated[
    bool,
    typer.Option(
        "--unsafe-pickle", help="Run code that a weights file brings; only for files that you trust.",
        rich_help_panel=_LOADING,
    ),
]  # fmt: skip


def _expect_views(asked: int | None) -> int | None:
    from genrag_cli.backbones.views import VIEWS

    if asked is not None and asked not in VIEWS:
        raise typer.BadParameter(f"{asked} is not one of {', '.join(map(str, VIEWS))}.")
    return asked


Views = Annotated[
    int | None,
    typer.Option(
        "--views", metavar="1|7|8", callback=_expect_views, show_default=False,
        help="Average embeddings over the seven published flips and rotations of a tile, or all eight. Default: the "
        "bank's, 1 in a new one.",
        rich_help_panel=_LOADING,
    ),
]  # fmt: skip
_ELSEWHERE = "Made elsewhere"
FeaturesKey = Annotated[
    str | None,
    typer.Option("--features-key", help="Array of the features, where a file has several.", rich_help_panel=_ELSEWHERE),
]
NamesFrom = Annotated[
    Path | None,
    typer.Option(
        "--names-from",
        help="Names of rows, in their order, for files that have none: one a line, a table or an h5ad.",
        rich_help_panel=_ELSEWHERE,
    ),
]
Features = Annotated[
    Path | None,
    typer.Option(
        "--features", metavar="FILE", rich_help_panel=_ELSEWHERE,
        help="Embeddings of the slide's spots, made elsewhere; joined by name or place. No slide is needed.",
    ),
]  # fmt: skip
SectionFeatures = Annotated[
    Path | None,
    typer.Option(
        "--features", metavar="DIR", rich_help_panel=_ELSEWHERE,
        help="Folder with one file of embeddings per section, made elsewhere; --backbone names what made them.",
    ),
]  # fmt: skip
SameEncoder = Annotated[
    bool,
    typer.Option(
        "--same-encoder", rich_help_panel=_ELSEWHERE,
        help="The file's word for its encoder means the bank's backbone, with the same weights.",
    ),
]  # fmt: skip
AnchorsFrom = Annotated[
    Path | None,
    typer.Option(
        "--anchors-from", metavar="FILE", rich_help_panel=_ELSEWHERE,
        help="First guesses of any model, instead of the head's; their genes are the anchors.",
    ),
]  # fmt: skip
AnchorsKey = Annotated[
    str | None,
    typer.Option("--anchors-key", help="Array of the first guesses in that file.", rich_help_panel=_ELSEWHERE),
]
AnchorsScale = Annotated[
    str | None,
    typer.Option(
        "--anchors-scale", rich_help_panel=_ELSEWHERE,
        help="Scale of these guesses, where the file does not say: counts, log1p_cp10k, log2_counts, ln_counts.",
    ),
]  # fmt: skip
GenesFrom = Annotated[
    Path | None,
    typer.Option(
        "--genes-from", rich_help_panel=_ELSEWHERE,
        help="Genes of these guesses, one a line in the order of columns, for files that have none.",
    ),
]  # fmt: skip
AnchorScaleFrom = Annotated[
    AnchorScale,
    typer.Option(
        "--anchor-scale", rich_help_panel=_ELSEWHERE,
        help="bank: bring guesses of a model or file to the bank's scale; model: bring the bank's anchors to theirs.",
    ),
]  # fmt: skip
DropMissing = Annotated[
    bool,
    typer.Option(
        "--drop-missing-anchors", rich_help_panel=_ELSEWHERE,
        help="Leave out guessed genes that the bank did not measure everywhere, and record them.",
    ),
]  # fmt: skip
_SLIDES = (
    "Slides, folders of slides (a folder of one DICOM series is a slide), quoted patterns, addresses (s3://...), or "
    "a manifest: a .csv or .tsv with the column slide, and mpp, spots, out and others where they differ."
)
Slides = Annotated[list[str], typer.Argument(help=_SLIDES, show_default=False)]
SlidesOrNone = Annotated[
    list[str] | None, typer.Argument(help=f"{_SLIDES} None are needed with --features.", show_default=False)
]
Out = Annotated[
    Path,
    typer.Option("--out", help="Output file (one slide) or folder. Default: the working folder.", show_default=False),
]
Spots = Annotated[
    str | None,
    typer.Option(
        "--spots", metavar="FILE|COHORT:SECTION",
        help="Work at these spots instead of all tissue: a CSV with name,x,y in level-0 px, or a measured section's.",
        rich_help_panel="Slide",
    ),
]  # fmt: skip
Mpp = Annotated[
    float | None, typer.Option("--mpp", help="Pixel size of level 0 in um; found if left out.", rich_help_panel="Slide")
]
StrictMpp = Annotated[
    bool,
    typer.Option(
        "--strict-mpp", help="Fail where sources of the pixel size differ by over 5 %.", rich_help_panel="Slide"
    ),
]
FovUm = Annotated[
    float | None, typer.Option("--fov-um", help="Side of a tile in um. Default: the bank's.", rich_help_panel="Slide")
]
PitchUm = Annotated[
    float | None,
    typer.Option(
        "--pitch-um", help="Distance of neighbouring spots in um. Default: the bank's.", rich_help_panel="Slide"
    ),
]
TissueHow = Annotated[
    str,
    typer.Option(
        "--tissue", metavar="density|otsu|none|FILE", rich_help_panel="Slide",
        help="How tissue is found: by stain density and roughness, by Otsu's threshold, not at all (all is tissue), or "
        "from a file: a mask (PNG, TIFF) or contours (GeoJSON, level-0 px).",
    ),
]  # fmt: skip
LatticeKind = Annotated[
    Lattice, typer.Option("--lattice", help="How spots on tissue are laid out.", rich_help_panel="Slide")
]
Overlap = Annotated[
    float | None,
    typer.Option(
        "--overlap", help="Share of a tile's side in common with the next; instead of --pitch-um.",
        rich_help_panel="Slide",
    ),
]  # fmt: skip
MinTissue = Annotated[
    float, typer.Option("--min-tissue", help="Share of a spot that has to be tissue.", rich_help_panel="Slide")
]
MaxBadTiles = Annotated[
    str,
    typer.Option(
        "--max-bad-tiles", metavar="N|N%", rich_help_panel="Slide",
        help="Tiles of a slide that may be left out, and are named, because they cannot be read.",
    ),
]  # fmt: skip
NoOverlay = Annotated[
    bool,
    typer.Option(
        "--no-overlay", help="Write no picture and no contours of the tissue beside the result.",
        rich_help_panel="Slide",
    ),
]  # fmt: skip
_MANY = "Many slides"
Shard = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="i/N", rich_help_panel=_MANY,
        help="Every N-th slide from the i-th on, i from 0. Default: the task's of a SLURM array, else all.",
    ),
]  # fmt: skip
Wait = Annotated[
    bool,
    typer.Option(
        "--wait/--no-wait", rich_help_panel=_MANY,
        help="Wait for slides that other workers on the same folder hold, and take over those of dead ones.",
    ),
]  # fmt: skip
Lease = Annotated[
    float,
    typer.Option(
        "--lease", min=1, metavar="S", rich_help_panel=_MANY,
        help="Seconds without a sign of life after which another worker counts as dead.",
    ),
]  # fmt: skip
StageFolder = Annotated[
    Path | None,
    typer.Option(
        "--stage", metavar="DIR", rich_help_panel=_MANY,
        help="Local disk that the next slide is copied to, into a folder of this process, while the current one runs.",
    ),
]  # fmt: skip
DEFAULT_LEASE_S = 120.0
Genes = Annotated[
    str,
    typer.Option(
        "--genes", metavar="FILE|N|A,B|all", help="Genes to write: names, or the N most variable of the bank."
    ),
]
Patients = Annotated[
    str | None,
    typer.Option(
        "--patients", metavar="CSV|PATTERN",
        help="Patients of the sections: a CSV (section,patient), a regular expression with one group, or one of "
        "letter, prefix, each.",
    ),
]  # fmt: skip
Cohort = Annotated[
    Path, typer.Argument(help="Folder of measured sections, or a table of them (cohort.csv).", show_default=False)
]
Cohorts = Annotated[
    list[Path],
    typer.Argument(help="Folders of measured sections, or tables of them (cohort.csv).", show_default=False),
]
SectionMpp = Annotated[
    float | None, typer.Option("--mpp", help="Pixel size of every section's image in um; found if left out.")
]
SpotUm = Annotated[
    float | None,
    typer.Option(
        "--spot-um", min=1, help="Side of the spots that cells and bins are pooled to. Default: Xenium 100, HD 128."
    ),
]
BinUm = Annotated[
    int | None, typer.Option("--bin-um", help="Which bins of Visium HD are read: 2, 8 or 16 um. Default: 16.")
]
GeneAliases = Annotated[
    Path | None,
    typer.Option("--gene-aliases", help="Table of previous gene symbols (or ids): columns previous,symbol."),
]
DuplicateGenes = Annotated[Repeats, typer.Option("--duplicate-genes", help="Columns that are one gene.")]
Format = Annotated[str | None, typer.Option("--format", help="Layout of the cohort; found out if left out.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1. Default: cuda where there is one.", rich_help_panel="Run"),
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="CPU threads. Default: those of the job.", rich_help_panel="Run"),
]
Seed = Annotated[int, typer.Option("--seed", help="Of every random choice.", rich_help_panel="Run")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Redo finished outputs.", rich_help_panel="Run")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.", rich_help_panel="Run")
]
Json = Annotated[bool, typer.Option("--json", help="Result as one JSON document on stdout.", rich_help_panel="Talk")]
Events = Annotated[
    bool, typer.Option("--events", help="Progress and results as JSON lines on stdout.", rich_help_panel="Talk")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Warnings and errors only.", rich_help_panel="Talk")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel="Talk")]
Debug = Annotated[bool, typer.Option("--debug", help="Tracebacks of expected errors.", rich_help_panel="Talk")]
Line = Annotated[
    list[str],
    typer.Argument(
        metavar="-- COMMAND...", show_default=False,
        help="A command line that works on slides, without `generag`: -- retrieve slides/ --out predictions/ ...",
    ),
]  # fmt: skip
TAKES_A_LINE = {"allow_interspersed_args": False}
"""Context settings of commands whose argument is a command line: options after its first word belong to it."""
_JOB = "One job"
JobTime = Annotated[
    str,
    typer.Option(
        "--time", metavar="HH:MM:SS", help="Time limit, D-HH:MM:SS too. Short is fine: stopped jobs go on.",
        rich_help_panel=_JOB,
    ),
]  # fmt: skip
DEFAULT_JOB_TIME = "04:00:00"
JobCpus = Annotated[int, typer.Option("--cpus", min=1, help="CPUs.", rich_help_panel=_JOB)]
DEFAULT_JOB_CPUS = 4
JobMem = Annotated[int, typer.Option("--mem", min=1, metavar="GB", help="Memory.", rich_help_panel=_JOB)]
DEFAULT_JOB_MEM = 16
JobGpus = Annotated[
    int,
    typer.Option("--gpus", min=0, help="GPUs, 0 or 1: several of a node work as several jobs.", rich_help_panel=_JOB),
]
OutFile = Annotated[Path | None, typer.Option("--out-file", help="File to write. Default: stdout.", show_default=False)]
