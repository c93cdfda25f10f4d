from dataclasses import replace

import numpy as np
import pytest

from c2f_nnunet.data.store import Store, StoredRecord
from c2f_nnunet.errors import DatasetError
from c2f_nnunet.geometry import Box, Geometry


def item(volume_id="c1", case="c1") -> StoredRecord:
    return StoredRecord(
        volume_id, case, Geometry((5, 40, 33), (2.0, 1.0, 1.0)), (4.5, 19.5, 16.0), False, ("Stem",), {"Stem": Box((0, 1, 2), (3, 4, 5))},
        "source", "plan",
    )  # fmt: skip


def arrays(seed=0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(-1024, 3000, (5, 40, 33)).astype(np.int16), rng.integers(0, 3, (5, 40, 33)).astype(np.uint8)


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path / "coarse")
    made.write(item(), *arrays())
    return made


def test_what_is_written_is_read(store):
    (volume,) = store.read()
    image, labels = arrays()
    assert np.array_equal(volume.image[:], image) and volume.image.dtype == np.int16
    assert np.array_equal(volume.labels[:], labels) and volume.labels.dtype == np.uint8
    assert np.array_equal(volume.image[2:4, 5:9, -3:40], image[2:4, 5:9, -3:40])  # a part is read as numpy would
    volume.verify()
    r = volume.record
    assert (r.geometry, r.anchor_index, r.boxes) == (item().geometry, item().anchor_index, item().boxes)
    assert len(r.image_sha256) == len(r.labels_sha256) == len(r.record_sha256) == 64 and r.image_sha256 != r.labels_sha256


def test_views_of_arrays_are_stored_as_they_look(tmp_path):
    image, labels = arrays()
    Store(tmp_path).write(item(), image[..., ::-1], labels.transpose(0, 2, 1).transpose(0, 2, 1)[..., ::-1])
    (volume,) = Store(tmp_path).read()
    assert np.array_equal(volume.image[:], image[..., ::-1]) and np.array_equal(volume.labels[:], labels[..., ::-1])


@pytest.mark.parametrize("kind", ["image", "labels"])
def test_a_flipped_bit_is_noticed(store, kind):
    path = store.folder / f"c1_{kind}.b2nd"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=f"c1_{kind}.b2nd: stored volume is damaged .*run c2f_plan_and_preprocess again"):
        store.read()[0].verify()


@pytest.mark.parametrize("old, new", [
    ("19.5", "18.5"),  # the body's anchor
    ("39", "38"), ('"c1"', '"c3"'), ("false", "true "), ('"plan"', '"plan "'), ('"record_sha256"', '"record_sha257"'), ("{", "["),
])  # fmt: skip
def test_a_changed_record_is_noticed(store, old, new):
    path = store.folder / "c1.json"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(DatasetError, match=r"c1.json: stored volume is damaged \(its record.*\); run c2f_plan_and_preprocess again"):
        store.read()
    assert not store.is_sound("c1")


def test_whole_numbers_in_a_record_are_no_damage(tmp_path):
    """A caller's 4 is read as 4.0, and numpy's numbers as Python's."""
    store = Store(tmp_path)
    store.write(replace(item(), anchor_index=(4, np.float64(19.5), np.float32(16.1))), *arrays())
    assert store.read()[0].record.anchor_index == (4.0, 19.5, float(np.float32(16.1))) and store.is_sound("c1")


def test_a_missing_file_is_named(store):
    (store.folder / "c1_labels.b2nd").unlink()
    (volume,) = store.read()
    with pytest.raises(DatasetError, match="c1_labels.b2nd: stored volume is missing; run"):
        volume.verify()
    with pytest.raises(DatasetError, match="c1_labels.b2nd: stored volume is missing or damaged"):
        volume.labels
    assert volume.image.shape == (5, 40, 33)


def test_a_file_cut_short_is_named(store):
    path = store.folder / "c1_image.b2nd"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DatasetError, match="c1_image.b2nd: stored volume is missing or damaged"):
        store.read()[0].image


def test_a_volume_without_record_is_unfinished(store, monkeypatch):
    """Killed while a volume is written anew: the old record must not stand beside new arrays."""
    def killed(self, name, array):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "_write_array", killed)
    with pytest.raises(KeyboardInterrupt):
        store.write(item(), *arrays(1))
    assert store.read() == ()


def test_writing_anew_replaces(store):
    store.write(item(), *arrays(1))
    (volume,) = store.read()
    volume.verify()
    assert np.array_equal(volume.image[:], arrays(1)[0])
    assert sorted(p.name for p in store.folder.iterdir()) == ["c1.json", "c1_image.b2nd", "c1_labels.b2nd"]


def test_volumes_of_cases(store):
    store.write(item("c2__Gland_L", "c2"), *arrays(2))
    store.write(item("c2__Gland_R", "c2"), *arrays(3))
    assert [v.record.id for v in store.of_cases(["c2", "c9"])] == ["c2__Gland_L", "c2__Gland_R"]
    assert store.of_cases(["c9"]) == ()


def test_remove(store):
    store.remove("c1")
    store.remove("never there")
    assert store.read() == () and list(store.folder.iterdir()) == []
    assert Store(store.folder / "nowhere").read() == ()
