"""Embeddings and first guesses made elsewhere, as a command names them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from genrag_cli.errors import FeaturesError, UsageError
from genrag_cli.pipeline.apart import read_apart
from genrag_cli.pipeline.guess import ForeignGuess
from genrag_cli.stores.foreign import ForeignRows, read_features, read_predictions


@dataclass(frozen=True)
class Elsewhere:
    """Files that stand in for a backbone, a head, or both.

    Raises:
        UsageError: for options that say something about a file that was not given.
    """

    features: Path | None = None
    features_key: str | None = None
    same_encoder: bool = False
    anchors: Path | None = None
    anchors_key: str | None = None
    anchors_scale: str | None = None
    genes_from: Path | None = None
    names_from: Path | None = None

    def __post_init__(self) -> None:
        _expect_file("--features", self.features, {
            "--features-key": self.features_key, "--same-encoder": self.same_encoder,
        })  # fmt: skip
        _expect_file("--anchors-from", self.anchors, {
            "--anchors-key": self.anchors_key, "--anchors-scale": self.anchors_scale, "--genes-from": self.genes_from,
        })  # fmt: skip
        either = self.features or self.anchors
        _expect_file("--features or --anchors-from", either, {"--names-from": self.names_from})

    def read_features(self) -> ForeignRows | None:
        """The features' file; None where none was given."""
        if self.features is None:
            return None
        return read_apart(
            self.features, FeaturesError, read_features, self.features, key=self.features_key,
            names_from=self.names_from,
        )  # fmt: skip

    def read_guess(self) -> ForeignGuess | None:
        """The guesses' file; None where none was given."""
        if self.anchors is None:
            return None
        rows = read_apart(
            self.anchors, FeaturesError, read_predictions, self.anchors, key=self.anchors_key,
            names_from=self.names_from, genes_from=self.genes_from,
        )  # fmt: skip
        return ForeignGuess.of(rows, self.anchors_scale)

    def expect_slides(self, slides: Sequence[str]) -> None:
        """Refuses a number of slides that does not go with the files.

        Raises:
            UsageError: for no slide without features, or several with files that are of one.
        """
        if not slides and self.features is None:
            raise UsageError("no slide was given", "Give slides, or the embeddings of one (--features FILE).")
        if len(slides) > 1 and (self.features or self.anchors):
            flag = "--features" if self.features else "--anchors-from"
            raise UsageError(f"{flag} is of one slide, {len(slides)} were given", "Give them in commands of their own.")


def _expect_file(flag: str, file: Path | None, beside: dict[str, object]) -> None:
    if file is None and (given := [name for name, value in beside.items() if value]):
        raise UsageError(f"{' and '.join(given)} given without {flag}", f"Give {flag}, or leave it out.")
