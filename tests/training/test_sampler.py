"""Which samples are drawn: pure functions of (seed, step), the same in workers, in parts of a DDP batch, and after a kill."""
import multiprocessing
import os
import signal
import time
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest

from c2f_nnunet.data.store import Store
from c2f_nnunet.errors import DatasetError, TrainingError
from c2f_nnunet.preparing.prepare import jitter_voxels
from c2f_nnunet.training.sampler import Batches, CachedVolumes, CropSource, Draw, SliceSource, stream


def source_of(tiny, member: str, cases=("t0", "t1", "t3", "t4"), memory_gb: float = 1.0, **training):
    plan = tiny.model.plan
    m = plan.member(member)
    m = replace(m, training=replace(m.training, **training))
    cached = CachedVolumes(Store(tiny.store.volumes(m.volumes)).of_cases(cases), memory_gb)
    return SliceSource(m, plan.labels, cached) if m.stage == "coarse" else CropSource(m, cached)


def same(a: dict, b: dict) -> bool:
    return a["step"] == b["step"] and all(np.array_equal(a[k], b[k]) for k in ("image", "target", "known"))


@pytest.mark.parametrize("member, shape", [("2d_top", (4, 6, 40, 40)), ("2d_side", (4, 6, 24, 40)), ("3d_Gland", (4, 1, 16, 16, 16))])
def test_a_batch_is_a_function_of_seed_and_step(tiny_planned, member, shape):
    """Whatever was drawn before, from a cache or from the files."""
    source = source_of(tiny_planned, member, augmentation="full")
    batches = Batches(source, 4, 7, 0, 0)
    wanted = batches.batch(5)
    assert wanted["image"].shape == shape and wanted["image"].dtype == np.float32 and wanted["target"].shape == (shape[0], *shape[2:])
    batches.batch(3)
    assert same(batches.batch(5), wanted)
    uncached = source_of(tiny_planned, member, memory_gb=0.0, augmentation="full")
    assert not uncached.cached.keeps and same(Batches(uncached, 4, 7, 0, 0).batch(5), wanted)
    assert not same(Batches(source, 4, 8, 0, 0).batch(5), wanted)  # another seed
    assert not np.array_equal(batches.batch(6)["image"], wanted["image"])


def test_workers_hand_out_the_same_batches_in_order(tiny_planned):
    source = source_of(tiny_planned, "2d_front", augmentation="full")
    with closing(stream(Batches(source, 2, 1, 10, 2), 2)) as made, closing(stream(Batches(source, 2, 1, 10, 0), 0)) as wanted:
        for k, (a, b) in enumerate(islice(zip(made, wanted), 5)):
            assert a["step"] == 10 + k and same(a, b)


def test_ranks_take_consecutive_parts_of_the_doubled_batch(tiny_planned):
    source = source_of(tiny_planned, "3d_Stem")
    whole = Batches(source, 4, 3, 0, 0).batch(2)
    parts = [Batches(source, 2, 3, 0, 0, rank, 2).batch(2) for rank in (0, 1)]
    for key in ("image", "target", "known"):
        np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), whole[key])


def test_a_share_of_the_slices_is_drawn_by_organ(tiny_planned):
    """With share 1 every slice holds an organ; with 0 many do not (the body is 22 slices high, the stem 11)."""

    def with_organ(share: float) -> float:
        source = source_of(tiny_planned, "2d_top", foreground_share=share)
        rng = np.random.default_rng(0)
        return float(np.mean([source.read(source.draw(rng))[1].any() for _ in range(60)]))

    assert with_organ(1.0) == 1.0
    assert with_organ(0.0) < 0.8


def test_organs_that_are_not_annotated_are_unknown_and_unlabelled(tiny_planned):
    """t4 holds both glands, but only its stem is annotated; t3 is annotated and has no right gland: known, and empty."""
    source = source_of(tiny_planned, "2d_top", ("t3", "t4"))
    stacks = {"t3": set(), "t4": set()}
    for i, volume in enumerate(source.cached.volumes):
        for k in range(volume.record.geometry.shape[0]):
            _, target, known = source.read(Draw(i, k, (0, 0, 0)))
            stacks[volume.record.case] |= set(np.unique(target).tolist())
            assert known.tolist() == [True, *([True] * 3 if volume.record.case == "t3" else [False, False, True])]
    assert stacks == {"t3": {0, 1, 3}, "t4": {0, 3}}


def test_crops_are_shifted_by_the_jitter_at_most_and_hold_the_organ(tiny_planned):
    source = source_of(tiny_planned, "3d_Stem")
    jitter = jitter_voxels(source.member)
    rng = np.random.default_rng(0)
    shifts = np.array([source.draw(rng).shift for _ in range(200)])
    assert jitter == (2, 2, 2) and shifts.min(0).tolist() == [-2, -2, -2] and shifts.max(0).tolist() == [2, 2, 2]
    _, centred, known = source.read(Draw(0, 0, (0, 0, 0)))
    _, moved, _ = source.read(Draw(0, 0, (2, -1, 0)))
    np.testing.assert_array_equal(moved[:-2, 1:], centred[2:, :-1])  # a crop two further up and one further front
    assert known.all() and centred.any()


def test_a_share_of_the_crops_shows_the_usual_place_without_the_organ(tiny_planned):
    """t3 has no right gland; without such a case every crop holds the organ, whatever the share."""
    rng = np.random.default_rng(0)
    mixed = source_of(tiny_planned, "3d_Gland", ("t0", "t3"), foreground_share=0.8)
    found = np.array([mixed.cached.volumes[mixed.draw(rng).volume].record.id for _ in range(400)])
    assert 0.14 < (found == "t3__Gland_R").mean() < 0.26
    whole = source_of(tiny_planned, "3d_Gland", ("t0",), foreground_share=0.0)
    assert all(whole.read(whole.draw(rng))[1].any() for _ in range(20))


def test_a_pair_shares_crops_with_left_ones_mirrored(tiny_planned):
    """Both glands lie outward of the body's middle: with the left one mirrored, the brighter side (body) is the same."""
    source = source_of(tiny_planned, "3d_Gland", ("t0",))
    outer = {}
    for i, volume in enumerate(source.cached.volumes):
        image, _, _ = source.read(Draw(i, 0, (0, 0, 0)))
        outer[volume.record.known[0]] = image[0, :, :, :3].mean() < image[0, :, :, -3:].mean()
    assert set(outer) == {"Gland_L", "Gland_R"} and outer["Gland_L"] == outer["Gland_R"]


def test_no_labelled_organ_is_an_error(tiny_planned):
    plan = tiny_planned.model.plan
    glands = replace(plan.labels, organs=("Gland_L", "Gland_R"), ids=(1, 2))
    cached = CachedVolumes(Store(tiny_planned.store.volumes("coarse")).of_cases(["t4"]), 1.0)
    with pytest.raises(DatasetError, match="no training case of 2d_top has a labelled organ; check the labels"):
        SliceSource(plan.member("2d_top"), glands, cached)


def test_background_is_drawn_from_all_of_a_long_body(tiny_planned):
    """The grid is ten voxels high here, at the top of a body of 24: prediction goes on below it, and so do the draws that ask for no organ."""
    rng, plan = np.random.default_rng(0), tiny_planned.model.plan
    for name in ("2d_top", "2d_front"):
        member = plan.member(name)
        member = replace(member, shape=(10, *member.shape[1:]), training=replace(member.training, foreground_share=0.0))
        source = SliceSource(member, plan.labels, CachedVolumes(Store(tiny_planned.store.volumes(member.volumes)).of_cases(("t0",)), 1.0))
        height = source.cached.volumes[0].record.geometry.shape[0]
        draws = [source.draw(rng) for _ in range(300)]
        starts = {d.index if name == "2d_top" else source.windows[0].moved(d.shift).start[0] for d in draws}
        assert starts == set(range(height)) if name == "2d_top" else starts == set(range(height - 10 + 1))
        lowest = min(draws, key=lambda d: (d.shift[0], d.index))
        image, target, _ = source.read(lowest)
        assert image.shape[1:] == target.shape and np.isfinite(image).all()
    by_organ = SliceSource(replace(member, training=replace(member.training, foreground_share=1.0)), plan.labels, source.cached)
    assert {by_organ.draw(rng).shift for _ in range(50)} == {(0, 0, 0)}


def test_a_damaged_volume_is_named(tiny_planned, tmp_path):
    tiny = tiny_planned.copy(tmp_path / "w")
    source = source_of(tiny, "3d_Stem", ("t0",), memory_gb=0.0)
    path = tiny.store.volumes("3d_Stem") / "t0__Stem_image.b2nd"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises((DatasetError, TrainingError), match=r"t0__Stem.*run c2f_plan_and_preprocess again"):
        Batches(source, 2, 0, 0, 0).batch(0)


class Failing:
    """A source whose samples cannot be read, as where memory is short."""

    cached = CachedVolumes((), 1.0)

    def draw(self, rng):
        raise MemoryError("no memory")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_are_forked_whatever_pythons_own_way_is(tiny_planned, method):
    """Python 3.14 starts processes by a fork server, which can be handed no loaded volume, and whose children are not ours."""
    usual = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(method, force=True)
    try:
        test_workers_hand_out_the_same_batches_in_order(tiny_planned)
        assert multiprocessing.get_start_method(allow_none=True) == method
    finally:
        multiprocessing.set_start_method(usual, force=True)


def test_a_worker_that_fails_is_a_stated_error(capfd):
    with closing(stream(Batches(Failing(), 1, 0, 0, 1), 1)) as batches:
        with pytest.raises(TrainingError, match="an augmentation process ended .* or give -np 0"):
            next(batches)
    assert "no memory" in "".join(capfd.readouterr())


def consume(source, pids) -> None:
    """A training process: starts two workers, tells their pids, and waits."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # as the command does, which notes it
    batches = stream(Batches(source, 2, 0, 0, 2), 2)
    next(batches)
    for child in multiprocessing.active_children():
        pids.put(child.pid)
    time.sleep(60)


def test_workers_end_when_their_parent_is_killed(tiny_planned):
    context = multiprocessing.get_context("fork")
    pids = context.Queue()
    parent = context.Process(target=consume, args=(source_of(tiny_planned, "2d_top"), pids))
    parent.start()
    workers = [pids.get(timeout=30) for _ in range(2)]
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    deadline = time.monotonic() + 15
    while any(running(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(running(pid) for pid in workers)


def test_a_worker_that_begins_after_its_parent_s_death_ends_too(tiny_planned):
    batches = Batches(source_of(tiny_planned, "2d_top"), 2, 0, 0, 1)
    batches.owner = 1 << 30  # no such process, let alone this one's parent
    worker = multiprocessing.get_context("fork").Process(target=begin, args=(batches,))
    worker.start()
    worker.join(20)
    assert worker.exitcode == 1


def begin(batches) -> None:
    batches.set_thread_id(0)
    time.sleep(30)


def running(pid: int) -> bool:
    """Whether a process runs; one that ended, and that nobody waited for, does not."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
