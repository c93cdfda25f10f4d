"""FAULTS rows 18, 19 and 21, training: workers that are killed, losses that are no numbers, an accelerator without memory.

Row 18 in evaluation: tests/evaluation/test_folders.py; prediction has no workers.
"""
import json
import os
import signal
import time

import pytest

from c2f_nnunet.training import checkpoint
from tests.faults.processes import Command, children, out_of_memory, spoiled_loss, wait_for
from tests.faults.trainings import EPOCHS, LONG, folder, started, train


def test_row_18_a_killed_augmentation_worker_of_two(tiny):
    command = started(tiny, epochs=LONG, workers=2)
    worker, _ = children(command.pid)
    os.kill(worker, signal.SIGKILL)
    code, printed = command.ended(30.0)
    told = [line for line in printed.splitlines() if line.startswith("error: an augmentation process ended at work on ")]
    assert code == 1 and len(told) == 1 and "__Stem (" in told[0] and "free memory, or see the message above it, or give -np 0" in told[0]
    assert not children(command.pid)


@pytest.mark.parametrize("printed_before", ["", "written: "])  # while the data set is verified; while it is preprocessed
def test_row_18_killed_preprocessing_workers(tiny, printed_before):
    command = Command(tiny.root / "printed", "plan_and_preprocess", tiny.args("-d", 901, "-pl", tiny.plan_file, "-np", 2))
    wait_for(lambda: printed_before in command.output.read_text() or not command.process.is_alive())
    while command.process.is_alive():
        for worker in children(command.pid):
            os.kill(worker, signal.SIGKILL)
        time.sleep(0.05)
    code, printed = command.ended()
    assert code == 1 and "error: t0 (" in printed and printed_before in printed
    assert "t0_0000.nii.gz): the process working on it died; free memory, or export its files again" in printed
    assert "a worker process died (out of memory?); the 7 items left are done one at a time" in printed


def rates(tiny) -> list[float]:
    return [json.loads(line)["lr"] for line in folder(tiny).log.read_text().splitlines()]


def test_row_19_a_loss_that_is_nan_once(tiny):
    code, printed = train(tiny, before=(spoiled_loss(30),))
    assert code == 0, printed
    assert "3d_Stem/fold_0: the loss became nan in epoch 1 (norm of its gradient: nan); once more from step 20 with a tenth" in printed
    usual = tiny.model.plan.member("3d_Stem").training.learning_rate
    assert rates(tiny)[0] > 0.5 * usual and len(rates(tiny)) == EPOCHS and max(rates(tiny)[1:]) < 0.11 * usual
    tensors, _, _ = checkpoint.load(folder(tiny).checkpoint("final"))
    assert all(t.isfinite().all() for t in tensors.values())


def test_row_19_a_loss_that_is_nan_before_any_checkpoint(tiny):
    code, printed = train(tiny, before=(spoiled_loss(5),), epochs=2)
    assert code == 0 and "once more from step 0 with a tenth" in printed
    assert len(rates(tiny)) == 2


def test_row_19_a_loss_that_is_nan_twice(tiny):
    code, printed = train(tiny, before=(spoiled_loss(30, 45),))
    assert code == 1 and "error: " in printed and "3d_Stem/fold_0: the loss became nan in epoch " in printed
    assert "; move the folder away and start again with a lower --lr" in printed and not checkpoint.exists(folder(tiny).checkpoint("final"))
    tensors, _, _ = checkpoint.load(folder(tiny).checkpoint("latest"))
    assert all(t.isfinite().all() for t in tensors.values() if t.is_floating_point())


def test_row_21_the_accelerator_is_out_of_memory_while_training(tiny):
    code, printed = train(tiny, before=(out_of_memory(0),))
    assert code == 1 and "3d_Stem/fold_0: a batch of 1 does not fit the memory of cpu (CUDA out of memory." in printed
    assert "a smaller --batch_size" in printed and "Traceback" not in printed
    assert not (folder(tiny).root / ".lock").exists()
