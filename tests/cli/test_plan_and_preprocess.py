"""c2f_plan_and_preprocess: each option in the work that is done, its order, what is shown, and how it ends."""
import os
from contextlib import ExitStack
from types import SimpleNamespace

import pytest

from c2f_nnunet.cli import plan_and_preprocess
from c2f_nnunet.errors import DatasetError
from c2f_nnunet.running import planning, preprocess
from c2f_nnunet.running.preprocess import Done
from c2f_nnunet.workspace import lock


@pytest.fixture
def work(tiny_planned, monkeypatch):
    """What was to be done, in order: nothing is measured or made, and whatever is asked for, tiny's plan is chosen."""
    plan = tiny_planned.model.plan
    seen = SimpleNamespace(order=[])

    def fingerprint(dataset, processes, on_case):
        seen.order.append("fingerprint")
        seen.dataset, seen.processes = dataset, processes
        return "fingerprint"

    def choose(wanted, dataset, found, target_gb, spacing_mm):
        assert found == "fingerprint"
        seen.order.append("choose")
        seen.wanted, seen.target_gb, seen.spacing_mm = wanted, target_gb, spacing_mm
        return plan

    def write(folder, plan, found, dataset, preprocessed):
        seen.order.append("write")
        seen.folder, seen.preprocessed = folder, preprocessed

    def clean(store):
        seen.order.append("clean")
        seen.cleaned = store

    def make(dataset, plan, store, members, processes, on_case):
        seen.order.append("preprocess")
        seen.store, seen.members, seen.preprocessing = store, [m.name for m in members], processes
        return [Done("t0", 3, 0), Done("t1", 0, 3), Done("t2", 1, 2)]

    for module, stand_in in ((planning, fingerprint), (planning, choose), (planning, write), (planning, clean)):
        monkeypatch.setattr(module, stand_in.__name__, stand_in)
    monkeypatch.setattr(preprocess, "preprocess", make)
    return seen


ALL = ["2d_top", "2d_front", "2d_side", "3d_Gland", "3d_Stem"]


def test_without_options_the_only_data_set_is_planned_by_auto_and_preprocessed(tiny_raw, work, capsys):
    assert plan_and_preprocess.main(tiny_raw.args()) == 0
    assert work.order == ["fingerprint", "choose", "write", "preprocess"]
    assert work.dataset == tiny_raw.dataset and (work.wanted, work.target_gb, work.spacing_mm) == ("auto", None, None)
    assert work.folder.root == tiny_raw.folder.root.with_name("auto") and work.preprocessed == tiny_raw.workspace.preprocessed / "Dataset901_Tiny"
    assert (work.store.root, work.members) == (tiny_raw.store.root.with_name("auto"), ALL)
    assert work.processes == work.preprocessing == os.cpu_count()
    shown = capsys.readouterr().out
    assert "  1. plan 'tiny' for Dataset901_Tiny: memory target" in shown and f"written: {work.folder.plan}" in shown
    assert f"preprocessed: 2 of 3 cases made, the others stood already; in {work.store.root}" in shown


@pytest.mark.parametrize("args", [["-d", "901"], ["-d", "0901"], ["-d", "Dataset901_Tiny"]])
def test_the_data_set(tiny_raw, work, args):
    assert plan_and_preprocess.main(tiny_raw.args(*args)) == 0
    assert work.dataset.name == "Dataset901_Tiny"


@pytest.mark.parametrize("name", ["auto", "paper_han"])
def test_a_known_plan(tiny_raw, work, name):
    assert plan_and_preprocess.main(tiny_raw.args("-pl", name)) == 0
    assert work.wanted == name


def test_a_plan_of_ones_own(tiny_raw, work):
    assert plan_and_preprocess.main(tiny_raw.args("-pl", tiny_raw.plan_file)) == 0
    assert work.wanted == str(tiny_raw.plan_file) and (work.folder, work.store) == (tiny_raw.folder, tiny_raw.store)


@pytest.mark.parametrize("args, name, expected", [
    (["--gpu_memory_target", 24], "target_gb", 24.0),
    (["--gpu_memory_target", "7.5"], "target_gb", 7.5),
    (["--overwrite_target_spacing", 3, 1, "0.9"], "spacing_mm", [3.0, 1.0, 0.9]),
    (["-np", 3], "processes", 3),
    (["-np", 3], "preprocessing", 3),
    (["-c", "2d_front"], "members", ["2d_front"]),
    (["-c", "fine"], "members", ["3d_Gland", "3d_Stem"]),
    (["-c", "3d_Stem", "fine", "coarse"], "members", ["3d_Stem", "3d_Gland", "2d_top", "2d_front", "2d_side"]),  # each once
    (["-c", "all"], "members", ALL),
    (["--verify_dataset_integrity"], "members", ALL),
])  # fmt: skip
def test_an_option_reaches_the_work(tiny_raw, work, args, name, expected):
    assert plan_and_preprocess.main(tiny_raw.args(*args)) == 0
    assert getattr(work, name) == expected


def test_no_pp_plans_and_preprocesses_nothing(tiny_raw, work, capsys):
    assert plan_and_preprocess.main(tiny_raw.args("--no_pp", "--clean")) == 0
    assert work.order == ["fingerprint", "choose", "write"] and "preprocessed:" not in capsys.readouterr().out


def test_clean_removes_this_plans_volumes_before_they_are_made(tiny_raw, work):
    assert plan_and_preprocess.main(tiny_raw.args("--clean")) == 0
    assert work.order == ["fingerprint", "choose", "write", "clean", "preprocess"] and work.cleaned == work.store


def test_one_at_a_time_works_on_a_data_set(tiny_raw, work, capsys):
    with lock(tiny_raw.workspace.preprocessed / "Dataset901_Tiny", "planning and preprocessing of Dataset901_Tiny"):
        assert plan_and_preprocess.main(tiny_raw.args()) == 1
    assert "planning and preprocessing of Dataset901_Tiny is already running on" in capsys.readouterr().err and not work.order
    assert plan_and_preprocess.main(tiny_raw.args()) == 0


def test_no_volume_is_touched_where_a_training_has_begun_meanwhile(tiny_planned, tmp_path, work, monkeypatch, capsys):
    tiny = tiny_planned.copy(tmp_path / "w")
    with ExitStack() as training:
        run = tiny.folder.run("2d_top", 0).root
        monkeypatch.setattr(planning, "write", lambda *given: training.enter_context(lock(run, "training of 2d_top fold 0")))
        assert plan_and_preprocess.main(tiny.args("-pl", tiny.plan_file, "--clean")) == 1
    assert "training of 2d_top fold 0 is already running on" in capsys.readouterr().err
    assert work.order == ["fingerprint", "choose"]


def test_a_bad_data_set_ends_with_1_before_anything_is_written(tiny_raw, work, monkeypatch, fails):
    def refuses(*given):
        raise DatasetError("t0: label shape differs from the image's; export the label on the image grid")

    monkeypatch.setattr(planning, "fingerprint", refuses)
    error = fails(plan_and_preprocess, tiny_raw)
    assert error == "error: t0: label shape differs from the image's; export the label on the image grid" and not work.order


def test_wrong_data_sets_plans_and_configurations(tiny_raw, fails):
    assert "no data set '17' there; it holds: Dataset901_Tiny" in fails(plan_and_preprocess, tiny_raw, "-d", 17)
    unknown = fails(plan_and_preprocess, tiny_raw, "-pl", "papr_han")
    assert "-pl papr_han: neither a known plan (auto, paper_han) nor a file" in unknown
    wrong = fails(plan_and_preprocess, tiny_raw, "-pl", tiny_raw.plan_file, "-c", "2d_up", "-np", 1)
    assert "has no configuration '2d_up'; it has: 2d_top, 2d_front, 2d_side, 3d_Gland, 3d_Stem" in wrong


def test_an_unknown_plan_is_told_before_the_data_set_is_measured(tiny_raw, work, fails):
    fails(plan_and_preprocess, tiny_raw, "-pl", "papr_han")
    assert not work.order


@pytest.mark.parametrize("args, told", [
    (["--overwrite_target_spacing", "1", "1"], "argument --overwrite_target_spacing: expected 3 arguments"),
    (["--overwrite_target_spacing", "1", "0", "1"], "argument --overwrite_target_spacing: '0' is not a number above 0"),
    (["--gpu_memory_target", "-3"], "argument --gpu_memory_target: '-3' is not a number above 0"),
    (["--gpu_memory_target", "nan"], "argument --gpu_memory_target: 'nan' is not a number above 0"),
    (["-np", "0"], "argument -np: '0' is not a whole number above 0"),
    (["-c"], "argument -c: expected at least one argument"),
    (["15"], "unrecognized arguments: 15"),
])  # fmt: skip
def test_a_wrong_value_is_named(misused, args, told):
    assert misused(plan_and_preprocess, *args).startswith(told)


def test_help_names_every_option(helps):
    shown = helps(plan_and_preprocess)
    for option in ("-d ID", "-pl PLAN", "--workspace DIR", "-c CONFIG", "-np N", "--no_pp ", "--clean ", "--gpu_memory_target GB",
                   "--overwrite_target_spacing Z Y X", "--verify_dataset_integrity "):
        assert option in shown, option
    assert shown.endswith("example: c2f_plan_and_preprocess -d 15")
