"""CONCH on random weights in its published layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from genrag_cli.backbones.base import Loading
from genrag_cli.backbones.registry import load_backbone, read_sheet
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import BackboneContract
from genrag_cli.testing.random_weights import random_tensors, save_weights

WIDTH, DIM = 768, 512


def coca_b16(depth: int = 1) -> dict[str, tuple[int, ...]]:
    """Names and shapes of MahmoodLab/conch pytorch_model.bin; of the text tower a few."""
    shapes: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "text.cls_emb": (768,), "text.positional_embedding": (128, 768), "text.text_projection": (768, 512),
        "text.transformer.resblocks.0.ln_1.weight": (768,),
        "visual.proj_contrast": (DIM, DIM),
        "visual.trunk.cls_token": (1, 1, WIDTH), "visual.trunk.pos_embed": (1, 785, WIDTH),
        "visual.trunk.patch_embed.proj.weight": (WIDTH, 3, 16, 16), "visual.trunk.patch_embed.proj.bias": (WIDTH,),
        "visual.trunk.norm.weight": (WIDTH,), "visual.trunk.norm.bias": (WIDTH,),
        "visual.attn_pool_contrast.query": (1, DIM),
        "visual.attn_pool_contrast.attn.q_proj_weight": (DIM, DIM),
        "visual.attn_pool_contrast.attn.k_proj_weight": (DIM, WIDTH),
        "visual.attn_pool_contrast.attn.v_proj_weight": (DIM, WIDTH),
        "visual.attn_pool_contrast.attn.in_proj_bias": (3 * DIM,),
        "visual.attn_pool_contrast.attn.out_proj.weight": (DIM, DIM),
        "visual.attn_pool_contrast.attn.out_proj.bias": (DIM,),
        "visual.attn_pool_contrast.ln_q.weight": (DIM,), "visual.attn_pool_contrast.ln_q.bias": (DIM,),
        "visual.attn_pool_contrast.ln_k.weight": (WIDTH,), "visual.attn_pool_contrast.ln_k.bias": (WIDTH,),
        "visual.ln_contrast.weight": (DIM,), "visual.ln_contrast.bias": (DIM,),
        # As wide as its context, the pooler for captions has one matrix for queries, keys and values.
        "visual.attn_pool_caption.query": (256, 768), "visual.attn_pool_caption.attn.in_proj_weight": (3 * 768, 768),
        "visual.ln_caption.weight": (768,), "visual.ln_caption.bias": (768,),
    }  # fmt: skip
    for i in range(depth):
        block = {
            "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,),
            "attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.qkv.bias": (3 * WIDTH,),
            "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,),
            "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,),
            "mlp.fc1.weight": (4 * WIDTH, WIDTH), "mlp.fc1.bias": (4 * WIDTH,),
            "mlp.fc2.weight": (WIDTH, 4 * WIDTH), "mlp.fc2.bias": (WIDTH,),
        }  # fmt: skip
        shapes |= {f"visual.trunk.blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


class TestConchKeepsTheContract(BackboneContract):
    name = "conch"

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tmp_path_factory: pytest.TempPathFactory) -> Loading:
        path = tmp_path_factory.mktemp("conch") / "pytorch_model.bin"
        return Loading(save_weights(path, random_tensors(coca_b16())))


def by_hand(t: dict[str, torch.Tensor], pixels: np.ndarray) -> np.ndarray:
    """The published network, written out; the pooled token after ln_contrast."""
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    sd = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    x = ((torch.tensor(pixels) / 255 - mean) / sd).permute(0, 3, 1, 2)
    v = {k.removeprefix("visual."): a for k, a in t.items()}
    norm = torch.nn.functional.layer_norm
    n = len(x)
    patches = x.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).reshape(n, 784, -1)
    x = patches @ v["trunk.patch_embed.proj.weight"].reshape(WIDTH, -1).T + v["trunk.patch_embed.proj.bias"]
    x = torch.cat([v["trunk.cls_token"].expand(n, -1, -1), x], 1) + v["trunk.pos_embed"]
    for i in range(sum(k.endswith("fc1.bias") for k in v)):
        b = {k.removeprefix(f"trunk.blocks.{i}."): a for k, a in v.items()}
        h = norm(x, (WIDTH,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        q, k, w = (h @ b["attn.qkv.weight"].T + b["attn.qkv.bias"]).reshape(n, -1, 3, 12, 64).permute(2, 0, 3, 1, 4)
        a = (torch.softmax(q @ k.transpose(-1, -2) / 8, -1) @ w).transpose(1, 2).reshape(n, -1, WIDTH)
        x = x + a @ b["attn.proj.weight"].T + b["attn.proj.bias"]
        h = norm(x, (WIDTH,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        h = torch.nn.functional.gelu(h @ b["mlp.fc1.weight"].T + b["mlp.fc1.bias"])
        x = x + h @ b["mlp.fc2.weight"].T + b["mlp.fc2.bias"]
    x = norm(x, (WIDTH,), v["trunk.norm.weight"], v["trunk.norm.bias"], 1e-6)
    p = {k.removeprefix("attn_pool_contrast."): a for k, a in v.items()}
    context = norm(x, (WIDTH,), p["ln_k.weight"], p["ln_k.bias"], 1e-5)
    query = norm(p["query"], (DIM,), p["ln_q.weight"], p["ln_q.bias"], 1e-5)
    bias_q, bias_k, bias_v = p["attn.in_proj_bias"].split(DIM)
    q = (query @ p["attn.q_proj_weight"].T + bias_q).reshape(1, 1, 8, 64).transpose(1, 2)
    k = (context @ p["attn.k_proj_weight"].T + bias_k).reshape(n, -1, 8, 64).transpose(1, 2)
    w = (context @ p["attn.v_proj_weight"].T + bias_v).reshape(n, -1, 8, 64).transpose(1, 2)
    pooled = (torch.softmax(q @ k.transpose(-1, -2) / 8, -1) @ w).reshape(n, DIM)
    pooled = pooled @ p["attn.out_proj.weight"].T + p["attn.out_proj.bias"]
    return norm(pooled, (DIM,), v["ln_contrast.weight"], v["ln_contrast.bias"], 1e-5).numpy()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (1, 448, 448, 3), dtype=np.uint8)


def test_embedding_is_the_published_arithmetic(tmp_path: Path, pixels: np.ndarray) -> None:
    tensors = random_tensors(coca_b16(), seed=3)
    # Trained queries tell tokens apart; a peaked attention is what makes wrong heads or a lost norm show.
    tensors["visual.attn_pool_contrast.attn.k_proj_weight"] *= 4
    path = save_weights(tmp_path / "conch.safetensors", tensors)
    found = load_backbone("conch", loading=Loading(path)).encode(pixels)
    np.testing.assert_allclose(found, by_hand(tensors, pixels), rtol=1e-4, atol=1e-4)


def test_containers_and_what_lies_beside_the_image_tower_change_nothing(tmp_path: Path, pixels: np.ndarray) -> None:
    tensors = random_tensors(coca_b16())
    bare = {k: v for k, v in tensors.items() if k.startswith("visual.") and "caption" not in k}
    del bare["visual.proj_contrast"]
    wanted = load_backbone("conch", loading=Loading(save_weights(tmp_path / "bare.bin", bare))).encode(pixels)
    tensors["text_decoder.ln_final.weight"] = torch.zeros(768)
    for container, prefix in (("", "module."), ("state_dict", "module.")):
        whole = save_weights(tmp_path / "whole.bin", tensors, container=container, prefix=prefix)
        found = load_backbone("conch", loading=Loading(whole)).encode(pixels)
        np.testing.assert_array_equal(found, wanted, err_msg=f"{container} {prefix}")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ("missing", "visual.ln_contrast.bias"),
        ("missing", "visual.attn_pool_contrast.query"),
        ("extra", "visual.trunk.head.weight"),
        ("extra", "image_adapter.weight"),
        ("misshapen", "visual.trunk.pos_embed"),
    ],
)
def test_checkpoint_that_does_not_fit_is_refused_with_names(tmp_path: Path, change: str, name: str) -> None:
    tensors = random_tensors(coca_b16())
    if change == "missing":
        del tensors[name]
    else:
        tensors[name] = torch.zeros(1, 197, 768)
    path = save_weights(tmp_path / "w.bin", tensors)
    with pytest.raises(BackboneError, match=f"1 {change}: {name}"):
        load_backbone("conch", loading=Loading(path))


def test_sheet_says_what_was_published() -> None:
    sheet = read_sheet("conch")
    assert sheet is not None
    assert (sheet.tile_px, sheet.fov_um, sheet.dim, sheet.precision) == (448, 256, 512, "float32")
    assert (sheet.weights[0].repo, sheet.weights[0].gated) == ("MahmoodLab/conch", True)
