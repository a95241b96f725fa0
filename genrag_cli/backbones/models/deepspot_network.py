"""DeepSpot's network, inference only: two ensembles of small networks over bags of embeddings.

Written from ratschlab/DeepSpot, `deepspot/spot/model.py`. Modules are named so that a checkpoint's tensors find their
places; dropout stands as nothing. Knows no files and no tiles.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from genrag_cli.backbones.checkpoints import Checkpoint
from genrag_cli.errors import BackboneError
from genrag_cli.types import Ints

Context = Literal["spot", "spot_subspot", "spot_neighbors", "spot_subspot_neighbors"]
"""Which bags a model takes, in upstream's words: the spot, its 9 parts, its neighbours."""
CONTEXTS: tuple[Context, ...] = get_args(Context)


@dataclass(frozen=True)
class Sizes:
    """What the tensors of a checkpoint say."""

    dim: int
    hidden: int
    bags: int
    genes: int
    phis: int
    rhos: int

    @staticmethod
    def of(checkpoint: Checkpoint) -> "Sizes":
        """Reads them.

        Raises:
            BackboneError: where tensors are missing or do not go together.
        """
        hidden, dim = checkpoint.shape("phi_spot.0.model.0.weight")
        genes, joined = checkpoint.shape("rho.0.model.2.weight")
        bags, rest = divmod(joined, hidden)
        if rest or bags not in (1, 2, 3):
            raise BackboneError(
                f"{checkpoint.path}: rho takes {joined} numbers, which is not 1, 2 or 3 times the {hidden} of phi",
                "Is this DeepSpot for spots? DeepCell and DeepSpot2Cell are other models.",
            )
        return Sizes(dim, hidden, bags, genes, checkpoint.count("phi_spot."), checkpoint.count("rho."))


def settle_context(bags: int, asked: str | None, stated: str | None, path: object) -> Context:
    """Which bags a model takes.

    Args:
        bags: how many, as the tensors say.
        asked: by a person; None: what the file says.
        stated: by the file beside its tensors; None: their number alone.
        path: of the file, for messages.

    Raises:
        BackboneError: where nothing says it, or two say different things.
    """
    if asked and stated and asked != stated:
        raise BackboneError(f"{path}: context {asked!r} asked, it says {stated!r}", "Leave context= out.")
    asked = asked or stated
    fitting = [context for context in CONTEXTS if context.count("_") + 1 == bags]
    chosen = [context for context in fitting if asked in (None, context)]
    if len(chosen) == 1:
        return chosen[0]
    if asked is None:
        raise BackboneError(
            f"{path}: rho takes two bags, and its tensors do not say which",
            f"Say it with --backbone-option context=NAME: {' or '.join(fitting)}.",
        )
    raise BackboneError(
        f"{path}: context {asked!r} asked, its tensors are of {' or '.join(fitting)}", f"Known: {', '.join(CONTEXTS)}."
    )


class DeepSpotNetwork(nn.Module):
    """Both ensembles; one phi serves all bags."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.phi_spot = nn.ModuleList(_Phi(sizes.dim, sizes.hidden) for _ in range(sizes.phis))
        self.rho = nn.ModuleList(_Rho(sizes.bags * sizes.hidden, sizes.genes) for _ in range(sizes.rhos))

    def phi(self, x: torch.Tensor) -> torch.Tensor:
        """(b, dim) to (b, hidden): element by element the median of the ensemble, the lower of two middle ones."""
        every = [phi(x) for phi in self.phi_spot]
        return torch.stack(every).median(dim=0).values

    def decode(self, x: torch.Tensor) -> torch.Tensor:
        """(b, bags * hidden) to (b, genes): the mean of the ensemble, in the space of the scaler."""
        every = [rho(x) for rho in self.rho]
        return torch.stack(every).mean(dim=0)


class _Phi(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(dim, hidden), nn.Identity(), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(x)
        return out


class _Rho(nn.Module):
    def __init__(self, joined: int, genes: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(joined, genes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.model(x)
        return out


def neighbours_of(array_rc: Ints, radius: int) -> tuple[Ints, Ints]:
    """Other spots whose row and column differ by at most `radius` each.

    Args:
        array_rc: (n, 2)
        radius: in steps of the lattice.

    Returns:
        Starts (n + 1,) and neighbours (p,): those of spot i are from starts[i] to starts[i + 1]. A spot without any has
        one, n.
    """
    from scipy.spatial import cKDTree

    n = len(array_rc)
    found = cKDTree(array_rc).query_ball_point(array_rc, radius + 0.5, p=np.inf, return_sorted=True)
    each = [[other for other in others if other != row] or [n] for row, others in enumerate(found)]
    starts = np.concatenate([[0], np.cumsum([len(others) for others in each])]).astype(np.int64)
    return starts, np.concatenate([np.asarray(others, np.int64) for others in each])
