"""DeepSpot's published names and shapes, and the files beside its tensors. Run by the tests of DeepSpot."""

from pathlib import Path

import numpy as np
import torch

from genrag_cli.backbones.base import Loading
from genrag_cli.testing.random_weights import save_weights

GENES = ["EPCAM", "COL1A1", "MUC2", "ITLN1", "CD3E", "FCGBP"]
WIDTH, HIDDEN, ENSEMBLE = 1024, 512, 10
Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


def deepspot(bags: int = 3) -> Shapes:
    """Names and shapes of the module's state dict."""
    shapes: Shapes = {}
    for i in range(ENSEMBLE):
        shapes |= {f"phi_spot.{i}.model.0.weight": (HIDDEN, WIDTH), f"phi_spot.{i}.model.0.bias": (HIDDEN,)}
        shapes |= {f"rho.{i}.model.2.weight": (len(GENES), bags * HIDDEN), f"rho.{i}.model.2.bias": (len(GENES),)}
    return shapes


def uni() -> Shapes:
    """MahmoodLab/UNI pytorch_model.bin, cut down to one block."""
    shapes: Shapes = {
        "cls_token": (1, 1, WIDTH), "pos_embed": (1, 197, WIDTH), "patch_embed.proj.weight": (WIDTH, 3, 16, 16),
        "patch_embed.proj.bias": (WIDTH,), "norm.weight": (WIDTH,), "norm.bias": (WIDTH,),
        "blocks.0.ls1.gamma": (WIDTH,), "blocks.0.ls2.gamma": (WIDTH,),
    }  # fmt: skip
    block = {
        "norm1": (WIDTH,), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH), "norm2": (WIDTH,),
        "mlp.fc1": (4 * WIDTH, WIDTH), "mlp.fc2": (WIDTH, 4 * WIDTH),
    }  # fmt: skip
    shapes |= {f"blocks.0.{k}.weight": v for k, v in block.items()}
    return shapes | {f"blocks.0.{k}.bias": v[:1] for k, v in block.items()}


def save_genes(folder: Path) -> str:
    """info_highly_variable_genes.csv as upstream has it: more genes than are predicted."""
    rows = [",gene_name,highly_variable_rank,isPredicted"]
    for i, gene in enumerate(GENES):
        rows += [f"{2 * i},OTHER{i},,False", f"{2 * i + 1},{gene},{float(len(GENES) - i)},True"]
    path = folder / "info_highly_variable_genes.csv"
    path.write_text("\n".join(rows) + "\n")
    return str(path)


def save_scaler(folder: Path) -> tuple[str, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    mean, scale = rng.uniform(0, 0.5, len(GENES)), rng.uniform(0.5, 2, len(GENES))
    np.savez(folder / "scaler.npz", mean=mean, scale=scale)
    return str(folder / "scaler.npz"), mean, scale


def save(folder: Path, tensors: Tensors, part: Path, **options: str) -> Loading:
    weights = save_weights(folder / "final_model.safetensors", tensors)
    told = {"genes": save_genes(folder), "scaler": save_scaler(folder)[0]} | options
    return Loading(weights, {"encoder": part}, told)
