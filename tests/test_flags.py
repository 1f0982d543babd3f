import dataclasses
import warnings

import pytest
from absl import flags as absl_flags

from tfseg.errors import UserError
from tfseg.settings import flags
from tfseg.settings.data import DataConfig
from tfseg.settings.methods import METHOD_CONFIGS, PseudoSegConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.option import option
from tfseg.settings.prediction import EvalConfig, VisConfig
from tfseg.settings.run import TrainConfig


@dataclasses.dataclass(frozen=True)
class Toy:
    size: tuple[int, ...] = option((5, 5), "Sides.")
    rates: tuple[int, ...] | None = option(None, "Rates.", multi=True)
    name: str | None = option(None, "Name.", required=True)
    old: int = option(1, "Old.", dead=True)
    exotic: bool = option(False, "Exotic.", unsupported="it is too exotic")


@pytest.fixture
def parse(monkeypatch):
    """Defines Toy's flags in a registry of their own and parses a command line."""
    registry = absl_flags.FlagValues()
    monkeypatch.setattr(flags, "FLAGS", registry)
    define = {
        name: getattr(absl_flags, name) for name in dir(absl_flags) if name.startswith("DEFINE_")
    }
    for name, function in define.items():
        monkeypatch.setattr(
            absl_flags, name, lambda *a, f=function, **k: f(*a, flag_values=registry, **k)
        )

    def run(*arguments, cls=Toy, **options):
        flags.define(cls)
        registry(["program", *arguments])
        return flags.read(cls, **options)

    return run


def test_lists_and_repeated_flags_become_tuples(parse):
    toy = parse("--name=x", "--size=7,9", "--rates=6", "--rates=12")
    assert toy == Toy(size=(7, 9), rates=(6, 12), name="x")


def test_an_empty_list_is_a_value_where_none_is_not_meant(parse):
    assert parse("--name=x", "--size=").size == ()


def test_an_empty_list_is_none_where_that_is_meant(parse):
    @dataclasses.dataclass(frozen=True)
    class Optional:
        sides: tuple[int, ...] | None = option((5, 5), "Sides.")

    assert parse("--sides=", cls=Optional).sides is None


def test_missing_required_flag(parse):
    with pytest.raises(UserError, match="--name is required"):
        parse()


def test_malformed_list(parse):
    with pytest.raises(UserError, match="not a list of int"):
        parse("--name=x", "--size=7,big")


def test_dead_flag_warns_once_and_only_when_given(parse):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parse("--name=x", "--old=3")
    assert [str(w.message) for w in caught if "--old" in str(w.message)]
    assert len(caught) == 1


def test_unsupported_value_is_refused_and_default_accepted(parse):
    assert parse("--name=x", "--exotic=false").exotic is False
    with pytest.raises(UserError, match="too exotic"):
        flags.FLAGS(["program", "--name=x", "--exotic"])
        flags.read(Toy)


def test_saved_values_fill_in_and_contradictions_are_refused(parse):
    saved = {"size": [3, 3], "name": "before"}
    assert parse("--rates=2", saved=saved).size == (3, 3)
    flags.FLAGS.unparse_flags()
    flags.FLAGS(["program", "--size=4,4"])
    with pytest.raises(UserError, match="--size contradicts"):
        flags.read(Toy, saved=saved)
    assert flags.read(Toy, saved=saved, may_differ=("size",)).size == (4, 4)


@pytest.mark.parametrize(
    "cls",
    [ModelConfig, DataConfig, TrainConfig, EvalConfig, VisConfig, *METHOD_CONFIGS.values()],
)
def test_every_field_has_help_that_ends_like_a_sentence(cls):
    for field in dataclasses.fields(cls):
        assert field.metadata["help"].endswith("."), field.name


def read_settings(registry, method, *arguments):
    flags.define_method_settings(METHOD_CONFIGS)
    registry(["program", *arguments])
    return flags.read_method_settings(METHOD_CONFIGS, method)


def test_a_methods_settings_are_its_own_defaults_unless_given(parse):
    settings = read_settings(
        flags.FLAGS,
        "pseudoseg",
        "--att_strides=14,16",
        "--temperature=0.3",
        "--nosoft_pseudo_label",
    )
    assert settings == dataclasses.replace(
        PseudoSegConfig(), att_strides=(14, 16), temperature=0.3, soft_pseudo_label=False
    )


def test_a_setting_of_another_method_is_refused(parse):
    with pytest.raises(UserError, match="--temperature is no setting of --method=supervised"):
        read_settings(flags.FLAGS, "supervised", "--temperature=0.3")


def test_no_setting_of_a_method_shadows_one_of_the_run():
    run = {
        f.name for cls in (ModelConfig, DataConfig, TrainConfig) for f in dataclasses.fields(cls)
    }
    for cls in METHOD_CONFIGS.values():
        assert not run & {f.name for f in dataclasses.fields(cls)}
