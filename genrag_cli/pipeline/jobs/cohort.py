"""The slides of a command line, one by one: what a job for each is told, and what it makes.

Knows how a slide is named on a command line so that its output is as in a run over all. It opens no slide.
"""

from dataclasses import dataclass
from pathlib import Path

from genrag_cli.errors import UsageError
from genrag_cli.pipeline.batch.inputs import TABLES, find_jobs
from genrag_cli.pipeline.embedding import embeddings_path
from genrag_cli.pipeline.jobs.line import Line
from genrag_cli.stores.layout import file_word

FILES = (".h5ad", ".zarr", ".zarr.zip")
"""Endings of outputs; an `--out` that has one is no folder."""


@dataclass(frozen=True)
class OneSlide:
    """Of a cohort."""

    name: str
    """With which the names of its outputs begin."""
    slide: str
    """Path or address."""
    words: tuple[str, ...]
    """Stand on a command line for this slide alone."""
    output: str
    """Name of the file that is made."""


def list_slides(line: Line) -> list[OneSlide]:
    """Every slide of a command line, each as a job of its own.

    Raises:
        UsageError: where nothing is found; where a slide, alone on a command line, would be named otherwise than among
            the others; for outputs that do not lie in one folder.
    """
    if line.out.name.endswith(FILES):
        raise UsageError(f"--out {line.out} is one file, and there is a job for every slide", "Give a folder.")
    jobs = find_jobs(line.slides)
    if elsewhere := next((job for job in jobs if job.out is not None), None):
        raise UsageError(
            f"{elsewhere.slide}: the manifest gives it an output of its own",
            "Leave the column `out` out of the manifest.",
        )
    if len(line.slides) == 1 and Path(line.slides[0]).suffix.lower() in TABLES:
        shares = [(line.slides[0], "--shard", f"{i}/{len(jobs)}") for i in range(len(jobs))]
        return [
            OneSlide(job.name, job.slide, words, _output(line, job.name))
            for job, words in zip(jobs, shares, strict=True)
        ]
    for job in jobs:
        if find_jobs([job.slide]) != [job]:
            raise UsageError(
                f"{job.slide} would be named otherwise, or read otherwise, alone than among the others ({job.name})",
                "List the slides in a manifest with the columns slide,name and give that alone.",
            )
    return [OneSlide(job.name, job.slide, (job.slide,), _output(line, job.name)) for job in jobs]


def _output(line: Line, name: str) -> str:
    if line.verb == "embed":
        return embeddings_path(Path(), name, line.backbone, "spots" if line.has("--spots") else "").name
    return f"{name}.{file_word(line.backbone)}.h5ad"
