"""A batch of slides with a victim in its middle, what a night without faults gives, and what any other must end in."""

import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import kill
import pytest

HERE = Path(__file__).resolve().parent
NAMES = ("a", "b", "c")
VICTIM = "b"
BESIDE = ("--backbone", "stain", "--workers", "1", "--alpha", "0.003", "--no-overlay")


def load(path):
    """A module by its file: tests are no package, and benchmarks are scripts."""
    name = f"{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


COMMAND_LINE = load(HERE.parent / "cli" / "conftest.py")
generag = COMMAND_LINE.generag
"""The fixture of the tests of the command line."""


@pytest.fixture(scope="session")
def made(tmp_path_factory, generag):
    """A cohort of three small sections, and a bank of the first two."""
    from genrag_cli.synthetic import write_cohort

    folder = tmp_path_factory.mktemp("made")
    write_cohort(folder / "cohort", size_px=900, n_genes=45)
    build = ("build-bank", folder / "cohort", "--patients", "prefix", "--exclude", kill.HELD)
    done = generag(*build, "--bank", folder / "bank.zarr", "--backbone", "stain", "--workers", "1", "-q")
    assert done.code == 0, done.err
    return folder


def give_slides(made, folder):
    """Three slides, a.tif, b.tif, c.tif."""
    folder.mkdir(parents=True)
    for name, source in zip(NAMES, sorted((made / "cohort" / "images").iterdir()), strict=True):
        shutil.copy2(source, folder / f"{name}.tif")
    return folder


@dataclass
class Night:
    """A batch, and where its results go."""

    generag: object
    bank: Path
    slides: Path
    out: Path
    calm: dict

    def command(self, *more):
        return ("retrieve", self.slides, "--bank", self.bank, *BESIDE, "--out", self.out, *more)

    def run(self, *more):
        return self.generag(*self.command(*more))

    def shell(self, *more, **named):
        """The command in a process of its own."""
        command = [sys.executable, "-m", "genrag_cli", *map(str, self.command(*more))]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **named)

    def in_shell(self, *more, obeying=False):
        """What the command does in a process of its own; `obeying` permissions, whoever runs it."""
        process = self.shell(*more, preexec_fn=obey_permissions if obeying else None)
        out, err = process.communicate(timeout=120)
        return COMMAND_LINE.Ran(process.returncode, out, err)

    def expect(self, ran, bad, code=None):
        """Asserts how a disturbed night ended: right results for the good slides, a named reason for each bad one.

        Args:
            ran: what the command did.
            bad: name of each bad slide, and words of its reason.
            code: if other than 0 without bad slides, 3 with some and 1 with no other.
        """
        expected = 0 if not bad else 1 if len(bad) == len(NAMES) else 3
        assert ran.code == (expected if code is None else code), ran.err
        assert "Traceback" not in ran.err
        for name, words in bad.items():
            status = self.status(name)
            assert status["state"] == "failed"
            assert words in status["reason"]
            assert f"error: {status['reason'].splitlines()[0]}" in ran.err
        made = kill.read_content(self.out)
        for key, value in self.calm.items():
            if key.partition(".")[0] not in bad:
                assert made.get(key) == value, key
        assert not [key for key in made if key.partition(".")[0] in bad and ".h5ad" in key]

    def expect_mended(self, *more):
        """Asserts that a rerun without the fault ends as a calm night does, with nothing left behind."""
        ran = self.run(*more)
        assert ran.code == 0, ran.err
        assert kill.read_content(self.out) == self.calm
        assert kill.find_leftovers(self.out) == []

    def status(self, name):
        return json.loads((self.out / f"{name}.stain.status.json").read_text())


def end_decoders():
    """Ends the processes that decode and wait for more."""
    from genrag_cli.slides.decoder import end_idle

    end_idle()


@pytest.fixture
def night(made, generag, tmp_path, calm):
    """A batch to disturb."""
    return Night(generag, made / "bank.zarr", give_slides(made, tmp_path / "slides"), tmp_path / "out", calm)


@pytest.fixture(scope="session")
def calm(made, generag, tmp_path_factory):
    """What a night without faults gives."""
    folder = tmp_path_factory.mktemp("calm")
    night = Night(generag, made / "bank.zarr", give_slides(made, folder / "slides"), folder / "out", {})
    assert night.run().code == 0
    return kill.read_content(night.out)


@pytest.fixture
def inject(monkeypatch):
    """`inject(at=..., how=..., rows=...)`: a fault in the process that decodes; `inject()` takes it away."""

    def ask(**fault):
        end_decoders()  # those that wait know nothing of what is asked for now
        if not fault:
            monkeypatch.delenv("GENERAG_FAULT")
            return
        monkeypatch.setenv("PYTHONPATH", str(HERE / "inject"))
        monkeypatch.setenv("GENERAG_FAULT", json.dumps({"slide": f"{VICTIM}.tif", **fault}))

    yield ask
    end_decoders()


@pytest.fixture
def during(monkeypatch):
    """`during(act)`: calls `act` once the tiles of the victim have been encoded, before anything is written of it."""
    from genrag_cli.pipeline.embedding import _Making

    compute = _Making.compute

    def ask(act):
        def acting(self, listener, stage):
            compute(self, listener, stage)
            if self.grid.slide_id == VICTIM:
                act()

        monkeypatch.setattr(_Making, "compute", acting)

    return ask


@pytest.fixture
def at_victim(monkeypatch):
    """`at_victim(place, name, act)`: replaces a function or method where it works on the victim."""
    from genrag_cli.pipeline.retrieve import Retrieval

    now, finish = {"slide": ""}, Retrieval.finish

    def noting(self, query, *rest):
        now["slide"] = query.slide_id
        return finish(self, query, *rest)

    monkeypatch.setattr(Retrieval, "finish", noting)

    def ask(place, name, act):
        real = place[name] if isinstance(place, dict) else getattr(place, name)

        def acting(*args, **named):
            return act(real, *args, **named) if now["slide"] == VICTIM else real(*args, **named)

        if isinstance(place, dict):
            monkeypatch.setitem(place, name, acting)
        else:
            monkeypatch.setattr(place, name, acting)

    return ask


def obey_permissions():
    """Has this process, though it may be root's, refused what permissions refuse; for `preexec_fn`."""
    PR_CAPBSET_DROP, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 24, 1, 2
    for capability in (CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
