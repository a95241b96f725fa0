"""A folder of plain AnnData: one section a file (.h5ad, or a Zarr group), with obsm['spatial'] in px of its slide.

The slide is the image of the same name, else the one that the file says it was made from. What a section is (patient,
species, technology) is taken from the file only where it states one value for all spots; array indices and barcodes
that can only be Visium's make it Visium. Nothing is guessed from names, and no counts are opened.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from genrag_cli.cohorts.base import Cohort, Measured, Reading, Section
from genrag_cli.cohorts.h5ad import CountsFile, opened, read_array_indices, read_centres, read_index, read_texts
from genrag_cli.cohorts.listing import Listing
from genrag_cli.cohorts.slide_beside import SUFFIXES
from genrag_cli.cohorts.spot_positions import HEXAGONAL, fit_pitch
from genrag_cli.cohorts.technologies import SPACING_UM, find_species, name_species
from genrag_cli.errors import CohortError
from genrag_cli.types import GeneNames, Ints, Strings

LAYOUT = "*.h5ad with obsm['spatial']"
_FOLDERS = (".", "images", "wsis", "slides")
_ENDINGS = (".ome.tif", ".ome.tiff", *SUFFIXES)
_PATIENT = ("patient", "patient_id", "donor", "donor_id", "sample_patient", "individual", "subject", "subject_id")
_SPECIES = ("species", "organism")
_TECHNOLOGY = ("technology", "st_technology", "assay", "platform")
_LIBRARY = ("library_id", "library", "sample", "section")
_UNSAID = ("unknown", "unspecified")
_VISIUM_BARCODE = re.compile(r"[ACGT]{16}-1")
_PREDICTION = "generag"


@dataclass(frozen=True)
class PlainFile:
    """One AnnData file of one section."""

    path: Path
    is_visium_array: bool
    """Whether its array indices are a Visium array's, so that the distance of spots comes from a fit on them."""

    def read_genes(self) -> GeneNames:
        """(G,) unique symbols."""
        return self._counts().read_genes()

    def files(self) -> tuple[Path, ...]:
        """The file, or every file of a Zarr group."""
        return self._counts().files()

    def load(self) -> Measured:
        """Reads X, or layers['counts'] where X holds no counts.

        Raises:
            CohortError: for a file that holds no raw counts or no coordinates.
        """
        measured = self._counts().load()
        if not self.is_visium_array:
            return measured
        return replace(measured, lattice_pitch_px=fit_pitch(measured.array_rc, measured.centres, HEXAGONAL))

    def _counts(self) -> CountsFile:
        return CountsFile(self.path, whole_only=True, genes_only=True)


def looks_like(root: Path) -> bool:
    """Whether the folder holds such files and is of no layout that keeps AnnData in its own places; or is one."""
    return not _is_other_layout(root) and any(_why_not(path) is None for path in _files(root))


def read_cohort(root: Path, reading: Reading) -> Cohort:  # noqa: ARG001 - the layout leaves no choice
    """Lists the files of a folder; of each, spots and notes are read but no counts.

    Raises:
        CohortError: for a .h5ad and a .zarr of one name.
    """
    found = Listing()
    names: dict[str, Path] = {}
    for path in _files(root):
        if (other := names.setdefault(path.stem, path)) != path:
            raise CohortError(f"two files for section {path.stem}: {other} and {path}", "Keep one.")
        if (why := _why_not(path)) is not None:
            found.skip(path.stem, why)
            continue
        try:
            found.add(*_describe(path))
        except CohortError as error:
            found.skip(path.stem, error)
    return found.cohort(root, "h5ad")


def read_one(counts: Path, reading: Reading) -> Section | None:  # noqa: ARG001 - the layout leaves no choice
    """The section of one file, with the slide beside it."""
    if counts.suffix not in (".h5ad", ".zarr") or _why_not(counts) is not None:
        return None
    section, lacking = _describe(counts)
    return replace(section, notes=(*section.notes, lacking)) if lacking else section


def _files(root: Path) -> list[Path]:
    if _is_group(root):
        return [root]
    return sorted([*root.glob("*.h5ad"), *(path for path in root.glob("*.zarr") if _is_group(path))])


def _is_group(path: Path) -> bool:
    """Whether a folder is an AnnData in Zarr (version 2 or 3); SpatialData and banks are not."""
    for name in ("zarr.json", ".zattrs"):
        try:
            about = json.loads((path / name).read_text())
        except (OSError, ValueError):
            continue
        if isinstance(about, dict):
            return bool(about.get("attributes", about).get("encoding-type") == "anndata")
    return False


def _is_other_layout(root: Path) -> bool:
    own = [("st",), ("adata", "splits"), ("counts", "spots"), ("binned_outputs",), ("experiment.xenium",)]
    return any(all((root / name).exists() for name in names) for names in own) or any(
        (root / "spatial").glob("*tissue_positions*")
    )


def _why_not(path: Path) -> str | None:
    """Why a file is no section; None where it is one."""
    try:
        with opened(path) as file:
            if "obsm" not in file or "spatial" not in file["obsm"]:
                return "no obsm['spatial']: the places of its spots on a slide are unknown"
            if "uns" in file and _PREDICTION in file["uns"]:
                return "a prediction of generag, not measured counts"
    except CohortError as error:
        return error.message
    return None


def _describe(path: Path) -> tuple[Section, str]:
    """The section, and what it lacks where it has no slide."""
    said: list[str] = []
    with opened(path) as file:
        library = _choose_library(path, file)
        source = _source_image(file, library)
        stated = {what: _stated(file, keys, said) for what, keys in _ASKED.items()}
        species = name_species(stated["species"]) or _genome(file)
        technology = _name_technology(stated["technology"])
        names, array_rc, centres = read_index(file, "obs"), read_array_indices(file), read_centres(file)
    on_array = _is_visium_array(names, array_rc)
    if on_array and array_rc is not None and centres is not None:
        placed = np.isfinite(centres).all(axis=1)
        on_array = (
            technology in ("unknown", "visium") and fit_pitch(array_rc[placed], centres[placed], HEXAGONAL) is not None
        )
        if on_array:
            technology = "visium"
            said.append("barcodes and array indices are Visium's: its spots are 100 um apart")
        elif technology in ("unknown", "visium"):
            said.append("barcodes and array indices are Visium's, but do not fit obsm['spatial']; they are not used")
    slide, lacking = _find_slide(path, source)
    pitch, diameter = SPACING_UM.get(technology, (None, None))
    return Section(
        name=path.stem,
        patient=stated["patient"] or None,
        slide=slide,
        counts=path,
        reader=PlainFile(path, on_array),
        technology=technology,
        species=species,
        spot_diameter_um=diameter,
        spot_pitch_um=pitch,
        notes=tuple(said),
    ), lacking


_ASKED = {"patient": _PATIENT, "species": _SPECIES, "technology": _TECHNOLOGY}


def _stated(file: Any, keys: Iterable[str], said: list[str]) -> str:
    """The one value that the columns of obs and the entries of uns of these names have; empty where there is none."""
    found: dict[str, str] = {}
    for key in keys:
        values = _values(file, key)
        if len(values) > 1:
            said.append(f"obs[{key!r}] has {len(values)} values, such as {values[0]} and {values[1]}; it is not used")
            return ""
        if values:
            found.setdefault(values[0], key)
    if len(found) > 1:
        said.append(" and ".join(f"{key!r} says {value}" for value, key in found.items()) + "; neither is used")
        return ""
    return next(iter(found), "")


def _values(file: Any, key: str) -> list[str]:
    """What obs says of its spots, else what uns says in one word; without blanks."""
    from anndata.io import read_elem

    if key in file["obs"]:
        values = np.unique(read_texts(file, f"obs/{key}")).tolist()
    elif "uns" in file and key in file["uns"] and not hasattr(file["uns"][key], "keys"):
        value = read_elem(file["uns"][key])
        values = [str(value).strip()] if isinstance(value, str) else []
    else:
        return []
    return [v for v in values if v and v.lower() not in _UNSAID]


def _genome(file: Any) -> str | None:
    """Species of the genome that the genes are said to be of."""
    return find_species(np.unique(read_texts(file, "var/genome")).tolist()) if "genome" in file["var"] else None


def _name_technology(stated: str) -> str:
    words = stated.lower()
    if "visium" in words:
        return "visium-hd" if re.search(r"\bhd\b", words) else "visium"
    if "xenium" in words:
        return "xenium"
    return "st" if words in ("st", "spatial transcriptomics") else "unknown"


def _is_visium_array(names: Strings, array_rc: Ints | None) -> bool:
    """Whether barcodes and array indices can only be a Visium array's: every second place of 78 (or 128) rows."""
    if array_rc is None or not len(names) or not all(map(_VISIUM_BARCODE.fullmatch, names.tolist())):
        return False
    return bool(array_rc.min() >= 0 and array_rc.max() < 256 and np.all(array_rc.sum(axis=1) % 2 == 0))


def _choose_library(path: Path, file: Any) -> str | None:
    """The library of uns['spatial'] that the spots are of; None where there is none.

    Raises:
        CohortError: where there are several and the spots do not name one.
    """
    if "uns" not in file or "spatial" not in file["uns"] or not hasattr(file["uns"]["spatial"], "keys"):
        return None
    libraries = sorted(file["uns"]["spatial"])
    if len(libraries) < 2:
        return libraries[0] if libraries else None
    for key in _LIBRARY:
        values = _values(file, key)
        if len(values) == 1 and values[0] in libraries:
            return values[0]
    raise CohortError(
        f"{path}: uns['spatial'] names {len(libraries)} libraries ({', '.join(libraries[:4])}), so the file may hold "
        "several sections; write one file per section"
    )


def _source_image(file: Any, library: str | None) -> str:
    from anndata.io import read_elem

    key = f"uns/spatial/{library}/metadata/source_image_path"
    return str(read_elem(file[key])) if library is not None and key in file else ""


def _find_slide(path: Path, source: str) -> tuple[Path | None, str]:
    """The slide of a file, or why there is none."""
    name = path.name.removesuffix(path.suffix)
    places = [path.parent / folder for folder in _FOLDERS]
    endings = [e for s in _ENDINGS for e in (s, s.upper())]
    beside = [p for place in places for end in endings if (p := place / f"{name}{end}").is_file()]
    found = list({p.resolve(): p for p in reversed(beside)}.values())[::-1]
    if len(found) == 1:
        return found[0], ""
    if found:
        return None, f"several images can be its slide: {', '.join(map(str, found))}; keep one, or name it in a table"
    stated = path.parent / source if source else None
    if stated is not None and stated.is_file():
        return stated, ""
    why = f"no slide: no image is called {name} beside {path.name} or in {', '.join(_FOLDERS[1:])}"
    return None, f"{why}, and {source} (uns source_image_path) does not exist here" if source else why
