"""Stem on random weights in the published layouts and containers of Stem, UNI and CONCH."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genrag_cli.backbones.base import ExpressionModel, Loading, SpotContext
from genrag_cli.backbones.checkpoints import load_into, read_checkpoint
from genrag_cli.backbones.models.diffusion import SpotNoise
from genrag_cli.backbones.models.stem_network import Sizes, StemNetwork
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.errors import BackboneError, UsageError
from genrag_cli.testing.backbone_contract import ExpressionModelContract
from genrag_cli.testing.random_weights import random_tensors, save_weights
from genrag_cli.types import LOG2_COUNTS

GENES, WIDTH, CONDITION = 9, 128, 1536
"""Published: 200 or 300, 384 and 1536; 6 heads, which is 64 a head."""
NAMES = [f"GENE{i}" for i in range(GENES)]
Shapes = dict[str, tuple[int, ...]]
Tensors = dict[str, torch.Tensor]


def layout(depth: int = 1) -> Shapes:
    """Names and shapes of `ema` and of `model` in a checkpoint of SichenZhu/Stem."""
    g, h, c = GENES, WIDTH, CONDITION
    shapes: Shapes = {
        "gene_joint_embed.gene_name_ebd": (g, h),
        "gene_joint_embed.gene_count_ebd.0.weight": (h, 1), "gene_joint_embed.gene_count_ebd.0.bias": (h,),
        "gene_joint_embed.gene_count_ebd.2.weight": (h, h), "gene_joint_embed.gene_count_ebd.2.bias": (h,),
        "time_embed.mlp.0.weight": (h, 256), "time_embed.mlp.0.bias": (h,),
        "time_embed.mlp.2.weight": (h, h), "time_embed.mlp.2.bias": (h,),
        "label_embed.0.weight": (c, c), "label_embed.0.bias": (c,),
        "label_embed.2.weight": (h, c), "label_embed.2.bias": (h,),
        "final_layer.linear.weight": (2, h), "final_layer.linear.bias": (2,),
        "final_layer.adaLN_modulation.1.weight": (2 * h, h), "final_layer.adaLN_modulation.1.bias": (2 * h,),
    }  # fmt: skip
    for i in range(depth):
        block = {
            "attn.qkv.weight": (3 * h, h), "attn.qkv.bias": (3 * h,),
            "attn.proj.weight": (h, h), "attn.proj.bias": (h,),
            "mlp.fc1.weight": (4 * h, h), "mlp.fc1.bias": (4 * h,),
            "mlp.fc2.weight": (h, 4 * h), "mlp.fc2.bias": (h,),
            "adaLN_modulation.1.weight": (6 * h, h), "adaLN_modulation.1.bias": (6 * h,),
        }  # fmt: skip
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in block.items()}
    return shapes


@functools.cache
def _drawn(seed: int, depth: int) -> Tensors:
    return random_tensors(layout(depth), seed)


def drawn(seed: int = 0, depth: int = 1) -> Tensors:
    """Random weights of the network; drawn once."""
    return dict(_drawn(seed, depth))


def vit(width: int, tokens: int, *, scaled: bool) -> Shapes:
    """One block of a timm ViT of patches of 16, with layer scales or without."""
    w = width
    shapes: Shapes = {
        "cls_token": (1, 1, w), "pos_embed": (1, tokens, w), "patch_embed.proj.weight": (w, 3, 16, 16),
        "patch_embed.proj.bias": (w,), "norm.weight": (w,), "norm.bias": (w,),
        "blocks.0.norm1.weight": (w,), "blocks.0.norm1.bias": (w,), "blocks.0.norm2.weight": (w,),
        "blocks.0.norm2.bias": (w,), "blocks.0.attn.qkv.weight": (3 * w, w), "blocks.0.attn.qkv.bias": (3 * w,),
        "blocks.0.attn.proj.weight": (w, w), "blocks.0.attn.proj.bias": (w,),
        "blocks.0.mlp.fc1.weight": (4 * w, w), "blocks.0.mlp.fc1.bias": (4 * w,),
        "blocks.0.mlp.fc2.weight": (w, 4 * w), "blocks.0.mlp.fc2.bias": (w,),
    }  # fmt: skip
    return shapes | ({"blocks.0.ls1.gamma": (w,), "blocks.0.ls2.gamma": (w,)} if scaled else {})


def conch() -> Shapes:
    """The image tower of MahmoodLab/conch."""
    d, pool = 512, "visual.attn_pool_contrast."
    return {f"visual.trunk.{name}": shape for name, shape in vit(768, 785, scaled=False).items()} | {
        f"{pool}query": (1, d), f"{pool}attn.q_proj_weight": (d, d), f"{pool}attn.k_proj_weight": (d, 768),
        f"{pool}attn.v_proj_weight": (d, 768), f"{pool}attn.in_proj_bias": (3 * d,),
        f"{pool}attn.out_proj.weight": (d, d), f"{pool}attn.out_proj.bias": (d,), f"{pool}ln_q.weight": (d,),
        f"{pool}ln_q.bias": (d,), f"{pool}ln_k.weight": (768,), f"{pool}ln_k.bias": (768,),
        "visual.ln_contrast.weight": (d,), "visual.ln_contrast.bias": (d,),
    }  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Files of both encoders."""
    folder = tmp_path_factory.mktemp("encoders")
    return {
        "uni": save_weights(folder / "uni.bin", random_tensors(vit(1024, 197, scaled=True), 1)),
        "conch": save_weights(folder / "conch.bin", random_tensors(conch(), 2)),
    }


def save(folder: Path, parts: Mapping[str, Path], ema: Tensors, model: Tensors | None = None, **told: str) -> Loading:
    """A checkpoint as stem_train.py saves it, the gene list of training, and the encoders."""
    moments = {"step": torch.tensor(3.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
    opt = {"state": {0: moments}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]}
    last = drawn(99) if model is None else model
    path = save_weights(folder / "0300000.pt", ema, container="ema", model=last, opt=opt)
    (folder / "selected_gene_list.txt").write_text("\n".join(NAMES) + "\n")
    options = {"genes": str(folder / "selected_gene_list.txt"), "steps": "5", "samples": "3"}
    return Loading(path, parts, options | told)


def load(loading: Loading) -> ExpressionModel:
    model = load_backbone("stem", loading=loading)
    assert isinstance(model, ExpressionModel)
    return model


class TestStemKeepsTheContract(ExpressionModelContract):
    name = "stem"
    n_spots = 3

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tmp_path_factory: pytest.TempPathFactory, parts: Mapping[str, Path]) -> Loading:
        return save(tmp_path_factory.mktemp("stem"), parts, drawn())


def silu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(x / 2)) / 2  # x times the logistic function, which would overflow far below 0


def dit(w: Mapping[str, np.ndarray], x: np.ndarray, t: int, y: np.ndarray, heads: int) -> np.ndarray:
    """The published network in float64: x (b, G), y (b, 1536) to (b, 2, G)."""

    def linear(h: np.ndarray, name: str) -> np.ndarray:
        return h @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def modulated(h: np.ndarray, shift: np.ndarray, scale: np.ndarray) -> np.ndarray:
        normed = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-6)
        return normed * (1 + scale[:, None]) + shift[:, None]

    gene = "gene_joint_embed.gene_count_ebd"
    h = linear(silu(linear(x[:, :, None], f"{gene}.0")), f"{gene}.2") + w["gene_joint_embed.gene_name_ebd"]
    angles = t * 10000.0 ** (-np.arange(128) / 128)
    wave = np.concatenate([np.cos(angles), np.sin(angles)])
    time = linear(silu(linear(wave, "time_embed.mlp.0")), "time_embed.mlp.2")
    c = silu(time + linear(silu(linear(y, "label_embed.0")), "label_embed.2"))
    for i in range(sum(name.endswith("attn.qkv.weight") for name in w)):
        at = f"blocks.{i}"
        parts = np.split(linear(c, f"{at}.adaLN_modulation.1"), 6, axis=1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        q, k, v = np.split(linear(modulated(h, shift_a, scale_a), f"{at}.attn.qkv"), 3, axis=2)
        size, seen = WIDTH // heads, []
        for own in (slice(size * j, size * (j + 1)) for j in range(heads)):
            logits = np.einsum("bid,bjd->bij", q[..., own], k[..., own]) / np.sqrt(size)
            chances = np.exp(logits - logits.max(-1, keepdims=True))
            seen.append(np.einsum("bij,bjd->bid", chances / chances.sum(-1, keepdims=True), v[..., own]))
        h = h + gate_a[:, None] * linear(np.concatenate(seen, 2), f"{at}.attn.proj")
        z = linear(modulated(h, shift_m, scale_m), f"{at}.mlp.fc1")
        z = 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))
        h = h + gate_m[:, None] * linear(z, f"{at}.mlp.fc2")
    shift, scale = np.split(linear(c, "final_layer.adaLN_modulation.1"), 2, axis=1)
    return linear(modulated(h, shift, scale), "final_layer.linear").transpose(0, 2, 1)


def by_hand(tensors: Tensors, y: np.ndarray, steps: list[int], samples: int, seed: int, heads: int = 2) -> np.ndarray:
    """Mean over samples of the published chain, each sample alone: (n, G)."""
    w = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    products = np.cumprod(1 - np.linspace(0.0001, 0.02, 1000))[steps]
    out = np.zeros((len(y), GENES))
    for replicate in range(samples):
        noise = SpotNoise(seed, y, np.full(len(y), replicate))
        x = noise.draw(GENES).astype(np.float64)
        for i in reversed(range(len(steps))):
            before = products[i - 1] if i else 1.0
            alpha, beta = products[i] / before, 1 - products[i] / before
            predicted, place = dit(w, x, steps[i], y.astype(np.float64), heads).transpose(1, 0, 2)
            x = (x - beta / np.sqrt(1 - products[i]) * predicted) / np.sqrt(alpha)
            if i:
                posterior = (1 - before) / (1 - products[i]) * beta
                x = x + beta ** ((place + 1) / 4) * posterior ** ((1 - place) / 4) * noise.draw(GENES)
        out += x / samples
    return out


def section(n: int, seed: int = 0) -> SpotContext:
    features = np.random.default_rng(seed).normal(size=(n, CONDITION)).astype(np.float32)
    places = np.stack([np.arange(n) // 6, np.arange(n) % 6], 1)
    return SpotContext(features, places[:, ::-1] * 300.0, places, mpp=0.5, pitch_um=150.0, fov_um=112.0, seed=4)


def some(spots: SpotContext, rows: list[int]) -> SpotContext:
    return dataclasses.replace(
        spots, features=spots.features[rows], centres=spots.centres[rows], array_rc=spots.array_rc[rows]
    )


@pytest.mark.parametrize("t", [0, 1, 437, 999])
def test_network_is_the_published_one(tmp_path: Path, t: int) -> None:
    tensors, rng = drawn(5, depth=2), np.random.default_rng(t)
    x, y = rng.normal(size=(2, GENES)).astype(np.float32), rng.normal(size=(2, CONDITION)).astype(np.float32)
    checkpoint = read_checkpoint(save_weights(tmp_path / "bare.pt", tensors))
    net = load_into(lambda: StemNetwork(Sizes.of(checkpoint), heads=2), checkpoint, "stem")
    with torch.inference_mode():
        found = net(torch.from_numpy(x), torch.full((2,), t), torch.from_numpy(y)).numpy()
    weights = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    wanted = dit(weights, x.astype(np.float64), t, y.astype(np.float64), heads=2)
    # late angles are large, and float32 rounds them
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 if t < 500 else 5e-5)


@pytest.mark.parametrize("n", [1, 31])
def test_prediction_is_the_published_arithmetic(tmp_path: Path, parts: Mapping[str, Path], n: int) -> None:
    ema = drawn(3, depth=2)
    model, spots = load(save(tmp_path, parts, ema)), section(n)
    found = model.predict(spots, np.array(["GENE7", "GENE2"]))
    wanted = by_hand(ema, spots.features, [0, 250, 500, 749, 999], samples=3, seed=4)
    assert found.scale == LOG2_COUNTS
    assert found.genes.tolist() == ["GENE7", "GENE2"]
    np.testing.assert_allclose(found.values, wanted[:, [7, 2]], rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_heads_that_cannot_be_read_from_shapes_are_an_option(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    ema, spots = drawn(3), section(2)
    found = load(save(tmp_path, parts, ema, heads="4")).predict(spots, np.array(NAMES)).values
    steps = [0, 250, 500, 749, 999]
    wanted, other = (by_hand(ema, spots.features, steps, 3, 4, heads) for heads in (4, 2))
    size = np.abs(wanted).max()
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * size)
    assert np.abs(other - wanted).max() > 1e-2 * size


def test_a_spot_is_the_same_whoever_is_with_it(
    tmp_path: Path, parts: Mapping[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, spots = load(save(tmp_path, parts, drawn(3))), section(14)
    every = model.predict(spots, model.genes).values
    size = np.abs(every).max()
    rows = [13, 2, 7]
    np.testing.assert_allclose(
        model.predict(some(spots, rows), model.genes).values, every[rows], rtol=1e-4, atol=1e-5 * size
    )
    monkeypatch.setattr("genrag_cli.backbones.batches.CPU_BATCH", 5)
    np.testing.assert_allclose(model.predict(spots, model.genes).values, every, rtol=1e-4, atol=1e-5 * size)
    other = model.predict(dataclasses.replace(spots, seed=5), model.genes).values
    assert np.abs(other - every).min(axis=1).max() > 1e-3 * size


def test_progress_is_told_to_the_end(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    told: list[tuple[int, int]] = []
    spots = dataclasses.replace(section(13), progress=lambda done, total: told.append((done, total)))
    load(save(tmp_path, parts, drawn())).predict(spots, np.array(NAMES))
    assert told == sorted(told)
    assert 0 < told[0][0] < 13 * 3 * 5
    assert {total for _, total in told} == {13 * 3 * 5}
    assert told[-1] == (13 * 3 * 5, 13 * 3 * 5)


def test_condition_is_uni_then_conch_each_at_its_published_size(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    pixels[:, :100] //= 4
    found = load(save(tmp_path, parts, drawn())).encode(pixels)
    uni = load_backbone("uni", loading=Loading(parts["uni"])).encode(pixels)
    small = [Image.fromarray(tile).resize((256, 256), Image.Resampling.LANCZOS) for tile in pixels]
    wide = np.stack([np.asarray(tile.resize((448, 448), Image.Resampling.BICUBIC)) for tile in small])
    conch_encoder = load_backbone("conch", loading=Loading(parts["conch"]))
    np.testing.assert_allclose(found, np.concatenate([uni, conch_encoder.encode(wide)], 1), rtol=1e-5, atol=1e-5)
    straight = np.stack([np.asarray(Image.fromarray(t).resize((448, 448), Image.Resampling.BICUBIC)) for t in pixels])
    assert not np.allclose(found[:, 1024:], conch_encoder.encode(straight), rtol=1e-5, atol=1e-5)


def test_last_weights_are_taken_when_asked_for(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    ema, last, spots = drawn(3), drawn(4), section(2)
    found = load(save(tmp_path, parts, ema, last, weights="model")).predict(spots, np.array(NAMES)).values
    wanted = by_hand(last, spots.features, [0, 250, 500, 749, 999], samples=3, seed=4)
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())


def test_checkpoint_without_the_moving_average_is_refused(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    loading = save(tmp_path, parts, drawn())
    path = save_weights(tmp_path / "bare.pt", drawn(), container="model")
    with pytest.raises(BackboneError, match="has the weights 'model' and not 'ema'") as caught:
        load(dataclasses.replace(loading, weights=path))
    assert "--backbone-option weights=model" in caught.value.hint
    load(dataclasses.replace(loading, weights=path, options={**loading.options, "weights": "model"}))


def test_bare_tensors_are_taken_as_they_are(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    loading, ema = save(tmp_path, parts, drawn(3)), drawn(3)
    path = save_weights(tmp_path / "ema.safetensors", ema)
    bare, whole = load(dataclasses.replace(loading, weights=path)), load(loading)
    spots = section(2)
    np.testing.assert_array_equal(bare.predict(spots, bare.genes).values, whole.predict(spots, whole.genes).values)
    assert bare.card.weights_sha256 != whole.card.weights_sha256


def test_every_file_and_the_genes_are_in_the_card(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    loading = save(tmp_path, parts, drawn())
    card = load(loading).card
    assert card.needs == ()
    other = save_weights(tmp_path / "conch.bin", random_tensors(conch(), 9))
    swapped = load(dataclasses.replace(loading, parts={**parts, "conch": other})).card
    assert swapped == dataclasses.replace(card, weights_sha256=swapped.weights_sha256)
    assert swapped.weights_sha256 != card.weights_sha256
    (tmp_path / "turned.txt").write_text("\n".join(NAMES[::-1]))
    options = {**loading.options, "genes": str(tmp_path / "turned.txt")}
    turned = load(dataclasses.replace(loading, options=options)).card
    assert turned == dataclasses.replace(card, genes_sha256=turned.genes_sha256)
    assert turned.genes_sha256 != card.genes_sha256


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"steps": "1"}, "steps=1: not a whole number, 2 to 1000"),
        ({"steps": "1001"}, "2 to 1000"),
        ({"steps": "ddim50"}, "2 to 1000"),
        ({"samples": "0"}, "1 to 512"),
        ({"heads": "3"}, "width 128 is not a multiple of it"),
        ({"weights": "opt"}, "weights=opt"),
    ],
)
def test_option_that_cannot_be_right_is_refused(
    tmp_path: Path, parts: Mapping[str, Path], options: dict[str, str], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        load(save(tmp_path, parts, drawn(), **options))


def test_gene_list_must_be_given_and_be_of_the_table(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    loading = save(tmp_path, parts, drawn())
    with pytest.raises(BackboneError, match="9 genes and not their names"):
        load(dataclasses.replace(loading, options={}))
    (tmp_path / "selected_gene_list.txt").write_text("A\nB\n")
    with pytest.raises(BackboneError, match="has 2 genes, the weights have 9"):
        load(loading)


def test_weights_must_be_named(parts: Mapping[str, Path]) -> None:
    with pytest.raises(BackboneError, match="not published on a hub"):
        load(Loading(parts=parts))


def test_embeddings_of_another_backbone_are_refused(tmp_path: Path, parts: Mapping[str, Path]) -> None:
    model, spots = load(save(tmp_path, parts, drawn())), section(2)
    with pytest.raises(BackboneError, match=r"shape \(n, 1536\), found \(2, 1024\)"):
        model.predict(dataclasses.replace(spots, features=spots.features[:, :1024]), model.genes)


@pytest.mark.parametrize("change", ["missing", "extra", "misshapen", "condition"])
def test_checkpoint_that_does_not_fit_is_refused(tmp_path: Path, parts: Mapping[str, Path], change: str) -> None:
    ema = drawn()
    told = rf"1 {change}: final_layer\.(linear\.bias|norm_final\.weight)"
    if change == "missing":
        del ema["final_layer.linear.bias"]
    elif change == "extra":
        ema["final_layer.norm_final.weight"] = torch.zeros(WIDTH)
    elif change == "misshapen":
        ema["final_layer.linear.bias"] = torch.zeros(1)
    else:
        ema["label_embed.0.weight"] = torch.zeros(1024, 1024)
        told = "conditioned on 1024 numbers a spot"
    with pytest.raises(BackboneError, match=told):
        load(save(tmp_path, parts, ema))
