"""Tensors out of checkpoint files, whatever they are wrapped in, and into a network, all of them or none.

Knows safetensors, torch files (read with weights_only, so that no pickle is executed) and the containers of Lightning,
DDP and EMA training. Knows no architecture.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from genrag_cli.backbones.weights import digest_weights
from genrag_cli.errors import BackboneError

Tensors = dict[str, torch.Tensor]

CONTAINERS = (
    "state_dict", "model_state_dict", "model", "teacher", "ema", "ema_state_dict", "state_dict_ema", "model_ema",
)  # fmt: skip
"""Keys under which training code keeps a network's tensors, in the order in which they are looked for."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Put before every key by DDP, torch.compile and Lightning."""
_AVERAGED = "n_averaged"
"""The count that torch's AveragedModel keeps beside the names that it puts `module.` before."""
_ZIP, _PICKLE = b"PK\x03\x04", b"\x80"
"""What torch files begin with, since 1.6 and before."""
_SHOWN = 8


class _Unread:
    """Stands in for numpy's scalars, which training code saves beside tensors (a best score), and is read as nothing.

    So no code of numpy runs, and no file is refused for a number that nobody asked for.
    """

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


_UNREAD: list[Any] = [
    type(name, (_Unread,), {"__module__": module})
    for module, name in (("numpy", "dtype"), ("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"))
]


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Tensors of one file."""

    path: Path
    tensors: Tensors
    container: str
    """What they were wrapped in, in words."""
    sha256: str
    """Of the file."""

    def under(self, prefix: str) -> "Checkpoint":
        """Only the tensors whose names start with a prefix, without it.

        Raises:
            BackboneError: where there is none.
        """
        kept = {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}
        if not kept:
            raise BackboneError(f"{self.path}: no tensor is called {prefix}...; {_describe(self.tensors)}")
        return replace(self, tensors=kept)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor.

        Raises:
            BackboneError: where it is missing.
        """
        if name not in self.tensors:
            raise BackboneError(
                f"{self.path}: no tensor {name}; {_describe(self.tensors)}", "Is this the right checkpoint?"
            )
        return tuple(self.tensors[name].shape)

    def count(self, before: str) -> int:
        """How many numbered modules there are: 1 + the largest i in names that start with `before` + 'i.'; 0: none."""
        rests = (k.removeprefix(before).split(".", 1)[0] for k in self.tensors if k.startswith(before))
        return max((int(r) + 1 for r in rests if r.isdigit()), default=0)


def read_checkpoint(
    path: Path, *, containers: Sequence[str] = CONTAINERS, prefixes: Sequence[str] = PREFIXES
) -> Checkpoint:
    """Reads tensors from a safetensors or torch file, unwraps containers and strips prefixes that all names share.

    Args:
        path: the file.
        containers: keys of nested dicts to look into, the preferred first.
        prefixes: to strip, as often as all names start with one of them.

    Raises:
        BackboneError: for files that hold no tensors, that are damaged, or that only a pickle's code could read.
    """
    found, container = _read(path), ""
    while key := next((k for k in containers if isinstance(found, Mapping) and isinstance(found.get(k), Mapping)), ""):
        found, container = found[key], f"{container}{key}."
    held = dict(found) if isinstance(found, Mapping) else {type(found).__name__: None}
    tensors = {str(k): v for k, v in held.items() if isinstance(v, torch.Tensor)}
    if not tensors:
        raise BackboneError(
            f"{path}: no tensors at the top or under any of {', '.join(containers)}; it holds "
            f"{', '.join(map(str, list(held)[:_SHOWN])) or 'nothing'}",
            "Is this the right checkpoint?",
        )
    while prefix := next((p for p in prefixes if _all_start(tensors, p)), ""):
        tensors.pop(_AVERAGED, None)
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
        container += prefix
    return Checkpoint(path, tensors, container or "plain", digest_weights(path))


def _all_start(tensors: Tensors, prefix: str) -> bool:
    names = [k for k in tensors if k != _AVERAGED]
    return bool(names) and all(k.startswith(prefix) for k in names)


def load_into(build: Callable[[], torch.nn.Module], checkpoint: Checkpoint, what: str) -> torch.nn.Module:
    """Builds a network and gives it the tensors of a checkpoint: every one, by name and shape, in float32.

    Args:
        build: makes the network; called on torch's meta device first, so that nothing is initialised in vain.
        checkpoint: names as the network's.
        what: the backbone, for messages.

    Returns:
        The network in evaluation mode, without gradients.

    Raises:
        BackboneError: with what is missing, extra and misshapen, where anything is.
    """
    with torch.device("meta"):
        net = build()
    expected = net.state_dict()
    _expect_all({k: tuple(v.shape) for k, v in expected.items()}, checkpoint, what)
    kept = {k: v.float() if v.is_floating_point() else v for k, v in checkpoint.tensors.items()}
    net.load_state_dict(kept, strict=True, assign=True)
    if _has_meta(net):  # what checkpoints do not hold is made by building for real
        net = build()
        net.load_state_dict(kept, strict=True, assign=True)
    return net.eval().requires_grad_(False)


def _has_meta(net: torch.nn.Module) -> bool:
    """Whether a buffer, or a tensor that is a plain attribute of a module, has no values."""
    kept = (value for module in net.modules() for value in vars(module).values() if isinstance(value, torch.Tensor))
    return any(tensor.is_meta for tensor in (*net.buffers(), *kept))


def _expect_all(expected: Mapping[str, tuple[int, ...]], checkpoint: Checkpoint, what: str) -> None:
    found = {k: tuple(v.shape) for k, v in checkpoint.tensors.items()}
    missing = [k for k in expected if k not in found]
    extra = [k for k in found if k not in expected]
    misshapen = [f"{k} {found[k]} instead of {expected[k]}" for k in expected if k in found and found[k] != expected[k]]
    told = [
        f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        for kind, names in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if names
    ]
    if told:
        raise BackboneError(
            f"{checkpoint.path} does not fit {what}: {'; '.join(told)}",
            "Is this the right checkpoint, of the right version?",
        )


def _read(path: Path) -> Any:
    """What a file holds; what it begins with decides how it is read, and its ending only where that says nothing."""
    if not path.is_file():
        raise BackboneError(f"no weights at {path}", "Correct --weights.")
    with path.open("rb") as file:
        start = file.read(16)
    if start.startswith((_ZIP, _PICKLE)):
        return _read_torch(path, zipped=start.startswith(_ZIP))
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return _read_safetensors(path)
    raise BackboneError(
        f"{path} is neither safetensors nor a torch file; it " + (f"begins with {start!r}" if start else "is empty"),
        "Copy it again. A pointer of Git LFS is not the file itself.",
    )


def _read_safetensors(path: Path) -> Any:
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise BackboneError(
            f"{path} cannot be read as safetensors: {error}", "It may be cut off or damaged: copy it again."
        ) from error


def _read_torch(path: Path, *, zipped: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_UNREAD), warnings.catch_warnings():
            # torch warns of pickles that other programs wrote, and then refuses them.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        # torch's own words tell how to read it all the same, which is no advice for a file from elsewhere.
        called = re.search(r"(?:GLOBAL|class) ([\w.]+)", str(error))
        raise BackboneError(
            f"{path} holds more than tensors{f' ({called[1]})' if called else ''}, and reading it would run code that "
            "the file brings",
            "Ask for a file of tensors (safetensors, or torch.save of a state dict).",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # bytes that are no pickle make the reader fail in any way
        raise BackboneError(
            f"{path} cannot be read as a torch file: {_first_line(error)}",
            "It may be cut off or damaged: copy it again.",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__).partition(". ")[0]


def _describe(tensors: Tensors) -> str:
    names = list(tensors)
    return f"it has {len(names)} tensors, such as {', '.join(names[:3])}"
