"""Figures: numpy in, a PNG, PDF or SVG out.

Knows how to draw and nothing of where the numbers come from. Uses matplotlib's objects directly, without pyplot:
no window system, no state that outlives the call. matplotlib is imported when something is drawn.
"""

from genrag_cli.outputs.figures.canvas import figure_format
from genrag_cli.outputs.figures.curves import CurvePanel, draw_curves
from genrag_cli.outputs.figures.explanation import Explanation, OmegaSweep, Reference, draw_explanation
from genrag_cli.outputs.figures.gene_ranks import draw_gene_ranks
from genrag_cli.outputs.figures.maps import MAX_GENES, draw_maps
from genrag_cli.outputs.figures.scores import ScoreRow, draw_scores

__all__ = [
    "MAX_GENES",
    "CurvePanel",
    "Explanation",
    "OmegaSweep",
    "Reference",
    "ScoreRow",
    "draw_curves",
    "draw_explanation",
    "draw_gene_ranks",
    "draw_maps",
    "draw_scores",
    "figure_format",
]
