"""Preprocessing redoes what changed, and nothing else."""
import json
from dataclasses import replace

import numpy as np
import pytest

from c2f_nnunet.data.store import Store
from c2f_nnunet.errors import DatasetError
from c2f_nnunet.io import durable, records
from c2f_nnunet.io.images import read_label, write_label
from c2f_nnunet.planning.plan import Plan
from c2f_nnunet.running.preprocess import preprocess, require_prepared


@pytest.fixture
def tiny(tiny_planned, tmp_path):
    return tiny_planned.copy(tmp_path / "w")


def made(tiny, plan=None, members=None) -> dict[str, int]:
    """Case → number of volumes made; cases of which all stood already are left out."""
    plan = plan or tiny.model.plan
    return {d.case: d.made for d in preprocess(tiny.dataset, plan, tiny.store, members or plan.members, 1) if d.made}


def stored(tiny) -> dict[str, tuple[bytes, bytes]]:
    """Every stored volume's id and content."""
    folders = sorted(f for f in tiny.store.root.iterdir() if f.is_dir())
    return {f"{f.name}/{v.record.id}": (v.image[:].tobytes(), v.labels[:].tobytes()) for f in folders for v in Store(f).read()}


def test_what_is_stored(tiny):
    """One coarse volume a case; a crop per annotated organ, at its usual place where it is absent (t3's right gland); t4 has a known stem only."""
    cases = [f"t{i}" for i in range(7)]
    glands = {f"3d_Gland/{c}__{o}" for c in cases for o in ("Gland_L", "Gland_R")}
    glands -= {"3d_Gland/t4__Gland_L", "3d_Gland/t4__Gland_R"}
    assert set(stored(tiny)) == {f"coarse/{c}" for c in cases} | {f"3d_Stem/{c}__Stem" for c in cases} | glands
    crops = {v.record.id: v.record for v in Store(tiny.store.volumes("3d_Gland")).read()}
    assert crops["t0__Gland_L"].mirrored and not crops["t0__Gland_R"].mirrored
    assert {i for i, record in crops.items() if not record.boxes} == {"t3__Gland_R"}
    absent = next(v for v in Store(tiny.store.volumes("3d_Gland")).read() if v.record.id == "t3__Gland_R")
    assert not absent.labels[:].any() and (absent.image[:] > -500).any() and absent.record.geometry.shape == (20, 20, 20)
    assert crops["t0__Gland_L"].geometry.shape == (20, 20, 20)  # the member's 16, and two voxels of jitter on each side
    coarse = {v.record.case: v for v in Store(tiny.store.volumes("coarse")).read()}
    assert coarse["t4"].record.known == ("Stem",) and set(np.unique(coarse["t4"].labels[:])) == {0, 3}
    assert coarse["t3"].record.known == ("Gland_L", "Gland_R", "Stem") and set(coarse["t3"].record.boxes) == {"Gland_L", "Stem"}
    for volume in coarse.values():
        volume.verify()


def test_a_second_run_makes_nothing(tiny):
    before = stored(tiny)
    assert made(tiny) == {} and stored(tiny) == before


def test_an_edited_label_is_redone_alone(tiny):
    before = stored(tiny)
    path = tiny.raw / "labelsTr" / "t2.nii.gz"
    label = read_label(path)
    write_label(path, np.where(label.array == 2, 0, label.array), label.source)
    assert made(tiny) == {"t2": 3}
    after = stored(tiny)
    crop = next(v for v in Store(tiny.store.volumes("3d_Gland")).read() if v.record.id == "t2__Gland_R")
    assert before.keys() == after.keys() and not crop.record.boxes  # the organ is gone from the case; its place is still shown
    changed = {k for k in after if after[k] != before[k]}
    assert changed == {"coarse/t2", "3d_Gland/t2__Gland_R"}  # the crops of the others came out the same


def test_a_newly_annotated_organ_is_redone_alone(tiny):
    source = tiny.raw / "dataset.json"
    source.write_text(json.dumps(json.loads(source.read_text()) | {"annotated": {"t4": ["Stem", "Gland_L"]}}))
    assert made(tiny) == {"t4": 3} and "3d_Gland/t4__Gland_L" in stored(tiny)


def test_a_changed_plan_redoes_its_volumes_of_all_cases(tiny):
    plan = tiny.model.plan
    stem = replace(plan.member("3d_Stem"), spacing_mm=(4.0, 4.0, 3.0))
    plan = replace(plan, fine=replace(plan.fine, members=tuple(stem if m.name == "3d_Stem" else m for m in plan.fine.members)))
    with pytest.raises(DatasetError, match=r"3d_Stem: not preprocessed by this plan: t0, t1, t2, t3, t4 and 2 more; run it again"):
        require_prepared(tiny.store, stem, plan, tuple(f"t{i}" for i in range(7)), "it again")
    assert made(tiny, plan) == {f"t{i}": 1 for i in range(7)}
    require_prepared(tiny.store, stem, plan, ("t0", "t6"), "it again")
    assert made(tiny, replace(plan, labels=replace(plan.labels, ids=(1, 2, 3)))) == {}
    lower = replace(plan.fine.members[0].training, learning_rate=1e-9)
    assert made(tiny, replace(plan, fine=replace(plan.fine, members=(replace(plan.fine.members[0], training=lower), stem)))) == {}


def test_only_the_members_asked_for_are_made(tiny):
    path = tiny.raw / "labelsTr" / "t0.nii.gz"
    label = read_label(path)
    write_label(path, np.where(label.array == 3, 0, label.array), label.source)
    assert made(tiny, members=(tiny.model.plan.member("2d_top"),)) == {"t0": 1}
    assert made(tiny) == {"t0": 2}  # both fine members; the views share one volume


@pytest.mark.parametrize("name", ["t1", "t**", "t[1]", "t?"])
def test_a_removed_case_leaves_the_store(tiny, name):
    """Its name may hold what stands for other names in a pattern."""
    others = {k: v for k, v in stored(tiny).items() if "t1" not in k}
    files = [(tiny.raw / "imagesTr", "_0000.nii.gz"), (tiny.raw / "labelsTr", ".nii.gz")]
    for folder, ending in files:
        (folder / f"t1{ending}").rename(folder / f"{name}{ending}")
    assert made(tiny) == ({} if name == "t1" else {name: 3})
    for folder, ending in files:
        (folder / f"{name}{ending}").unlink()
    source = tiny.raw / "dataset.json"
    source.write_text(json.dumps(json.loads(source.read_text()) | {"numTraining": 6}))
    assert made(tiny) == {}
    assert stored(tiny) == others and not [p for p in tiny.store.root.glob("*/*") if p.name.startswith((name, "t1"))]


def test_crops_of_an_organ_by_an_earlier_name_are_removed(tiny):
    """Glnd_L and Glnd_R share the folder of the pair's network, as Gland_L and Gland_R did: whatever lies there would be trained on."""
    source, plan = tiny.raw / "dataset.json", tiny.model.plan
    source.write_text(source.read_text().replace("Gland_", "Gland "))
    renamed = records.from_json(Plan, json.loads(records.to_text(plan).replace("Gland_", "Gland ")), "renamed")
    assert {m.volumes for m in renamed.fine.members} == {m.volumes for m in plan.fine.members}
    preprocess(tiny.dataset, renamed, tiny.store, renamed.fine.members, 1)
    volumes = Store(tiny.store.volumes("3d_Gland")).read()
    assert {v.record.known[0] for v in volumes} == {"Gland L", "Gland R"} and not list(tiny.store.volumes("3d_Gland").glob("*Gland_L*"))


class Killed(BaseException):
    """As a kill: nothing may catch it."""


def test_a_killed_run_goes_on(tiny, monkeypatch):
    """Killed while the second case's crops are written: the first case stands, the rest is made, and all is as without the kill."""
    wanted = stored(tiny)
    for path in sorted(tiny.store.root.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    write, count = Store.write, []

    def dying(self, item, image, labels):
        count.append(item.id)
        if item.id == "t1__Gland_R":
            self._write_array(f"{item.id}_image.b2nd", image)
            raise Killed
        write(self, item, image, labels)

    monkeypatch.setattr(Store, "write", dying)
    with pytest.raises(Killed):
        made(tiny)
    monkeypatch.undo()
    (tiny.store.volumes("coarse") / f"{durable.TEMPORARY_MARK}999999-{durable.HOST}-1-t1.json").write_text("cut")
    redone = made(tiny)
    assert "t0" not in redone and redone["t1"] == 2 and redone["t2"] == 3  # of t1 the coarse volume stands
    assert stored(tiny) == wanted and not list(tiny.store.root.glob("*/.tmp*"))


def test_a_damaged_marker_is_made_again(tiny):
    (tiny.store.volumes("coarse") / "t2.done").write_bytes(b"\xff\xfe")
    (tiny.store.volumes("3d_Stem") / "t2.done").write_bytes(b"")
    with pytest.raises(DatasetError, match="3d_Stem: not preprocessed by this plan: t2; run it again"):
        require_prepared(tiny.store, tiny.model.plan.member("3d_Stem"), tiny.model.plan, ("t1", "t2"), "it again")
    assert made(tiny) == {"t2": 2}


def test_a_lost_file_is_made_again(tiny):
    (tiny.store.volumes("coarse") / "t3_labels.b2nd").unlink()
    assert made(tiny) == {"t3": 1}
