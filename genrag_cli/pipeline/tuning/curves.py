"""The curves of a tuning as a figure: what was varied, and how every fold answered."""

from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.outputs.figures import CurvePanel, draw_curves, figure_format

_LABELS = {
    "context": "share of the neighbours", "omega": "omega (weight of morphology)", "l1_ratio": "l1 ratio",
    "ridge": "strength of the regression (multiple)",
    "references": "references", "share": "share of the references", "preparation": "preparation",
}  # fmt: skip


def expect_picture(path: Path) -> None:
    """Refuses a path that no picture can be written to, before the long work.

    Raises:
        OutputError: for an ending that is not .png, .pdf or .svg.
    """
    figure_format(path)


def draw_tuning(path: Path, about: dict[str, Any], title: str = "") -> None:
    """Draws the attributes of a tuning: one panel per thing varied, thin lines for folds, their mean in bold.

    Each point is the best of what was tried with its value, over everything else that was varied beside it.
    """
    tried, chosen = about["tried"], about["settings"]
    panels = []
    for name, stage in (
        ("context", "context"), ("references", "context"), ("share", None), ("ridge", "ridge"), ("omega", "omega"),
        ("l1_ratio", "l1_ratio"),
    ):  # fmt: skip
        own = [t for t in tried if stage is None or t["stage"] == stage]
        panels += _panel(name, own, chosen[name])
    draw_curves(path, panels, title=title or f"settings by {about['rule']}, {about['n_folds']} folds")


def _panel(name: str, tried: list[dict[str, Any]], chosen: float) -> list[CurvePanel]:
    values = sorted({t[name] for t in tried})
    if len(values) < 2:
        return []
    best = [max((t for t in tried if t[name] == v), key=lambda t: t["score"]) for v in values]
    folds = np.array([t["by_fold"] for t in best], np.float64).T
    return [
        CurvePanel(
            title=name, x=values, folds=folds, x_label=_LABELS[name], y_label="mean PCC-k",
            chosen=chosen if chosen in values else None, log_x=name in ("references", "ridge"),
        )
    ]  # fmt: skip
