"""Work in several processes; expressions given to `eval` stand for the work, since spawned processes can import it."""
import logging

import pytest

from c2f_nnunet.errors import C2FError
from c2f_nnunet.io.processes import each

DIE = "__import__('os')._exit(9)"


@pytest.mark.parametrize("processes", [1, 2])
def test_results_are_in_order(processes):
    slow_first = ["__import__('time').sleep(0.3) or 'first'", "'second'", "1 + 2"]
    assert list(each(eval, slow_first, processes)) == ["first", "second", 3]
    assert list(each(eval, [], processes)) == []


@pytest.mark.parametrize("processes", [1, 2])
def test_an_error_of_the_work_comes_through(processes):
    with pytest.raises(ZeroDivisionError):
        list(each(eval, ["1", "1 / 0", "3"], processes))


def test_a_worker_that_dies_again_is_named():
    results = each(eval, ["1", "2", DIE, "4"], 2, name=lambda item: f"the item {item}")
    with pytest.raises(C2FError, match=r"the item __import__\('os'\)._exit\(9\): the process working on it died; free memory"):
        list(results)


def test_a_worker_killed_once_costs_nothing(tmp_path, caplog):
    once = f"2 if __import__('os').path.exists({str(tmp_path / 'seen')!r}) else (open({str(tmp_path / 'seen')!r}, 'w'), {DIE})"
    with caplog.at_level(logging.WARNING):
        assert list(each(eval, ["1", once, "3"], 2)) == [1, 2, 3]
    assert "a worker process died" in caplog.text
