"""Scores of a prediction against measured counts, beside baselines that know less.

Pure functions over arrays; the caller brings prediction, truth and the conversion between expression scales.
"""

from genrag_cli.evaluation.join import join_spots
from genrag_cli.evaluation.report import PCC_KS, evaluate

__all__ = ["PCC_KS", "evaluate", "join_spots"]
