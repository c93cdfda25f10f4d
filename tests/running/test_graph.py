"""Which trainings in what order, from which settings, and how the time is shared."""
import logging
from dataclasses import replace

import pytest

from c2f_nnunet.errors import PlanError, TrainingError, WorkspaceError
from c2f_nnunet.io import records
from c2f_nnunet.running.graph import FIT_SHARE, TimeBudget, folds_of, next_job, require_begun, require_places, tasks
from c2f_nnunet.running.members import TrainOptions, settings_for
from c2f_nnunet.training import checkpoint
from c2f_nnunet.workspace import ModelFolder

OPTIONS = TrainOptions("cpu", workers=0)


def titles(tiny, config: str, folds) -> list[str]:
    return [t.title for t in tasks(tiny.model.plan, config, folds)]


def test_coarse_members_and_their_fit_come_first(tiny_planned):
    assert titles(tiny_planned, "all", (0, 1)) == [
        *(f"2d_{view} fold {fold}" for fold in (0, 1) for view in ("top", "front", "side")), "fusion weights",
        *(f"3d_{organ} fold {fold}" for fold in (0, 1) for organ in ("Gland", "Stem")), "merge weights",
    ]  # fmt: skip
    assert titles(tiny_planned, "coarse", (0,)) == ["2d_top fold 0", "2d_front fold 0", "2d_side fold 0", "fusion weights", "merge weights"]
    assert titles(tiny_planned, "3d_Stem", (1,)) == ["3d_Stem fold 1", "merge weights"]
    with pytest.raises(PlanError, match="plan 'tiny' has no configuration '3d_Steam'; it has: 2d_top, .*3d_Stem, or the groups"):
        tasks(tiny_planned.model.plan, "3d_Steam", (0,))


@pytest.mark.parametrize("blocked", [".", "3d_Stem"])
def test_a_place_that_cannot_be_written_is_told_of_before_the_first_training(tiny_planned, tmp_path, blocked):
    folder, todo = ModelFolder(tmp_path / "tiny"), tasks(tiny_planned.model.plan, "all", (0,))
    require_places(folder, todo)
    assert list(tmp_path.iterdir()) == []
    (folder.root / blocked).parent.mkdir(exist_ok=True)
    (folder.root / blocked).write_text("in the way")
    with pytest.raises(WorkspaceError, match=f"{folder.root / blocked}: cannot be written"):
        require_places(folder, todo)
    require_places(folder, [t for t in todo if not t.member])  # whether a fit is due is found later


def test_folds():
    assert folds_of("all", 3) == (0, 1, 2) and folds_of("1", 2) == (1,)


@pytest.mark.parametrize("text", ["2", "-1", "al", "", "1.0", "²"])
def test_wrong_folds_name_those_that_exist(text):
    with pytest.raises(TrainingError, match=f"fold '{text}': there are folds 0 to 1; give one of them or 'all'"):
        folds_of(text, 2)


def test_time_is_shared_in_proportion_to_what_is_left(tiny_planned, caplog):
    """Shares: three views of 0.15 each, the fusion's fit, two organs of 0.25 each, the merge's fit."""
    todo, now = tasks(tiny_planned.model.plan, "all", (0,)), [100.0]
    budget = TimeBudget(60.0, todo, lambda: now[0])
    members, merge = 3 * 0.15 + 2 * 0.25, 0.95 * FIT_SHARE["merge"]
    total = members * (1 + FIT_SHARE["fusion"]) + merge
    assert budget.start(todo[0]) == pytest.approx(3600 * 0.15 / total)
    now[0] += 600.0  # the first took longer than its share: the others share what is left
    assert budget.start(todo[1]) == pytest.approx(3000 * 0.15 / (total - 0.15))
    assert budget.start(todo[5]) == pytest.approx(3000 * 0.25 / (0.25 + merge))
    one = tasks(tiny_planned.model.plan, "3d_Stem", (0,))  # alone it gets all but what its merge's fit may need
    assert TimeBudget(60.0, one, lambda: now[0]).start(one[0]) == pytest.approx(3600 / (1 + FIT_SHARE["merge"]))
    assert not caplog.text
    for passed_s in (3600 - 0.5, 3600 + 60, 2 * 3600):  # a quarter of its part at least
        now[0] = 100.0 + passed_s
        assert budget.start(todo[5]) == pytest.approx(0.25 * 3600 * 0.25 / total)
    assert "3d_Stem fold 0: hardly anything is left of --minutes; it is trained for 221 s all the same" in caplog.text
    now[0] = 100.0 + 2 * 3600 + 1
    with pytest.raises(TrainingError, match="3d_Stem fold 0: --minutes were over before it began; run the same command again"):
        budget.start(todo[5])
    assert TimeBudget(None, todo).start(todo[0]) is None


def job(tiny, is_group: bool, **options):
    task = tasks(tiny.model.plan, "2d_top", (0,))[0]
    return next_job(tiny.folder, task, replace(OPTIONS, **options), None, is_group)


def test_finished_members_are_skipped(tiny_trained):
    assert job(tiny_trained, True) is None and job(tiny_trained, False) is None and job(tiny_trained, False, go_on=True) is None


def test_new_members_start_with_the_command_lines_settings(tiny_planned):
    new = job(tiny_planned, True, epochs=7, batch_size=3, learning_rate=0.5, seed=9)
    assert not new.go_on and new.settings.seed == 9
    plan = tiny_planned.model.plan.member("2d_top").training
    assert new.settings.training == replace(plan, epochs=7, batch_size=3, learning_rate=0.5)
    with pytest.raises(TrainingError, match="2d_top/fold_0: no checkpoint to continue from; leave --c out"):
        job(tiny_planned, False, go_on=True)


def test_unfinished_members_go_on_as_they_were_started(tiny_trained, tmp_path):
    tiny = tiny_trained.copy(tmp_path / "w")
    run = tiny.folder.run("2d_top", 0)
    for path in run.root.glob("checkpoint_final*"):
        path.unlink()
    started = replace(settings_for(tiny.model.plan.member("2d_top"), OPTIONS, 12.0), seed=5, device="cuda")
    records.write(run.settings, started)
    with pytest.raises(TrainingError, match="fold_0: an unfinished training is there; go on with --c, or move the folder away"):
        job(tiny, False)
    for going_on in (job(tiny, True, epochs=99), job(tiny, False, go_on=True, epochs=99)):
        assert going_on.go_on and going_on.settings == replace(started, device="cpu", workers=0)


@pytest.mark.parametrize("is_group, go_on", [(True, False), (True, True), (False, True)])
def test_a_checkpoint_without_its_settings_is_never_started_over(tiny_trained, tmp_path, is_group, go_on):
    tiny = tiny_trained.copy(tmp_path / "w")
    run = tiny.folder.run("2d_top", 0)
    for path in (run.settings, *run.root.glob("checkpoint_final*")):
        path.unlink()
    with pytest.raises(TrainingError, match="settings.json: a checkpoint is there, but not the settings .*; put it back, or move the folder"):
        job(tiny, is_group, go_on=go_on)


@pytest.mark.parametrize("options, told", [
    ({}, None), ({"seed": 5, "epochs": 4}, None),  # as it was started
    ({"epochs": 99}, "so --epochs changes nothing"), ({"learning_rate": 1e-9, "world": 2}, "so --lr and -num_gpus changes nothing"),
    ({"minutes": 3.0}, "so --minutes changes nothing"), ({"pretrained": "x", "batch_size": 1}, "so --batch_size and -pretrained_weights"),
])  # fmt: skip
def test_options_that_an_unfinished_training_cannot_follow_are_told(tiny_planned, tmp_path, caplog, options, told):
    tiny = tiny_planned.copy(tmp_path / "w")
    run = tiny.folder.run("2d_top", 0)
    checkpoint.save(run.checkpoint("latest"), {}, {})
    records.write(run.settings, replace(settings_for(tiny.model.plan.member("2d_top"), OPTIONS, None), seed=5))
    with caplog.at_level(logging.WARNING):
        assert job(tiny, False, go_on=True, **options).settings.seed == 5
    assert (told in caplog.text) if told else not caplog.text


def test_a_group_goes_on_only_where_something_was_begun(tiny_planned, tmp_path):
    tiny = tiny_planned.copy(tmp_path / "w")
    todo = tasks(tiny.model.plan, "fine", (0, 1))
    with pytest.raises(TrainingError, match="no checkpoint to continue from in 3d_Gland/fold_0, .*3d_Stem/fold_1; leave --c out"):
        require_begun(tiny.folder, todo)
    checkpoint.save(tiny.folder.run("2d_top", 0).checkpoint("latest"), {}, {})  # not one of these
    with pytest.raises(TrainingError, match="no checkpoint to continue from"):
        require_begun(tiny.folder, todo)
    checkpoint.save(tiny.folder.run("3d_Stem", 1).checkpoint("latest"), {}, {})
    require_begun(tiny.folder, todo)


def test_a_member_of_a_group_whose_checkpoints_are_lost_is_not_started_over(tiny_planned, tmp_path):
    tiny = tiny_planned.copy(tmp_path / "w")
    assert not job(tiny, True, go_on=True).go_on  # not begun yet: it starts
    run = tiny.folder.run("2d_top", 0)
    run.root.mkdir(parents=True)
    run.log.write_text("{}\n")
    with pytest.raises(TrainingError, match="2d_top/fold_0: no checkpoint to continue from; leave --c out to start this training"):
        job(tiny, True, go_on=True)
    assert not job(tiny, True).go_on
