"""Whether this machine can do the work: versions, devices, memory, disks, hub, weights, bank, and a small job for real.

Each check has a time limit and cannot take the others down with it. Knows what to say and what to do about it; imports
nothing heavy before its check, so that a broken installation is a line of the report. Touches the network with one
HEAD request, where that is not forbidden, and the disk with a small file that it takes away again.
"""

import os
import platform
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from genrag_cli.errors import GeneragError

State = Literal["ok", "note", "problem"]
PACKAGES = (
    "generag", "torch", "numpy", "scipy", "pandas", "zarr", "anndata", "h5py", "numba", "openslide-python",
    "openslide-bin", "tifffile", "imagecodecs", "pillow", "scikit-image", "timm", "huggingface-hub", "safetensors",
)  # fmt: skip
OPTIONAL = ("cucim-cu12", "onnxruntime")
TRIED_BYTES = 1 << 20
LITTLE_DISK = 2e9
LITTLE_MEMORY = 2e9
LIMIT_S = 10.0
HUB_S = 3.0
SELF_TEST_S = 180.0


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    check: str
    state: State
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Patient:
    """What is looked at."""

    backbone: str
    bank: Path | None
    """None: no bank was named and none stands in the usual place."""
    out: Path
    device: str | None = None
    """None: a GPU where there is one."""
    self_test: bool = True


def examine(patient: Patient) -> Iterator[Finding]:
    """`generag doctor`: yields findings as they are made; it always ends."""
    for name, check, limit_s in _checks(patient):
        yield from within(name, check, limit_s)


def list_checks(patient: Patient) -> list[str]:
    """The names of what `examine` would check."""
    return [name for name, _, _ in _checks(patient)]


def _checks(patient: Patient) -> list[tuple[str, Callable[[], list[Finding]], float]]:
    """Names, what is done, and seconds that it may take; the hub is judged by what the weights before it said."""
    weights_here: list[bool] = []
    checks: list[tuple[str, Callable[[], list[Finding]], float]] = [
        ("versions", _versions, LIMIT_S * 6),
        ("cpus", _cpus, LIMIT_S),
        ("gpus", _gpus, LIMIT_S * 6),
        ("memory", _memory, LIMIT_S),
        ("out", lambda: [_disk("out", patient.out)], LIMIT_S * 2),
        ("temp", lambda: [_disk("temp", Path(tempfile.gettempdir()))], LIMIT_S * 2),
        ("weights", lambda: _weights(patient.backbone, weights_here), LIMIT_S * 3),
        ("hub", lambda: _hub(needed=weights_here == [False]), LIMIT_S),
        ("bank", lambda: _bank(patient), LIMIT_S * 6),
    ]
    if patient.self_test:
        checks.append(("self-test", lambda: _self_test(patient.device), SELF_TEST_S))
    return checks


def within(name: str, check: Callable[[], list[Finding]], limit_s: float) -> list[Finding]:
    """What a check finds; a check that fails or takes too long is a problem, and is left behind."""
    found: list[Finding] = []
    done = threading.Event()

    def work() -> None:
        try:
            found.extend(check())
        except GeneragError as error:
            found.append(Finding(name, "problem", error.message, error.hint))
        except Exception as error:  # whatever is broken is what is to be told
            text = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}".strip(": ")
            found.append(Finding(name, "problem", text, "Reinstall generag into a fresh environment, or report this."))
        done.set()

    threading.Thread(target=work, name=f"doctor-{name}", daemon=True).start()
    if not done.wait(limit_s):
        return [Finding(name, "problem", f"no answer within {limit_s:g} s", "What it waits for does not answer.")]
    return found


def _versions() -> list[Finding]:
    from genrag_cli.slides.openslide import library_version

    lost: list[str] = []
    said = [f"python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            said.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            lost.append(name)
    for name in OPTIONAL:
        try:
            said.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            said.append(f"{name} not installed (optional)")
    findings = [Finding("versions", "ok", ", ".join(said))]
    if lost:
        findings.append(Finding("versions", "problem", f"not installed: {', '.join(lost)}", "pip install generag"))
    findings.append(Finding("openslide", "ok", f"library {library_version()}"))
    return findings


def _cpus() -> list[Finding]:
    from genrag_cli.pipeline.cpus import count_cpus

    allotted, source = count_cpus()
    text = f"{allotted} of {os.cpu_count() or 1} for this job, by {source}"
    return [Finding("cpus", "ok", text)]


def _gpus() -> list[Finding]:
    import torch

    if not torch.cuda.is_available():
        built = "" if torch.version.cuda else "; this torch is built without CUDA"
        return [Finding("gpus", "note", f"none, so CPUs do the work{built}")]
    found = []
    for number in range(torch.cuda.device_count()):
        name, device = torch.cuda.get_device_name(number), f"cuda:{number}"
        try:
            free, total = torch.cuda.mem_get_info(number)
            ones = torch.ones(256, 256, device=device)
            right = bool(((ones @ ones) == 256).all())
        except RuntimeError as error:
            text = f"{device} {name}: {str(error).splitlines()[0]}"
            found.append(Finding("gpus", "problem", text, "Use another device (--device), or --device cpu."))
            continue
        text = f"{device} {name}: {free / 1e9:.1f} of {total / 1e9:.1f} GB free"
        if right:
            found.append(Finding("gpus", "ok", f"{text}; a product came out right"))
        else:
            found.append(Finding("gpus", "problem", f"{text}; a product came out wrong", "Do not use it: --device cpu"))
    return found


def _memory() -> list[Finding]:
    import torch

    from genrag_cli.retrieval.memory import free_bytes

    free = free_bytes(torch.device("cpu"))
    if free < LITTLE_MEMORY:
        return [Finding("memory", "note", f"{free / 1e9:.1f} GB free, which is little", "Ask the job for more.")]
    return [Finding("memory", "ok", f"{free / 1e9:.1f} GB free")]


def _disk(what: str, folder: Path) -> Finding:
    """Whether a folder, or the nearest one that is there, can be written: a file, flushed to disk and renamed."""
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        return Finding(what, "problem", f"{folder}: {there} is a file", "Give a folder.")
    name = f".generag-doctor-{os.getpid()}-{time.monotonic_ns()}"
    first, second = there / f"{name}.partial", there / name
    began = time.perf_counter()
    try:
        with first.open("xb") as file:
            file.write(bytes(TRIED_BYTES))
            file.flush()
            os.fsync(file.fileno())
        first.replace(second)
        if second.stat().st_size != TRIED_BYTES:
            return Finding(what, "problem", f"{there}: a file that was flushed came back shorter", "Use another disk.")
    except OSError as error:
        remedy = "Give a place that can be written (--out)." if what == "out" else "Set TMPDIR to such a place."
        return Finding(what, "problem", f"{there} cannot be written: {error.strerror or error}", remedy)
    finally:
        for path in (first, second):
            path.unlink(missing_ok=True)
    free = shutil.disk_usage(there).free
    text = f"{there}: {free / 1e9:.1f} GB free; written, flushed and renamed in {time.perf_counter() - began:.2g} s"
    if free < LITTLE_DISK:
        return Finding(what, "note", f"{text}; that is little room", "generag inspect says what a slide takes.")
    return Finding(what, "ok", text)


def _weights(backbone: str, here: list[bool]) -> list[Finding]:
    """Of the backbone; tells by `here` whether they are on this machine."""
    from genrag_cli.pipeline.backbones import describe_backbone

    facts = describe_backbone(backbone)
    if facts.here in ("yes", "none needed"):
        text = "are here" if facts.here == "yes" else "are not needed"
        here.append(True)
        return [Finding("weights", "ok", f"of {backbone} {text}")]
    if facts.here == "unknown":
        return [Finding("weights", "note", f"of {backbone}: it does not say which it needs")]
    here.append(False)
    lost = [placed.file for placed in facts.files if placed.path is None]
    names = ", ".join(f"{file.part or 'its own'} ({file.repo or file.package or 'not published'})" for file in lost)
    remedy = f"generag backbones fetch {backbone}, or give a file with --weights."
    if any(file.gated for file in lost):
        remedy += " The hub asks for a licence to be accepted, and for HF_TOKEN."
    fetched = all(file.repo for file in lost)
    return [Finding("weights", "note" if fetched else "problem", f"of {backbone} not here: {names}", remedy)]


def _hub(*, needed: bool) -> list[Finding]:
    """Whether the model hub answers; that it does not is a problem only where weights have to come from it."""
    from huggingface_hub import constants, get_token

    about = f"cache (HF_HOME) {constants.HF_HOME}; token {'present' if get_token() else 'absent'}"
    bad: State = "problem" if needed else "note"
    remedy = "Fetch on a machine with network, copy HF_HOME, or give files (--weights)." if needed else ""
    if constants.HF_HUB_OFFLINE:
        return [Finding("hub", bad, f"HF_HUB_OFFLINE is set, so it is not asked; {about}", remedy)]
    reason = _ask(constants.ENDPOINT)
    if reason:
        return [Finding("hub", bad, f"{constants.ENDPOINT} does not answer ({reason}); {about}", remedy)]
    return [Finding("hub", "ok", f"{constants.ENDPOINT} answers; {about}")]


def _ask(address: str) -> str:
    """Why an address does not answer a HEAD request within `HUB_S`; empty where it does, whatever it says."""
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    said: list[str] = []

    def work() -> None:
        try:
            with urlopen(Request(address, method="HEAD"), timeout=HUB_S):
                said.append("")
        except HTTPError:
            said.append("")
        except URLError as error:
            said.append(str(error.reason))
        except Exception as error:  # an address of another kind, a proxy that talks nonsense
            said.append(str(error) or type(error).__name__)

    asking = threading.Thread(target=work, name="doctor-ask", daemon=True)  # looking up a name has no time limit
    asking.start()
    asking.join(HUB_S + 1)
    return said[0] if said else f"nothing within {HUB_S + 1:g} s"


def _bank(patient: Patient) -> list[Finding]:
    from genrag_cli.stores.bank import Bank

    if patient.bank is None:
        return [Finding("bank", "note", "none was named", "Build one: generag build-bank TRAIN; or name it: --bank")]
    bank = Bank.open(patient.bank, patient.backbone)
    text = f"{patient.bank}: {bank.n_spots} spots of {len(bank.sections)} sections with {patient.backbone}"
    return [Finding("bank", "ok", f"{text}, version {bank.number}")]


def _self_test(device: str | None) -> list[Finding]:
    from genrag_cli.pipeline.self_test import run_self_test

    began = time.perf_counter()
    done = run_self_test(device)
    text = (
        f"{done.spots} spots of a made-up slide predicted on {done.device} in {time.perf_counter() - began:.1f} s; "
        f"relative gap at most {done.worst_gap:.1e}, weights differ from the reference by {done.difference:.1e}"
    )
    if wrong := done.wrong:
        return [Finding("self-test", "problem", f"{text}: {wrong}", "Try --device cpu; if it stays, report this.")]
    return [Finding("self-test", "ok", text)]
