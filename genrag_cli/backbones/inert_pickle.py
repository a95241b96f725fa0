"""What a pickled torch file holds, read without running any of it: classes become plain holders of their state.

Some training code saves objects beside tensors: a configuration, a scaler, a whole module. Such a file needs neither
the packages that made it nor their code to give its tensors away. Only the few functions of torch and numpy in `_REAL`
are called, which put tensors and arrays together; any other name in the file, whatever it is, becomes a `Held`. Knows
torch's zip format through `torch.load`. Knows no model.
"""

import importlib
import pickle
import types
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from genrag_cli.backbones.checkpoints import PREFIXES, Checkpoint, read_checkpoint
from genrag_cli.backbones.weights import digest_weights
from genrag_cli.errors import BackboneError

_REAL = frozenset(
    {
        ("collections", "OrderedDict"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("torch._utils", "_rebuild_parameter"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),  # how the oldest protocols write bytes
    }
)
_MOVED = {"numpy.core.multiarray": "numpy._core.multiarray"}
"""Modules that files of numpy 1 name, and where they are now."""


class Held:
    """Stands for an object whose class is not imported: what it was made of, and what it held."""

    origin = ""
    """Module and name of the class or function, as the file says."""
    called: tuple[Any, ...]
    """Arguments that it was made with."""
    state: Any
    """Its attributes by name, as a rule."""
    entries: dict[Any, Any]
    """What it held as a mapping."""
    members: list[Any]
    """What it held as a list or set."""

    def __new__(cls, *args: Any, **_: Any) -> "Held":
        """Takes whatever arguments the file has."""
        made = super().__new__(cls)
        made.called, made.state, made.entries, made.members = args, {}, {}, []
        return made

    def __init__(self, *_: Any, **__: Any) -> None:
        """Takes whatever arguments the file has."""

    def __call__(self, *args: Any, **_: Any) -> "Held":
        """What calling it would have given, of which no more is known."""
        return Held(self, *args)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.entries[key] = value

    def append(self, value: Any) -> None:
        """As a list does."""
        self.members.append(value)

    def extend(self, values: Any) -> None:
        """As a list does."""
        self.members.extend(values)

    def add(self, value: Any) -> None:
        """As a set does."""
        self.members.append(value)


class _Unpickler(pickle.Unpickler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._seen: dict[tuple[str, str], type[Held]] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        module = _MOVED.get(module, module)
        if (module, name) in _REAL:
            return getattr(importlib.import_module(module), name)
        key = (module, name)
        if key not in self._seen:
            self._seen[key] = type(name, (Held,), {"origin": f"{module}.{name}"})
        return self._seen[key]


_PICKLE = types.SimpleNamespace(__name__="inert_pickle", Unpickler=_Unpickler)
"""Given to `torch.load` in place of the module pickle."""


def read_pickled(path: Path, unsafe_pickle: bool) -> tuple[Checkpoint, Any]:
    """Reads a checkpoint that may hold more than tensors, which is looked at only where a person allows it.

    Args:
        path: the file.
        unsafe_pickle: whether a person said --unsafe-pickle.

    Returns:
        Its tensors, and all that it holds as `read_inert` gives it; None where it holds nothing but tensors.

    Raises:
        BackboneError: for more than tensors without leave, and as `read_checkpoint`.
    """
    try:
        return read_checkpoint(path), None
    except BackboneError as error:
        if not isinstance(error.__cause__, pickle.UnpicklingError):
            raise
        if not unsafe_pickle:
            raise BackboneError(
                error.message,
                "If you trust where it comes from, say --unsafe-pickle: its tensors and plain values are then taken "
                "out, and nothing that it names is run. Or convert it once to a file of tensors, with safetensors or "
                "torch.save of its state dict.",
            ) from error
    held = read_inert(path)
    inside = held.get("state_dict", held) if isinstance(held, Mapping) else tensors_of(held)
    tensors = {str(name): value for name, value in dict(inside).items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise BackboneError(f"{path}: a pickle that holds neither a state dict nor a torch module")
    container = "pickle."
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in tensors)), ""):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
        container += prefix
    return Checkpoint(path, tensors, container, digest_weights(path)), held


def read_inert(path: Path) -> Any:
    """Reads a torch file that holds more than tensors.

    Args:
        path: a file as `torch.save` writes it (zip format, torch 1.6 and later).

    Returns:
        What was saved: tensors on the CPU, dicts, lists, numbers and text as they are, all else as `Held`.

    Raises:
        BackboneError: for a file of another format, or a damaged one.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise BackboneError(
            f"{path} is a pickle that torch.save did not write as a zip file, and no other kind is read",
            "Save it again with torch.save of torch 1.6 or later.",
        ) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise BackboneError(f"{path} is a TorchScript archive, which is a program", "Save its state dict instead.")
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    except Exception as error:  # a pickle may be wrong in any way, and fail with anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise BackboneError(f"{path} cannot be read: {type(error).__name__}: {reason}", "Copy it again.") from error


def tensors_of(module: Any) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a pickled torch module, named as its state dict names them; {} for anything else.

    Args:
        module: `Held`, of a class that derives from torch's Module.
    """
    found: dict[str, torch.Tensor] = {}
    held = module.state if isinstance(module, Held) and isinstance(module.state, dict) else {}
    for kind in ("_parameters", "_buffers"):
        own = held.get(kind)
        if isinstance(own, dict):
            found |= {str(name): value.detach() for name, value in own.items() if isinstance(value, torch.Tensor)}
    children = held.get("_modules")
    for name, child in (children if isinstance(children, dict) else {}).items():
        found |= {f"{name}.{inner}": value for inner, value in tensors_of(child).items()}
    return found
