"""What all commands share: exact options, examples in --help, folders, exit codes, and silence of the libraries."""
import logging
import os
import signal
import subprocess
import sys

import pytest

from c2f_nnunet.cli import crossval, evaluate, export_model, import_model, plan_and_preprocess, predict, train
from c2f_nnunet.cli.common import StopRequest, entry, new_parser
from c2f_nnunet.errors import C2FError, SomeCasesFailed

COMMANDS = [plan_and_preprocess, train, predict, evaluate, crossval, export_model, import_model]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(command, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    shown = capsys.readouterr().out
    name = f"c2f_{command.__name__.rsplit('.', 1)[1]}"
    assert end.value.code == 0 and shown.startswith(f"usage: {name} ") and f"example:\n  {name} " in shown


@pytest.mark.parametrize("command, args", [
    (train, ["all", "0", "--nonsense"]),
    (train, ["all", "0", "-num", "2"]),  # argparse would take it for -num_gpus
    (train, ["all", "0", "-dev", "cpu"]),
    (train, ["all", "0", "-d15"]),
    (train, ["all", "0", "--min", "3"]),
    (predict, ["-i", "x", "-o", "y", "-num", "2"]),
    (evaluate, ["a", "b", "-dj", "dataset.json"]),
    (crossval, ["stray"]),
])  # fmt: skip
def test_options_are_exact_and_a_wrong_one_ends_with_2(command, args, capsys):
    with pytest.raises(SystemExit) as end:
        command.main(args)
    assert end.value.code == 2 and "error: " in capsys.readouterr().err


@pytest.mark.parametrize("error, code", [(C2FError("sentence"), 1), (SomeCasesFailed("sentence"), 3), (KeyboardInterrupt(), 130)])
def test_exit_codes(error, code, capsys):
    def body(args):
        raise error

    assert entry(lambda: new_parser("c2f_x", "about", "c2f_x"), body)([]) == code
    assert capsys.readouterr().err == ("interrupted\n" if code == 130 else "error: sentence\n")


@pytest.mark.parametrize("error, told", [
    (PermissionError(13, "Permission denied", "/data/raw"), "/data/raw: Permission denied; check that it is there, its permissions and"),
    (OSError("1600 requested and 0 written"), "1600 requested and 0 written; check that"),  # numpy on a full disk
    (MemoryError("Unable to allocate 3 GiB"), "the memory is too small (Unable to allocate 3 GiB); free some"),
    (MemoryError(), "the memory is too small (no more is given); free some"),
])  # fmt: skip
def test_what_the_system_refuses_is_a_stated_error(error, told, capsys):
    def body(args):
        raise error

    assert entry(lambda: new_parser("c2f_x", "about", "c2f_x"), body)([]) == 1
    assert capsys.readouterr().err.startswith(f"error: {told}")


def test_a_body_without_a_result_is_done():
    assert entry(lambda: new_parser("c2f_x", "about", "c2f_x"), lambda args: None)([]) == 0


ALL = [(train, ["all", 0]), (predict, ["-i", "imagesTs", "-o", "out"]), (crossval, []), (export_model, ["-o", "m.zip"])]


@pytest.mark.parametrize("command, args", ALL)
def test_an_unknown_data_set_or_plan_lists_what_exists(command, args, tiny_planned, fails):
    assert "no data set '17' there; it holds: Dataset901_Tiny" in fails(command, tiny_planned, *args, "-d", 17)
    missing = fails(command, tiny_planned, *args, "-pl", "auto")
    assert "no plan.json there; run c2f_plan_and_preprocess -d Dataset901_Tiny -pl auto first" in missing


@pytest.mark.parametrize("command, args", ALL)
def test_no_folders_named(command, args, capsys):
    assert command.main([str(a) for a in args]) == 1
    assert "no folders named: set C2F_RAW, C2F_PREPROCESSED and C2F_RESULTS, or give --workspace DIR" in capsys.readouterr().err


def test_libraries_log_nothing_below_a_warning(capsys):
    def body(args):
        logging.getLogger("numexpr.utils").info("NumExpr defaulting to 2 threads.")
        logging.getLogger("c2f_nnunet.running").info("ours")

    entry(lambda: new_parser("c2f_x", "about", "c2f_x"), body)([])
    assert capsys.readouterr().err == "INFO ours\n"


def test_a_signal_asks_to_stop_once():
    stop = StopRequest()
    assert not stop()
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop() and stop.exit_code == 143
    os.kill(os.getpid(), signal.SIGINT)
    assert stop.exit_code == 143  # the first counts
    again = StopRequest()
    os.kill(os.getpid(), signal.SIGINT)
    assert again() and again.exit_code == 130


def test_a_signal_stops_at_once_where_asked_for():
    stop, seen = StopRequest(), []
    with pytest.raises(ZeroDivisionError):
        with stop.at_once(ZeroDivisionError):
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                seen.append("after the first signal")
            finally:
                os.kill(os.getpid(), signal.SIGINT)  # while all is put in order: no further harm
                seen.append("in order")
    assert seen == ["in order"] and stop.exit_code == 143
    with pytest.raises(ZeroDivisionError), stop.at_once(ZeroDivisionError):  # one that came before counts
        seen.append("begun")
    again = StopRequest()
    with again.at_once(ZeroDivisionError):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # and one that comes after is only noted
    assert again() and seen == ["in order"]


def test_help_imports_nothing_heavy_and_says_nothing_else():
    heavy = "print([m for m in ('torch', 'pandas', 'numpy') if m in sys.modules])"
    code = f"import sys; from c2f_nnunet.cli import train, predict, crossval; {heavy}"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout == "[]\n" and run.stderr == ""
