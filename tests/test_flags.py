import dataclasses
import warnings
from typing import Any, ClassVar

import numpy as np
import pytest
from absl import flags as absl_flags

from tfseg.errors import UserError
from tfseg.settings import flags, programs
from tfseg.settings.help import GROUPS, RARE_GROUPS, Help, entries_of
from tfseg.settings.methods import METHODS
from tfseg.settings.network import ModelConfig
from tfseg.settings.option import NEVER, Choice, Section, option, owned
from tfseg.settings.prediction import EvalConfig
from tfseg.settings.reading import (
    changed,
    check_heeded,
    element_type,
    flat,
    make,
    names_of,
    read,
    refuse_training,
)
from tfseg.settings.run import TrainConfig

SECTIONS = {*programs.TRAINING, *programs.EVALUATION, *programs.PICTURES, *programs.IMAGES}


@dataclasses.dataclass(frozen=True)
class Toy(Section):
    size: tuple[int, ...] = option((5, 5), "Sides.")
    rates: tuple[int, ...] | None = option(None, "Rates.", multi=True)
    weights: tuple[float, ...] | str | None = option(None, "W.", multi=True, words=("even",))
    name: str | None = option(None, "Name.", required=True)
    old: int = option(1, "Old.", dead=True)
    exotic: bool = option(False, "Exotic.", unsupported="it is too exotic")
    depth: int = option(1, "Depth.", may_differ=NEVER, limits=(1, 9))
    crop: int = option(3, "Crop.", training=True)


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
        return read(cls, flags.given(cls), **options)

    return run


def test_lists_and_repeated_flags_become_tuples(parse):
    toy = parse("--name=x", "--size=7,9", "--rates=6", "--rates=12")
    assert toy == Toy(size=(7, 9), rates=(6, 12), name="x")


@pytest.mark.parametrize(
    "words, expected",
    [(["1", "0.5"], (1.0, 0.5)), (["even"], "even"), (["1", "0.5", "even"], "even")],
    ids=str,
)
def test_a_word_stands_in_the_place_of_numbers(parse, words, expected):
    assert parse("--name=x", *(f"--weights={word}" for word in words)).weights == expected
    assert make(Toy, name="x", weights=expected).weights == expected


@pytest.mark.parametrize("words", [["odd"], ["even", "1"]], ids=str)
def test_another_word_is_refused(parse, words):
    with pytest.raises(UserError, match="(?s)--weights.*even, or --weights=NUMBER repeated"):
        parse("--name=x", *(f"--weights={word}" for word in words))
    with pytest.raises(UserError, match="--weights"):
        make(Toy, name="x", weights="odd")


def test_an_empty_list_is_a_value_where_none_is_not_meant(parse):
    assert parse("--name=x", "--size=").size == ()


def test_an_empty_list_is_none_where_that_is_meant(parse):
    @dataclasses.dataclass(frozen=True)
    class Optional(Section):
        sides: tuple[int, ...] | None = option((5, 5), "Sides.")

    assert parse("--sides=", cls=Optional).sides is None


def test_missing_required_flag(parse):
    with pytest.raises(UserError, match="--name is required"):
        parse()


def test_malformed_list(parse):
    with pytest.raises(UserError, match="not a list of int"):
        parse("--name=x", "--size=7,big")


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("size", (5, 100000), "received: 5,100000\n.*a tuple of int, .*at most 65536"),
        ("depth", 10, "received: 10\n.*int, at least 1, at most 9"),
        ("crop", 1 << 40, "received: 1099511627776\n.*at most 2147483647"),
        ("crop", {3}, "an object of type set"),
        ("crop", (3,), "received: a list of 1\n.*accepted: int"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_is_told_with_those_that_can(name, value, words):
    with pytest.raises(UserError, match=f"(?s)--{name} cannot have this value.*{words}"):
        read(Toy, {"name": "x", name: value})


def test_numbers_of_numpy_are_numbers():
    toy = make(Toy, name="x", size=np.array([7, 9]), weights=[np.float32(0.5)], depth=np.int64(2))
    assert (toy.size, toy.weights, toy.depth) == ((7, 9), (0.5,), 2)
    assert {type(x) for x in (*toy.size, toy.depth)} == {int} and type(toy.weights[0]) is float


def test_dead_flag_warns_once_and_only_when_given(parse):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        parse("--name=x", "--old=3")
    assert [str(w.message) for w in caught if "--old" in str(w.message)]
    assert len(caught) == 1


def test_unsupported_value_is_refused_and_default_accepted(parse):
    assert parse("--name=x", "--exotic=false").exotic is False
    with pytest.raises(UserError, match="too exotic"):
        read(Toy, {"name": "x", "exotic": True})


def test_saved_values_fill_in_and_contradictions_are_refused(parse):
    saved = {"size": [3, 3], "name": "before", "depth": 2}
    toy = parse("--rates=2", saved=saved)
    assert (toy.size, toy.rates, toy.depth) == ((3, 3), (2,), 2)
    assert read(Toy, {"size": (4, 4)}, saved=saved).size == (4, 4)
    with pytest.raises(UserError, match="--depth contradicts"):
        read(Toy, {"depth": 3}, saved=saved)
    assert read(Toy, {"depth": 2}, saved=saved).depth == 2


def test_a_program_has_defaults_of_its_own():
    assert read(Toy, {"name": "x"}, defaults={"depth": 4}).depth == 4
    assert read(Toy, {"name": "x", "depth": 5}, defaults={"depth": 4}).depth == 5
    assert read(Toy, {"name": "x"}, defaults={"depth": 4}, saved={"depth": 6}).depth == 6


def test_a_setting_of_training_is_refused_elsewhere():
    refuse_training(Toy, {"name": "x", "depth": 2})
    with pytest.raises(UserError, match="--crop is a setting of training"):
        refuse_training(Toy, {"crop": 9})
    given = {"dataset_dir": "d", "checkpoint_dir": "c", "eval_logdir": "e", "crop_area": (0.5, 1.0)}
    with pytest.raises(UserError, match="--crop_area is a setting of training"):
        programs.prediction(EvalConfig, given)


# What is chosen by name has settings of its own ---------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Round(Section):
    radius: float = option(1.0, "Radius.", limits=(0, None))


@dataclasses.dataclass(frozen=True)
class Square(Section):
    UNHEEDED: ClassVar[tuple[str, ...]] = ("color",)

    side: int = option(2, "Side.")
    tilt: int = option(0, "Tilt.", needs="turned")
    turned: bool = option(False, "Turned.")
    edge: str = option("plain", "Edge.", choices=("plain", "bevel"))
    bevel: int = option(1, "Bevel.", needs=("edge=bevel", "turned=false"))


SHAPES = {"round": Choice(Round, "math:pi"), "square": Choice(Square, "math")}


@dataclasses.dataclass(frozen=True)
class Picture(Section):
    shape: str = option("round", "Shape.")
    color: str = option("red", "Colour.")
    own: Any = owned("shape", SHAPES)


def test_an_owned_section_has_the_settings_of_what_is_chosen():
    assert Picture().own == Round() and Picture(shape="square").own == Square()
    picture = make(Picture, shape="square", side=5)
    assert flat(picture)["side"] == 5 and "radius" not in flat(picture)
    assert changed(picture, color="blue").own == Square(side=5)
    assert changed(picture, shape="round").own == Round()
    assert dataclasses.replace(picture, shape="round").own == Round()
    assert set(names_of(Picture)) >= {"shape", "radius", "side"}
    assert read(Picture, {}, saved={"shape": "square", "side": 7}).own.side == 7


def test_an_implementation_is_loaded_when_it_is_needed():
    import math

    assert SHAPES["round"].load() == math.pi and SHAPES["square"].load() is math


@pytest.mark.parametrize(
    "given, words",
    [
        ({"shape": "cube"}, "--shape"),
        ({"side": 3}, "(?s)--side is no setting of --shape=round.*--shape=square"),
        (
            {"shape": "square", "color": "blue"},
            "(?s)--shape=square does not use --color.*--shape=round",
        ),
        ({"shape": "square", "tilt": 3}, "--tilt needs --turned"),
        ({"shape": "square", "bevel": 3}, "(?s)--bevel would have no effect.*--edge=bevel"),
        (
            {"shape": "square", "edge": "bevel", "bevel": 3, "turned": True},
            "(?s)--bevel=3.*--turned=true",
        ),
        ({"shape": "square", "edge": "sharp"}, "(?s)--edge.*plain, bevel"),
        ({"radius": -1.0}, "(?s)--radius.*at least 0"),
        ({"radius": "wide"}, "(?s)--radius.*float"),
    ],
    ids=str,
)
def test_what_would_have_no_effect_is_refused(given, words):
    with pytest.raises(UserError, match=words):
        make(Picture, **given)


def test_what_has_an_effect_is_accepted():
    make(Picture, shape="square", edge="bevel", bevel=3, color="red", tilt=0)
    make(Picture, radius=2, color="blue")
    with pytest.raises(TypeError, match="no setting angle"):
        make(Picture, angle=3)


def test_conditions_look_at_other_sections_too():
    given = {"depth": 3}
    toy = dataclasses.make_dataclass(
        "Other", [("depth", int, option(1, "D.", needs="shape=square"))], bases=(Section,),
        frozen=True,
    )  # fmt: skip
    check_heeded(given, [toy(depth=3), Picture(shape="square")])
    with pytest.raises(UserError, match="--shape=round"):
        check_heeded(given, [toy(depth=3), Picture()])


# The settings of the programs ---------------------------------------------------------------------


def test_a_methods_settings_are_its_own_defaults_unless_given(parse):
    flags.define(*programs.TRAINING)
    command = ["--att_strides=14,16", "--temperature=0.3", "--nosoft_pseudo_label"]
    flags.FLAGS(["program", *command, "--dataset_dir=d", "--train_logdir=l"])
    given = flags.given(*programs.TRAINING)
    settings = programs.training(given, default_method="pseudoseg").train.method_settings
    assert settings == METHODS["pseudoseg"].settings(
        att_strides=(14, 16), temperature=0.3, soft_pseudo_label=False
    )
    with pytest.raises(UserError, match="--att_strides is no setting of --method=supervised"):
        programs.training(given, default_method="supervised")


def test_programs_and_methods_have_defaults_of_their_own():
    given = {"dataset_dir": "d", "train_logdir": "l"}
    supervised = programs.training(given, default_method="supervised")
    assert supervised.train.base_learning_rate == 0.0001
    strict = programs.training({**given, "method": "strict"}, default_method="pseudoseg")
    assert strict.network.head == "projection" and not strict.network.fine_tune_batch_norm
    assert strict.train.base_learning_rate == 0.007
    given |= {"method": "strict", "head": "deeplab"}
    assert programs.training(given, default_method="pseudoseg").network.head == "deeplab"


@pytest.mark.parametrize("name", METHODS)
def test_flags_that_a_method_does_not_use_are_refused(name):
    fields = {n: f for cls in programs.TRAINING for n, f in names_of(cls).items()}
    for flag in METHODS[name].settings.UNHEEDED:
        default = fields[flag].default
        others = {bool: not default, int: 7, float: 0.25, str: "plain", tuple: (1.0,)}
        value = others.get(type(default), (1.0,))
        if flag in ("class_split", "class_embeddings"):
            value = "x"
        if fields[flag].metadata["choices"]:
            value = next(c for c in fields[flag].metadata["choices"] if c != default)
        if flag == "head":
            value = "projection"
        given = {"dataset_dir": "d", "train_logdir": "l", "method": name, flag: value}
        with pytest.raises(UserError, match=f"{name} does not use --{flag}"):
            programs.training(given, default_method="supervised")


def test_every_flag_has_a_group_an_owner_and_help_that_ends_like_a_sentence():
    for sections in (programs.TRAINING, programs.EVALUATION, programs.PICTURES, programs.IMAGES):
        names = {}
        for entry in (entry for cls in sections for entry in entries_of(cls)):
            field = entry.field
            assert field.metadata["help"].endswith("."), field.name
            assert entry.group in (*GROUPS, *RARE_GROUPS), field.name
            # Two sections have a setting in common only where it means the same.
            before = names.setdefault(field.name, field)
            assert before.metadata["help"] == field.metadata["help"], field.name


# Checked where the number is used.
_CHECKED = {"eval_batch_size", "vis_batch_size", "eval_interval_secs", "max_number_of_evaluations"}


def test_every_number_has_a_smallest_value():
    """A run that forgets its checkpoints, or diverges, is no place to learn of a wrong sign."""
    for field, annotation in (found for cls in SECTIONS for found in flags._settings_in(cls)):
        if element_type(annotation) not in ((int, False), (float, False)):
            continue
        if not field.metadata["dead"] and not field.metadata["unsupported"]:
            limits = field.metadata["limits"]
            assert limits[0] is not None or field.name in _CHECKED, field.name


@pytest.mark.parametrize("given", [{"max_to_keep": 0}, {"seed": -1}, {"seed": 1 << 31}], ids=str)
def test_numbers_that_no_run_can_have_are_refused(given):
    with pytest.raises(UserError, match=f"--{next(iter(given))} cannot have this value"):
        read(TrainConfig, {"train_logdir": "run", **given})


def test_no_setting_of_a_choice_shadows_one_of_a_section():
    own = {field.name for cls in SECTIONS for field in dataclasses.fields(cls)}
    for cls in SECTIONS:
        for entry in entries_of(cls):
            assert not entry.owner or entry.field.name not in own, entry.field.name


def test_conditions_name_settings():
    fields = {name: field for cls in SECTIONS for name, field in names_of(cls).items()}
    for name, field in fields.items():
        for condition in field.metadata["needs"]:
            other, _, wanted = condition.partition("=")
            assert other in fields, f"{name} needs {other}"
            choices = fields[other].metadata["choices"]
            assert not choices or set(wanted.split("|")) <= set(choices), name


# Help ---------------------------------------------------------------------------------------------


def page(*argv, sections=programs.TRAINING, default_method="pseudoseg", training=True):
    defaults = programs.defaults_of(default_method) if training else {}
    return Help(sections, defaults, training).text(["program", *argv])


@pytest.mark.parametrize("method", METHODS)
def test_help_is_short_grouped_and_of_the_chosen_method(method):
    text = page("--help", f"--method={method}")
    # The program adds its docstring and some ten lines.
    assert len(text.splitlines()) <= 109 and max(map(len, text.splitlines())) <= 100
    own = {field.name for field in dataclasses.fields(METHODS[method].settings)}
    shown = {line.split("=")[0].strip(" -") for line in text.splitlines() if "--" in line}
    for name, choice in METHODS.items():
        others = {field.name for field in dataclasses.fields(choice.settings)} - own
        assert own <= shown and not others & shown, name
    head = METHODS[method].settings.DEFAULTS.get("head", "deeplab")
    assert f"--head={head}" in text and f"--method={method}" in text
    assert ("low_rank_gate" in shown) == (head == "low_rank")


def test_help_shows_defaults_of_the_program():
    assert "--save_summaries_secs=180" in page("--help")
    assert "--save_summaries_secs=600" in page("--help", default_method="supervised")
    assert "--crop_area=0.9,1.0" in page("--augmentation=resized_crop", "--help")


def test_full_help_shows_every_flag_and_its_owner():
    text = page("--helpfull")
    for cls in programs.TRAINING:
        for name in names_of(cls):
            assert text.count(f"\n  --{name}=") == 1, name
    assert "With --head=low_rank." in text and "With --method=pseudoseg." in text
    assert "With --augmentation=warped_crop|short_side_crop." in text


def test_other_programs_show_no_setting_of_training():
    text = page("--helpfull", sections=programs.EVALUATION, training=False)
    assert "--eval_split" in text and "--train_crop_size" not in text
    given = {"dataset_dir": "d", "checkpoint_dir": "c", "eval_logdir": "e"}
    settings = programs.prediction(EvalConfig, given)
    assert settings.config.eval_split == "val" and isinstance(ModelConfig(), Section)
