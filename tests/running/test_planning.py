"""What planning writes, and what it refuses to overwrite."""
import json
from dataclasses import replace

import pytest

from c2f_nnunet.data.fingerprint import Fingerprint
from c2f_nnunet.errors import Locked, PlanError, WorkspaceError
from c2f_nnunet.io import records
from c2f_nnunet.planning.plan import read_plan
from c2f_nnunet.running import planning
from c2f_nnunet.training import checkpoint
from c2f_nnunet.workspace import ModelFolder, StoreFolder, lock
from tests.faults.inputs import state


def found(tiny) -> Fingerprint:
    return records.read(Fingerprint, tiny.folder.fingerprint)


def test_the_files(tiny_planned):
    folder = tiny_planned.folder
    assert folder.dataset_json.read_bytes() == (tiny_planned.raw / "dataset.json").read_bytes()
    assert [s.val for s in tiny_planned.model.splits()] == [("t2", "t5"), ("t0", "t1", "t3")]  # the user's own file
    assert len(found(tiny_planned).cases) == 7 and read_plan(folder.plan).fingerprint


@pytest.mark.parametrize("blocked", ["results/901", "results/901/tiny", "preprocessed/901/tiny"])
def test_a_place_that_cannot_be_written(tmp_path, blocked):
    folder, store = ModelFolder(tmp_path / "results" / "901" / "tiny"), StoreFolder(tmp_path / "preprocessed" / "901" / "tiny")
    planning.require_places(folder, store)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / blocked).parent.mkdir(parents=True)
    (tmp_path / blocked).write_text("in the way")
    with pytest.raises(WorkspaceError, match=f"{blocked}: cannot be written"):
        planning.require_places(folder, store)


def test_splits_are_made_where_the_user_has_none(tiny_planned, tmp_path):
    folder = ModelFolder(tmp_path / "model")
    planning.write(folder, tiny_planned.model.plan, found(tiny_planned), tiny_planned.dataset, tmp_path / "nothing")
    folds = records.read_json(folder.splits)
    assert len(folds) == 5 and sorted(c for f in folds for c in f["val"]) == [f"t{i}" for i in range(7)]


@pytest.mark.parametrize("trained", [False, True])  # in its first epoch, and after a checkpoint
def test_nothing_is_written_beside_a_running_training(tiny_planned, tmp_path, trained):
    tiny = tiny_planned.copy(tmp_path / "w")
    run = tiny.folder.run("2d_top", 0)
    if trained:
        checkpoint.save(run.checkpoint("latest"), {}, {})
    before = state(tiny.folder.root)
    with lock(run.root, "training of 2d_top fold 0"):
        with pytest.raises(Locked, match="2d_top/fold_0: training of 2d_top fold 0 is already running on"):
            planning.write(tiny.folder, tiny.model.plan, found(tiny), tiny.dataset, tmp_path)
    assert state(tiny.folder.root) == before


def test_nothing_is_written_while_an_import_places_a_model(tiny_planned, tmp_path):
    tiny = tiny_planned.copy(tmp_path / "w")
    before = state(tiny.folder.root)
    with lock(tiny.folder.root.parent, "import of tiny"), pytest.raises(Locked, match="import of tiny is already running on"):
        planning.write(tiny.folder, tiny.model.plan, found(tiny), tiny.dataset, tmp_path)
    assert state(tiny.folder.root) == before


def test_a_users_folds_that_come_too_late_are_told(tiny_planned, tmp_path, caplog):
    """Members may have been trained on the folds that stand."""
    tiny = tiny_planned.copy(tmp_path / "w")
    own = tiny.workspace.preprocessed / tiny.raw.name
    given = (tiny.model.plan, found(tiny), tiny.dataset, own)
    planning.write(tiny.folder, *given)
    assert not caplog.text
    other = [{"train": ["t0", "t1"], "val": [f"t{i}" for i in range(2, 7)]}]
    (own / "splits_final.json").write_text(json.dumps(other))
    planning.write(tiny.folder, *given)
    assert f"{own / 'splits_final.json'}: other folds than those of {tiny.folder.splits}, which stand; remove that file" in caplog.text
    assert len(tiny.model.splits()) == 2
    tiny.folder.splits.unlink()
    planning.write(tiny.folder, *given)
    assert len(tiny.model.splits()) == 1


def test_another_plan_is_refused_where_members_are_trained(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    plan, before = tiny.model.plan, tiny.folder.plan.read_bytes()
    own = tiny.workspace.preprocessed / plan.dataset
    planning.write(tiny.folder, plan, found(tiny), tiny.dataset, own)  # the same plan again
    other = replace(plan, coarse=replace(plan.coarse, spacing_mm=(5.0, 5.0, 5.0)))
    message = r"plan.json: 2d_front, 2d_side, 2d_top, 3d_Gland, 3d_Stem were trained with another plan .* or give -pl .*plan.json"
    with pytest.raises(PlanError, match=message):
        planning.write(tiny.folder, other, found(tiny), tiny.dataset, own)
    assert tiny.folder.plan.read_bytes() == before
    kept = planning.choose(str(tiny.folder.plan), tiny.dataset, found(tiny), None, None)
    planning.write(tiny.folder, kept, found(tiny), tiny.dataset, own)  # the stated remedy works


def test_trained_members_do_not_mind_a_changed_data_set_where_the_plan_stays(tiny_trained, tmp_path):
    """A corrected label changes the fingerprint, and with -pl plan.json, or by itself, nothing that networks depend on."""
    tiny = tiny_trained.copy(tmp_path / "w")
    now = found(tiny)
    now = replace(now, cases=now.cases[:-1])
    kept = planning.choose(str(tiny.folder.plan), tiny.dataset, now, None, None)
    assert kept.fingerprint != tiny.model.plan.fingerprint
    planning.write(tiny.folder, kept, now, tiny.dataset, tiny.workspace.preprocessed / kept.dataset)
    assert tiny.model.plan == kept and len(found(tiny).cases) == 6


def test_budget(monkeypatch):
    assert planning.budget(5.0).memory_gb == 5.0 and planning.budget(5.0).accelerator
    monkeypatch.setattr(planning.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(planning.torch.backends.mps, "is_available", lambda: False)
    for memory, expected in ((16.0, 4.0), (256.0, 8.0)):
        monkeypatch.setattr(planning, "machine_memory_gb", lambda memory=memory: memory)
        assert planning.budget(None).memory_gb == expected and not planning.budget(None).accelerator
    monkeypatch.setattr(planning.torch.cuda, "is_available", lambda: True)
    assert planning.budget(None).memory_gb == 8.0 and planning.budget(None).accelerator
