"""The command `tfseg`: its programs, their names on help pages, mistakes; what is shipped."""

import runpy
import subprocess
import sys
import types

import pytest

from tests.programs import ROOT, assert_user_error, run
from tfseg import console, shipped


def test_without_arguments_it_lists_the_commands():
    text = run("tfseg").stdout
    for name in (*console.COMMANDS, "convert KIND"):
        assert f"  {name} " in text
    assert text == run("tfseg", "--help").stdout and len(text.splitlines()) < 22
    assert all(f"  {kind} " in run("tfseg", "convert").stdout for kind in console.KINDS)


@pytest.mark.parametrize(
    "words, message",
    [
        (["train"], "train-sup"),
        (["convert", "foldr"], "folder"),
        (["train-sup", "--dataset_dri=x"], "--dataset_dir"),
    ],
    ids=" ".join,
)
def test_a_wrong_word_is_one_message(words, message):
    assert_user_error(run("tfseg", *words, check=False), message)


@pytest.mark.parametrize(
    "words, says",
    [
        (["train-sup", "--preset=light"], "tfseg train-sup --dataset_dir=records"),
        (["eval"], "tfseg eval --checkpoint_dir=run"),
        (["check"], "tfseg check --dataset_dir=records"),
        (["convert", "pseudo-labels"], "tfseg convert pseudo_labels --dataset_dir=records"),
        (["demo"], "tfseg demo --output_dir=demo_output"),
    ],
    ids=lambda x: x[0] if isinstance(x, list) else "",
)
def test_help_names_the_program_as_it_was_called(words, says):
    text = run("tfseg", *words, "--help").stdout
    assert says in text and "python " not in text


def test_every_converter_has_a_kind():
    files = {path.stem for path in (ROOT / "tfrecords_tools").glob("build_*.py")}
    assert files <= {kind.path.rpartition(".")[2] for kind in console.KINDS.values()}


def test_the_list_of_commands_comes_at_once():
    code = (
        "import sys; sys.argv = ['tfseg']\n"
        "from tfseg import console\n"
        "try: console.main()\n"
        "except SystemExit: print([m for m in ('tensorflow', 'numpy', 'absl') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.endswith("[]\n"), result.stdout + result.stderr


@pytest.mark.parametrize("name", [n for n, c in console.COMMANDS.items() if ":" in c.path])
@pytest.mark.parametrize("form", ["script", "command"])
def test_ctrl_c_while_a_program_is_imported_is_one_word(name, form, monkeypatch, capsys):
    def import_module(name):
        raise KeyboardInterrupt

    importing = types.SimpleNamespace(import_module=import_module)
    monkeypatch.setattr(console, "importlib", importing)
    monkeypatch.setattr(sys, "argv", ["tfseg", name])
    script = console.COMMANDS[name].script
    with pytest.raises(SystemExit) as leaving:
        if form == "script" and script:
            runpy.run_path(str(ROOT / script), run_name="__main__")
        else:
            console.main()
    assert leaving.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"


# What comes with the package ----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["digits", "digits.flags", "experiments/digits.flags"])
def test_a_flagfile_is_found_by_its_name(name):
    assert shipped.find(name, ".flags") == str(ROOT / "experiments" / "digits.flags")
    assert "pseudoseg/voc12_1_16_92" in shipped.names(".flags")


@pytest.mark.parametrize("name", ["nothing", "", "/digits", "../experiments/digits"])
def test_nothing_else_is_found(name):
    assert shipped.find(name, ".flags") is None


def test_the_package_holds_what_is_shipped(tmp_path, monkeypatch):
    """Where the package was installed there is no folder beside it."""
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_py", "--build-lib", tmp_path],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    names = shipped.names(".flags"), shipped.names(".json")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "tfseg")
    assert (shipped.names(".flags"), shipped.names(".json")) == names
    assert shipped.find("digits", ".flags").startswith(str(tmp_path))
