"""Presets: defaults of each method, what is given wins, contradictions."""

import pytest

from tests.programs import ROOT
from tests.test_flags import names_of
from tfseg.errors import UserError
from tfseg.settings import programs
from tfseg.settings.methods import METHODS
from tfseg.settings.presets import PRESETS
from tfseg.settings.reading import flat

SHARED = {"dataset_dir": "records", "train_logdir": "run"}


def settings_of(preset="light", **given):
    given = {**SHARED, **({"preset": preset} if preset else {}), **given}
    training = programs.training(given, default_method="supervised")
    return {
        name: value for part in training.sections.values() for name, value in flat(part).items()
    }


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_settings_that_there_are(name):
    known = {field for cls in programs.TRAINING for field in names_of(cls)}
    preset = PRESETS[name]
    for part in (preset.shared, *preset.of_method.values(), *preset.of_weakly.values()):
        assert set(part) <= known
    assert set(preset.of_method) | set(preset.of_weakly) <= set(METHODS)
    assert set(preset.fixed) <= set(preset.shared)


@pytest.mark.parametrize(
    "method, weakly", [*((method, False) for method in METHODS), ("pseudoseg", True)]
)
def test_every_method_takes_it(method, weakly):
    extra = {"weakly": True} if weakly else {}
    found = settings_of(method=method, **extra)
    assert found["model_variant"] == "efficientnet_lite0"
    assert found["train_crop_size"] == (257, 257)
    preset = PRESETS["light"]
    expected = {**preset.shared, **preset.of_method.get(method, {})}
    expected |= preset.of_weakly.get(method, {}) if weakly else {}
    assert {name: found[name] for name in expected if name in found} == {
        name: value for name, value in expected.items() if name in found
    }


def test_what_is_given_wins():
    found = settings_of(method="pseudoseg", base_learning_rate=0.5, cutout_half_size=7)
    assert (found["base_learning_rate"], found["cutout_half_size"]) == (0.5, 7)
    assert found["pseudo_label_threshold"] == 0.45


def test_without_a_preset_nothing_changes():
    assert settings_of(preset=None)["model_variant"] == "mobilenet_v2"


def test_another_backbone_contradicts_it():
    with pytest.raises(UserError, match="(?s)--preset=light.*--model_variant.*xception_65"):
        settings_of(model_variant="xception_65")


@pytest.mark.parametrize(
    "given, flag",
    [({"head": "dpt"}, "--head"), ({"optimizer": "adamw"}, "--base_learning_rate")],
)
def test_what_does_not_go_with_it_is_one_message(given, flag):
    with pytest.raises(UserError, match=f"(?s)--preset=light.*{flag}"):
        settings_of(**given)
    assert settings_of(optimizer="adamw", base_learning_rate=1e-4)["optimizer"] == "adamw"


def test_values_of_unimatch_are_those_of_the_photographs():
    with open(ROOT / "experiments" / "photographs" / "unimatch.flags") as file:
        given = dict(line[2:].strip().partition("=")[::2] for line in file if line[0] == "-")
    found = settings_of(method="unimatch")
    assert found["distribution_alignment"] and given["distribution_alignment"] == ""
    for name in ("base_learning_rate", "confidence_threshold", "unlabeled_ramp_up_steps"):
        assert found[name] == float(given[name])


def test_methods_published_with_adamw_get_the_optimiser_of_its_rate():
    assert settings_of(method="unimatch_v2")["optimizer"] == "momentum"


def test_an_unknown_preset_names_those_there_are():
    with pytest.raises(UserError, match="(?s)--preset.*light"):
        settings_of(preset="heavy")
