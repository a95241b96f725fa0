"""What a backbone is: raw RGB tiles in, one embedding a tile out, and a card that says which.

An image-to-expression model is a backbone that also predicts genes by itself (`ExpressionModel`). Knows no particular
network and no torch. A plug-in implements `Backbone`, names its class under the entry-point group `generag.backbones`,
and inherits `genrag_cli.testing.backbone_contract.BackboneContract` to prove that it fits.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from genrag_cli.errors import BackboneError
from genrag_cli.types import BackboneCard, Doubles, Expression, Floats, Ints, Scale, Strings, TileBatch, fingerprint
from genrag_cli.units import Microns, TilePx

Precision = Literal["float32", "float16", "bfloat16"]


@runtime_checkable
class Backbone(Protocol):
    """Turns tiles into embeddings.

    It takes raw RGB and owns its preprocessing, so that nobody can normalise twice. An embedding must not depend on
    the other tiles of its batch beyond float rounding.
    """

    @property
    def card(self) -> BackboneCard:
        """What it is, what it needs and under which licence."""
        ...

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles.

        Args:
            pixels: (b, tile_px, tile_px, 3) uint8 RGB, `tile_px` as on the card; b may be 0.

        Returns:
            (b, d) float32.

        Raises:
            BackboneError: for another dtype or shape.
        """
        ...


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model that retrieves may know of the bank: N measured spots with the backbone's own embeddings."""

    features: Floats
    """(N, d) embeddings of the bank's spots, as `encode` gave them."""
    expression: Expression
    """(N, A) of the anchor genes, in the scale in which a prediction is wanted."""
    section_of: Ints
    """(N,) number of the section of each spot."""
    counts: Callable[[Strings], Iterator[tuple[Any, Doubles]]]
    """For genes by name, one section at a time: counts CSR (n, k) and the spots' totals over all genes (n,).

    Raises GeneragError for genes that the bank does not have.
    """


@dataclass(frozen=True, eq=False)
class SpotContext:
    """All spots of one slide, for a prediction that looks at more than single tiles."""

    features: Floats
    """(n, d) embeddings by `encode`."""
    centres: Doubles
    """(n, 2) x, y in level-0 px."""
    array_rc: Ints
    """(n, 2) row, column in the lattice."""
    mpp: float
    """um per level-0 px."""
    pitch_um: float
    """Distance of neighbouring spots."""
    fov_um: float
    """Side of the tiles that `features` were made of."""
    tiles: Callable[[float, int], Iterator[TileBatch]] | None = None
    """`tiles(fov_um, tile_px)`: tiles of another size around the same centres, in batches, rows ascending and all of
    them. None where there is no slide to read."""
    reference: Reference | None = None
    """The bank; None where the card's `needs` does not ask for it."""
    seed: int = 0
    progress: Callable[[int, int], None] = lambda *_: None
    """Told (done, total) while it goes on."""

    def __len__(self) -> int:
        return len(self.features)


@runtime_checkable
class ExpressionModel(Backbone, Protocol):
    """A backbone that predicts expression by itself, so that no head is needed for the first guess."""

    @property
    def genes(self) -> Strings:
        """(G,) genes that it predicts, in its own order; empty where it predicts whatever the bank has."""
        ...

    @property
    def scale(self) -> Scale | None:
        """Of its predictions; None where they come in the scale of `Reference.expression`."""
        ...

    def predict(self, spots: SpotContext, genes: Strings) -> Expression:
        """Predicts genes at spots.

        Args:
            spots: n spots, 0 included.
            genes: (k,) names, some of `genes` (or of the reference's, where that is empty).

        Returns:
            (n, k) in the order asked, in `scale`.

        Raises:
            BackboneError: for genes that it does not know, or spots that it cannot take.
        """
        ...


@dataclass(frozen=True)
class WeightsFile:
    """A file that a backbone cannot run without, and where it comes from."""

    part: str = ""
    """Name in `--weights PART=PATH`; empty for the backbone's own file."""
    repo: str = ""
    """Repository on the model hub; empty where there is none."""
    filenames: tuple[str, ...] = ()
    """Within the repository; the first one that is there is taken."""
    revision: str | None = None
    """Commit of the repository; None: not pinned, because no commit could be checked. The digest is always recorded."""
    gated: bool = False
    """Whether the hub asks for a licence to be accepted first."""
    package: str = ""
    """Python package that ships the file."""
    where: str = ""
    """In words, where neither a hub has it nor a package that is called as it is imported."""


@dataclass(frozen=True)
class BackboneSheet:
    """What is known of a backbone before its weights are loaded; what `generag backbones list` shows."""

    name: str
    kind: Literal["encoder", "model"]
    dim: int | None
    """d; None where the weights decide."""
    tile_px: TilePx
    licence: str
    """Of code and weights."""
    feature: str
    """Which numbers of the network an embedding is, in words."""
    source: str
    """Where these facts were published."""
    fov_um: Microns | None = None
    """Field of view that it was trained at."""
    precision: Precision = "float32"
    """Recommended on GPUs; CPUs compute in float32."""
    weights: tuple[WeightsFile, ...] = ()
    needs: tuple[str, ...] = ()
    scale: str = ""
    """Name of the scale of its predictions."""
    deterministic: bool = True
    options: Mapping[str, str] = field(default_factory=dict)
    """`--backbone-option KEY=VALUE` that it takes, each explained."""
    unchecked: str = ""
    """What of the above could not be checked against the original."""

    def card(
        self,
        *,
        dim: int | None = None,
        revision: str | None = None,
        weights_sha256: str = "",
        genes: Strings | None = None,
        **other: Any,
    ) -> BackboneCard:
        """The card of the backbone once it is loaded.

        Args:
            dim: d, where the sheet leaves it open.
            revision: what of the options decides over its numbers; None: the pinned commit of its own weights, else 1.
            weights_sha256: digest of all files that were read.
            genes: whose order decides over its predictions.
            other: fields of the card that differ from the sheet.
        """
        pinned = self.weights[0].revision if self.weights else None
        facts: dict[str, Any] = {
            "fov_um": self.fov_um, "deterministic": self.deterministic, "feature": self.feature, "scale": self.scale,
            "needs": self.needs,
        }  # fmt: skip
        return BackboneCard(
            name=self.name,
            revision=revision or pinned or "1",
            dim=dim or self.dim or 0,
            tile_px=self.tile_px,
            licence=self.licence,
            weights_sha256=weights_sha256,
            genes_sha256="" if genes is None else fingerprint(genes),
            **facts | other,
        )


BackboneFactory = Callable[..., Backbone]
"""What an entry point names: a class or function that takes `device` ('cpu', 'cuda', 'cuda:1', ...).

It may take more by keyword, and is given only what a person gave: `weights` (Path), `parts` (name -> Path), `options`
(name -> text), `unsafe_pickle` (True). Where it has an attribute `sheet` (`BackboneSheet`), `generag backbones` shows
that.
"""


@dataclass(frozen=True)
class Loading:
    """What a person gave for loading one backbone."""

    weights: Path | None = None
    """The backbone's own file, or a folder that holds its files."""
    parts: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    unsafe_pickle: bool = False

    def given(self) -> dict[str, Any]:
        """Keyword arguments of a factory: what is there, and nothing else."""
        every = {"weights": self.weights, "parts": self.parts, "options": self.options}
        kept = {name: value for name, value in every.items() if value}
        return kept | ({"unsafe_pickle": True} if self.unsafe_pickle else {})


def expect_tiles(pixels: NDArray[Any], card: BackboneCard) -> None:
    """Refuses anything but a batch of tiles that the card describes.

    Raises:
        BackboneError: unless pixels are uint8 of shape (b, tile_px, tile_px, 3).
    """
    side = card.tile_px
    shape = tuple(np.shape(pixels))
    kind = getattr(pixels, "dtype", type(pixels).__name__)
    if len(shape) != 4 or shape[1:] != (side, side, 3) or kind != np.uint8:
        raise BackboneError(
            f"backbone {card.name} takes uint8 tiles of shape (b, {side}, {side}, 3), found {kind} of shape {shape}",
            "Give raw RGB tiles, values 0 to 255; the backbone normalises them itself.",
        )
