"""FAULTS row 14: a data set or a plan that changes after it was preprocessed."""
import json

import numpy as np

from c2f_nnunet.io import records
from c2f_nnunet.io.images import read_label, write_label
from tests.faults.trainings import folder, train


def test_row_14_a_label_edited_after_preprocessing(tiny):
    path = tiny.raw / "labelsTr" / "t1.nii.gz"
    label = read_label(path)
    write_label(path, np.where(label.array == 2, 0, label.array), label.source)
    code, printed = train(tiny)
    assert code == 1 and "Dataset901_Tiny: changed after preprocessing: t1; run c2f_plan_and_preprocess -d Dataset901_Tiny" in printed
    assert not folder(tiny).root.exists()


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
    plan = json.loads(tiny.folder.plan.read_text())
    member = next(m for m in plan["fine"]["members"] if m["name"] == "3d_Stem")
    member["spacing_mm"] = [3.0, 3.0, 3.0]
    records.write(tiny.folder.plan, plan)
    code, printed = train(tiny)
    assert code == 1 and "3d_Stem: not preprocessed by this plan: t0, t1, " in printed
    assert not folder(tiny).root.exists()
