"""The page of the files beside the records that they hold: every key is named there."""
import re
from pathlib import Path

import pytest

from c2f_nnunet.data.splits import Split
from c2f_nnunet.data.store import StoredRecord
from c2f_nnunet.inference.agreement import Evidence
from c2f_nnunet.inference.checks import Check, Checked
from c2f_nnunet.inference.fusion import FusionFile, FusionWeights, OrganFit
from c2f_nnunet.inference.limits import HeldOut
from c2f_nnunet.inference.presence import Presence
from c2f_nnunet.planning.plan import CoarsePlan, FinePlan, MemberPlan, OrganPrior, Plan
from c2f_nnunet.running.export import Manifest
from c2f_nnunet.running.viewing import ViewedCase, ViewedOrgan, ViewerIndex
from c2f_nnunet.training.train import TrainSettings

PAGE = (Path(__file__).resolve().parents[2] / "documentation" / "files.md").read_text(encoding="utf-8")
SECTIONS = {  # heading → the records that are shown below it
    "plan.json": (Plan, CoarsePlan, FinePlan, MemberPlan, OrganPrior),
    "fingerprint.json and splits_final.json": (Split,),
    "A training's folder": (TrainSettings,),
    "fusion.json": (FusionFile, FusionWeights, OrganFit, Presence, HeldOut),
    "CASE.json and checks.json": (Checked, Check, Evidence),
    "viewer/": (ViewerIndex, ViewedCase, ViewedOrgan),
    "Preprocessed volumes": (StoredRecord,),
    "The archive of a model": (Manifest,),
}


@pytest.mark.parametrize("heading, records", SECTIONS.items(), ids=list(SECTIONS))
def test_every_key_of_a_file_is_named(heading, records):
    text = re.search(rf"(?ms)^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", PAGE)[1]
    keys = {key for record in records for key in record.__dataclass_fields__}
    assert keys and not [key for key in sorted(keys) if not re.search(rf'"{key}"|`{key}`', text)]
