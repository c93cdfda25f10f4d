"""What the tests of faults share: workspaces to harm, refusals, and trainings that nothing, and that a signal, happened to."""
import signal
import time
from pathlib import Path

import pytest

from c2f_nnunet.cli import export_model, import_model
from c2f_nnunet.data.fingerprint import Fingerprint
from c2f_nnunet.io import records
from c2f_nnunet.running import planning
from tests.faults.archives import craft
from tests.faults.inputs import IMAGE, Fault, error, plan, refused_by_planning, skipped_by_prediction, state, told_of
from tests.faults.processes import ready, slow_disk
from tests.faults.trainings import hashes, latest, started, train


@pytest.fixture(scope="session", autouse=True)
def forking():
    """Random moments are drawn from the time that an undisturbed command takes, in which the server's start must not be counted."""
    ready()


@pytest.fixture
def tiny(tiny_planned, tmp_path):
    """A planned and preprocessed workspace of the test's own."""
    return tiny_planned.copy(tmp_path / "planned")


# Inputs


@pytest.fixture
def refuses(tiny, capsys):
    """Planning refuses these faults, one per case."""

    def refuses(faults: list[Fault], where: str = IMAGE) -> None:
        refused_by_planning(tiny, capsys, where, {f"t{i}": fault for i, fault in enumerate(faults)})

    return refuses


@pytest.fixture
def skips(tiny_trained, tmp_path, capsys):
    """Prediction skips these faults, one per scan."""
    return lambda faults: skipped_by_prediction(tiny_trained, tmp_path, capsys, faults)


@pytest.fixture
def preprocessing_refuses(tiny, capsys, monkeypatch):
    """Files that were sound when the data set was verified, and are harmed when they are preprocessed."""

    def refuses(harmed: str, fault: Fault) -> None:
        verified = records.read(Fingerprint, tiny.folder.fingerprint)
        monkeypatch.setattr(planning, "fingerprint", lambda *args: verified)
        fault.harm(tiny.raw / harmed)
        before = state(tiny.root)
        assert plan(tiny) == 1
        assert state(tiny.root) == before
        told_of(error(capsys.readouterr().err), harmed.split("/")[1], fault.told)

    return refuses


# Trainings


@pytest.fixture(scope="session")
def undisturbed(tiny_planned, tmp_path_factory):
    """Of a training that nothing happened to: what it took in s, and the hashes of its best and final weights."""
    tiny = tiny_planned.copy(tmp_path_factory.mktemp("undisturbed") / "w")
    began = time.monotonic()
    code, printed = train(tiny)
    assert code == 0, printed
    return time.monotonic() - began, hashes(tiny)


@pytest.fixture(scope="session")
def stopped(tiny_planned, tmp_path_factory):
    """A training stopped by SIGTERM after its second checkpoint at the earliest."""
    tiny = tiny_planned.copy(tmp_path_factory.mktemp("stopped") / "w")
    command = started(tiny, before=(slow_disk(0.02),))
    command.signal(signal.SIGTERM)
    assert command.ended()[0] == 143
    assert latest(tiny).with_name("checkpoint_latest.prev.json").exists()
    return tiny


# Exported models


@pytest.fixture(scope="session")
def archive(tiny_trained, tmp_path_factory) -> Path:
    """The trained model, exported."""
    path = tmp_path_factory.mktemp("export") / "model.zip"
    assert export_model.main(tiny_trained.args("-d", 901, "-o", path)) == 0
    return path


@pytest.fixture
def refused(tmp_path, capsys):
    def refused(path: Path, *args) -> str:
        """c2f_import_model's one sentence about the file; nothing is placed, nor left among the results or beside them."""
        before = state(tmp_path)
        capsys.readouterr()
        assert import_model.main([str(path), "--workspace", str(tmp_path / "w"), *args]) == 1
        message = error(capsys.readouterr().err)
        assert path.name in message and state(tmp_path) == before
        assert not list((tmp_path / "w" / "results").glob("*")) or before
        return message

    return refused


@pytest.fixture
def crafted(archive, tmp_path):
    """Archives of the same model with something changed: see archives.craft."""
    return lambda *args, **named: craft(archive, tmp_path, *args, **named)
