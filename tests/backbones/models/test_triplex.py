"""TRIPLEX on random weights in its published layout, against its published equations written out."""

import itertools
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from genrag_cli.backbones.base import Loading, SpotContext
from genrag_cli.backbones.registry import load_backbone
from genrag_cli.backbones.weights import digest_weights, join_digests
from genrag_cli.errors import BackboneError
from genrag_cli.testing.backbone_contract import ExpressionModelContract
from genrag_cli.testing.random_weights import random_tensors, save_weights
from genrag_cli.types import Scale

layout = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("triplex_layout.py"))))
GENES, triplex, cigar, save, reader, noise = (
    getattr(layout, name) for name in ("GENES", "triplex", "cigar", "save", "reader", "noise")
)
Tensors = dict[str, torch.Tensor]
Shapes = dict[str, tuple[int, ...]]


class TestTriplexKeepsTheContract(ExpressionModelContract):
    name = "triplex"
    n_spots = 3

    @pytest.fixture(scope="class")
    @classmethod
    def loading(cls, tmp_path_factory: pytest.TempPathFactory) -> Loading:
        return save(tmp_path_factory.mktemp("triplex"), random_tensors(triplex()), random_tensors(cigar(), seed=1))

    @pytest.fixture
    def spots(self, backbone: Any) -> SpotContext:
        """At the corner of a slide, so that most of what is around lies outside."""
        pixels = noise(3, seed=2)
        return SpotContext(
            features=backbone.encode(np.stack(pixels)),
            centres=np.array([[150.0, 150], [350, 150], [550, 150]]),
            array_rc=np.array([[0, 0], [0, 1], [0, 2]]),
            mpp=0.5,
            pitch_um=100.0,
            fov_um=112.0,
            tiles=reader(pixels, [{12: pixel, 13: pixels[0]} for pixel in pixels]),
        )


def conv_net(t: Tensors, x: torch.Tensor, stem: str, norm: str, stages: list[str]) -> torch.Tensor:
    """ResNet-18 to its last feature map, written out."""

    def bn(x: torch.Tensor, at: str) -> torch.Tensor:
        mean, var, w, b = (t[f"{at}.{k}"].view(1, -1, 1, 1) for k in ("running_mean", "running_var", "weight", "bias"))
        return (x - mean) / torch.sqrt(var + 1e-5) * w + b

    x = functional.max_pool2d(bn(functional.conv2d(x, t[f"{stem}.weight"], None, 2, 3), norm).relu(), 3, 2, 1)
    for stage, i in itertools.product(stages, range(2)):
        at, stride = f"{stage}.{i}", 2 if i == 0 and stage != stages[0] else 1
        h = bn(functional.conv2d(x, t[f"{at}.conv1.weight"], None, stride, 1), f"{at}.bn1").relu()
        h = bn(functional.conv2d(h, t[f"{at}.conv2.weight"], None, 1, 1), f"{at}.bn2")
        if f"{at}.downsample.0.weight" in t:
            x = bn(functional.conv2d(x, t[f"{at}.downsample.0.weight"], None, stride), f"{at}.downsample.1")
        x = (x + h).relu()
    return x


def normalised(tiles: list[np.ndarray]) -> torch.Tensor:
    mean, sd = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.tensor(np.stack(tiles)) / 255 - mean) / sd).permute(0, 3, 1, 2)


def cigar_by_hand(t: Tensors, tiles: list[np.ndarray]) -> torch.Tensor:
    stages = ["layer1", "layer2", "layer3", "layer4"]
    return conv_net(t, normalised(tiles), "conv1", "bn1", stages).mean(dim=(2, 3))


class ByHand:
    """The published equations in float64, one spot at a time where they are per spot."""

    def __init__(self, tensors: Tensors, heads: tuple[int, int, int]) -> None:
        self.tensors = tensors
        self.t = {k: v.double() for k, v in tensors.items() if v.is_floating_point()}
        self.dim = len(self.t["target_linear.bias"])
        self.heads = heads

    def norm(self, x: torch.Tensor, at: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
        return centred / spread * self.t[f"{at}.weight"] + self.t[f"{at}.bias"]

    def linear(self, x: torch.Tensor, at: str) -> torch.Tensor:
        return x @ self.t[f"{at}.weight"].T + self.t[f"{at}.bias"]

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int, extra: torch.Tensor) -> torch.Tensor:
        """Attention head by head; `extra` (heads or 1, n, m) is added to the scores."""
        out, d = [], self.dim // heads
        for h in range(heads):
            part = slice(h * d, (h + 1) * d)
            scores = q[:, part] @ k[:, part].T / d**0.5 + extra[h % len(extra)]
            out.append(torch.softmax(scores, -1) @ v[:, part])
        return torch.cat(out, -1)

    def feed(self, x: torch.Tensor, at: str) -> torch.Tensor:
        h = self.linear(self.norm(x, f"{at}.1.norm"), f"{at}.1.fn.net.0")
        h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
        return x + self.linear(h, f"{at}.1.fn.net.3")

    def whole(self, features: torch.Tensor, corners: np.ndarray) -> torch.Tensor:
        x, none = features.double(), torch.zeros(1, 1, 1, dtype=torch.float64)
        depth = sum(k.startswith("global_encoder.layer2") and k.endswith("to_qkv.weight") for k in self.t)
        for name in ["layer1.layers.0", *(f"layer2.layers.{i}" for i in range(depth))]:
            at = f"global_encoder.{name}"
            w, h = self.t[f"{at}.0.fn.to_qkv.weight"], self.norm(x, f"{at}.0.norm")
            # flash layout: q, k and v of one dimension stand side by side
            mixed = self.mix(h @ w[0::3].T, h @ w[1::3].T, h @ w[2::3].T, self.heads[1], none)
            x = self.feed(x + self.linear(mixed, f"{at}.0.fn.to_out.0"), at)
            if name == "layer1.layers.0":
                x = self.place(x, corners)
        return self.norm(x, "global_encoder.norm")

    def place(self, x: torch.Tensor, corners: np.ndarray) -> torch.Tensor:
        """APEG on a dense grid: mean of a cell's spots, zero elsewhere, a 3 x 3 convolution a channel."""
        xy = corners.astype(np.float32)
        size = [len(np.unique(np.round(xy[:, i] / np.float32(20)))) for i in (0, 1)]
        share = (xy - xy.min(0)) / (xy.max(0) - xy.min(0) + np.float32(1e-5))
        cell = np.round(share * np.array([size[0] - 1, size[1] - 1], np.float32)).astype(int)
        grid = torch.zeros(1, self.dim, size[1], size[0], dtype=torch.float64)
        for gx, gy in np.unique(cell, axis=0):
            grid[0, :, gy, gx] = x[(cell == (gx, gy)).all(1)].mean(0)
        w, b = (self.t[f"global_encoder.pos_layer.proj.{k}"] for k in ("weight", "bias"))
        grid = functional.conv2d(grid, w, b, padding=1, groups=self.dim)
        return grid[0, :, cell[:, 1], cell[:, 0]].T

    def around(self, features: torch.Tensor, outside: np.ndarray) -> torch.Tensor:
        x = features.double()
        places = list(itertools.product(range(5), range(5)))
        offset = torch.tensor([[abs(a - c) * 5 + abs(b - d) for c, d in places] for a, b in places])
        depth = sum(k.startswith("neighbor_encoder") and k.endswith("to_qkv.weight") for k in self.t)
        for at in (f"neighbor_encoder.layer.layers.{i}" for i in range(depth)):
            q, k, v = (self.norm(x, f"{at}.0.norm") @ self.t[f"{at}.0.fn.to_qkv.weight"].T).split(self.dim, -1)
            extra = self.t[f"{at}.0.fn.attention_biases"][:, offset].clone()
            extra[:, :, outside] = -torch.inf
            mixed = self.mix(q, k, v, self.heads[2], extra)
            x = self.feed(x + self.linear(mixed, f"{at}.0.fn.to_out.0"), at)
        return self.norm(x, "neighbor_encoder.norm")

    def fuse(self, token: torch.Tensor, seen: torch.Tensor, outside: np.ndarray) -> torch.Tensor:
        x, extra = token[None], torch.zeros(1, 1, len(seen), dtype=torch.float64)
        extra[:, :, outside] = -torch.inf
        depth = sum(k.startswith("fusion_encoder") and k.endswith("to_q.weight") for k in self.t)
        for at in (f"fusion_encoder.fusion_layer.layers.{i}" for i in range(depth)):
            q = self.norm(x, f"{at}.0.norm") @ self.t[f"{at}.0.fn.to_q.weight"].T
            k, v = (self.norm(seen, f"{at}.0.norm") @ self.t[f"{at}.0.fn.to_kv.weight"].T).split(self.dim, -1)
            x = self.feed(x + self.linear(self.mix(q, k, v, self.heads[0], extra), f"{at}.0.fn.to_out.0"), at)
        return x[0]

    def predict(
        self,
        features: np.ndarray,
        corners: np.ndarray,
        targets: torch.Tensor,
        around: list[dict[int, torch.Tensor]],
    ) -> np.ndarray:
        """Genes of all spots.

        Args:
            features: (n, dim)
            corners: (n, 2)
            targets: (n, 512, 7, 7) last feature maps of the spots' own tiles.
            around: for each spot the extractor's embedding of those of the 25 tiles that are inside.
        """
        tokens, out = self.whole(torch.tensor(features), corners), []
        for token, own, near in zip(tokens, targets, around, strict=True):
            outside = np.array([i not in near for i in range(25)])
            neighbours = torch.stack([near.get(i, torch.full((self.dim,), 7.0)) for i in range(25)])
            seen = self.linear(own.double().flatten(1).T, "target_linear")
            fused = self.fuse(token, seen, np.zeros(49, bool))
            fused = fused + self.fuse(token, self.around(neighbours, outside), outside)
            out.append(self.linear(self.norm(fused, "fusion_encoder.norm"), "fc").clamp(min=0).numpy())
        return np.stack(out)


def last_maps(own: Tensors, tiles: list[np.ndarray]) -> torch.Tensor:
    stages = [f"target_encoder.{i}" for i in (4, 5, 6, 7)]
    return conv_net(own, normalised(tiles), "target_encoder.0", "target_encoder.1", stages)


def test_whole_section_is_the_published_arithmetic(tmp_path: Path) -> None:
    own, extractor = random_tensors(triplex(depths=(2, 3, 2)), seed=3), random_tensors(cigar(), seed=4)
    own["fc.bias"] += 0.5
    pool, rng, n = noise(5, seed=5), np.random.default_rng(6), 30
    chosen = [{12: i % 5} | {int(at): int(rng.integers(5)) for at in rng.choice(25, i % 2)} for i in range(n)]
    chosen[4] = {0: 1}  # its own tile is white, and is looked at all the same
    rows, columns = np.divmod(np.arange(n), 6)
    centres = np.stack([columns * 200 + 100 * (rows % 2), rows * 170], 1) + 1000.0 + rng.uniform(-14, 14, (n, 2))
    centres[7] = centres[6]  # two spots in one cell
    features = rng.standard_normal((n, 512), dtype=np.float32)
    spots = SpotContext(
        features=features,
        centres=centres,
        array_rc=np.stack([rows, columns], 1),
        mpp=0.5,
        pitch_um=100,
        fov_um=112,
        tiles=reader([pool[i % 5] for i in range(n)], [{at: pool[j] for at, j in one.items()} for one in chosen]),
    )
    model: Any = load_backbone("triplex", loading=save(tmp_path, own, extractor))
    found = model.predict(spots, np.array(GENES[::-1]))

    embedded = cigar_by_hand(extractor, [*pool, np.full((224, 224, 3), 255, np.uint8)])
    around = [{at: embedded[j] for at, j in one.items()} for one in chosen]
    around[4][12] = embedded[5]
    corners = np.round(centres - 112)
    maps = last_maps(own, pool)[np.arange(n) % 5]
    expected = ByHand(own, (4, 16, 16)).predict(features, corners, maps, around)
    assert 0.02 < (expected == 0).mean() < 0.98  # the clamp at 0 is seen
    assert len(np.unique(np.round(corners[:, 0] / 20))) > 12  # and so are cells without spots
    np.testing.assert_allclose(found.values, expected[:, ::-1], rtol=1e-3, atol=2e-4)
    assert found.genes.tolist() == GENES[::-1]
    assert found.scale == Scale("panel", 1e4, "ln", smooth=True)


def test_single_spot_with_uni_is_the_published_arithmetic(tmp_path: Path) -> None:
    own, heads = random_tensors(triplex(dim=1024, heads=2), seed=7), (1, 8, 2)
    for name in [k for k in own if k.startswith("fusion_encoder") and "to_out" in k]:
        del own[name]  # one head has no projection behind it
    own["fc.bias"] += 1
    width = 1024
    shapes: Shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, 197, width), "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,),
    }  # fmt: skip
    block = {
        "norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width), "norm2": (width,),
        "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width),
    }  # fmt: skip
    shapes |= {"blocks.0.ls1.gamma": (width,), "blocks.0.ls2.gamma": (width,)}
    shapes |= {f"blocks.0.{k}.weight": v for k, v in block.items()}
    shapes |= {f"blocks.0.{k}.bias": v[:1] for k, v in block.items()}
    uni = save_weights(tmp_path / "pytorch_model.bin", random_tensors(shapes, seed=8))
    given = save(tmp_path, own, {"conv1.weight": torch.zeros(1)})
    given = Loading(given.weights, {"extractor": uni}, {**given.options, "heads": "1/8/2"})
    model: Any = load_backbone("triplex", loading=given)
    assert model.card.dim == 1024
    assert given.weights is not None
    assert model.card.weights_sha256 == join_digests(digest_weights(given.weights), digest_weights(uni))

    tiles = noise(3, seed=9)
    embedded = load_backbone("uni", loading=Loading(uni)).encode(np.stack(tiles))
    np.testing.assert_array_equal(model.encode(np.stack(tiles)), embedded)
    spots = SpotContext(
        features=embedded[:1],
        centres=np.array([[400.0, 300.0]]),
        array_rc=np.array([[2, 3]]),
        mpp=0.25,
        pitch_um=100,
        fov_um=112,
        tiles=reader(tiles[:1], [{12: tiles[0], 3: tiles[1], 15: tiles[2]}]),
    )
    found = model.predict(spots, np.array(GENES)).values

    hand = ByHand(own, heads)
    hand.t |= {
        "fusion_encoder.fusion_layer.layers.0.0.fn.to_out.0.weight": torch.eye(1024, dtype=torch.float64),
        "fusion_encoder.fusion_layer.layers.0.0.fn.to_out.0.bias": torch.zeros(1024, dtype=torch.float64),
    }
    near = {12: torch.tensor(embedded[0]), 3: torch.tensor(embedded[1]), 15: torch.tensor(embedded[2])}
    expected = hand.predict(embedded[:1], np.array([[176.0, 76.0]]), last_maps(own, tiles[:1]), [near])
    assert (expected > 0).any()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=2e-4)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Loading:
    return save(tmp_path_factory.mktemp("given"), random_tensors(triplex()), random_tensors(cigar()))


def one_spot(model: Any, **changed: Any) -> SpotContext:
    tiles = noise(1, seed=0)
    held = {"fov_um": 112.0, "tiles": reader(tiles, [{12: tiles[0]}])} | changed
    return SpotContext(
        features=np.zeros((1, model.card.dim), np.float32),
        centres=np.array([[500.0, 500]]),
        array_rc=np.array([[0, 0]]),
        mpp=0.5,
        pitch_um=100,
        **held,
    )


def test_what_is_no_context_for_it_is_refused_with_a_remedy(given: Loading) -> None:
    model: Any = load_backbone("triplex", loading=given)
    genes = np.array(GENES[:1])
    with pytest.raises(BackboneError, match="no slide to read") as told:
        model.predict(one_spot(model, tiles=None), genes)
    assert "Give the slide" in told.value.hint
    with pytest.raises(BackboneError, match="found tiles of 55 um") as told:
        model.predict(one_spot(model, fov_um=55.0), genes)
    assert "--fov-um 112" in told.value.hint


def test_slide_seen_before_does_not_change_the_grid(given: Loading) -> None:
    model: Any = load_backbone("triplex", loading=given)
    tiles, rng = noise(1, seed=0), np.random.default_rng(0)
    slides = [
        SpotContext(
            features=rng.standard_normal((4, 512), dtype=np.float32),
            centres=np.array([[0.0, 0], [step, 0], [0, step], [step, 2 * step]]) + 500,
            array_rc=np.zeros((4, 2), np.int64),
            mpp=0.5,
            pitch_um=100,
            fov_um=112,
            tiles=reader(tiles * 4, [{12: tiles[0]}] * 4),
        )
        for step in (200, 15)
    ]
    genes = np.array(GENES)
    alone: Any = load_backbone("triplex", loading=given)
    model.predict(slides[0], genes)
    np.testing.assert_array_equal(model.predict(slides[1], genes).values, alone.predict(slides[1], genes).values)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"genes": ""}, "5 genes and not their names"),
        ({"heads": "4/16"}, "not three numbers"),
        ({"heads": "4/16/8"}, "8 heads of the neighbour encoder asked, .* has 16"),
        ({"heads": "3/16/16"}, "3 heads .* do not divide the width 512"),
        ({"heads": "1/16/16"}, "2 extra: .*to_out"),
    ],
)
def test_options_that_do_not_fit_the_tensors_are_refused(given: Loading, options: dict[str, str], told: str) -> None:
    with pytest.raises(BackboneError, match=told):
        load_backbone("triplex", loading=Loading(given.weights, given.parts, {**given.options, **options}))


def test_extractor_that_is_missing_or_of_another_width_is_refused(given: Loading, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="extractor weights are not published on a hub") as told:
        load_backbone("triplex", loading=Loading(given.weights, {}, given.options))
    assert "self-supervised-histopathology" in told.value.hint
    shapes = {"cls_token": (1, 1, 1024), "pos_embed": (1, 197, 1024)}
    uni = save_weights(tmp_path / "pytorch_model.bin", random_tensors(shapes))
    with pytest.raises(BackboneError, match=r"takes? embeddings of 512 numbers; .* looks like uni, which gives 1024"):
        load_backbone("triplex", loading=Loading(given.weights, {"extractor": uni}, given.options))


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    own = random_tensors(triplex())
    del own["fc_global.bias"]
    with pytest.raises(BackboneError, match=r"1 missing: fc_global\.bias"):
        load_backbone("triplex", loading=save(tmp_path, own, random_tensors(cigar())))


class Configuration(dict[str, object]):
    """A dict of a package's own kind, as upstream's training puts its configuration into checkpoints."""

    ran = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.ran),))


def test_configuration_pickled_beside_the_tensors_needs_leave_and_is_not_run_even_then(tmp_path: Path) -> None:
    own, extractor = random_tensors(triplex(), seed=11), random_tensors(cigar(), seed=12)
    plain: Any = load_backbone("triplex", loading=save(tmp_path / "plain", own, extractor))
    Configuration.ran = str(tmp_path / "ran")
    held = save(tmp_path / "held", own, extractor, hyper_parameters={"config": Configuration(emb_dim=512)})
    with pytest.raises(BackboneError, match="more than tensors") as told:
        load_backbone("triplex", loading=held)
    assert "--unsafe-pickle" in told.value.hint
    model: Any = load_backbone("triplex", loading=Loading(held.weights, held.parts, held.options, unsafe_pickle=True))
    spots = one_spot(model)
    np.testing.assert_array_equal(
        model.predict(spots, np.array(GENES)).values, plain.predict(spots, np.array(GENES)).values
    )
    assert not (tmp_path / "ran").exists()
