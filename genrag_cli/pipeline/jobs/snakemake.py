"""The text of a Snakefile: one job per slide of a command line.

Knows how Snakemake names what goes in and comes out, and how it quotes. It does not know which executor runs the jobs.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from genrag_cli.pipeline.jobs.cohort import OneSlide
from genrag_cli.pipeline.jobs.line import Line
from genrag_cli.pipeline.jobs.resources import Resources
from genrag_cli.stores.layout import MANIFEST


def write_snakefile(line: Line, slides: Sequence[OneSlide], resources: Resources, retries: int, version: str) -> str:
    """Returns the text of the file.

    Args:
        line: of the whole cohort; its options are those of every job.
        slides: at least one.
        resources: of one job.
        retries: of a job that ended with an error.
        version: of generag.
    """
    folder, ending = Path(_fill(str(line.out))), _fill(slides[0].output.removeprefix(slides[0].name))
    command = f"generag {line.verb} {{params.slide}} {_fill(shlex.join(line.options))}"
    if not line.has("--workers"):
        command += " --workers {threads}"
    asked = [f"mem_mb={resources.mem_gb * 1000},", f"runtime={resources.minutes},"]
    if resources.gpus:
        asked.append(f"gpu={resources.gpus},")
    return _TEXT.format(
        version=version,
        line=line,
        verb=line.verb,
        slides="\n".join(
            f"    {_literal(one.name)}: ({_literal(_watched(one))}, {_literal(shlex.join(one.words))}),"
            for one in slides
        ),
        output=_literal(str(folder / f"{{slide}}{ending}")),
        log=_literal(str(folder / "logs" / f"{{slide}}{ending}.log")),
        bank=_literal(str(line.bank / MANIFEST)) if line.verb == "retrieve" else "[]",
        cpus=resources.cpus,
        retries=retries,
        resources="\n        ".join(asked),
        command=_literal(command + " 2> {log:q}"),
    )


def _watched(one: OneSlide) -> str | list[str]:
    """The file that a job is made anew for; an address is none."""
    return [] if "://" in one.slide else one.slide


def _literal(value: str | list[str]) -> str:
    return json.dumps(value, ensure_ascii=False)


def _fill(text: str) -> str:
    """As it stands where Snakemake looks for {names}."""
    return text.replace("{", "{{").replace("}", "}}")


_TEXT = """\
# Written by `generag workflow snakemake` ({version}), one job per slide, for
#   {line}
#
#   here            snakemake --snakefile THIS_FILE --cores 8 --keep-going
#   on a cluster    snakemake --snakefile THIS_FILE --executor slurm --jobs 50 --keep-going
#
# A job that was stopped (exit code 75) goes on inside its slide when it is tried again. A slide that cannot be read
# fails each time, quickly; --keep-going lets the others go on, and `generag status` says why it failed.
import re

# Name of the outputs: slide, and how a command line names it. Write the file anew when slides come along.
SLIDES = {{
{slides}
}}


wildcard_constraints:
    slide="|".join(map(re.escape, SLIDES)),


rule generag_{verb}_all:
    default_target: True
    input:
        expand({output}, slide=SLIDES),


rule generag_{verb}:
    input:
        lambda wildcards: SLIDES[wildcards.slide][0],
        {bank},
    output:
        {output},
    log:
        {log},
    params:
        slide=lambda wildcards: SLIDES[wildcards.slide][1],
    threads: {cpus}
    retries: {retries}
    resources:
        {resources}
    shell:
        {command}
"""
