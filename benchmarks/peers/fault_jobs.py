"""What faults_against_nnunet.py does inside one process of a method: `python fault_jobs.py {ours,nnunet} JOB ARGUMENT ...`.

Each job prints one line of JSON at its end. Run by the method's own Python, so that it imports only that method.
"""
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Callable

import numpy as np
import torch

LARGEST_FILE = 4096  # bytes: less than half of what the label map below takes, compressed


class Canary:
    """Unpickled, it makes a folder."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Ours:
    """This project's own functions. model: a trained model's folder."""

    def __init__(self, model: str):
        self.model = Path(model)

    def saver(self, folder: Path):
        """(save, load, the file with the tensors): a training's whole state in a folder of its own."""
        from c2f_nnunet.running.model import open_model
        from c2f_nnunet.training import checkpoint
        from c2f_nnunet.training.state import new_state
        from c2f_nnunet.workspace import ModelFolder, RunFolder

        member = open_model(ModelFolder(self.model)).plan.members[0]
        state, run = new_state(member.network, member.training, 0, torch.device("cpu")), RunFolder(folder)

        def load() -> bool:
            """Whether something was wrong and told."""
            return checkpoint.load(run.checkpoint("latest"))[2] is not None

        def file() -> Path:
            return folder / json.loads((folder / "checkpoint_latest.json").read_text())["tensors"]["file"]

        return lambda: state.save(run), load, file

    def stored(self, folder: Path) -> tuple[Path, Callable[[], np.ndarray]]:
        """The file of a preprocessed scan, and what a training reads of it."""
        from c2f_nnunet.data.store import Store

        def load() -> np.ndarray:
            volume = next(v for v in Store(folder).read() if v.record.case == "t1")
            volume.verify()  # as every training does before its first step
            return volume.image[:]

        return folder / "t1_image.b2nd", load

    def read(self, path: str) -> np.ndarray:
        from c2f_nnunet.io.images import read_image

        return read_image(path).array.astype(np.float32)

    def write(self, image: str, path: str, labels: np.ndarray) -> np.ndarray:
        """Write labels on an image's grid; what is then read of them."""
        from c2f_nnunet.io.images import read_image, read_label, write_label

        write_label(path, labels, read_image(image).source)
        return read_label(path).array

    def plant(self, canary: str) -> None:
        """A pickle where a network's tensors are expected, and every hash made to fit it."""
        for record in self.model.glob("*/fold_0/checkpoint_best.json"):
            body, content = json.loads(record.read_text()), pickle.dumps({"average.": Canary(canary)})
            digest = hashlib.sha256(content).hexdigest()
            body["tensors"] = {"file": f"checkpoint_best.{digest[:8]}.safetensors", "sha256": digest}
            signed = {k: body[k] for k in ("state", "tensors")}
            body["sha256"] = hashlib.sha256(json.dumps(signed, sort_keys=True).encode()).hexdigest()
            (record.parent / body["tensors"]["file"]).write_bytes(content)
            record.write_text(json.dumps(body))
            record.with_name("checkpoint_best.prev.json").unlink(missing_ok=True)


class NNUNet:
    """nnU-Net's own functions. model: DATASET_NUMBER, or a model's folder for `plant`."""

    def __init__(self, model: str):
        self.model = model

    def trainer(self):
        from nnunetv2.run.run_training import get_trainer_from_args

        trainer = get_trainer_from_args(self.model, "3d_fullres", 0, device=torch.device("cpu"))
        trainer.initialize()
        return trainer

    def saver(self, folder: Path):
        trainer, path = self.trainer(), folder / "checkpoint_latest.pth"

        def load() -> bool:
            torch.load(path, map_location="cpu", weights_only=False)  # as nnUNetTrainer.load_checkpoint does it
            return False

        return lambda: trainer.save_checkpoint(str(path)), load, lambda: path

    def stored(self, folder: Path) -> tuple[Path, Callable[[], np.ndarray]]:
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

        return folder / "t1.b2nd", lambda: np.asarray(nnUNetDatasetBlosc2(str(folder)).load_case("t1")[0][:])

    def read(self, path: str) -> np.ndarray:
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        return SimpleITKIO().read_images([path])[0][0]

    def write(self, image: str, path: str, labels: np.ndarray) -> np.ndarray:
        from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

        io = SimpleITKIO()
        io.write_seg(labels, path, io.read_images([image])[1])
        return io.read_seg(path)[0][0]

    def plant(self, canary: str) -> None:
        path = Path(self.model) / "fold_0" / "checkpoint_final.pth"
        torch.save({"network_weights": Canary(canary), "trainer_name": "nnUNetTrainer"}, path)

    def untrained(self) -> None:
        """A model folder whose weights are random: enough to predict with."""
        trainer = self.trainer()
        base, prepared = Path(trainer.output_folder_base), Path(trainer.preprocessed_dataset_folder_base)
        Path(trainer.output_folder).mkdir(parents=True, exist_ok=True)
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_final.pth"))
        shutil.copy(prepared / "nnUNetPlans.json", base / "plans.json")
        shutil.copy(prepared / "dataset.json", base / "dataset.json")
        told({"model": str(base)})


def told(what: dict) -> None:
    print(json.dumps(what), flush=True)


def first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def kills(method, folder: str, count: str) -> None:
    """A child saves over and over and is killed at random moments: how often nothing could be loaded afterwards."""
    save, load, _ = method.saver(Path(folder))
    dice, unreadable = random.Random(0), 0
    save()
    began = time.monotonic()
    save()
    took_s = time.monotonic() - began
    for _ in range(int(count)):
        child = os.fork()
        if not child:
            try:
                while True:
                    save()
            finally:
                os._exit(1)  # a child must not go on with its parent's work
        time.sleep(took_s * dice.uniform(1, 3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        try:
            load()
        except Exception:  # whatever it is: there is no checkpoint to go on from
            unreadable += 1
    told({"count": int(count), "unreadable": unreadable, "save_s": round(took_s, 2)})


def flips(method, folder: str, count: str) -> None:
    """One bit of a checkpoint's file flipped: how often loading it says so."""
    save, load, file = method.saver(Path(folder))
    save(), save()
    path, dice, noticed = file(), random.Random(0), 0
    content = path.read_bytes()
    for _ in range(int(count)):
        at = dice.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :])
        try:
            noticed += load()
        except Exception:
            noticed += 1
    told({"count": int(count), "noticed": noticed})


def full_while_saving(method, folder: str) -> None:
    """A disk on which half of a checkpoint has room, beside one that stands: is it told, and is there one to go on from?"""
    save, load, file = method.saver(Path(folder))
    save()
    room, found = file().stat().st_size // 2, {}
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        save()
    except Exception as e:
        found["error"] = first_line(e)
    try:
        load()
    except Exception:
        told({**found, "readable": False})
    else:
        told({**found, "readable": True})


def flipped_volumes(method, folder: str, count: str) -> None:
    """One bit of a preprocessed scan's file flipped: how often reading it says so."""
    path, load = method.stored(Path(folder))
    load()
    content, dice, noticed = path.read_bytes(), random.Random(0), 0
    for _ in range(int(count)):
        at = dice.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 1 << dice.randrange(8)]) + content[at + 1 :])
        try:
            load()
        except Exception:
            noticed += 1
    told({"count": int(count), "noticed": noticed})


def read(method, good: str, bad: str) -> None:
    """What comes of a damaged scan: an error, or so many voxels that are not the sound one's."""
    expected = method.read(good)
    try:
        found = method.read(bad)
    except Exception as e:
        return told({"error": first_line(e)})
    told({"wrong": float((found != expected).mean()), "zeros": float((found[found != expected] == 0).mean())})


def full_disk(method, image: str, path: str) -> None:
    """A label map larger than the room on the disk: an error, or so many voxels that are wrong when it is read again."""
    labels = np.random.default_rng(0).integers(0, 4, method.read(image).shape).astype(np.uint8)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    try:
        found = method.write(image, path, labels)
    except Exception as e:
        return told({"error": first_line(e), "left": Path(path).exists()})
    told({"wrong": float((found != labels).mean())})


def plant(method, canary: str) -> None:
    method.plant(canary)


def untrained(method: NNUNet) -> None:
    method.untrained()


JOBS = {job.__name__: job for job in (kills, flips, flipped_volumes, read, full_disk, full_while_saving, plant, untrained)}


def main() -> None:
    torch.set_num_threads(1)
    name, model, job, *arguments = sys.argv[1:]
    JOBS[job]({"ours": Ours, "nnunet": NNUNet}[name](model), *arguments)


if __name__ == "__main__":
    main()
