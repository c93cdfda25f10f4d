"""The stated errors: one family that commands turn into one sentence, and that nothing on the way swallows or loses."""
import inspect
import pickle

import pytest

from c2f_nnunet import errors
from c2f_nnunet.cli.common import entry, new_parser
from c2f_nnunet.errors import C2FError, SomeCasesFailed, WorkspaceError

ALL = [kind for kind in vars(errors).values() if inspect.isclass(kind)]


def test_there_is_one_family_and_a_reason_for_each_member():
    assert C2FError in ALL and SomeCasesFailed in ALL
    for kind in ALL:
        assert kind is C2FError or kind.__bases__ in ((C2FError,), (WorkspaceError,))
        assert kind.__doc__ and kind.__doc__.endswith(".") and len(kind.__doc__.splitlines()) == 1


@pytest.mark.parametrize("kind", ALL)
def test_a_command_says_the_sentence_and_only_some_failed_cases_are_exit_code_3(kind, capsys):
    def body(args):
        raise kind("hn_012: the value is wrong; mend it")

    code = entry(lambda: new_parser("c2f_x", "about", "c2f_x"), body)([])
    assert code == (3 if kind is SomeCasesFailed else 1)
    assert capsys.readouterr().err == "error: hn_012: the value is wrong; mend it\n"


@pytest.mark.parametrize("other", [ValueError("a mistake of ours"), AssertionError()])
def test_what_is_not_stated_is_not_hidden_behind_a_sentence(other):
    def body(args):
        raise other

    with pytest.raises(type(other)):
        entry(lambda: new_parser("c2f_x", "about", "c2f_x"), body)([])


@pytest.mark.parametrize("kind", ALL)
def test_no_handler_of_a_librarys_errors_takes_a_stated_one(kind):
    """Readers turn these into stated errors: one that is stated already must get through as it is."""
    assert not issubclass(kind, (OSError, ValueError, LookupError, RuntimeError, ArithmeticError, MemoryError, EOFError))


@pytest.mark.parametrize("kind", ALL)
def test_a_worker_process_can_hand_it_over(kind):
    found = pickle.loads(pickle.dumps(kind("hn_012: the value is wrong; mend it")))
    assert type(found) is kind and str(found) == "hn_012: the value is wrong; mend it"
