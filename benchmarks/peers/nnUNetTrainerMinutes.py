"""nnU-Net's trainer, ended after NNUNET_MINUTES, its polynomial schedule annealed to that end; for against_nnunet.py.

Epochs and their pseudo-validation are left out, to nnU-Net's advantage: they choose nothing that its prediction uses, and
cost a tenth of the time. So is the validation after training, which has no part in the comparison. All else is nnU-Net's.
"""
import os
from time import monotonic

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer


class nnUNetTrainerMinutes(nnUNetTrainer):
    def run_training(self):
        self.on_train_start()
        self.network.train()
        began, seconds, steps = monotonic(), 60 * float(os.environ["NNUNET_MINUTES"]), 0
        while (used := (monotonic() - began) / seconds) < 1:
            for group in self.optimizer.param_groups:
                group["lr"] = self.initial_lr * (1 - used) ** 0.9
            loss = self.train_step(next(self.dataloader_train))["loss"]
            steps += 1
            if steps % 50 == 0:
                self.print_to_log_file(f"step {steps}, loss {loss:.3f}")
        self.print_to_log_file(f"{steps} steps in {monotonic() - began:.0f} s")
        self.on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False):
        pass
