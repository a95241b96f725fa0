"""What a prediction says about how it was made, as flat keys for `uns`."""

import dataclasses
from typing import Any

import numpy as np

from genrag_cli.pipeline.options import SolveOptions
from genrag_cli.retrieval.objective import Strength
from genrag_cli.retrieval.strength import FoundStrength, StrengthRule
from genrag_cli.stores.bank import Bank
from genrag_cli.types import BackboneCard, Floats, SparseCodes, TileGrid


def about_inputs(grid: TileGrid, card: BackboneCard, bank: Bank) -> dict[str, Any]:
    """What a prediction was made from, beside the slide itself."""
    size = grid.pixel_size
    return {
        "mpp": float(size.mpp),
        "mpp_source": size.source,
        "mpp_others": [list(o) for o in size.others],
        "fov_um": float(grid.fov_um),
        "pitch_um": float(grid.pitch_um),
        "backbone": dataclasses.asdict(card),
        "bank": str(bank.folder.resolve()),
        "bank_fingerprint": bank.fingerprint,
        "bank_version": bank.version["version"],
        "coordinates": "x, y of spot centres in level-0 px",
    }


def about_solution(
    options: SolveOptions, rule: StrengthRule, queries: Floats, codes: SparseCodes, *, omega: float
) -> dict[str, Any]:
    """How the problem of queries (m, n) was posed and solved; l1 and its kin are medians over spots."""
    l1, l2 = (float(np.median(v)) if len(v) else 0.0 for v in rule.of(queries))
    strength = Strength(l1, l2, len(queries))
    return {
        "solver": options.solver,
        "l1_scale": rule.l1,
        "l2_scale": rule.l2,
        "l1_power": rule.power,
        "passes_mean": float(codes.passes.mean()) if len(codes) else 0.0,
        "preset": options.preset,
        "omega": omega,
        "signed": options.signed,
        "gap_asked": options.gap,
        "gap_worst": float(codes.gap.max(initial=0.0)),
        "n_stalled": int((codes.status != "solved").sum()),
        "l1": strength.l1,
        "l2": strength.l2,
        "lambda": strength.lambda_,
        "gamma": strength.gamma,
        "alpha": strength.alpha,
        "l1_ratio": strength.l1_ratio,
        "median_references": float(np.median(codes.n_active)) if len(codes) else 0.0,
    }


def about_search(found: FoundStrength | None, n_queries: int) -> dict[str, Any]:
    """What finding the strength took: passes over the bank as if all spots of the slide had taken part."""
    return {
        "active_found_on_sample": found.median_active if found else -1.0,
        "search_passes": found.passes / max(1, n_queries) if found else 0.0,
    }
