"""Expected errors end a script with one line and an exit status."""

import pytest

from utils.process.errors import RunError, UserError, exit_status


@pytest.mark.parametrize(("kind", "status"), [(UserError, 2), (RunError, 1)])
def test_an_expected_error_is_one_line_with_its_status(kind, status, capsys):
    def fail():
        raise kind("--flag: what is wrong;\n  what to do")

    assert exit_status(fail) == status
    assert capsys.readouterr() == ("", "error: --flag: what is wrong; what to do\n")


def test_a_failure_in_mid_run_is_no_user_error():
    assert not issubclass(RunError, UserError)
