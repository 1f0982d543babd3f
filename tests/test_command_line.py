"""Exit codes and messages of every program's frame."""

import errno
import io
import os
import subprocess
import sys

import pytest

from tests.programs import ROOT, environment
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


def test_a_link_that_leads_nowhere_is_told(tmp_path, capsys):
    """Of data that is fetched later, a folder may hold links alone."""
    (tmp_path / "a.jpg").symlink_to("store/123.jpg")

    def main(argv):
        open(tmp_path / "a.jpg")

    with pytest.raises(SystemExit) as leaving:
        command_line.run(main, ["program"])
    error = capsys.readouterr().err
    assert leaving.value.code == 2
    assert "link" in error and "a.jpg" in error and "store/123.jpg" in error


def test_ctrl_c_is_answered_with_one_word(capsys):
    leave_by(KeyboardInterrupt())
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("words", [["--help"], []], ids=["help", "work"])
@pytest.mark.parametrize("lines", [1, 5000])
def test_a_reader_that_has_gone_ends_a_program_quietly(words, lines, capfd, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    pages = {"help_page": lambda argv: "flag\n" * lines}
    with open(writing, "w") as output, pytest.raises(SystemExit) as leaving:
        monkeypatch.setattr(sys, "stdout", output)
        command_line.run(lambda argv: print("line\n" * lines), ["program", *words], **pages)
    monkeypatch.undo()
    # (Closing the file wrote what was left, as the end of a process does.)
    assert leaving.value.code == 141
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("encoding, shown", [("ascii", rb"k\xe4se \udce1"), ("utf-8", rb"\udce1")])
def test_characters_that_the_terminal_lacks_are_told_otherwise(encoding, shown, monkeypatch):
    """Names of files need not be UTF-8, and the terminal's encoding need not be UTF-8 either."""
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", output)
    with pytest.raises(SystemExit) as leaving:
        command_line.run(lambda argv: print("k\xe4se \udce1"), ["program"])
    assert not leaving.value.code and shown in output.buffer.getvalue()


def test_another_broken_pipe_is_a_defect():
    with pytest.raises(BrokenPipeError):
        leave_by(BrokenPipeError())


def test_a_package_that_is_missing_is_one_message(capsys):
    assert leave_by(ModuleNotFoundError("No module named 'cv2'", name="cv2")) == 2
    error = capsys.readouterr().err
    assert "'cv2' is not installed" in error and sys.executable in error
    with pytest.raises(ModuleNotFoundError):
        leave_by(ModuleNotFoundError("No module named 'tfseg.x'", name="tfseg.x"))


def test_a_program_without_its_environment_says_so():
    # A bare Python, as that of the system is.
    bare = {k: v for k, v in environment().items() if k != "PYTHONPATH"}
    command = [sys.executable, "-S", "train_sup.py"]
    result = subprocess.run(command, cwd=ROOT, env=bare, capture_output=True, text=True)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "'absl' is not installed" in result.stderr and "activate" in result.stderr


def test_a_defect_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command_line.run(lambda argv: 1 / 0, ["program"])


@pytest.mark.parametrize(
    "words, message",
    [
        (["--verbosty=1"], "--verbosity"),
        (["stray"], "stray"),
        (["--verbosity=a"], "verbosity"),
        (["--nologtostderr=1"], "--nologtostderr=1 does not take an argument"),
    ],
)
def test_a_wrong_command_line(words, message, capsys):
    with pytest.raises(SystemExit) as leaving:
        command_line.run(lambda argv: 0, ["program", *words])
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err


# Flagfiles ---------------------------------------------------------------------------------------


def test_lines_of_a_flagfile_stand_where_it_is_named(tmp_path):
    inner, outer = tmp_path / "inner", tmp_path / "outer"
    inner.write_text("--b=2\n")
    outer.write_text(f"# A comment.\n// Another.\n--a=1\n\n  --flagfile={inner}  \n--c=3\n")
    words = ["--x=0", f"--flagfile={outer}", "-flagfile", str(inner), "--x=9"]
    expected = ["--x=0", "--a=1", "--b=2", "--c=3", "--b=2", "--x=9"]
    assert command_line.with_flagfiles(words) == expected


def test_flagfiles_that_are_shipped_are_found_in_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = command_line.with_flagfiles(["--flagfile=digits_pseudoseg_weakly"])
    assert "--atrous_rates=2" in words and any("weakly" in word for word in words)
    assert not any("flagfile" in word for word in words)
    # A file of the user's comes first.
    (tmp_path / "digits_pseudoseg_weakly").write_text("--own=1")
    assert command_line.with_flagfiles(["--flagfile=digits_pseudoseg_weakly"]) == ["--own=1"]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("digit", None, "digits"),
        ("", None, "no name"),
        ("own", b"--flagfile=own", "includes itself"),
        ("own", b"\xff\xfe", "no text"),
        ("folder/", None, "not a file"),
    ],
    ids=str,
)
def test_a_flagfile_that_cannot_be_used(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        command_line.with_flagfiles([f"--flagfile={name}"])
