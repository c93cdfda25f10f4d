"""FAULTS row 14: a data set or a plan that changes after it was preprocessed."""
import json
import shutil

import numpy as np
import pytest

from c2f_nnunet.io import records
from c2f_nnunet.io.images import read_label, write_label
from c2f_nnunet.running import preprocess
from tests.faults.inputs import plan
from tests.faults.trainings import folder, train


def edit(path) -> None:
    """An organ is taken out of a label map."""
    label = read_label(path)
    write_label(path, np.where(label.array == 2, 0, label.array), label.source)


def test_row_14_a_label_edited_after_preprocessing(tiny):
    edit(tiny.raw / "labelsTr" / "t1.nii.gz")
    code, printed = train(tiny)
    assert code == 1 and "Dataset901_Tiny: changed after preprocessing: t1; run c2f_plan_and_preprocess -d Dataset901_Tiny" in printed
    assert not folder(tiny).root.exists()


@pytest.mark.parametrize("read", ["read_image", "prepare_labels"])
def test_row_14_a_label_edited_while_it_is_preprocessed(tiny, monkeypatch, read):
    """After it was hashed, and before or after it was read: the marker that is written later does not hide it."""
    path, function = tiny.raw / "labelsTr" / "t1.nii.gz", getattr(preprocess, read)
    older = path.read_bytes()

    def edit_label(*args):
        found = function(*args)
        if path.read_bytes() == older and (tiny.store.volumes("coarse") / "t0.done").exists():
            edit(path)
        return found

    shutil.rmtree(tiny.store.root)
    monkeypatch.setattr(preprocess, read, edit_label)
    assert plan(tiny) == 0 and path.read_bytes() != older
    code, printed = train(tiny)
    assert code == 1 and "Dataset901_Tiny: changed after preprocessing: t1; run c2f_plan_and_preprocess -d Dataset901_Tiny" in printed
    assert not folder(tiny).root.exists()
    monkeypatch.undo()
    assert plan(tiny) == 0
    code, printed = train(tiny, epochs=1)
    assert code == 0, printed


def test_row_14_other_organs_annotated_after_preprocessing(tiny):
    path = tiny.raw / "dataset.json"
    path.write_text(path.read_text().replace('"annotated": {"t4": ["Stem"]}', '"annotated": {"t4": ["Stem"], "t6": ["Stem"]}'))
    code, printed = train(tiny)
    assert code == 1 and "changed after preprocessing: t6; run" in printed


def test_row_14_files_that_were_only_touched(tiny):
    for path in tiny.raw.rglob("*.nii.gz"):
        path.touch()
    code, printed = train(tiny, epochs=1)
    assert code == 0, printed


def test_row_14_the_plan_edited_after_preprocessing(tiny):
    made = json.loads(tiny.folder.plan.read_text())
    member = next(m for m in made["fine"]["members"] if m["name"] == "3d_Stem")
    member["spacing_mm"] = [3.0, 3.0, 3.0]
    records.write(tiny.folder.plan, made)
    code, printed = train(tiny)
    assert code == 1 and "3d_Stem: not preprocessed by this plan: t0, t1, " in printed
    assert not folder(tiny).root.exists()
