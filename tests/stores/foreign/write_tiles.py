"""Embeddings of tiles in HDF5 and torch files, as TRIDENT, CLAM, STAMP, HEST-bench and slide2vec write them."""

import dataclasses
import json

import numpy as np

SIDE_PX, MPP = 32, 0.5
VIEWS, SAMPLES = 7, 20


@dataclasses.dataclass(frozen=True)
class Truth:
    """Spots of one slide, in the order in which a file has them."""

    names: np.ndarray
    centres: np.ndarray
    values: np.ndarray
    genes: np.ndarray

    def rows(self, order):
        return Truth(self.names[order], self.centres[order], self.values[order], self.genes)

    @property
    def corners(self):
        return (self.centres - SIDE_PX / 2).astype(np.int64)


def make_truth(n=12, k=6, seed=0):
    rng = np.random.default_rng(seed)
    rc = np.array([(i // 4, i % 4) for i in range(n)])
    return Truth(
        names=np.array([f"{'ACGT'[i % 4]}{'ACGT'[i // 4 % 4]}{i:04d}-1" for i in range(n)]),
        centres=(rc[:, ::-1] * 48.0 + 100).astype(np.float64),
        values=rng.normal(size=(n, k)).astype(np.float16).astype(np.float32),
        genes=np.array([f"GENE{i}" for i in range(k)]),
    )


def h5(path, datasets, attributes=None, root=None):
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, array in datasets.items():
            made = file.create_dataset(name, data=array)
            for key, value in (attributes or {}).get(name, {}).items():
                made.attrs[key] = value
        file.attrs.update(root or {})
    return path


TRIDENT = {
    "patch_size": 16, "patch_size_level0": SIDE_PX, "level0_magnification": 40, "target_magnification": 20,
    "overlap": 0, "name": "S", "savetodir": "out", "level0_width": 1000, "level0_height": 1000,
}  # fmt: skip
CLAM = {
    "patch_size": 8, "patch_level": 1, "downsample": (4.0, 4.0), "downsampled_level_dim": (250, 250),
    "level_dim": (1000, 1000), "name": "S", "save_path": "out",
}  # fmt: skip


def trident(folder, t):
    made = {"name": "S", "savetodir": "out/20x_16px_0px_overlap/features_uni_v1", "encoder": "uni_v1"}
    return h5(folder / "S.h5", {"features": t.values, "coords": t.corners}, {"features": made, "coords": TRIDENT})


def trident_early(folder, t):
    """0.1: no encoder, no patch_size_level0; half precision."""
    coords = {k: v for k, v in TRIDENT.items() if k not in ("patch_size_level0", "level0_width", "level0_height")}
    made = {"name": "S", "savetodir": "out/20x_16px_0px_overlap/features_uni_v1"}
    return h5(
        folder / "S.h5",
        {"features": t.values.astype(np.float16), "coords": t.corners},
        {"features": made, "coords": coords},
    )


def trident_batched(folder, t):
    """With a leading axis of 1, as slide encoders take it."""
    return h5(
        folder / "S.h5",
        {"features": t.values[None], "coords": t.corners[None]},
        {"features": {"name": "S", "savetodir": "features_uni_v1"}, "coords": TRIDENT},
    )


def trident_on_fishing_rod(folder, t):
    coords = {"patch_size": 16, "patch_level": 0, "custom_downsample": 2}
    made = {"name": "S", "savetodir": "x/features_uni_v1"}
    return h5(folder / "S.h5", {"features": t.values, "coords": t.corners}, {"features": made, "coords": coords})


def clam(folder, t):
    """The features have no attributes; the side of a tile stands in the file of patches, here in another order."""
    h5(folder / "patches" / "S.h5", {"coords": t.corners[::-1]}, {"coords": CLAM})
    return h5(folder / "h5_files" / "S.h5", {"features": t.values, "coords": t.corners.astype(np.int32)})


def clam_features_elsewhere(folder, t):
    h5(folder / "patches" / "S.h5", {"coords": t.corners}, {"coords": CLAM})
    return h5(folder / "FEATURES" / "h5_files" / "S.h5", {"features": t.values, "coords": t.corners})


def clam_with_attributes(folder, t):
    return h5(folder / "S.h5", {"features": t.values, "coords": t.corners}, {"coords": CLAM})


def stamp(folder, t, **attributes):
    root = {
        "stamp_version": "2.1.0", "extractor": "mahmood-uni", "unit": "um", "tile_size_um": SIDE_PX * MPP,
        "tile_size_px": 16, "code_hash": "abcd", "feat_type": "tile", **attributes,
    }  # fmt: skip
    return h5(
        folder / "S.h5",
        {"coords": (t.corners * MPP).astype(np.float32), "feats": t.values.astype(np.float16)},
        root={k: v for k, v in root.items() if v is not None},
    )


def stamp_2_0(folder, t):
    return stamp(
        folder, t, stamp_version=None, tile_size_um=None, tile_size_px=None, feat_type=None, tile_size=SIDE_PX * MPP
    )


def stamp_without_unit(folder, t):
    return stamp(folder, t, stamp_version=None, unit=None, tile_size_px=None, feat_type=None)


def stamp_patch_embeddings(folder, t):
    return h5(
        folder / "S.h5",
        {"coords": (t.corners * MPP).astype(np.float32), "patch_embeddings": t.values},
        root={"extractor": "mahmood-uni", "unit": "um", "tile_size_um": SIDE_PX * MPP},
    )


def hest(folder, t):
    """(n, 1) bytes of one length, as the DataLoader of the benchmark collates barcodes."""
    return h5(
        folder / "S.h5",
        {"embeddings": t.values, "barcodes": t.names.astype("S")[:, None], "coords": t.corners},
    )


def hest_text(folder, t):
    """save_hdf5 stores objects as text."""
    import h5py

    return h5(
        folder / "S.h5",
        {"embeddings": t.values, "barcodes": t.names.astype(h5py.string_dtype())[:, None], "coords": t.corners},
    )


def _slide2vec_meta(path, **more):
    meta = {
        "sample_id": "S", "artifact_type": "tile_embeddings", "encoder_name": "uni", "feature_dim": 6,
        "requested_spacing_um": 1.0, "requested_tile_size_px": 16, "tile_size_lv0": SIDE_PX, **more,
    }  # fmt: skip
    path.write_text(json.dumps(meta))


def _slide2vec_tiles(folder, t):
    folder.mkdir(parents=True, exist_ok=True)
    n = len(t.names)
    np.savez(
        folder / "S.coordinates.npz", x=t.corners[:, 0], y=t.corners[:, 1], tile_index=np.arange(n, dtype=np.int32),
        tissue_fractions=np.ones(n, np.float32),
    )  # fmt: skip
    told = {
        "provenance": {"sample_id": "S"},
        "slide": {"dimensions": [1000, 1000], "base_spacing_um": MPP},
        "tiling": {"requested_tile_size_px": 16, "requested_spacing_um": 1.0, "tile_size_lv0": SIDE_PX},
    }
    (folder / "S.coordinates.meta.json").write_text(json.dumps(told))


def save_tensor(path, array):
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torch.from_numpy(np.array(array)), path)
    return path


def slide2vec(folder, t, sub=""):
    path = folder / "tile_embeddings" / sub / "S.pt"
    save_tensor(path, t.values.astype(np.float16))
    _slide2vec_meta(path.with_name("S.meta.json"))
    _slide2vec_tiles(folder / "tiles" / sub, t)
    return path


def slide2vec_class(folder, t):
    return slide2vec(folder, t, "tumor")


def slide2vec_npz(folder, t):
    """Features with the numbers of their tiles, in another order than the coordinates."""
    path = folder / "tile_embeddings" / "S.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(5).permutation(len(t.names))
    np.savez_compressed(path, features=t.values[order], tile_index=order)
    _slide2vec_meta(path.with_name("S.meta.json"))
    _slide2vec_tiles(folder / "tiles", t)
    return path


def slide2vec_recorded(folder, t):
    """The coordinates are only where the metadata say that they were written."""
    _slide2vec_tiles(folder / "reused", t)
    path = save_tensor(folder / "run" / "tile_embeddings" / "S.pt", t.values)
    _slide2vec_meta(path.with_name("S.meta.json"), coordinates_npz_path=str(folder / "reused" / "S.coordinates.npz"))
    return path


def slide2vec_3(folder, t):
    (folder / "coordinates").mkdir()
    np.savez(
        folder / "coordinates" / "S.tiles.npz", x_lv0=t.corners[:, 0], y_lv0=t.corners[:, 1],
        tile_index=np.arange(len(t.names)), tissue_fraction=np.ones(len(t.names)),
    )  # fmt: skip
    told = {"sample_id": "S", "target_spacing_um": 1.0, "target_tile_size_px": 16, "tile_size_lv0": SIDE_PX}
    (folder / "coordinates" / "S.tiles.meta.json").write_text(json.dumps(told))
    return save_tensor(folder / "features" / "S.pt", t.values)


def _slide2vec_1_tiles(folder, t):
    (folder / "coordinates").mkdir(parents=True)
    kinds = [
        ("x", int), ("y", int), ("tile_size_resized", int), ("tile_level", int), ("resize_factor", float),
        ("tile_size_lv0", int), ("target_spacing", float),
    ]  # fmt: skip
    rows = [(int(x), int(y), 16, 0, 1.0, SIDE_PX, 1.0) for x, y in t.corners]
    np.save(folder / "coordinates" / "S.npy", np.array(rows, dtype=kinds))


def slide2vec_1(folder, t):
    _slide2vec_1_tiles(folder, t)
    return save_tensor(folder / "features" / "S-tiles.pt", t.values)


def slide2vec_npy(folder, t):
    _slide2vec_1_tiles(folder, t)
    (folder / "features").mkdir()
    np.save(folder / "features" / "S.npy", t.values)
    return folder / "features" / "S.npy"
