"""What a prediction says of its own spots beside expression: where weight went, and how unusual a spot is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.outputs import keys
from genrag_cli.pipeline.query_space import QuerySpace
from genrag_cli.stores.bank import Bank
from genrag_cli.types import Floats, SparseCodes, Strings


def effective_references(codes: SparseCodes) -> Floats:
    """(n,) (sum |a|)^2 / sum a^2; 0 for spots without references."""
    size = np.abs(codes.weights.astype(np.float64))
    row = np.repeat(np.arange(len(codes)), codes.n_active)
    total, squares = (np.bincount(row, v, len(codes)) for v in (size, size**2))
    return np.divide(total**2, squares, out=np.zeros(len(codes)), where=squares > 0).astype(np.float32)


def shares_by(codes: SparseCodes, group_of: NDArray[np.int64], n_groups: int) -> Any:
    """CSR (n, P) share of each spot's weight by group of bank spots (N,); rows of spots without references are 0."""
    import scipy.sparse as sp

    size = np.abs(codes.weights.astype(np.float64))
    weights = sp.csr_matrix((size, codes.indices, codes.indptr), shape=(len(codes), codes.n_bank))
    n = len(group_of)
    member = sp.csr_matrix((np.ones(n), group_of, np.arange(n + 1)), shape=(n, n_groups))
    sums = weights @ member
    total = np.asarray(sums.sum(axis=1)).ravel()
    per = np.divide(1.0, total, out=np.zeros_like(total), where=total > 0)
    return sp.csr_matrix(sp.diags(per) @ sums, dtype=np.float32)


def patients_of(bank: Bank) -> tuple[Strings, NDArray[np.int64]]:
    """Patients of a bank, a section of unknown patient standing for itself, and the (N,) patient of every spot."""
    named = [s["patient"] or f"unknown:{s['name']}" for s in bank.sections]
    patients, which = np.unique(np.asarray(named, np.str_), return_inverse=True)
    return patients, np.repeat(which.ravel(), [s["n_spots"] for s in bank.sections]).astype(np.int64)


def describe_weights(codes: SparseCodes, bank: Bank) -> tuple[dict[str, Any], dict[str, Any], Strings]:
    """Columns of obs, matrices of obsm, and the patients that name the columns of one of these."""
    import pandas as pd

    patients, patient_of = patients_of(bank)
    section_of = np.repeat(np.arange(len(bank.sections)), [s["n_spots"] for s in bank.sections])
    by_patient = shares_by(codes, patient_of, len(patients))
    top = np.asarray(by_patient.argmax(axis=1)).ravel()
    most = np.asarray(by_patient.max(axis=1).todense()).ravel()
    named = np.where(codes.n_active > 0, patients[top], "")
    obs = {
        keys.EFFECTIVE: effective_references(codes),
        keys.TOP_PATIENT: pd.Categorical(named.tolist()),
        keys.TOP_PATIENT_SHARE: most.astype(np.float32),
    }
    obsm = {keys.SECTION_SHARES: shares_by(codes, section_of, len(bank.sections)), keys.PATIENT_SHARES: by_patient}
    return obs, obsm, patients


def describe_trust(
    space: QuerySpace, morphology: Floats, anchor: Floats, n_context: NDArray[np.int64]
) -> dict[str, Any]:
    """Columns of obs that only a tuned bank can fill; none for others."""
    if space.tuning is None:
        return {}
    return {**space.tuning.describe_spots(morphology, anchor), keys.CONTEXT: n_context}
