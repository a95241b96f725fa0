"""How many CPUs this process may use: what its job was given, not what the machine has.

Knows SLURM's variables, the CPUs that the process is tied to, and the quotas of control groups (versions 1 and 2). It
does not know what the machine is busy with, nor how several processes of one job share its CPUs.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

_GROUPS = Path("proc/self/cgroup")
_MOUNT = Path("sys/fs/cgroup")


def allotted_cpus(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> int:
    """CPUs that this job was given, at least 1.

    SLURM_CPUS_PER_TASK, then SLURM_CPUS_ON_NODE (SLURM may leave a process free to run everywhere), then those that
    the process is tied to; never more than the quota of its control group pays for, whole CPUs counted.

    Args:
        environ: variables; None: the process's own.
        root: where proc and sys are mounted.
    """
    return count_cpus(environ, root)[0]


def count_cpus(environ: Mapping[str, str] | None = None, root: Path = Path("/")) -> tuple[int, str]:
    """`allotted_cpus`, and in words what says so."""
    environ = os.environ if environ is None else environ
    given, said = _slurm_cpus(environ) or (_tied_cpus(), "the CPUs that this process may run on")
    quota = min(_quotas(root), default=None)
    if quota is None or int(quota) >= given:
        return given, said
    return max(1, int(quota)), f"a control group's quota of {quota:g} CPUs"


def _slurm_cpus(environ: Mapping[str, str]) -> tuple[int, str] | None:
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        value = environ.get(name, "")
        if value.isdigit() and int(value) > 0:
            return int(value), name
    return None


def _tied_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _quotas(root: Path) -> Iterator[float]:
    """CPUs that each quota above the process pays for; a group is also held to those of the groups around it."""
    for line in _read(root / _GROUPS).splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        inside = PurePosixPath(group.lstrip("/"))
        # In a container the path may be that outside of it, which is not there; the mount itself then is the group.
        around = [inside, *inside.parents]
        if number == "0" and not controllers:
            yield from (cpus for at in around if (cpus := _quota_v2(root / _MOUNT / at)) is not None)
        elif "cpu" in controllers.split(","):
            for mount in {"cpu", controllers}:
                yield from (cpus for at in around if (cpus := _quota_v1(root / _MOUNT / mount / at)) is not None)


def _quota_v2(group: Path) -> float | None:
    return _share(*(_read(group / "cpu.max").split() or ("max",)))


def _quota_v1(group: Path) -> float | None:
    return _share(_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip())


def _share(quota: str, period: str = "100000") -> float | None:
    """CPUs that `quota` us of every `period` us are; None for no quota ('max', -1, or nothing said)."""
    if not (quota.isdigit() and period.isdigit()) or int(quota) == 0 or int(period) == 0:
        return None
    return int(quota) / int(period)


def _read(file: Path) -> str:
    """What a file says; nothing where it is absent or closed to us, as on systems that have no control groups."""
    try:
        return file.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
