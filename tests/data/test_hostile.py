"""Data from a stranger: nothing in it is run, and nothing outside its folder is read."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
import zlib
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from nt_pretrain.data.errors import DataError
from nt_pretrain.data.labelled_shards import Sample, write_labelled_shard
from nt_pretrain.data.loader import TrainLoader
from nt_pretrain.data.manifest import Manifest, ShardEntry, file_sha256, read_manifest
from nt_pretrain.data.shards import INDEX, Shard, index_path
from tests.data.conftest import Gallery, Sea
from tests.data.photos import encoded, photo


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def resealed(folder: Path, name: str) -> None:
    """Make the manifest fit shard ``name`` again, as its author would."""
    manifest = read_manifest(folder)
    path = folder / name
    new = {"bytes": path.stat().st_size, "sha256": file_sha256(path), "index_sha256": file_sha256(index_path(path))}
    shards = [replace(each, **new) if each.name == name else each for each in manifest.shards]
    (folder / "manifest.json").write_text(replace(manifest, shards=shards).to_text())


def test_members_that_carry_programs_are_bytes_like_any_other(sea: Sea, tmp_path: Path) -> None:
    """A tar of .pkl, .pyd and .pth members, of paths that climb, of links: its index decides what is read."""
    folder = Path(shutil.copytree(sea.text, tmp_path / "sea"))
    shard = sorted((folder / "train").glob("*.tar"))[0]
    count, mark = len(np.load(index_path(shard))), tmp_path / "was-run"
    rows, content = [], json.dumps({"text": "a harmless text"}).encode()
    with tarfile.open(shard, "w") as tar:
        for number, name in enumerate(
            ("0.pkl", "0.pyd", "0.pickle", "0.pth", "../../climbs.jsonl", "/etc/absolute.jsonl")
        ):
            info = tarfile.TarInfo(name)
            payload = pickle.dumps(Bomb(mark)) if number < 4 else content
            info.size = len(payload)
            tar.addfile(info, io.BytesIO(payload))
            rows.append((tar.offset - -(-len(payload) // 512) * 512, len(payload), zlib.crc32(payload)))
        link = tarfile.TarInfo("link.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    np.save(index_path(shard).open("wb"), np.array((rows * count)[:count], dtype=INDEX))
    resealed(folder / "train", shard.name)
    config = sea.config(data={"path": str(folder), "packing": "truncate", "max_bad_fraction": 1.0})
    found = list(islice(TrainLoader(config, rank=0, world=1, position=None), 30))
    faults = [fault for batch in found for fault in batch.faults]
    assert {fault.kind for fault in faults} == {"not a row"}
    assert {fault.shard for fault in faults} == {shard.name}
    assert not mark.exists()
    with pytest.raises(OSError):
        pickle.loads(pickle.dumps(Bomb(tmp_path / "no" / "folder")))  # the bomb is one


@pytest.mark.parametrize(
    "name",
    [
        "../other/a.tar",
        "/etc/passwd",
        "pipe:touch was-run",
        "pipe:cat a.tar",
        "http://somewhere/a.tar",
        "a.tar\n",
        "a/b.tar",
        "..",
        ".tar",
        "a.pkl",
    ],
)
def test_names_in_a_manifest_are_plain_file_names(sea: Sea, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(sea.text, tmp_path / "sea"))
    manifest = read_manifest(folder / "train")
    changed = replace(manifest, shards=[replace(manifest.shards[0], name=name), *manifest.shards[1:]])
    (folder / "train" / "manifest.json").write_text(changed.to_text())
    with pytest.raises(DataError, match="which is no plain file name; do not use this data"):
        TrainLoader(sea.config(data={"path": str(folder)}), rank=0, world=1, position=None)


@pytest.mark.parametrize(
    "change",
    [
        {"shards": [{"name": ["a"], "documents": 1, "bytes": 1, "sha256": "", "index_sha256": ""}]},
        {"shards": [{"name": "a.tar", "documents": -5, "bytes": 1, "sha256": "", "index_sha256": ""}]},
        {"shards": [{"name": "a.tar", "documents": 2**70, "bytes": 1, "sha256": "", "index_sha256": ""}]},
        {"shards": [{"name": "a.tar", "documents": "7", "bytes": 1, "sha256": "", "index_sha256": ""}]},
        {"shards": {"a": 1}},
        {"shards": "x"},
        {"format": "pickle"},
        {"format": "tokens", "dtype": "O"},
        {"format": "tokens", "dtype": "<f8"},
        {"documents": 7},
    ],
)
def test_a_manifest_of_nonsense_is_refused_in_words(sea: Sea, tmp_path: Path, change: dict[str, object]) -> None:
    folder = Path(shutil.copytree(sea.tokens, tmp_path / "sea"))
    path = folder / "train" / "manifest.json"
    content = json.loads(path.read_text()) | change
    with_fingerprint = asdict(Manifest(1, "a", "train", "text", [ShardEntry("a.tar", 1, 1, "", "")], [], "", ""))
    if "shards" in change and isinstance(change["shards"], list) and isinstance(change["shards"][0]["name"], str):
        entry = ShardEntry(**change["shards"][0])
        content["fingerprint"] = Manifest(**(with_fingerprint | {"shards": [entry]})).fingerprint
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"manifest\.json"):
        TrainLoader(sea.config(tokens=True, data={"path": str(folder)}), rank=0, world=1, position=None)


def test_pictures_of_other_formats_never_reach_a_decoder_that_starts_programs(gallery: Gallery, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gallery.pictures, tmp_path / "pictures"))
    shard = sorted((folder / "train").glob("*.tar"))[0]
    count = len(np.load(index_path(shard)))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(was-run) (w) file closefile\n"
    good = encoded(photo(40, 40))
    write_labelled_shard(shard, [Sample(f"k{n}", script if n % 2 else good, "jpg", 0) for n in range(count)])
    resealed(folder / "train", shard.name)
    config = gallery.config(data={"path": str(folder), "max_bad_fraction": 1.0})
    found = list(islice(TrainLoader(config, rank=0, world=1, position=None), 12))
    faults = [fault for batch in found for fault in batch.faults]
    assert {fault.kind for fault in faults} == {"picture not an image"}
    masked = sum(int((batch.labels == -100).sum()) for batch in found)
    assert masked == sum(fault.masked for fault in faults) > 0
    assert all((batch.pixels[batch.labels == -100] == 0).all() for batch in found)


def test_labels_beyond_the_classes_are_refused(gallery: Gallery, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gallery.pictures, tmp_path / "pictures"))
    shard = sorted((folder / "train").glob("*.tar"))[0]
    opened = Shard.open(shard)
    samples = [Sample(f"k{n}", opened.document(n), "jpg", 3) for n in range(len(opened))]
    write_labelled_shard(shard, samples)
    resealed(folder / "train", shard.name)
    config = gallery.config(data={"path": str(folder), "max_bad_fraction": 1.0})
    found = list(islice(TrainLoader(config, rank=0, world=1, position=None), 12))
    faults = [fault for batch in found for fault in batch.faults]
    assert {(fault.kind, fault.shard) for fault in faults} == {("not a label", shard.name)}
