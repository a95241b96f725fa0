"""Tensors out of checkpoint files, whatever they are wrapped in, and into a network, all of them or none.

Knows safetensors, torch files (read with weights_only, so that no pickle is executed) and the containers of Lightning,
DDP and EMA training. Knows no architecture.
"""

import pickle
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from genrag_cli.backbones.weights import digest_weights
from genrag_cli.errors import BackboneError

Tensors = dict[str, torch.Tensor]

CONTAINERS = ("state_dict", "model_state_dict", "model", "teacher", "ema", "ema_state_dict")
"""Keys under which training code keeps a network's tensors, in the order in which they are looked for."""
PREFIXES = ("module.", "_orig_mod.", "model.")
"""Put before every key by DDP, torch.compile and Lightning."""
_SHOWN = 8


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
    while prefix := next((p for p in prefixes if all(k.startswith(p) for k in tensors)), ""):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
        container += prefix
    return Checkpoint(path, tensors, container or "plain", digest_weights(path))


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
    if any(b.is_meta for b in net.buffers()):  # buffers that checkpoints do not hold are made by building for real
        net = build()
        net.load_state_dict(kept, strict=True, assign=True)
    return net.eval().requires_grad_(False)


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
    if not path.is_file():
        raise BackboneError(f"no weights at {path}", "Correct --weights.")
    if path.suffix == ".safetensors":
        import safetensors
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise BackboneError(f"{path} cannot be read as safetensors: {error}", "Copy it again.") from error
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        raise BackboneError(
            f"{path} holds more than tensors, and reading it would run code that the file brings: {_first_line(error)}",
            "Ask for a file of tensors (safetensors, or torch.save of a state dict).",
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BackboneError(f"{path} cannot be read as a torch file: {_first_line(error)}", "Copy it again.") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _describe(tensors: Tensors) -> str:
    names = list(tensors)
    return f"it has {len(names)} tensors, such as {', '.join(names[:3])}"
