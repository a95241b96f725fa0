"""Who is held out: the folds of a protocol over the sections of a bank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from genrag_cli.errors import CohortError, UsageError, nearest
from genrag_cli.evaluation.splits import leave_patients_out
from genrag_cli.pipeline.options import FoldsBy, Preset

PROTOCOLS = ("leave-patient-out", "leave-section-out", "fixed")


@dataclass(frozen=True)
class Protocol:
    """What was asked: a kind, and the sections that are tested."""

    kind: str
    sections: tuple[str, ...] = ()
    """Tested; none given: all."""

    @staticmethod
    def parse(text: str) -> "Protocol":
        """From KIND or KIND:SECTION,SECTION.

        Raises:
            UsageError: for an unknown kind, or `fixed` without sections.
        """
        kind, _, listed = text.partition(":")
        names = tuple(dict.fromkeys(name.strip() for name in listed.split(",") if name.strip()))
        if kind not in PROTOCOLS:
            raise UsageError(f"unknown protocol {kind!r}", nearest(kind, PROTOCOLS))
        if kind == "fixed" and not names:
            raise UsageError("--protocol fixed names no test section", "Give them: --protocol fixed:C3,C4")
        return Protocol(kind, names)

    def __str__(self) -> str:
        return self.kind + (f":{','.join(self.sections)}" if self.sections else "")


def parse_presets(words: Sequence[str]) -> tuple[Preset, ...]:
    """Presets by name, each once.

    Raises:
        UsageError: for an unknown one.
    """
    known: dict[str, Preset] = {"default": "default", "paper": "paper"}
    for word in words:
        if word not in known:
            raise UsageError(f"unknown preset {word!r}", nearest(word, known))
    return tuple(known[word] for word in dict.fromkeys(words))


@dataclass(frozen=True)
class Held:
    """One fold: sections by number."""

    name: str
    train: tuple[int, ...]
    test: tuple[int, ...]


def plan_folds(protocol: Protocol, sections: Sequence[dict[str, Any]]) -> list[Held]:
    """The folds of a protocol.

    Args:
        protocol: as asked.
        sections: entries of a bank, with name and patient.

    Raises:
        UsageError: for a section that the bank does not have.
        CohortError: for unknown patients in leave-patient-out, or a fold without training sections.
    """
    names = [s["name"] for s in sections]
    for name in protocol.sections:
        if name not in names:
            raise UsageError(f"--protocol {protocol}: the bank has no section {name!r}", nearest(name, names))
    tested = list(protocol.sections) or names
    if protocol.kind == "fixed":
        groups = [("fixed", tested, tested)]
    elif protocol.kind == "leave-section-out":
        groups = [(name, [name], [name]) for name in tested]
    else:
        patients = {s["name"]: s["patient"] for s in sections}
        leave_patients_out(patients, [p for p in [next(iter(patients.values()))] if p] or ["?"])
        groups = []
        for patient in dict.fromkeys(patients[name] for name in tested):
            own = [n for n in names if patients[n] == patient]
            groups.append((f"patient {patient}", [n for n in own if n in tested], own))
    folds = []
    for name, test, away in groups:
        train = tuple(i for i, n in enumerate(names) if n not in away)
        if not train:
            raise CohortError(f"protocol {protocol}: without {name} no section is left to learn from", "Add sections.")
        folds.append(Held(name, train, tuple(names.index(n) for n in test)))
    return folds


def folds_by(protocol: Protocol, asked: FoldsBy | None) -> FoldsBy:
    """What the folds within leave out, so that settings are chosen for the question that is asked.

    A bank that knows the patient is asked about another section, a bank that does not about another patient.
    """
    return asked or ("sections" if protocol.kind == "leave-section-out" else "auto")
