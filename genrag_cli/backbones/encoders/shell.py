"""SHELL: the encoder of a SegResNetVAE that finds epithelium and lumen in H&E (lavlab-shell 0.9.1, MIT, offline).

Facts from the package lavlab-shell: its ONNX file, and what its command line does to a slide before it. The network
takes 1 um/px and three channels, eosin, haematoxylin and optical density. With OD_c = -log10(clip(I_c, 1, I_0) / I_0)
of the channels c = R, G, B of a pixel, eosin and haematoxylin are the least-squares amounts of two stain vectors, the
third channel is the mean of OD; each is scaled from a range to 0..1, cut off there, and cut down to steps of 1/255.

The package fits vectors, I_0 and ranges (1st to 99th percentile) to each slide, by Macenko's method. An embedding here
must not depend on other tiles, so they are fixed: medians of such fits to four sources of tissue, made with macenko-pca
1.0.4 (a median of sections where a source has several).

| source | haematoxylin R, G, B | eosin R, G, B | I_0 | 99th percentile: haematoxylin, eosin, OD |
|---|---|---|---|---|
| her2st B4 | .753 .580 .311 | .264 .923 .282 | 216 | 1.01, .28, .62 |
| her2st C2 to C5 | .739 .591 .319 | .363 .859 .361 | 227 | .96, .34, .64 |
| CMU-1-Small-Region.svs | .774 .471 .423 | .118 .917 .380 | 243 | .92, .81, .86 |
| Xenium NCBI858 (lung) | .500 .621 .604 | .127 .903 .411 | 242 | .52, .32, .41 |

The 1st percentiles were -.06 to .02 and count as 0. Ruifrok and Johnston's published vectors fit these
tissues less: see `unchecked`.

Knows that file and those channels. Imports onnx and onnxruntime when it is loaded, the package `shell` never.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from genrag_cli.backbones.base import BackboneSheet, WeightsFile, expect_tiles
from genrag_cli.backbones.weights import digest_weights, find_or_fetch, join_digests
from genrag_cli.errors import BackboneError
from genrag_cli.types import Floats
from genrag_cli.units import Microns, TilePx

if TYPE_CHECKING:
    import torch

STAGES = {"add_634": 128, "add_357": 64, "add_216": 32}
"""Tensors of the graph that are averaged, (b, channels, h, w) at 1/8, 1/4 and 1/2 of the tile's side; and channels."""
HAEMATOXYLIN, EOSIN = (0.733, 0.575, 0.364), (0.195, 0.908, 0.370)
"""Optical density in R, G, B, length 1."""
WHITE = 235.0
"""I_0, the light of glass; at and above it there is no stain."""
FULL = (0.33, 0.94, 0.63)
"""Amounts of eosin, haematoxylin and mean OD that count as 1."""
_INPUT = "input"


def _unmixing() -> NDArray[np.float32]:
    eosin, haematoxylin = np.linalg.pinv(np.array([EOSIN, HAEMATOXYLIN]).T)
    return (np.column_stack([eosin, haematoxylin, np.full(3, 1 / 3)]) / FULL).astype(np.float32)


_UNMIX = _unmixing()
"""(3, 3): OD in R, G, B -> eosin, haematoxylin, OD, in parts of `FULL`."""
_DENSITY = -np.log10(np.clip(np.arange(256), 1, WHITE) / WHITE).astype(np.float32)
"""(256,) OD of a channel value."""


def stain_channels(pixels: NDArray[np.uint8]) -> Floats:
    """What the network is shown of tiles.

    Args:
        pixels: (b, h, w, 3) uint8 RGB.

    Returns:
        (b, 3, h, w) float32 in 0..1: eosin, haematoxylin, optical density.
    """
    amounts = np.clip(_DENSITY[pixels] @ _UNMIX, 0, 1)
    steps = np.trunc(amounts * np.float32(255)) / np.float32(255)  # the package keeps bytes
    return np.ascontiguousarray(steps.transpose(0, 3, 1, 2))


class Shell:
    """Mean and sd over the tile of three stages of the encoder: d = 448."""

    sheet = BackboneSheet(
        name="shell",
        kind="encoder",
        dim=2 * sum(STAGES.values()),
        tile_px=TilePx(192),
        licence="MIT",
        feature="mean over the tile of three encoder stages (128 + 64 + 32 channels), then their sd; stains unmixed on "
        "a fixed basis, not fitted to the slide",
        source="lavlab-shell 0.9.1",
        fov_um=Microns(192),
        weights=(
            WeightsFile(
                package="shell",
                filenames=("weights/model_v1.onnx",),
                where="lavlab-shell (pip install --no-deps lavlab-shell; its own dependencies are not needed)",
            ),
        ),
        unchecked="the package fits stain vectors and ranges to each slide, and this adapter does not: over the 1,015 "
        "spots of five her2st sections, which the basis was partly made of, features correlate with those of fitted "
        "stains at .94 in the median (with Ruifrok's vectors: .41), and a ridge probe finds 300 genes of a section "
        "left out as well from either (mean PCC .248 and .244 over C2 to C5); mean and sd of these stages are this "
        "project's choice, the package makes no embedding; CUDA was not tried",
    )

    def __init__(self, device: str = "cpu", weights: Path | None = None) -> None:
        import torch

        from genrag_cli.backbones.batches import Batcher

        path = find_or_fetch(self.sheet, self.sheet.weights[0], weights)
        model, files = _read_model(path)
        self._session = _start(_cut(model, path), device)
        self._batcher = Batcher(torch.device("cpu"))  # where onnxruntime takes arrays from and gives them to
        digest = join_digests(*map(digest_weights, files))
        self.card = self.sheet.card(revision="model_v1+basis1", weights_sha256=digest)

    def encode(self, pixels: NDArray[np.uint8]) -> Floats:
        """Embeds tiles.

        Args:
            pixels: (b, 192, 192, 3) uint8 RGB at 1 um/px.

        Returns:
            (b, 448) float32: means of the 128, 64 and 32 channels of `STAGES`, then their sds (divisor: number of
            places).
        """
        expect_tiles(pixels, self.card)
        return self._batcher.run(len(pixels), self.card.dim, lambda rows: self._features(pixels[rows]))

    def _features(self, pixels: NDArray[np.uint8]) -> "torch.Tensor":
        import torch

        stages: Sequence[Any] = self._session.run(list(STAGES), {_INPUT: stain_channels(pixels)})
        means = [stage.mean(axis=(2, 3), dtype=np.float64) for stage in stages]
        sds = [stage.std(axis=(2, 3), dtype=np.float64) for stage in stages]
        return torch.from_numpy(np.concatenate(means + sds, axis=1).astype(np.float32))


def _needed(what: str) -> BackboneError:
    return BackboneError(f"backbone shell needs {what}, which is not installed", "Run `pip install onnx onnxruntime`.")


def _read_model(path: Path) -> tuple[Any, list[Path]]:
    """The model with its tensors, and the files that it is in.

    Raises:
        BackboneError: where onnx is not installed, the file is no model, or a file that it names is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise _needed("onnx") from error
    try:
        model = onnx.load(path, load_external_data=False)
        entries = [entry for tensor in model.graph.initializer for entry in tensor.external_data]
        beside = sorted({entry.value for entry in entries if entry.key == "location"})
        if missing := [name for name in beside if not (path.parent / name).is_file()]:
            raise BackboneError(
                f"{path}: {missing[0]} is not beside it", "Copy both files; the second has the weights."
            )
        onnx.load_external_data_for_model(model, str(path.parent))
    except BackboneError:
        raise
    except Exception as error:  # protobuf, onnx and its checks have errors of their own each
        raise BackboneError(
            f"{path}: cannot be read as ONNX: {type(error).__name__}: {error}",
            "Is it model_v1.onnx of lavlab-shell, and whole?",
        ) from error
    return model, [path, *(path.parent / name for name in beside)]


def _cut(model: Any, path: Path) -> bytes:
    """The encoder alone: the decoder would take a third of the time for nothing.

    Raises:
        BackboneError: where the graph lacks one of the stages, or the input.
    """
    from onnx import TensorProto, helper

    graph = model.graph
    made = {name for node in graph.node for name in node.output}
    absent = [name for name in STAGES if name not in made]
    if absent or [given.name for given in graph.input] != [_INPUT]:
        raise BackboneError(
            f"{path}: no tensor {absent[0]} in its graph" if absent else f"{path}: its input is not called {_INPUT}",
            "Give model_v1.onnx of lavlab-shell 0.9.1.",
        )
    wanted, kept = set(STAGES), []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            kept.append(node)
            wanted |= set(node.input)
    nodes = list(reversed(kept))
    tensors = [tensor for tensor in graph.initializer if tensor.name in wanted]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in STAGES]
    cut = helper.make_graph(nodes, graph.name, list(graph.input), outputs, tensors)
    return bytes(
        helper.make_model(cut, opset_imports=model.opset_import, ir_version=model.ir_version).SerializeToString()
    )


def _start(model: bytes, device: str) -> Any:
    """A session that runs a model.

    Raises:
        BackboneError: where onnxruntime is not installed, cannot use the device, or refuses the model.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise _needed("onnxruntime") from error
    import torch

    from genrag_cli.backbones.batches import open_device

    opened = open_device(device)
    providers: list[Any] = ["CPUExecutionProvider"]
    if opened.type == "cuda":
        # TF32 would move embeddings by 1e-3 between machines.
        providers.insert(0, ("CUDAExecutionProvider", {"device_id": opened.index or 0, "use_tf32": "0"}))
    if opened.type != "cpu" and f"{opened.type.upper()}ExecutionProvider" not in onnxruntime.get_available_providers():
        raise BackboneError(
            f"backbone shell: the installed onnxruntime cannot use device {device!r}",
            "Use --device cpu, or install onnxruntime-gpu in place of onnxruntime.",
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # as many as the job was given, not all of the machine
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads leave cores to readers
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers)
    except Exception as error:  # onnxruntime has a family of errors that share no base
        raise BackboneError(f"backbone shell: onnxruntime refuses the model: {error}") from error
