"""Damages slides, manifests, banks, embeddings, predictions and files of other tools, and gives them to the commands.

    python tests/benchmarks/fuzz.py --files 2000 --seed 0

Every file is one that a command wrote or reads, damaged once (`mutate.py`): bits flipped, cut, parts zeroed, repeated
or inserted, headers swapped, absurd sizes where its format keeps sizes. Whatever is in it, the command that reads it
must end within its limit, by an exit code of the table in `genrag_cli.errors`, without a traceback, a signal or an
unexpected error, and with its whole tree of processes below half the machine's memory and 2 GiB. Beside that,

- a good slide in a batch of damaged ones has just the outputs that it has alone, and every damaged one a status that
  says `failed` with a reason, or `done` or `empty`: a slide that can be read is a slide;
- nothing hidden is left in the folder of outputs;
- a damaged bank, prediction or file of embeddings is refused by `verify`, and by every command that reads it;
- a rerun over damaged embeddings or status files refuses them, or ends with what an undisturbed run gives.
"""

import argparse
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from content import read_output
from forked import Ran, import_all, run
from materials import QUICK, Materials, link_tree, make_materials
from mutate import mutate_file
from setting import describe_machine, format_table

BOUND = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 + (2 << 30)
"""Bytes: what the process that decodes may take at most (`slides.decoder.MEMORY_SHARE`), and the rest of generag."""
LIMIT_S, PER_SLIDE_S = 120.0, 45.0
READ_TIMEOUT_S = 15
IN_BATCH = 10
CODES = (0, 1, 2, 3)
UNEXPECTED = re.compile(r": unexpected [A-Z]\w+: ")
"""What a batch says of a defect."""
ASIDE = QUICK[:-2]
PLAIN = ("--no-overlay",)


@dataclass
class Tally:
    """What was seen of one kind of file."""

    files: int = 0
    commands: int = 0
    refused: int = 0
    """Files that were refused, or slides that failed."""
    slowest_s: float = 0.0
    peak: int = 0
    seconds: float = 0.0


@dataclass
class Fuzz:
    """Runs trials."""

    materials: Materials
    folder: Path
    rng: random.Random
    tallies: dict[str, Tally] = field(default_factory=lambda: defaultdict(Tally))
    faults: list[str] = field(default_factory=list)
    kind: str = ""
    done: str = ""
    """What was damaged, how."""

    def command(self, *argv: object, slides: int = 0) -> Ran:
        """Runs a command and checks what must hold for all of them."""
        ran = run(argv, limit_s=LIMIT_S + PER_SLIDE_S * slides, most=BOUND)
        tally = self.tallies[self.kind]
        tally.commands += 1
        tally.slowest_s, tally.peak = max(tally.slowest_s, ran.seconds), max(tally.peak, ran.peak)
        if ran.code is None:
            why = "more memory than allowed" if ran.peak > BOUND else f"no end after {ran.seconds:.0f} s"
            self.fault(ran, f"{why} ({ran.peak >> 20} MiB)")
        elif ran.code not in CODES:
            self.fault(ran, f"exit code {ran.code}")
        if "Traceback" in ran.err or UNEXPECTED.search(ran.err):
            self.fault(ran, "a traceback, or an unexpected error")
        if ran.code and "error: " not in ran.err.lower():
            self.fault(ran, "no reason was said")
        return ran

    def fault(self, ran: Ran, what: str) -> None:
        """Notes that something is wrong."""
        said = " | ".join(ran.err.strip().splitlines()[-12:])[-1500:]
        self.faults.append(f"{self.kind}: {self.done}: {what}\n  {' '.join(ran.argv)}\n  {said}")
        print(f"FAULT {self.faults[-1]}", file=sys.stderr, flush=True)

    def expect(self, ran: Ran, holds: bool, what: str) -> None:
        """Notes a fault where something does not hold."""
        if not holds:
            self.fault(ran, what)

    def mutate(self, path: Path) -> None:
        """Damages a file."""
        self.done = mutate_file(path, self.rng)

    def slides(self, n: int) -> None:
        """A batch of damaged slides and one good one."""
        folder = self._new()
        names = self._damage_slides(folder, n)
        shutil.copy(self.materials.good, folder / "good.tif")
        given = [folder / name for name in (*names, "good.tif")]
        self.rng.shuffle(given)
        if self.rng.random() < 0.5:  # with a pixel size, so that more is tried to be read
            table = folder / "slides.csv"
            rows = [f"{path.name},{'0.9' if path.name in names else ''}" for path in given]
            table.write_text("slide,mpp\n" + "\n".join(rows) + "\n")
            given = [table]
        command = self.rng.choice(("retrieve", "retrieve", "embed"))
        out = folder / "out"
        more = QUICK if command == "retrieve" else ASIDE
        overlay = () if self.rng.random() < 0.2 else PLAIN
        ran = self.command(command, *given, "--bank", self.materials.bank, *more, *overlay, "--out", out, slides=n)
        self._expect_good(ran, out, command)
        bad = 0
        for name in names:
            state, reason = self._status(out, name, command)
            self.expect(ran, state in ("done", "empty", "failed"), f"{name} is {state or 'without a status'}")
            self.expect(ran, (state == "failed") == bool(reason), f"{name} is {state}, for the reason {reason!r}")
            self.expect(ran, state != "failed" or reason.partition("\n")[0] in ran.err, f"{name}: reason not said")
            bad += state == "failed"
        self.expect(ran, ran.code == (3 if bad else 0), f"exit code {ran.code} with {bad} bad slides")
        self.tallies[self.kind].refused += bad
        self._end(ran, folder)

    def manifest(self) -> None:
        """A damaged manifest of two good slides."""
        folder = self._new()
        for name in ("good.tif", "other.tif"):
            shutil.copy(self.materials.good, folder / name)
        table = folder / "slides.csv"
        table.write_text(
            "slide,mpp,fov_um,min_tissue,name,site\n"
            "good.tif,1.2,200,0.5,one,a\nother.tif,1.2,200,0.5,two,b\n" + "\n" * self.rng.randrange(3)
        )
        self.mutate(table)
        ran = self.command("embed", table, "--bank", self.materials.bank, *ASIDE, "--out", folder / "out", slides=2)
        self.tallies[self.kind].refused += ran.code != 0
        self._end(ran, folder)

    def bank(self) -> None:
        """A bank with a damaged file."""
        folder = self._new()
        bank = link_tree(self.materials.bank, folder / "bank.zarr")
        files = sorted(p for p in bank.rglob("*") if p.is_file() and p.name != ".writer.lock")
        chosen = self.rng.choice(files)
        whole = chosen.read_bytes()
        self.mutate(chosen)
        changed = not _says_the_same(chosen, whole)
        ran = self.command("bank", "verify", "--bank", bank)
        self.expect(ran, (ran.code == 1) == changed, "bank verify saw nothing, or what is not there")
        ran = self.command("verify", bank)
        self.expect(ran, (ran.code == 1) == changed, "verify saw nothing, or what is not there")
        out = folder / "out"
        ran = self.command("retrieve", self.materials.good, "--bank", bank, *QUICK, *PLAIN, "--out", out, slides=1)
        if ran.code == 0:
            self._expect_good(ran, out, "retrieve")
        self.tallies[self.kind].refused += ran.code != 0
        self._end(ran, folder)

    def embeddings(self) -> None:
        """A rerun that would take up damaged embeddings."""
        folder = self._new()
        out = link_tree(self.materials.out, folder / "out")
        self.mutate(out / "good.stain.zarr.zip")
        ran = self.command("verify", out / "good.stain.zarr.zip")
        self.expect(ran, ran.code == 1, "verify saw nothing")
        (out / "good.stain.h5ad").unlink()
        ran = self._rerun(out)
        self.tallies[self.kind].refused += ran.code != 0
        if ran.code != 0:
            ran = self._rerun(out, "--overwrite")
            self.expect(ran, ran.code == 0, "--overwrite does not mend it")
            self._expect_good(ran, out, "retrieve")
        self._end(ran, folder)

    def status(self) -> None:
        """A rerun over a damaged status."""
        folder = self._new()
        out = link_tree(self.materials.out, folder / "out")
        self.mutate(out / "good.stain.status.json")
        ran = self._rerun(out)
        self.expect(ran, ran.code == 0, "a damaged status is in the way")
        ran = self.command("status", out)
        self.expect(ran, ran.code == 0, "status fails")
        self._end(ran, folder)

    def prediction(self) -> None:
        """Commands that read a damaged prediction."""
        folder = self._new()
        ending = self.rng.choice(("h5ad", "zarr"))
        out = link_tree(self.materials.out if ending == "h5ad" else self.materials.out_zarr, folder / "out")
        path = out / f"good.stain.{ending}"
        whole = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        self.mutate(self.rng.choice(whole))
        ran = self.command("verify", path)
        self.expect(ran, ran.code == 1, "verify saw nothing")
        bank, truth = self.materials.bank, self.materials.truth
        reader = self.rng.choice((
            ("plot", path, "--out", folder / "p.png"),
            ("plot", path, "--kind", "ranks", "--truth", truth, "--out", folder / "p.png"),
            ("explain", path, "--spot", self.materials.spot, "--bank", bank, *ASIDE[2:], "--out", folder / "e.png"),
            ("evaluate", path, "--truth", truth, "--bank", bank, "--json"),
            ("export", path, "--bank", bank, "--out", folder / "x.h5ad"),
            ("retrieve", self.materials.good, "--anchors-from", path, "--bank", bank, *QUICK, "--out", folder / "o2"),
            ("retrieve", self.materials.good, "--strength-from", path, "--bank", bank, *ASIDE, "--out", folder / "o2"),
        ))  # fmt: skip
        # What lost its digest and nothing else is as a file that another program has written anew.
        edited = "  changed  " in ran.out and "its digest is gone" in ran.out
        ran = self.command(*reader, slides=1)
        self.expect(ran, ran.code not in (0, None) or edited, f"{reader[0]} took it")
        self.tallies[self.kind].refused += ran.code != 0
        self._end(ran, folder)

    def rerun(self) -> None:
        """A rerun with other options over a damaged prediction."""
        folder = self._new()
        out = link_tree(self.materials.out, folder / "out")
        self.mutate(out / "good.stain.h5ad")
        ran = self._rerun(out, "--omega", "0.4")
        self.tallies[self.kind].refused += ran.code != 0
        if ran.code != 0:
            ran = self._rerun(out, "--omega", "0.4", "--overwrite")
        self.expect(ran, ran.code == 0, "--overwrite does not mend it")
        ran = self.command("verify", out)
        self.expect(ran, ran.code == 0, "a rerun left something damaged")
        self._end(ran, folder)

    def foreign(self) -> None:
        """Features, first guesses, spots, masks and truth of other tools."""
        folder = self._new()
        source, argv = self.rng.choice(self.materials.foreign)
        path = folder / source.name
        if source.is_dir():
            link_tree(source, path)
            self.mutate(self.rng.choice(sorted(p for p in path.rglob("*") if p.is_file())))
        else:
            shutil.copy(source, path)
            self.mutate(path)
        made = [
            str(path)
            if word == "FILE"
            else word.replace("OUT", str(folder / "out"))
            if word in ("OUT", "OUT.png")
            else word
            for word in argv
        ]
        ran = self.command(*made, slides=1)
        self.tallies[self.kind].refused += ran.code != 0
        self._end(ran, folder)

    def _damage_slides(self, folder: Path, n: int) -> list[str]:
        names, done = [], []
        for i in range(n):
            source = self.rng.choice(self.materials.slides)
            name = f"bad{i}{source.suffix}"
            if source.is_dir():
                link_tree(source, folder / name)
                target = self.rng.choice(sorted(p for p in (folder / name).rglob("*") if p.is_file()))
            else:
                target = folder / name
                shutil.copyfile(source, target)
            done.append(f"{name} of {source.name}: {mutate_file(target, self.rng)}")
            names.append(name)
        self.done = "; ".join(done)
        return names

    def _rerun(self, out: Path, *more: str) -> Ran:
        words = ("retrieve", self.materials.good, "--bank", self.materials.bank, *QUICK, *PLAIN)
        ran = self.command(*words, "--out", out, *more, slides=1)
        if ran.code == 0 and not more:
            self._expect_good(ran, out, "retrieve")
        return ran

    def _expect_good(self, ran: Ran, out: Path, command: str) -> None:
        endings = ("h5ad", "zarr.zip") if command == "retrieve" else ("zarr.zip",)
        for ending in endings:
            path = out / f"good.stain.{ending}"
            try:
                made = read_output(path, ending)
            except Exception as error:  # whatever it is: it cannot be read
                self.fault(ran, f"the good slide's {ending}: {type(error).__name__}: {error}")
                continue
            different = [k for k, v in self.materials.expected[ending].items() if made.get(k) != v]
            self.expect(ran, not different, f"the good slide differs in {different}")

    def _status(self, out: Path, name: str, command: str) -> tuple[str, str]:
        stem = name if (out.parent / name).is_dir() else Path(name).stem
        path = out / f"{stem}.stain{'.embed' if command == 'embed' else ''}.status.json"
        if not path.exists():
            return "", ""
        content = json.loads(path.read_text())
        return content["state"], content["reason"]

    def _new(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        return Path(tempfile.mkdtemp(dir=self.folder))

    def _end(self, ran: Ran, folder: Path) -> None:
        left = [str(p.relative_to(folder)) for p in folder.rglob(".*.*") if p.name != ".generag-digests.json"]
        left = [name for name in left if "/.zattrs" not in name and "/.writer.lock" not in name]
        if ran.code:  # work that the next run takes up
            left = [name for name in left if not name.endswith((".parts", ".codes", ".guess"))]
        self.expect(ran, ran.code is None or not left, f"left behind: {left}")
        shutil.rmtree(folder)


KINDS: tuple[tuple[str, int, Callable[[Fuzz], None] | None], ...] = (
    ("slides", 40, None), ("manifest", 5, Fuzz.manifest), ("bank", 13, Fuzz.bank), ("embeddings", 6, Fuzz.embeddings),
    ("status", 3, Fuzz.status), ("prediction", 10, Fuzz.prediction), ("rerun", 3, Fuzz.rerun),
    ("foreign", 20, Fuzz.foreign),
)  # fmt: skip
"""Files in a hundred."""


def _says_the_same(path: Path, whole: bytes) -> bool:
    """Whether a damaged manifest still says what it said, as where a line feed went missing: its digest is of that."""
    if path.name != "manifest.json":
        return False
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(whole))
    except (ValueError, RecursionError):
        return False


def trials(fuzz: Fuzz, n_files: int, only: str | None) -> Iterator[tuple[str, int, Callable[[], None]]]:
    """What is to be tried, mixed, so that each part of the run is like the whole."""
    planned: list[tuple[str, int, Callable[[], None]]] = []
    for kind, share, trial in KINDS:
        n = n_files if only == kind else 0 if only else round(n_files * share / 100)
        if trial is None:
            sizes = [IN_BATCH] * (n // IN_BATCH) + ([n % IN_BATCH] if n % IN_BATCH else [])
            planned += [(kind, size, lambda size=size: fuzz.slides(size)) for size in sizes]
        else:
            planned += [(kind, 1, lambda trial=trial: trial(fuzz))] * n
    fuzz.rng.shuffle(planned)
    return iter(planned)


def main() -> int:
    """Runs all trials, prints a table, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[kind for kind, *_ in KINDS])
    parser.add_argument("--shared-data", type=Path, default=Path(__file__).resolve().parents[3] / "shared" / "data")
    options = parser.parse_args()
    os.environ["GENERAG_READ_TIMEOUT"] = str(READ_TIMEOUT_S)
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="generag-fuzz-"))
    import_all()
    fuzz = Fuzz(make_materials(folder, options.shared_data), folder / "trials", random.Random(options.seed))
    ready = time.monotonic()
    for number, (kind, n, trial) in enumerate(trials(fuzz, options.files, options.only)):
        fuzz.kind, before = kind, time.monotonic()
        # Each trial has numbers of its own, so that one can be looked at without those before it.
        fuzz.rng = random.Random(f"{options.seed}/{number}")
        trial()
        fuzz.tallies[kind].files += n
        fuzz.tallies[kind].seconds += time.monotonic() - before
        if number % 50 == 49:
            done = sum(tally.files for tally in fuzz.tallies.values())
            print(f"{done}/{options.files} files, {len(fuzz.faults)} faults", file=sys.stderr, flush=True)
    rows = [
        (
            kind,
            str(t.files),
            str(t.commands),
            str(t.refused),
            f"{t.seconds:.0f}",
            f"{t.slowest_s:.1f}",
            str(t.peak >> 20),
        )
        for kind, t in sorted(fuzz.tallies.items())
    ]
    print(format_table(("kind", "files", "commands", "refused or failed", "s", "slowest s", "peak MiB"), rows))
    n_files = sum(tally.files for tally in fuzz.tallies.values())
    print(
        f"{n_files} files, seed {options.seed}, {time.monotonic() - ready:.0f} s after {ready - began:.0f} s of "
        f"preparing: {len(fuzz.faults)} faults; memory bound {BOUND >> 20} MiB"
    )
    print(describe_machine())
    for fault in fuzz.faults:
        print(f"FAULT {fault}")
    shutil.rmtree(folder)
    return 1 if fuzz.faults else 0


if __name__ == "__main__":
    sys.exit(main())
