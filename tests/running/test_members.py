"""One member's training: its settings, its samples, its run folder, and how it is validated."""
import logging
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from c2f_nnunet.data.splits import Split
from c2f_nnunet.errors import DatasetError, TrainingError, WorkspaceError
from c2f_nnunet.io import durable, records
from c2f_nnunet.network.unet import build_network
from c2f_nnunet.running import members
from c2f_nnunet.running.members import Job, TrainOptions, dice_by_organ, is_finished, run_member, settings_for, stored_of, validation
from c2f_nnunet.training import checkpoint
from c2f_nnunet.training.sampler import CropSource, SliceSource
from c2f_nnunet.training.state import Progress
from c2f_nnunet.training.train import Hooks, Interrupted, Place, TrainSettings
from c2f_nnunet.workspace import lock

CPU = torch.device("cpu")
HERE = Place(CPU)


# Settings


def test_without_wishes_the_plans_values_stand(tiny_planned):
    member = tiny_planned.model.plan.member("3d_Stem")
    expected = TrainSettings(member.training, seed=0, seconds=None, workers=0, device="cpu", world=1, pretrained=None)
    assert settings_for(member, TrainOptions("cpu", workers=0), None) == expected


def test_every_wish_is_put_over_the_plan(tiny_planned):
    member = tiny_planned.model.plan.member("3d_Stem")
    options = TrainOptions("cuda", 7, 30.0, 3, 0.5, 9, "other/checkpoint_best", 2, True, 4)
    found = settings_for(member, options, 60.0)
    assert found.training == replace(member.training, epochs=7, batch_size=3, learning_rate=0.5)
    assert (found.seed, found.seconds, found.workers, found.device, found.world, found.pretrained) == (
        9, 60.0, 4, "cuda", 2, "other/checkpoint_best",
    )  # fmt: skip


@pytest.mark.parametrize("cores, workers", [(1, 1), (2, 1), (8, 7), (13, 12), (64, 12), (None, 1)])
def test_a_worker_per_core_beside_the_first_at_most_twelve(monkeypatch, cores, workers):
    monkeypatch.setattr(members.os, "cpu_count", lambda: cores)
    assert members.default_workers() == workers


def test_no_worker_where_forking_is_not_safe(monkeypatch):
    monkeypatch.setattr(members.sys, "platform", "darwin")
    assert members.default_workers() == 0


@pytest.mark.parametrize("said", ["[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
                                  "MPS backend out of memory (MPS allocated: 17.9 GB)"])
def test_memory_that_a_cpu_or_mps_lacks_is_told_with_the_remedy(tiny_planned, said):
    """torch has no error type for these, only words; any other RuntimeError is a fault of ours."""
    run, settings = tiny_planned.folder.run("2d_top", 0), settings_for(tiny_planned.model.plan.member("2d_top"), TrainOptions("cpu"), None)
    with pytest.raises(TrainingError, match="a batch of 8 does not fit the memory of cpu .*; move the folder away and start again"):
        with members.memory_stated(run, settings):
            raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shapes differ"):
        with members.memory_stated(run, settings):
            raise RuntimeError("shapes differ")


def test_only_its_final_checkpoint_says_that_a_training_is_finished(tiny_planned, tmp_path):
    run = tiny_planned.copy(tmp_path / "w").folder.run("3d_Stem", 0)
    for which, finished in (("latest", False), ("best", False), ("final", True)):
        checkpoint.save(run.checkpoint(which), {}, {})
        assert is_finished(run) is finished


# A run


@pytest.fixture
def tiny(tiny_planned, tmp_path):
    return tiny_planned.copy(tmp_path / "w")


@pytest.fixture
def trainings(monkeypatch):
    """What train was called with; nothing is trained, one epoch is told to the hooks."""
    seen = []

    def train(member, settings, source, run, validate, where, go_on, hooks, validation_takes):
        assert (run.root / ".lock").exists() or where.rank
        seen.append(SimpleNamespace(member=member, settings=settings, source=source, validate=validate, where=where, go_on=go_on,
                                    validation_takes=validation_takes))  # fmt: skip
        hooks.on_epoch([{"epoch": 0, "train_loss": 0.5, "val_dsc": 0.25, "val_by_organ": {"Stem": 0.25}, "lr": 0.1, "seconds": 1.0}], True)
        return Progress(step=80)

    monkeypatch.setattr(members, "train", train)
    return seen


def run(tiny, name="3d_Stem", where=HERE, go_on=False, hooks=Hooks(), split=None) -> Progress:
    model = tiny.model
    member = model.plan.member(name)
    job = Job(member, 0, settings_for(member, TrainOptions("cpu", epochs=7, workers=0), 12.0), go_on)
    return run_member(model, tiny.store, job, split or model.splits()[0], where, hooks)


@pytest.mark.parametrize("name, kind", [("2d_side", SliceSource), ("3d_Gland", CropSource)])
def test_it_trains_on_the_folds_own_cases_alone(tiny, trainings, name, kind):
    assert run(tiny, name) == Progress(step=80)
    (seen,) = trainings
    assert type(seen.source) is kind and seen.member.name == name and seen.where == HERE and not seen.go_on
    assert seen.validation_takes(build_network(seen.member.network).eval()) > 0  # by one held-out case
    cases = {v.record.case for v in seen.source.cached.volumes}
    assert cases == {"t0", "t1", "t3", "t4", "t6"} - ({"t4"} if name == "3d_Gland" else set())  # of t4 only the stem is known


def test_the_settings_are_recorded_and_the_folder_is_given_back(tiny, trainings):
    run(tiny)
    folder = tiny.folder.run("3d_Stem", 0)
    recorded = records.read(TrainSettings, folder.settings)
    assert recorded == trainings[0].settings and (recorded.training.epochs, recorded.seconds) == (7, 12.0)
    assert not (folder.root / ".lock").exists()


def test_an_epoch_is_drawn_and_told_to_the_outside(tiny, trainings):
    told = []
    run(tiny, hooks=Hooks(on_epoch=lambda rows, last: told.append((rows[-1]["val_dsc"], last))))
    assert told == [(0.25, True)]
    assert tiny.folder.run("3d_Stem", 0).progress.stat().st_size > 1000


def test_epochs_are_drawn_once_a_minute_and_at_the_end(tiny, monkeypatch):
    drawn, clock = [], SimpleNamespace(now=0.0)
    monkeypatch.setattr(members, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(members, "progress_figure", lambda rows, path: drawn.append(clock.now))

    def train(*given):
        for clock.now in (10.0, 70.0, 80.0, 140.0, 150.0):
            given[-2].on_epoch([{}], clock.now == 150.0)

    monkeypatch.setattr(members, "train", train)
    run(tiny)
    assert drawn == [70.0, 140.0, 150.0]


def test_leftovers_of_a_killed_write_are_removed(tiny, trainings):
    leftover = tiny.folder.run("3d_Stem", 0).root / f"{durable.TEMPORARY_MARK}999999-{durable.HOST}-1-log.jsonl"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("cut")
    run(tiny)
    assert not leftover.exists()


def test_a_training_that_goes_on_keeps_its_settings_file(tiny, trainings):
    folder = tiny.folder.run("3d_Stem", 0)
    checkpoint.save(folder.checkpoint("latest"), {}, {})
    folder.settings.write_text("as it was started")
    run(tiny, go_on=True)
    assert trainings[0].go_on and folder.settings.read_text() == "as it was started"


def test_nothing_to_go_on_from(tiny, trainings):
    with pytest.raises(TrainingError, match="checkpoint_latest: no checkpoint to continue from; leave --c out to start this training"):
        run(tiny, go_on=True)
    assert not trainings and not tiny.folder.run("3d_Stem", 0).settings.exists()


def test_a_run_folder_in_use_is_refused(tiny, trainings):
    with lock(tiny.folder.run("3d_Stem", 0).root, "training of 3d_Stem fold 0"):
        with pytest.raises(WorkspaceError, match="training of 3d_Stem fold 0 is already running on"):
            run(tiny)
    assert not trainings


def test_a_further_process_neither_locks_nor_writes(tiny, trainings):
    run(tiny, where=Place(CPU, 1, 2), hooks=Hooks())
    assert trainings[0].where.rank == 1
    assert not tiny.folder.run("3d_Stem", 0).settings.exists()


def test_a_case_that_is_not_preprocessed_is_refused_before_anything_is_made(tiny, trainings):
    (tiny.store.volumes("3d_Stem") / "t5.done").unlink()  # a held-out one
    with pytest.raises(DatasetError, match="3d_Stem: not preprocessed by this plan: t5; run c2f_plan_and_preprocess -d Dataset901_Tiny"):
        run(tiny)
    assert not trainings and not tiny.folder.run("3d_Stem", 0).root.exists()


@pytest.mark.parametrize("case", ["t0", "t2"])  # one to train on, one held out
def test_a_damaged_volume_is_refused_before_the_training(tiny, trainings, case):
    path = tiny.store.volumes("3d_Stem") / f"{case}__Stem_image.b2nd"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=rf"{case}__Stem_image\.b2nd: stored volume is damaged .*; run c2f_plan_and_preprocess again"):
        run(tiny)
    assert not trainings


@pytest.mark.parametrize("workers, looks", [(0, 3), (2, 9)])  # of seven volumes: while they are verified, and while they are loaded
def test_a_request_to_stop_is_heard_before_the_first_step(tiny, trainings, workers, looks):
    asked = []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) == looks

    model, member = tiny.model, tiny.model.plan.member("3d_Stem")
    job = Job(member, 0, settings_for(member, TrainOptions("cpu", workers=workers), None), False)
    with pytest.raises(Interrupted):
        run_member(model, tiny.store, job, model.splits()[0], HERE, Hooks(should_stop=should_stop))
    assert not trainings and len(asked) == looks and not (tiny.folder.run("3d_Stem", 0).root / ".lock").exists()


def test_a_fold_that_cannot_be_trained_is_told(tiny, trainings):
    """In t4 only the stem is annotated."""
    told = "none of the 1 training cases of this fold shows Gland_L or Gland_R, nor its place; share the cases out"
    with pytest.raises(DatasetError, match=told):
        run(tiny, "3d_Gland", split=Split(("t4",), ("t0",)))
    assert not trainings


def test_a_fold_without_the_organ_is_warned_about(tiny, trainings, caplog):
    with caplog.at_level(logging.WARNING):
        run(tiny, "3d_Gland", split=Split(("t0", "t1"), ("t4",)))
    assert "fold_0: no held-out case has Gland_L or Gland_R; the newest weights count as the best" in caplog.text
    assert trainings[0].validate(None) == {"Gland_L": None, "Gland_R": None}


def test_the_volumes_of_a_member_are_those_of_its_cases(tiny_planned):
    member = tiny_planned.model.plan.member("3d_Gland")
    found = stored_of(tiny_planned.store, member, ("t0", "t4"))
    assert [v.record.id for v in found] == ["t0__Gland_L", "t0__Gland_R"]
    assert stored_of(tiny_planned.store, member, ("t4",)) == ()


# Validation


def held_out(*volumes) -> SimpleNamespace:
    """Stored volumes by hand: (known organs, label channels); the image is the index of its volume everywhere."""
    records_ = [SimpleNamespace(record=SimpleNamespace(known=known, anchor_index=(0.0, 0.0, 0.0))) for known, _ in volumes]
    arrays = [{"image": np.full(labels.shape, i), "labels": labels} for i, (_, labels) in enumerate(volumes)]
    return SimpleNamespace(volumes=records_, array=lambda index, kind: arrays[index][kind])


def row(*channels: int) -> np.ndarray:
    """A volume of one row of voxels."""
    return np.array(channels)[None, None]


def test_a_view_is_scored_by_the_organs_that_are_known_in_each_case(tiny_planned, monkeypatch):
    """Channels: 1 Gland_L, 2 Gland_R, 3 Stem. A network that calls everything the stem."""

    def predict_volume(network, member, labels, hu, anchor_index, device, flips, before_each):
        assert network == "network" and not flips
        return np.stack([np.full(hu.shape, c == 3) for c in range(4)]).astype(float)

    monkeypatch.setattr(members, "predict_volume", predict_volume)
    plan = tiny_planned.model.plan
    cases = held_out(
        (("Gland_L", "Gland_R", "Stem"), row(1, 1, 3, 3)),  # stem: 2 × 2 / (2 + 4); left gland: 0; right gland: not there
        (("Stem",), row(2, 3, 3, 3)),  # stem: 2 × 3 / (3 + 4); the glands are not known, whatever its labels hold of them
    )
    found = validation(plan, plan.member("2d_top"), cases, CPU)("network")
    assert found == {"Gland_L": 0.0, "Gland_R": None, "Stem": pytest.approx((2 / 3 + 6 / 7) / 2)}


def test_a_request_to_stop_is_heard_between_two_batches_of_a_case(tiny_planned):
    """A case of 24 slices is seen in batches of 16: asked for before the case, and before each batch."""
    plan, asked = tiny_planned.model.plan, []

    def should_stop() -> bool:
        asked.append(True)
        return len(asked) == 3

    def network(batch):
        return [torch.zeros(len(batch), 4, *batch.shape[2:])]

    case = held_out((plan.labels.organs, np.zeros((24, 40, 40), int)))
    with pytest.raises(Interrupted):
        validation(plan, plan.member("2d_top"), case, CPU, should_stop)(network)
    assert len(asked) == 3


def test_a_crop_is_scored_where_it_lies_without_jitter(tiny_planned, monkeypatch):
    """Two voxels of jitter on each side are cut off: what is there neither helps nor harms."""
    plan = tiny_planned.model.plan
    member = replace(plan.member("3d_Gland"), jitter_mm=(8.0, 8.0, 8.0))
    inner = np.zeros((3, 3, 3), int)
    inner[1, 1] = 1  # three voxels of the organ
    labels = np.pad(inner, 2, constant_values=1)

    def predict_crop(network, member, hu, device, flips):
        assert hu.shape == (3, 3, 3) and not flips
        p = np.full(hu.shape, 0.5)  # not above a half: background
        p[1, 1, 0] = 0.51
        return p if hu[0, 0, 0] == 0 else np.zeros(hu.shape)

    monkeypatch.setattr(members, "predict_crop", predict_crop)
    found = validation(plan, member, held_out((("Gland_L",), labels), (("Gland_L",), labels), (("Gland_R",), labels)), CPU)(None)
    assert found == {"Gland_L": pytest.approx((2 * 1 / (3 + 1) + 0) / 2), "Gland_R": 0.0}


def test_dice_of_each_organ_by_hand():
    truth, prediction = np.array([1, 1, 2, 0, 0, 0]), np.array([1, 0, 2, 2, 2, 3])
    found = dice_by_organ(truth, prediction, {"A": 1, "B": 2, "C": 3})
    assert found == {"A": pytest.approx(2 / 3), "B": pytest.approx(2 / 4), "C": None}  # an organ that is not there has no Dice
    assert dice_by_organ(truth, prediction, {"A": 1}).keys() == {"A"}
