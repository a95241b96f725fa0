"""Genes: identity, species, columns by name (`align`), scales, statistics (`moments`), panels and published panels.

Needs numpy and scipy only. It reads no section and no bank; the caller brings counts and names.
"""

from genrag_cli.genes.align import columns
from genrag_cli.genes.identity import Match, Shared, Tidied, match, read_aliases, shared, sum_columns, tidy, united
from genrag_cli.genes.moments import GeneStatistics, gene_statistics, pool_statistics
from genrag_cli.genes.panels import core_panel, global_panel, read_panel_file, technical_genes
from genrag_cli.genes.published_panels import PANELS, Panel, generag_panel, hest_bench_panel, stem_panel
from genrag_cli.genes.scales import convert, to_scale
from genrag_cli.genes.species import Evidence, settle_species, species_of

__all__ = [
    "PANELS",
    "Evidence",
    "GeneStatistics",
    "Match",
    "Panel",
    "Shared",
    "Tidied",
    "columns",
    "convert",
    "core_panel",
    "gene_statistics",
    "generag_panel",
    "global_panel",
    "hest_bench_panel",
    "match",
    "pool_statistics",
    "read_aliases",
    "read_panel_file",
    "settle_species",
    "shared",
    "species_of",
    "stem_panel",
    "sum_columns",
    "technical_genes",
    "tidy",
    "to_scale",
    "united",
]
