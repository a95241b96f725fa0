"""Genes: matching by name (`align`), expression scales (`scales`), statistics (`moments`) and panels (`panels`).

Needs numpy and scipy only. It reads no section and no bank; the caller brings counts and names.
"""

from genrag_cli.genes.align import columns, common_genes
from genrag_cli.genes.moments import GeneStatistics, gene_statistics, pool_statistics
from genrag_cli.genes.panels import core_panel, global_panel, read_panel_file, technical_genes
from genrag_cli.genes.scales import convert, to_scale

__all__ = [
    "GeneStatistics",
    "columns",
    "common_genes",
    "convert",
    "core_panel",
    "gene_statistics",
    "global_panel",
    "pool_statistics",
    "read_panel_file",
    "technical_genes",
    "to_scale",
]
