import os
import subprocess
import sys
import types

import pytest
import tensorflow as tf

from tfseg import importing

PACKAGES = ("pandas", "scipy", "googleapiclient")


def test_the_expected_tensorflow_is_tested():
    expected = os.environ.get("TFSEG_EXPECT_TENSORFLOW")
    if expected is None:
        expected = tf.__version__[:4]  # Run by hand: any supported version.
    assert tf.__version__.startswith(expected)
    assert tf.__version__.startswith(("2.20.", "2.15."))


def test_keras_is_keras_2():
    assert not hasattr(tf.keras, "ops"), "tf.keras is Keras 3"


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_importing_prints_nothing_and_leaves_out_what_is_chosen_by_name():
    code = "import sys, tfseg.cli, tfseg.models, tfseg.training.trainer, tfseg.runs.judge\n"
    code += "print([m for m in ('official', 'keras_cv', 'tensorflow_addons') if m in sys.modules])"
    result = _python(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("with_cloud", [False, True])
def test_tensorflow_is_imported_without_what_it_can_do_without(with_cloud, monkeypatch):
    seen = {}

    def import_module(name):
        # None makes Python refuse to import it.
        seen.update({package: sys.modules.get(package, "") for package in PACKAGES})
        return types.SimpleNamespace(
            keras=types.SimpleNamespace(layers=types.SimpleNamespace(Layer=None))
        )

    for name in ("tensorflow", *PACKAGES):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "scipy", types)  # Somebody has imported it before.
    monkeypatch.setattr(importing.importlib, "import_module", import_module)
    importing.import_tensorflow(with_cloud=with_cloud)
    assert seen == {"pandas": None, "scipy": types, "googleapiclient": "" if with_cloud else None}
    assert "pandas" not in sys.modules and sys.modules["scipy"] is types


@pytest.mark.parametrize("method", ["supervised", "pseudoseg"])
def test_help_does_not_import_heavy_modules(method):
    code = (
        "import sys; sys.argv = ['train.py', '--helpfull']\n"
        "import atexit\n"
        "names = ('tensorflow', 'official', 'keras_cv', 'PIL', 'cv2')\n"
        "heavy = lambda: [m for m in names if m in sys.modules]\n"
        "atexit.register(lambda: print('HEAVY', heavy()))\n"
        f"from tfseg import cli; cli.train(default_method='{method}')\n"
    )
    result = _python(code)
    assert result.stdout.rstrip().endswith("HEAVY []"), result.stdout[-500:] + result.stderr
    assert "--train_crop_size" in result.stdout and "--att_strides" in result.stdout


@pytest.mark.skipif(
    tf.__version__.startswith("2.15"), reason="TensorFlow 2.15 has Keras 2 by default"
)
def test_importing_after_keras_3_says_what_to_do():
    code = "import os; os.environ.pop('TF_USE_LEGACY_KERAS', None)\nimport tensorflow\nimport tfseg"
    result = _python(code, TF_USE_LEGACY_KERAS="0")
    assert "Import tfseg first" in result.stderr
