"""A real SLURM of a few virtual nodes on this machine, for one test module, without systemd, control groups or network.

Knows how munge and SLURM (22.05 and later) are configured to live in one folder and listen on this host's own address,
and how to be sure that nothing of it stays. Needs root, as slurmd does. There is no accounting: sacct does not answer,
finished jobs are asked of the controller.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

DAEMONS = ("munged", "slurmctld", "slurmd")
TOOLS = ("sbatch", "scontrol", "scancel", "squeue", "sinfo")
_CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MailProg=/bin/true
ReturnToService=0
SlurmdTimeout=300
KillWait=30
MinJobAge=3600
SchedulerParameters=sched_interval=2,batch_sched_delay=0
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=UNLIMITED State=UP
"""


def why_not() -> str | None:
    """What this machine lacks; None where SLURM can be started."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    if lacking := [name for name in (*DAEMONS, *TOOLS) if shutil.which(name, path=path) is None]:
        return f"no SLURM here: {', '.join(lacking)} not found (packages slurm-wlm and munge)"
    return None if os.geteuid() == 0 else "SLURM's daemons need root"


class Cluster:
    """Nodes n0, n1, ... of one CPU each."""

    tick_s = 30.0
    """The controller looks at time limits so often, counted from its start."""

    def __init__(self, n_nodes: int = 2) -> None:
        # A socket's path has about a hundred characters at most, so not in the test's own deep folder.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        self.environ = {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}
        self.environ["PATH"] += ":/usr/sbin:/sbin"
        # What pytest's workers tell themselves is not what a user's shell would hand to jobs.
        for name in [n for n in self.environ if n.startswith(("SLURM_CPUS", "SBATCH_", "PYTEST_"))]:
            del self.environ[name]
        self.nodes = [f"n{i}" for i in range(n_nodes)]
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._began = 0.0

    def __enter__(self) -> "Cluster":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(subprocess.SubprocessError):
            self.call("scancel", "--user=root", check=False)
            self.wait_until(lambda: not self.call("squeue", "-h", check=False), 3, fail=False)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=5)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self) -> None:
        folder = self.folder
        folder.chmod(0o755)
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        host, ports = socket.gethostname().partition(".")[0], list(_free_ports(1 + len(self.nodes)))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=4000 State=UNKNOWN"
            for name, port in zip(self.nodes, ports[1:], strict=True)
        )
        (folder / "slurm.conf").write_text(_CONF.format(host=host, ports=ports, folder=folder, nodes=nodes))
        self._spawn(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket",
            f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed",
        )  # fmt: skip
        self.wait_until((folder / "munge.socket").exists, 10)
        self._began = time.monotonic()
        self._spawn("slurmctld", "-D", "-c", "-i")
        for name in self.nodes:
            self._spawn("slurmd", "-D", "-N", name)
        self.wait_until(
            lambda: self.call("sinfo", "-h", "-N", "-o", "%T", check=False).split() == self._all("idle"), 30
        )

    def _all(self, state: str) -> list[str]:
        return [state] * len(self.nodes)

    def _spawn(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("ab") as out:
            self._daemons.append(
                subprocess.Popen(command, env=self.environ, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
            )

    def call(self, *command: object, check: bool = True) -> str:
        """Runs one of SLURM's tools and returns what it prints."""
        done = subprocess.run(
            [str(word) for word in command], env=self.environ, capture_output=True, text=True, timeout=60, check=False
        )
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(self, file: Path, **environ: str) -> str:
        """Submits a file with variables on top of the environment, and returns the number of the array."""
        done = subprocess.run(
            ["sbatch", "--parsable", str(file)],
            env=self.environ | environ, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def describe(self, task: str) -> dict[str, str]:
        """What the controller says of 'ARRAY_TASK': JobState, ExitCode, Restarts, BatchHost, ..."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", task)))

    def states(self, array: str) -> dict[str, str]:
        """State by task number; tasks that were never started stand under the number that SLURM gives them."""
        text = self.call("scontrol", "show", "job", array)
        return dict(re.findall(r"ArrayTaskId=(\S+).*?JobState=(\S+)", text, re.DOTALL))

    def start_now(self, task: str, *changes: str) -> None:
        """Once a task is back in the queue, changes it and lets it start; else SLURM has it wait for two minutes.

        A node refuses a start ("Job credential revoked") within the second in which it was told to end the run before.
        """

        def is_back() -> bool:
            said = self.describe(task)
            watched = list(self.folder.glob(f"spool-*/*_{said['JobId']}.*"))
            return said["JobState"] == "PENDING" and said["Restarts"] != "0" and not watched

        self.wait_until(is_back, 120)
        self.call("scontrol", "update", f"JobId={task}", *changes, "StartTime=now+3")

    def wait_for(self, array: str, seconds: float, ended: tuple[str, ...] = ("COMPLETED", "FAILED")) -> dict[str, str]:
        """Waits until every task has ended, and returns their states."""
        self.wait_until(
            lambda: set(self.states(array).values()) <= set(ended), seconds, lambda: str(self.states(array))
        )
        return self.states(array)

    def expect_done(self, array: str, seconds: float) -> None:
        """Waits until every task has ended, and asserts that each did well."""
        states = self.wait_for(array, seconds)
        assert set(states.values()) == {"COMPLETED"}, f"{states}\n{self._log()}"

    def _log(self) -> str:
        return self.call("squeue", "-l", check=False) + (self.folder / "slurmctld.log").read_text()

    def wait_until(
        self, true: Callable[[], object], seconds: float, say: Callable[[], str] = str, *, fail: bool = True
    ) -> None:
        """Waits until something is true, and fails with what was said and the controller's log where it never is."""
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                if fail:
                    raise AssertionError(f"not within {seconds:g} s: {say()}\n{self._log()}")
                return
            time.sleep(0.1)

    def seconds_to_tick(self) -> float:
        """Until the controller looks at time limits next."""
        return self.tick_s - (time.monotonic() - self._began) % self.tick_s

    def processes(self, words: str = "", variable: str = "") -> list[int]:
        """Ids of what this cluster started, jobs included.

        Args:
            words: must stand in the command line, one space between them.
            variable: NAME=VALUE that must stand in the environment.
        """
        wanted, found = {f"SLURM_CONF={self.environ['SLURM_CONF']}", variable} - {""}, []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_text(errors="replace").replace("\0", " ")
                if words in line and wanted <= set((folder / "environ").read_text(errors="replace").split("\0")):
                    found.append(int(folder.name))
        return found


def _free_ports(n: int) -> Iterator[int]:
    """Ports that nobody listens on, all different."""
    with contextlib.ExitStack() as taken:
        for _ in range(n):
            bound = taken.enter_context(socket.socket())
            bound.bind(("127.0.0.1", 0))
            yield bound.getsockname()[1]
