"""Everything that a command can be told, as frozen values with the defaults of the definitions (section 6)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from genrag_cli.errors import UsageError

if TYPE_CHECKING:
    from genrag_cli.retrieval.strength import StrengthRule

Preset = Literal["default", "paper"]
Solving = Literal["working-set", "dense"]
Written = Literal["values", "none"]
"""Whether a prediction holds expression, or weights only."""
AnchorScale = Literal["bank", "model"]
"""Where a first guess and the bank's anchors meet: in the preset's scale, or in the guess's own."""
Lattice = Literal["square", "hex"]
"""How spots on tissue are laid out."""
Crop = Literal["fov", "stem"]
"""How large tiles are, see `geometry.tile_um`."""
MissingGenes = Literal["refuse", "mask"]
"""What becomes of a gene that a section of a bank did not measure."""
Repeats = Literal["sum", "refuse"]
"""What becomes of columns that are one gene."""
UnknownPatient = Literal["section"]
"""What a section of unknown patient counts as."""
FoldsBy = Literal["auto", "patients", "sections", "blocks"]
"""What folds within a bank leave out; auto: patients, else sections, else blocks of one section."""
CommonGenes = Literal["shared", "equal"]
"""Which gene lists of two banks go together: those that share some, or equal ones."""


@dataclass(frozen=True)
class SlideOptions:
    """How a slide is read and laid out.

    Raises:
        UsageError: for lengths that are not above 0.
    """

    mpp: float | None = None
    strict_mpp: bool = False
    fov_um: float | None = None
    """None: the bank's."""
    pitch_um: float | None = None
    """None: the bank's."""
    spots: str | None = None
    """Spots CSV, or COHORT:SECTION for the spots of a measured section; None: every spot on tissue."""
    tissue: str = "density"
    """`density`, `otsu`, `none` (all is tissue), or a file with a mask or with contours."""
    lattice: Lattice = "square"
    overlap: float | None = None
    """Share of a tile's side that it has in common with the next; None: the pitch says."""
    min_tissue: float = 0.5
    """Share of a spot's area that has to be tissue."""
    max_bad_tiles: str = "1%"
    """Tiles that may be left out because they cannot be read: a number, or a share of the slide's."""
    name: str | None = None
    """What the slide is called in outputs; None: the file's name without its ending."""

    def __post_init__(self) -> None:
        expect_lengths(fov_um=self.fov_um, pitch_um=self.pitch_um)
        if self.overlap is not None and self.pitch_um is not None:
            raise UsageError("--overlap and --pitch-um both say how far apart spots are", "Give one of them.")
        if self.overlap is not None and not 0 <= self.overlap < 1:
            raise UsageError(f"--overlap {self.overlap:g} asked; 0 to below 1 is possible", "0.5 is half a tile.")
        if not 0 <= self.min_tissue <= 1:
            raise UsageError(f"--min-tissue {self.min_tissue:g} asked; 0 to 1 is possible", "It is a share.")
        if self.lattice not in get_args(Lattice):
            raise UsageError(f"--lattice {self.lattice} asked", f"Known: {', '.join(get_args(Lattice))}")
        self.bad_allowed(1)

    def bad_allowed(self, n_tiles: int) -> int:
        """Tiles of so many that may be left out.

        Raises:
            UsageError: where `max_bad_tiles` is neither a number nor a share.
        """
        text = self.max_bad_tiles.strip()
        try:
            value = float(text.removesuffix("%")) if text.endswith("%") else int(text)
        except ValueError:
            value = -1
        if value < 0 or (text.endswith("%") and value > 100):
            raise UsageError(
                f"--max-bad-tiles {self.max_bad_tiles} asked", "Give a number of tiles, or a share such as 1%."
            )
        return int(value / 100 * n_tiles) if text.endswith("%") else int(value)


@dataclass(frozen=True)
class SolveOptions:
    """Which problem is solved, and how well."""

    preset: Preset = "default"
    omega: float | None = None
    """None: the preset's."""
    active: int | None = None
    alpha: float | None = None
    lambda_: float | None = None
    gamma: float | None = None
    signed: bool = False
    gap: float = 1e-4
    solver: Solving = "working-set"
    anchor_scale: AnchorScale = "bank"
    drop_missing_anchors: bool = False
    """Leave out genes of a model's or a file's guess that the bank lacks."""
    strength: "StrengthRule | None" = None
    """As an earlier prediction had it; None: found or named."""

    def __post_init__(self) -> None:
        if self.solver not in ("working-set", "dense"):
            raise UsageError(f"unknown solver {self.solver!r}", "Known: working-set, dense")
        if self.preset not in ("default", "paper"):
            raise UsageError(f"unknown preset {self.preset!r}", "Known: default, paper")
        if self.anchor_scale not in ("bank", "model"):
            raise UsageError(f"unknown anchor scale {self.anchor_scale!r}", "Known: bank, model")
        ways = [
            n
            for n, v in (
                ("--active", self.active),
                ("--alpha", self.alpha),
                ("--lambda", self.lambda_),
                ("--strength-from", self.strength),
            )
            if v is not None
        ]
        if len(ways) > 1:
            raise UsageError(f"{' and '.join(ways)} both say how strong the penalty is", "Give one of them.")
        if self.active is not None and self.active < 1:
            raise UsageError(f"--active {self.active} asked; at least 1 is possible", "The usual number is 50.")
        if self.gamma is not None and self.lambda_ is None:
            raise UsageError("--gamma goes with --lambda", "Give --lambda too, or --alpha or --active alone.")
        if not 1e-7 <= self.gap < 1:
            raise UsageError(f"--gap {self.gap:g} asked; 1e-7 to 1 is possible", "The usual gap is 1e-4.")
        if self.omega is not None and not 0 <= self.omega <= 1:
            raise UsageError(f"--omega {self.omega:g} asked; 0 to 1 is possible", "1 is morphology alone.")

    @property
    def named(self) -> list[str]:
        """Flags that say what problem is solved, as far as they were given."""
        given = {
            "--omega": self.omega, "--active": self.active, "--alpha": self.alpha, "--lambda": self.lambda_,
            "--signed": self.signed or None, "--strength-from": self.strength,
        }  # fmt: skip
        return [flag for flag, value in given.items() if value is not None]

    @property
    def weight(self) -> float:
        """Omega, the preset's where none was given."""
        return self.omega if self.omega is not None else {"default": 0.25, "paper": 0.75}[self.preset]

    @property
    def wanted_references(self) -> int:
        """References per spot in the median that the strength is searched for, where none is named."""
        return 50 if self.active is None else self.active


@dataclass(frozen=True)
class RunOptions:
    """How the machine is used; none of it changes a result beyond float rounding but the seed."""

    device: str = "cpu"
    workers: int = 1
    seed: int = 0
    overwrite: bool = False
    dry_run: bool = False
    bank_memory_gb: float | None = None
    """Memory that the bank may take, else it streams from disk; None: half of what is free."""


def expect_lengths(**lengths: float | None) -> None:
    """Raises UsageError for a length in um that was given and is not above 0, naming its flag."""
    for name, value in lengths.items():
        if value is not None and not 0 < value < float("inf"):
            raise UsageError(f"--{name.replace('_', '-')} {value:g} asked; it must be above 0", "Give it in um.")
