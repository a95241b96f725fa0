"""What DeepSpot keeps in files: tensors, the scaler of its training, its genes.

Facts from ratschlab/DeepSpot, its training and inference notebooks. Its own container is a whole pickled module with a
scikit-learn scaler inside; a file of tensors beside a scaler in .npz is the safe one. Knows no arithmetic but the
scaler's.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from genrag_cli.backbones.gene_list import read_gene_list
from genrag_cli.errors import BackboneError
from genrag_cli.types import Doubles, Strings

if TYPE_CHECKING:
    from genrag_cli.backbones.checkpoints import Checkpoint

WHAT = "backbone deepspot"
NO_SCALER = "none"
_NAME, _PREDICTED = "gene_name", "isPredicted"


@dataclass(frozen=True, eq=False)
class Scaler:
    """What training did to each gene: (value - mean) / scale."""

    mean: Doubles
    """(G,)"""
    scale: Doubles
    """(G,)"""

    def expect(self, genes: int, path: object) -> "Scaler":
        """Itself.

        Raises:
            BackboneError: unless it has finite numbers for that many genes.
        """
        for name, values in (("mean", self.mean), ("scale", self.scale)):
            if values.shape != (genes,) or not np.isfinite(values).all():
                raise BackboneError(
                    f"{WHAT}: {name} of the scaler in {path} has shape {values.shape} or is not finite, the weights "
                    f"have {genes} genes",
                    "Give the scaler that these weights were trained with.",
                )
        return self


@dataclass(frozen=True, eq=False)
class Weights:
    """What a file of weights says."""

    checkpoint: "Checkpoint"
    is_module: bool
    """Whether it is the whole module, which has its scaler, or says that it has none."""
    scaler: Scaler | None = None
    context: str | None = None


def read_weights(path: Path, unsafe_pickle: bool) -> Weights:
    """Reads tensors, or the whole module where a person allows that.

    Raises:
        BackboneError: as `read_pickled`, and for a scaler of an unknown kind.
    """
    from genrag_cli.backbones.inert_pickle import Held, read_pickled

    checkpoint, held = read_pickled(path, unsafe_pickle)
    if not isinstance(held, Held):
        if held is not None:
            raise BackboneError(
                f"{path} holds a {type(held).__name__}, where DeepSpot saves its module",
                "Give final_model.pkl itself, or a file of its tensors.",
            )
        return Weights(checkpoint, is_module=False)
    state = held.state if isinstance(held.state, dict) else {}
    told = state.get("_hparams")
    context = told.entries.get("spot_context") if isinstance(told, Held) else None
    return Weights(checkpoint, True, _held_scaler(state.get("scaler"), path), context)


def _held_scaler(scaler: Any, path: Path) -> Scaler | None:
    from genrag_cli.backbones.inert_pickle import Held

    if scaler is None:
        return None
    kind = scaler.origin.rsplit(".", 1)[-1] if isinstance(scaler, Held) else type(scaler).__name__
    centre = {"StandardScaler": "mean_", "RobustScaler": "center_"}.get(kind)
    state = scaler.state if isinstance(scaler, Held) and isinstance(scaler.state, dict) else {}
    found = [state.get(name) for name in (centre, "scale_")] if centre else []
    arrays = [values for values in found if isinstance(values, np.ndarray) and values.dtype.kind == "f"]
    if len(arrays) != 2:
        raise BackboneError(
            f"{path}: its scaler is a {kind} with {', '.join(map(str, state)) or 'nothing'}; known are StandardScaler "
            "and RobustScaler that centre and scale",
            "Convert it: tensors to safetensors, mean and scale to an .npz (scaler=FILE).",
        )
    return Scaler(arrays[0].astype(np.float64), arrays[1].astype(np.float64))


def settle_scaler(weights: Weights, asked: str | None) -> tuple[Scaler | None, Path | None]:
    """The scaler that predictions go back through, and the file that it was read from.

    Args:
        weights: as read.
        asked: `--backbone-option scaler=...`: an .npz with `mean` and `scale`, or `none`.

    Raises:
        BackboneError: where it is not known, or known twice.
    """
    if weights.is_module:
        if asked:
            raise BackboneError(f"{WHAT}: {weights.checkpoint.path} has its own scaler", "Leave scaler= out.")
        return weights.scaler, None
    if not asked:
        raise BackboneError(
            f"{WHAT}: {weights.checkpoint.path} is tensors alone, which do not say how training scaled its genes",
            "Give --backbone-option scaler=FILE, an .npz with mean and scale per gene (mean_ and scale_ of the model's "
            f"scaler), or scaler={NO_SCALER} for a model that was trained without (normalize: None).",
        )
    if asked == NO_SCALER:
        return None, None
    path = Path(asked)
    try:
        with np.load(path, allow_pickle=False) as held:
            mean, scale = (np.asarray(held[name], np.float64) for name in ("mean", "scale"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BackboneError(
            f"{WHAT}: {path} cannot be read as a scaler: {reason}", "Give an .npz with the arrays mean and scale."
        ) from error
    return Scaler(mean, scale), path


def read_genes(path: str | None, expected: int) -> Strings:
    """The genes of a model, in the order of its outputs.

    Args:
        path: of info_highly_variable_genes.csv, of which those rows count whose `isPredicted` is true; or of a list.
        expected: how many the weights have.

    Raises:
        BackboneError: where there is none, or it does not fit.
    """
    if not path:
        raise BackboneError(
            f"{WHAT}: the weights have {expected} genes and not their names",
            "Name the model's info_highly_variable_genes.csv with --backbone-option genes=FILE.",
        )
    if not path.lower().endswith(".csv") or not Path(path).is_file():
        return read_gene_list(path, WHAT, expected)
    with Path(path).open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        columns = rows.fieldnames or []
        if _PREDICTED not in columns or _NAME not in columns:
            return read_gene_list(path, WHAT, expected, column=_NAME if _NAME in columns else None)
        genes = [
            str(row[_NAME]).strip() for row in rows if str(row[_PREDICTED]).strip().lower() in ("true", "1", "1.0")
        ]
    if len(genes) != expected or len(set(genes)) != len(genes) or not all(genes):
        raise BackboneError(
            f"{WHAT}: {path} has {len(genes)} predicted genes, {len(set(genes))} of them unlike; the weights have "
            f"{expected}",
            "Give the list that these weights were trained with.",
        )
    return np.array(genes, np.str_)
