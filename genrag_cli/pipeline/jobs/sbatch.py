"""The text of an sbatch file: one array whose tasks share the slides of one command line.

Knows what SLURM does to a job that runs out of time, loses its node or is cancelled, and what generag makes of the
signals. It does not know the cluster: partitions, accounts and limits are taken as they are given.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from genrag_cli.errors import UsageError
from genrag_cli.pipeline.jobs.line import Line
from genrag_cli.pipeline.jobs.resources import Resources

MOST_RESTARTS = 20
_NAME = re.compile(r"[\w.,:@+-]+")


@dataclass(frozen=True)
class Array:
    """How SLURM is asked.

    Raises:
        UsageError: for names and folders that cannot stand in SLURM's lines.
    """

    tasks: int
    folder: Path
    """In which the command line is run."""
    logs: Path
    """Must be there when the job starts; below `folder` unless absolute."""
    signal_s: int = 120
    """The signal comes so long before the time limit; SLURM may send it up to a minute earlier."""
    partition: str | None = None
    account: str | None = None

    def __post_init__(self) -> None:
        for flag, name in _places(self).items():
            if name is not None and not _NAME.fullmatch(name):
                raise UsageError(f"--{flag} {name!r} is no name that SLURM takes", "Letters, digits and . , : @ + - _")
        for folder in (self.folder, self.logs):
            if not str(folder).isprintable() or set(str(folder)) & set('"\\'):
                raise UsageError(
                    f"{str(folder)!r} holds a character that SLURM's lines cannot",
                    'Take a folder without ", \\ and line breaks in its name.',
                )


def write_sbatch(line: Line, array: Array, resources: Resources, version: str) -> str:
    """Returns the text of the file, a bash script.

    Args:
        line: what every task runs; the tasks tell their shares by SLURM's variables.
        array: how SLURM is asked.
        resources: of one task.
        version: of generag.

    Raises:
        UsageError: where the signal would come before the job has begun.
    """
    if array.signal_s >= resources.seconds:
        raise UsageError(
            f"--signal-s {array.signal_s} and --time {resources.time}: the signal would come before the job",
            "Give the job more time.",
        )
    return _TEXT.format(
        version=version,
        verb=line.verb,
        out=shlex.quote(str(line.out)),
        words=shlex.join(line.words),
        directives=_directives(line, array, resources),
        stage_note="" if line.has("--stage") else _STAGE_NOTE,
        tasks=array.tasks,
        signal_s=array.signal_s,
        restarts=MOST_RESTARTS,
    )


def _directives(line: Line, array: Array, resources: Resources) -> str:
    """Lines that sbatch reads; they must stand before the first command."""
    asked = [f"#SBATCH --job-name=generag-{line.verb}"]
    asked += [f"#SBATCH --{flag}={name}" for flag, name in _places(array).items() if name is not None]
    asked += [
        f'#SBATCH --chdir="{array.folder}"',
        "# %A is the array, %a the task. The folder of the logs must exist, or SLURM fails without a word.",
        f'#SBATCH --output="{str(array.logs).replace("%", "%%")}/%x-%A_%a.log"',
        "#SBATCH --open-mode=append",
        f"# 0-{array.tasks - 1}%4 would run four tasks at a time. They may start in any order, together or one by one.",
        f"#SBATCH --array=0-{array.tasks - 1}",
        "# Of one task:",
        "#SBATCH --ntasks=1",
        f"#SBATCH --cpus-per-task={resources.cpus}",
        f"#SBATCH --mem={resources.mem_gb}G",
        f"#SBATCH --time={resources.time}",
    ]
    if resources.gpus:
        asked += [*_GPU_NOTE, f"#SBATCH --gres=gpu:{resources.gpus}"]
    asked += [
        "# Back to the queue after a lost node or preemption, and USR1 to this script before the time limit.",
        "#SBATCH --requeue",
        f"#SBATCH --signal=B:USR1@{array.signal_s}",
    ]
    return "\n".join(asked)


def _places(array: Array) -> dict[str, str | None]:
    return {"partition": array.partition, "account": array.account}


_GPU_NOTE = (
    "# One task is one process on one GPU. For all GPUs of a node ask for as many tasks: SLURM puts several on a node",
    "# and shows each its own GPU (CUDA_VISIBLE_DEVICES).",
)
_STAGE_NOTE = """\
# Where slides lie on a slow file server and nodes have a disk of their own, add to the line below:
#   --stage "${SLURM_TMPDIR:-${TMPDIR:-/tmp}}"
"""
_TEXT = """\
#!/bin/bash
# Written by `generag slurm` ({version}): {tasks} tasks share the slides of one command line, every task its own.
#
#   submit      sbatch THIS_FILE
#   look        squeue --me; generag status {out}
#   stop        scancel JOB; what is finished stays, and submitting again goes on from there
#
# A task ends with generag's exit code: 0 done, 1 failed, 2 usage, 3 some slides failed (`generag status` says why),
# 75 stopped. Time limit, lost node and preemption cost no more than the block of spots that was being worked on.

{directives}

set -u

# The tasks have the environment that sbatch is called from. Where yours is not handed on, load it here:
# module load python; source /path/to/venv/bin/activate
if ! command -v generag >/dev/null; then
  echo "generag is not on the PATH of $(hostname): activate its environment in this file" >&2
  exit 1
fi

# Where nodes have no network, weights must be there before (generag backbones fetch NAME); then no time goes on asking:
# export HF_HUB_OFFLINE=1

# SLURM sends USR1 to this shell alone, {signal_s} s before the time limit. TERM, where the job is taken away (scancel,
# preemption, the limit itself), it sends to generag as well, which a second TERM would stop at once. On either generag
# finishes its block, keeps what it has, and ends with 75.
taken=no
heard=no
worker=
trap 'heard=yes; kill -s USR1 "$worker" 2>/dev/null' USR1
trap 'heard=yes; taken=yes' TERM

{stage_note}generag {words} &
worker=$!
while true; do
  heard=no
  wait "$worker"
  code=$?
  [ "$heard" = no ] && break  # else a signal interrupted the wait, and the worker still has to end
done

# A task that stopped queues again (138: told to stop before it had begun), unless it was taken away: then SLURM, or who
# called scancel, says how it goes on. TERM may reach the worker a moment before it reaches this shell.
if [ "$code" -eq 75 ] || [ "$code" -eq 138 ]; then
  sleep 1
  if [ "$taken" = yes ]; then
    echo "stopped by SLURM" >&2
  elif [ "${{SLURM_RESTART_COUNT:-0}}" -lt {restarts} ]; then
    # By its number in the array: the bare id of one of the tasks would stand for all of them.
    echo "stopped with exit code $code, queued again" >&2
    scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
  else
    echo "stopped after {restarts} restarts; submit this file again to go on" >&2
  fi
fi
exit "$code"
"""
