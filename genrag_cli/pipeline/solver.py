"""What solves a bank's queries: one process, or the ranks that torchrun started, each with its share of the spots.

The first rank does everything else; the others wait for what it asks (`serve`) and take part in it.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from genrag_cli.retrieval.pools import engine
from genrag_cli.retrieval.residuals import block_residuals
from genrag_cli.retrieval.scan import Scan
from genrag_cli.retrieval.solve import solve
from genrag_cli.retrieval.strength import FoundStrength, find_strength
from genrag_cli.types import Floats, SparseCodes

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

WORK: dict[str, Callable[..., Any]] = {"solve": solve, "find_strength": find_strength, "residuals": block_residuals}


@dataclass(frozen=True)
class Ranks:
    """The processes that share a bank."""

    rank: int
    world: int
    group: "ProcessGroup | None"

    @staticmethod
    def join(device: str) -> "Ranks":
        """The ranks that torchrun started, over NCCL on GPUs and gloo on CPUs; one where there is no torchrun."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        if world < 2 or "MASTER_ADDR" not in os.environ:
            return Ranks(0, 1, None)
        import torch
        import torch.distributed as dist

        if not dist.is_initialized():
            if device.startswith("cuda"):
                torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
            # The others wait while the first rank reads, embeds and predicts, which may take many hours.
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timedelta(days=14))
        return Ranks(dist.get_rank(), world, dist.group.WORLD)

    def share(self, n: int) -> slice:
        """This rank's rows of n."""
        each = -(-n // self.world)
        return slice(min(n, self.rank * each), min(n, (self.rank + 1) * each))

    def leave(self) -> None:
        """Ends the group."""
        if self.group is not None:
            import torch.distributed as dist

            dist.destroy_process_group()


@dataclass(frozen=True, eq=False)
class Solver:
    """A prepared bank, and who solves over it."""

    scan: Scan
    ranks: Ranks
    streamed: bool

    def solve(self, queries: Floats, **options: Any) -> SparseCodes:
        """As `retrieval.solve`, of queries (m, n)."""
        codes: SparseCodes = self._run("solve", (queries,), options)
        return codes

    def find_strength(self, queries: Floats, **options: Any) -> FoundStrength:
        """As `retrieval.strength.find_strength`."""
        found: FoundStrength = self._run("find_strength", (queries,), options)
        return found

    def residuals(self, queries: Floats, codes: SparseCodes, dim: int) -> tuple[Floats, Floats]:
        """As `retrieval.residuals.block_residuals`, of queries (n, m)."""
        residuals: tuple[Floats, Floats] = self._run("residuals", (queries, codes, dim), {})
        return residuals

    def serve(self) -> None:
        """Takes part in what the first rank asks, until it is done."""
        import torch.distributed as dist

        while True:
            asked: list[Any] = [None]
            dist.broadcast_object_list(asked, src=0, group=self.ranks.group)
            if asked[0] is None:
                return
            name, given, options = asked[0]
            WORK[name](self.scan, *given, **options)

    def dismiss(self) -> None:
        """Lets the other ranks go."""
        self._tell(None)

    def about(self) -> dict[str, Any]:
        """How codes were computed; none of it changes them beyond float rounding."""
        return {
            "solver_engine": engine(self.scan.atoms.device.type),
            "pass_precision": self.scan.precision,
            "bank_streamed": int(self.streamed),
            "ranks": self.ranks.world,
        }

    def _run(self, name: str, given: tuple[Any, ...], options: dict[str, Any]) -> Any:
        self._tell((name, given, {k: v for k, v in options.items() if k != "on_progress"}))
        return WORK[name](self.scan, *given, **options)

    def _tell(self, message: Any) -> None:
        if self.ranks.group is not None:
            import torch.distributed as dist

            dist.broadcast_object_list([message], src=0, group=self.ranks.group)
