"""Measured sections in: one reader per source format, all giving `Section` and `Measured`.

Importing this package loads numpy only; pandas, h5py, anndata and scipy are imported when a table is read.
"""

from genrag_cli.cohorts.base import Cohort, Measured, Reading, Section
from genrag_cli.cohorts.open import open_cohort, open_section, read_truth

__all__ = ["Cohort", "Measured", "Reading", "Section", "open_cohort", "open_section", "read_truth"]
