"""Exit codes and messages of every program's frame."""

import errno

import pytest

from tfseg import command_line
from tfseg.errors import UserError


def leave_by(effect):
    """Returns the exit code of a program whose work ends so."""

    def main(argv):
        if isinstance(effect, BaseException):
            raise effect
        return effect

    with pytest.raises(SystemExit) as leaving:
        command_line.run(main, ["program"])
    return leaving.value.code


@pytest.mark.parametrize(
    "effect, code",
    [
        (None, 0),
        (0, 0),
        (143, 143),
        (UserError("Wrong."), 2),
        (OSError(errno.ENOSPC, "No space left on device", "out"), 2),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_exit_code(effect, code):
    assert leave_by(effect) == code


def test_ctrl_c_is_answered_with_one_word(capsys):
    leave_by(KeyboardInterrupt())
    assert capsys.readouterr().err == "interrupted\n"


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda argv: 1 / 0, ["program"])


@pytest.mark.parametrize(
    "words, message",
    [(["--verbosty=1"], "--verbosity"), (["stray"], "stray"), (["--verbosity=a"], "verbosity")],
)
def test_a_wrong_command_line(words, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        command_line.run(lambda argv: 0, ["program", *words])
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err
