"""The text of a Nextflow script: one task per slide of a command line.

Knows that every try of a task gets a folder of its own, and how Groovy quotes. It does not know the executor.
"""

import shlex
from collections.abc import Sequence

from genrag_cli.pipeline.jobs.cohort import OneSlide
from genrag_cli.pipeline.jobs.line import Line
from genrag_cli.pipeline.jobs.resources import Resources


def write_nextflow(line: Line, slides: Sequence[OneSlide], resources: Resources, retries: int, version: str) -> str:
    """Returns the text of the script.

    Args:
        line: of the whole cohort; its options are those of every task.
        slides: at least one.
        resources: of one task.
        retries: of a task that was stopped.
        version: of generag.
    """
    workers = "" if line.has("--workers") else " --workers ${task.cpus}"
    return _TEXT.format(
        version=version,
        line=line,
        verb=line.verb,
        process=f"GENERAG_{line.verb.upper()}",
        slides=",\n".join(
            f"        [{_literal(one.name)}, {_literal(shlex.join(one.words))}, {_literal(one.output)}]"
            for one in slides
        ),
        cpus=resources.cpus,
        mem_gb=resources.mem_gb,
        minutes=resources.minutes,
        accelerator=f"    accelerator {resources.gpus}\n" if resources.gpus else "",
        retries=retries,
        options=_in_script(shlex.join(line.options)) + workers,
        out=_in_script(shlex.quote(str(line.out))),
    )


def _literal(text: str) -> str:
    """A Groovy string without ${names}."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _in_script(text: str) -> str:
    """As it stands within a script in three double quotes, where Groovy reads backslashes and ${names}."""
    return text.replace("\\", "\\\\").replace("$", "\\$").replace('"', '\\"')


_TEXT = r'''// Written by `generag workflow nextflow` ({version}), one task per slide, for
//   {line}
//
// Run it in the folder in which that line works: nextflow run THIS_FILE -resume

process {process} {{
    tag "${{name}}"
    cpus {cpus}
    memory '{mem_gb} GB'
    time '{minutes} min'
{accelerator}
    // 75, or above 128 where a signal ended it: stopped, the next try goes on inside the slide. What cannot be read
    // fails alone; `generag status` says why.
    errorStrategy {{ task.exitStatus == 75 || task.exitStatus > 128 ? 'retry' : 'ignore' }}
    maxRetries {retries}

    // The slide is a value, not a path: Nextflow would link one file, without those that belong to it (MRXS, DICOM).
    input:
    tuple val(name), val(slide), val(made)

    output:
    tuple val(name), path(made)

    // The command works in the folder that Nextflow was started in, not in that of the task: what a stopped try leaves
    // is there for the next one, and paths mean what they mean in the line above.
    script:
    def launched = "'" + workflow.launchDir.toString().replace("'", "'\\''") + "'"
    def output = "'" + made.replace("'", "'\\''") + "'"
    """
    task_folder=\$PWD
    cd ${{launched}}
    generag {verb} ${{slide}} {options}
    ln -s "\$(realpath {out})"/${{output}} "\$task_folder"/
    """
}}

workflow {{
    // Name, the slide as a command line names it, output. Write the file anew when slides come along.
    def slides = [
{slides}
    ]
    {process}(channel.fromList(slides))
}}
'''
