"""CONCH v1.5 on random weights in its published layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genrag_cli.backbones.base import Loading
from genrag_cli.backbones.checkpoints import read_checkpoint
from genrag_cli.backbones.encoders.conch15 import RECIPE
from genrag_cli.backbones.registry import load_backbone, read_sheet
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import BackboneContract
from genrag_cli.testing.random_weights import random_tensors, save_weights

WIDTH, DIM = 1024, 768


def tower_l16() -> dict[str, tuple[int, ...]]:
    """Names and shapes of MahmoodLab/conchv1_5 pytorch_model_vision.bin, one block deep."""
    block = {
        "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,),
        "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.qkv.bias": (3 * WIDTH,),
        "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,), "ls1.gamma": (WIDTH,),
        "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
        "mlp.fc1.weight": (4 * WIDTH, WIDTH), "mlp.fc1.bias": (4 * WIDTH,),
        "mlp.fc2.weight": (WIDTH, 4 * WIDTH), "mlp.fc2.bias": (WIDTH,), "ls2.gamma": (WIDTH,),
    }  # fmt: skip
    return {
        "trunk.cls_token": (1, 1, WIDTH), "trunk.pos_embed": (1, 197, WIDTH),
        "trunk.patch_embed.proj.weight": (WIDTH, 3, 16, 16), "trunk.patch_embed.proj.bias": (WIDTH,),
        "trunk.norm.weight": (WIDTH,), "trunk.norm.bias": (WIDTH,),
        "attn_pool_contrast.query": (1, DIM),
        "attn_pool_contrast.ln_k.weight": (WIDTH,), "attn_pool_contrast.ln_k.bias": (WIDTH,),
        "attn_pool_contrast.ln_q.weight": (DIM,), "attn_pool_contrast.ln_q.bias": (DIM,),
        "attn_pool_contrast.to_q.weight": (DIM, DIM), "attn_pool_contrast.to_kv.weight": (2 * DIM, WIDTH),
        "attn_pool_contrast.to_out.weight": (DIM, DIM),
        "ln_contrast.weight": (DIM,), "ln_contrast.bias": (DIM,),
    } | {f"trunk.blocks.0.{name}": shape for name, shape in block.items()}  # fmt: skip


class TestConch15KeepsTheContract(BackboneContract):
    name = "conch-v1.5"

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tmp_path_factory: pytest.TempPathFactory) -> Loading:
        path = tmp_path_factory.mktemp("conch15") / "pytorch_model_vision.bin"
        return Loading(save_weights(path, random_tensors(tower_l16())))


def weights_along_a_side(stored: int, used: int, scale: float, *, cubic: bool) -> np.ndarray:
    """(used, stored) interpolation weights: sampling points (i + 1/2) / scale - 1/2, edges repeated."""
    out = np.zeros((used, stored))
    for i in range(used):
        at = (i + 0.5) / scale - 0.5
        at = at if cubic else max(at, 0)
        low = int(np.floor(at))
        for j in range(low - 1, low + 3) if cubic else range(low, low + 2):
            d = abs(at - j)
            if not cubic:
                w = 1 - d
            elif d <= 1:  # Keys' kernel, a = -0.75
                w = 1.25 * d**3 - 2.25 * d**2 + 1
            else:
                w = -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
            out[i, min(max(j, 0), stored - 1)] += w
    return out


def stretched(positions: np.ndarray) -> np.ndarray:
    """(1 + g^2, w) to (785, w): to 14 x 14 bilinearly where it is not, then to 28 x 28 by cubic steps of 14 / 28.1."""
    side = int(np.sqrt(len(positions) - 1))
    grid = positions[1:].reshape(side, side, -1).astype(np.float64)
    cubic = weights_along_a_side(14, 28, 28.1 / 14, cubic=True)
    steps = [cubic] if side == 14 else [weights_along_a_side(side, 14, 14 / side, cubic=False), cubic]
    for w in steps:
        grid = np.einsum("ia,jb,abc->ijc", w, w, grid, optimize=True)
    return np.concatenate([positions[:1], grid.reshape(784, -1)])


def by_hand(t: dict[str, torch.Tensor], pixels: np.ndarray) -> np.ndarray:
    """The published network, written out; the pooled token after ln_contrast."""
    mean, sd = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((torch.tensor(pixels) / 255 - mean) / sd).permute(0, 3, 1, 2)
    norm, n = torch.nn.functional.layer_norm, len(x)
    patches = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(n, 784, -1)
    x = patches @ t["trunk.patch_embed.proj.weight"].reshape(WIDTH, -1).T + t["trunk.patch_embed.proj.bias"]
    positions = torch.from_numpy(stretched(t["trunk.pos_embed"][0].numpy())).float()
    x = torch.cat([t["trunk.cls_token"].expand(n, -1, -1), x], 1) + positions
    b = {k.removeprefix("trunk.blocks.0."): v for k, v in t.items()}
    h = norm(x, (WIDTH,), b["norm1.weight"], b["norm1.bias"], 1e-6)
    q, k, v = (h @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).reshape(n, -1, 3, 16, 64).permute(2, 0, 3, 1, 4)
    a = (torch.softmax(q @ k.transpose(-1, -2) / 8, -1) @ v).transpose(1, 2).reshape(n, -1, WIDTH)
    x = x + b["ls1.gamma"] * (a @ b["attn.proj.weight"].T + b["attn.proj.bias"])
    h = norm(x, (WIDTH,), b["norm2.weight"], b["norm2.bias"], 1e-6)
    h = torch.nn.functional.gelu(h @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
    x = x + b["ls2.gamma"] * (h @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"])
    x = norm(x, (WIDTH,), t["trunk.norm.weight"], t["trunk.norm.bias"], 1e-6)
    p = {k.removeprefix("attn_pool_contrast."): v for k, v in t.items()}
    context = norm(x, (WIDTH,), p["ln_k.weight"], p["ln_k.bias"], 1e-5)
    query = norm(p["query"], (DIM,), p["ln_q.weight"], p["ln_q.bias"], 1e-5) @ p["to_q.weight"].T
    pooled = torch.empty(n, DIM)
    for head in range(8):
        rows = slice(96 * head, 96 * (head + 1))
        keys = context @ p["to_kv.weight"][:DIM][rows].T
        values = context @ p["to_kv.weight"][DIM:][rows].T
        seen = torch.softmax(keys @ query[0, rows] / np.sqrt(96), dim=1)
        pooled[:, rows] = (seen[:, :, None] * values).sum(1)
    pooled = pooled @ p["to_out.weight"].T
    return norm(pooled, (DIM,), t["ln_contrast.weight"], t["ln_contrast.bias"], 1e-5).numpy()


def test_embedding_is_the_published_arithmetic(tmp_path: Path) -> None:
    tensors = random_tensors(tower_l16(), seed=3)
    # Positions and queries that weigh in as trained ones do, so that a slip in either shows.
    tensors["trunk.pos_embed"] *= 30
    tensors["attn_pool_contrast.to_kv.weight"][:DIM] *= 4
    path = save_weights(tmp_path / "w.safetensors", tensors)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 448, 448, 3), dtype=np.uint8)
    found = load_backbone("conch-v1.5", loading=Loading(path)).encode(pixels)
    np.testing.assert_allclose(found, by_hand(tensors, pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("grid", [14, 28, 24])
def test_positions_are_stretched_in_the_published_steps(tmp_path: Path, grid: int) -> None:
    positions = random_tensors({"trunk.pos_embed": (1, 1 + grid**2, WIDTH)})
    path = save_weights(tmp_path / "w.bin", positions)
    assert RECIPE.select is not None
    found = RECIPE.select(read_checkpoint(path)).tensors["trunk.pos_embed"]
    wanted = stretched(positions["trunk.pos_embed"][0].numpy())
    np.testing.assert_allclose(found[0], wanted, rtol=1e-4, atol=1e-5 * np.abs(wanted).max())


def test_positions_that_are_no_square_grid_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(tower_l16())
    tensors["trunk.pos_embed"] = torch.zeros(1, 200, WIDTH)
    path = save_weights(tmp_path / "w.bin", tensors)
    with pytest.raises(BackboneError, match=r"trunk\.pos_embed has shape \(1, 200, 1024\)"):
        load_backbone("conch-v1.5", loading=Loading(path))


@pytest.mark.parametrize(
    ("change", "name"),
    [("missing", "attn_pool_contrast.to_kv.weight"), ("extra", "proj_contrast"), ("misshapen", "ln_contrast.bias")],
)
def test_checkpoint_that_does_not_fit_is_refused_with_names(tmp_path: Path, change: str, name: str) -> None:
    tensors = random_tensors(tower_l16())
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(3)
    path = save_weights(tmp_path / "w.bin", tensors, container="state_dict", prefix="module.")
    with pytest.raises(BackboneError, match=f"1 {change}: {name}"):
        load_backbone("conch-v1.5", loading=Loading(path))


def test_sheet_says_what_was_published() -> None:
    sheet = read_sheet("conch-v1.5")
    assert sheet is not None
    assert (sheet.tile_px, sheet.fov_um, sheet.dim, sheet.precision) == (448, 256, 768, "float16")
    assert (sheet.weights[0].repo, sheet.weights[0].gated) == ("MahmoodLab/conchv1_5", True)
