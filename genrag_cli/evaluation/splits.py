"""Who is held out: patients with all their sections, never sections of a patient who stays.

Knows names only. An unknown patient (None) may be any of the others, so nothing can be held out beside one.
"""

from collections.abc import Mapping, Sequence

from genrag_cli.errors import CohortError, UsageError, nearest


def leave_patients_out(patients: Mapping[str, str | None], held_out: Sequence[str]) -> list[str]:
    """The sections that stay when some patients are left out.

    Args:
        patients: of every section, None where unknown.
        held_out: patients to leave out.

    Raises:
        CohortError: where patients are to be left out and some are unknown.
        UsageError: for a patient that no section has.
    """
    if not held_out:
        return list(patients)
    if unknown := [name for name, patient in patients.items() if patient is None]:
        shown = ", ".join(unknown[:5])
        raise CohortError(
            f"patient {held_out[0]} cannot be left out: the patient of {len(unknown)} of {len(patients)} sections is "
            f"unknown ({shown}), and any of them may be {held_out[0]}",
            "Name patients with --patients, or let each such section count as a patient of its own "
            "(--unknown-patient section; the bank then says so).",
        )
    known = {patient for patient in patients.values() if patient}
    for patient in held_out:
        if patient not in known:
            raise UsageError(f"patient {patient!r} has no section", nearest(patient, known))
    return [name for name, patient in patients.items() if patient not in held_out]
