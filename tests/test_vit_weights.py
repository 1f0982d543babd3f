"""DINOv2's weights in every spelling they are handed on in, and UniMatch V2's checkpoints."""

import pathlib

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.programs import run
from tests.torch_files import op_dict, op_state_dict, write_pickle, write_torch
from tfseg.errors import UserError
from tfseg.models import BACKBONES, build_model
from tfseg.models.backbones import vision_transformer
from tfseg.models.backbones.vit import Shape
from tfseg.models.heads import dpt
from tfseg.settings.network import ModelConfig
from tfseg.settings.reading import make
from tfseg.weights import torch_file, torch_initial, vit_names
from tfseg.weights.checkpoint.names import by_name
from tfseg.weights.initial import load_initial_weights
from tfseg.weights.pretrained import load_pretrained
from tfseg.weights.torch_initial import load_torch
from tfseg.weights.torch_convert import convert

TABLES = pathlib.Path(__file__).parent / "golden" / "unimatch"
WIDTH, CLASSES, REGISTERS = 8, 3, 4
SHAPE = Shape(WIDTH, 2, (0, 1, 2, 3))
CHANNELS = {"dpt_features": 4, "dpt_channels": (2, 3, 4, 5)}


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    shapes = {"tiny": SHAPE, "tiny_reg": Shape(WIDTH, 2, SHAPE.taken, REGISTERS)}
    for name, shape in shapes.items():
        monkeypatch.setitem(BACKBONES, name, vision_transformer(name, shape))
        monkeypatch.setitem(vit_names.SHAPES, name, shape)


def build(variant="tiny", *, num_classes=CLASSES, **config):
    return build_model(
        make(ModelConfig, model_variant=variant, head="dpt", **config),
        num_classes=num_classes,
        num_image_classes=2,
        crop_size=(28, 28),
    )


def small(variant="tiny"):
    return build(variant, **CHANNELS)


def table(name):
    """Returns the shapes of a published file by tensor."""
    lines = (TABLES / f"{name}.tsv").read_text().splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {name: tuple(map(int, shape.split(","))) for name, shape in rows}


def repeated(shapes):
    """Returns tensors that hold one number many times, which take no memory."""
    numbers = np.arange(1, len(shapes) + 1, dtype=np.float32)
    return {n: np.broadcast_to(numbers[i], shape) for i, (n, shape) in enumerate(shapes.items())}


def encoder_arrays(registers=0):
    """Returns the tensors of a small file in DINOv2's spelling."""
    hidden = 4 * WIDTH
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1370, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, 14, 14),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
    }
    if registers:
        shapes["register_tokens"] = (1, registers, WIDTH)
    for i in range(4):
        block = f"blocks.{i}."
        linear = {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (hidden, WIDTH),
            "mlp.fc2": (WIDTH, hidden),
        }
        for name, shape in linear.items():
            shapes |= {f"{block}{name}.weight": shape, f"{block}{name}.bias": shape[:1]}
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}{name}.weight": (WIDTH,), f"{block}{name}.bias": (WIDTH,)}
        shapes |= {f"{block}ls1.gamma": (WIDTH,), f"{block}ls2.gamma": (WIDTH,)}
    rng = np.random.default_rng(3)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def head_arrays():
    """Returns the tensors of a small head: those published, in other widths."""
    sides = {48: 2, 96: 3, 192: 4, 384: 5, 64: 4, 21: CLASSES}
    rng, arrays = np.random.default_rng(4), {}
    for name, shape in table("k_dpt_head_small_21").items():
        smaller = [sides.get(side, side) for side in shape]
        if "projects" in name and name.endswith("weight"):
            smaller[1] = WIDTH
        arrays[name] = rng.normal(size=smaller).astype(np.float32)
    return arrays


def hugging_face(arrays, *, in_memory=False):
    """Spells a small file as Hugging Face does, on disk or in memory."""
    thirds = ("q_proj", "k_proj", "v_proj") if in_memory else ("query", "key", "value")
    attention = "attention." if in_memory else "attention.attention."
    out = "attention.o_proj" if in_memory else "attention.output.dense"
    result = {}
    for name, array in arrays.items():
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        if name in ("cls_token", "mask_token", "register_tokens"):
            name = f"embeddings.{name}"
        name = name.replace("pos_embed", "embeddings.position_embeddings")
        name = name.replace("blocks.", "encoder.layer.").replace("attn.proj", out)
        name = name.replace("ls1.gamma", "layer_scale1.lambda1")
        name = name.replace("ls2.gamma", "layer_scale2.lambda1")
        name = "layernorm" + name[4:] if name.startswith("norm.") else name
        if "attn.qkv" in name:
            for third, part in zip(thirds, np.split(array, 3)):
                result[name.replace("attn.qkv", attention + third)] = part
        else:
            result[name] = array
    return result


def timm(arrays):
    """Spells a small file as timm does, which folds one number into another with registers."""
    result = {name: array for name, array in arrays.items() if name != "mask_token"}
    if "register_tokens" in result:
        result["reg_token"] = result.pop("register_tokens")
        result["cls_token"] = result["cls_token"] + result["pos_embed"][:, :1]
        result["pos_embed"] = result["pos_embed"][:, 1:]
    return result


def assert_placed(model, arrays):
    """Looks at one tensor of each kind, and that all are taken."""
    scope = model.backbone.scope
    ours = {name: v.numpy() for name, v in by_name(model.variables).items()}
    np.testing.assert_array_equal(ours[f"{scope}/pos_embed"], arrays["pos_embed"])
    np.testing.assert_array_equal(ours[f"{scope}/norm/gamma"], arrays["norm.weight"])
    for i in range(4):
        kernel = ours[f"{scope}/blocks/{i}/attn/qkv/kernel"]
        np.testing.assert_array_equal(kernel, arrays[f"blocks.{i}.attn.qkv.weight"].T)
        bias = ours[f"{scope}/blocks/{i}/attn/qkv/bias"]
        np.testing.assert_array_equal(bias, arrays[f"blocks.{i}.attn.qkv.bias"])
        gamma = ours[f"{scope}/blocks/{i}/ls2/gamma"]
        np.testing.assert_array_equal(gamma, arrays[f"blocks.{i}.ls2.gamma"])
    kernel = ours[f"{scope}/patch_embed/proj/kernel"]
    expected = arrays["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


# The published files ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, variant, encoder, head",
    [
        ("small", "dinov2_vits14", 22_056_576, 2_739_061),
        ("base", "dinov2_vitb14", 86_580_480, 10_948_309),
    ],
)
def test_published_files_are_taken_whole(monkeypatch, size, variant, encoder, head):
    # Initial values of this many weights take seconds.
    monkeypatch.setattr(
        "tfseg.models.backbones.vit.truncated_normal",
        lambda _: lambda rng, shape: np.zeros(shape, np.float32),
    )
    model = build(variant, num_classes=21)
    ours = {"backbone": model.backbone.variables, "all": model.variables}
    counts = {part: sum(v.shape.num_elements() for v in vs) for part, vs in ours.items()}
    assert counts == {"backbone": encoder, "all": encoder + head}
    public, dpt = table(f"k_dinov2_{size}_public_names"), table(f"k_dpt_head_{size}_21")
    assert sum(map(np.prod, public.values())) == encoder and sum(map(np.prod, dpt.values())) == head
    assert len(public) == 175 and len(dpt) == 62
    names = {"backbone": set(by_name(model.backbone.variables)), "all": set(by_name(ours["all"]))}
    for arrays, part in (
        (repeated(public), "backbone"),
        ({f"module.backbone.{n}": a for n, a in repeated(public).items()}, "backbone"),
        (
            {f"module.{n}": a for n, a in repeated(dpt).items()}
            | {f"module.backbone.{n}": a for n, a in repeated(public).items()},
            "all",
        ),
    ):
        coverage = load_torch(model, arrays, source="file", with_head=part == "all")
        assert set(coverage.matched) == names[part]
        assert coverage.missing == coverage.unused == () and coverage.not_model == 0
    lacking = {name: a for name, a in repeated(public).items() if name != "mask_token"}
    coverage = load_torch(model, lacking, source="file", with_head=False)
    assert coverage.missing == (f"{variant}/mask_token",)


def test_the_names_of_hugging_face_are_those_of_its_files():
    published = repeated(table("k_dinov2_small_hf_names"))
    assert len(published) == 223
    # Copies: what one number stands for is not joined.
    found = vit_names.original({name: array.copy() for name, array in published.items()})
    assert {name: a.shape for name, a in found.items()} == table("k_dinov2_small_public_names")


# Spellings --------------------------------------------------------------------------------------

SPELLINGS = {
    "dinov2": dict,
    "hugging_face": hugging_face,
    "hugging_face_in_memory": lambda arrays: hugging_face(arrays, in_memory=True),
    "hugging_face_task": lambda arrays: {f"dinov2.{n}": a for n, a in hugging_face(arrays).items()},
    "timm": timm,
    "unimatch_v2": lambda arrays: {f"module.backbone.{n}": a for n, a in arrays.items()},
}


@pytest.mark.parametrize("registers", [0, REGISTERS])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_same_weights(tmp_path, spelling, registers):
    arrays = encoder_arrays(registers)
    spelt = SPELLINGS[spelling](arrays)
    path = str(tmp_path / "model.safetensors")
    save_file({name: np.ascontiguousarray(array) for name, array in spelt.items()}, path)
    model = small("tiny_reg" if registers else "tiny")
    coverage = load_pretrained(model, path)
    backbone = set(by_name(model.backbone.variables))
    missing = {f"{model.backbone.scope}/mask_token"} if spelling == "timm" else set()
    assert set(coverage.matched) == backbone - missing and coverage.unused == ()
    assert set(coverage.missing) == missing | set(by_name(model.variables)) - backbone
    if spelling == "timm" and registers:
        # The class token has its position in it, and its place has none.
        arrays["cls_token"] = arrays["cls_token"] + arrays["pos_embed"][:, :1]
        arrays["pos_embed"][:, 0] = 0.0
    assert_placed(model, arrays)
    cls_token = by_name(model.variables)[f"{model.backbone.scope}/cls_token"]
    np.testing.assert_array_equal(cls_token, arrays["cls_token"])


@pytest.mark.parametrize("spelling", ["dinov2", "hugging_face", "timm"])
def test_files_with_registers_are_refused_by_name(spelling):
    model = small()
    before = model.backbone.cls_token.value.numpy()
    name = "backbone.register_tokens" if spelling == "dinov2" else "register_tokens"
    spelt = SPELLINGS[spelling](encoder_arrays(REGISTERS))
    if spelling == "dinov2":
        spelt = {f"backbone.{n}": a for n, a in spelt.items()}
    with pytest.raises(UserError, match=f"(?s)file, {name}.*lacks.*--model_variant=tiny_reg"):
        load_torch(model, spelt, source="file", with_head=False)
    with pytest.raises(UserError, match="(?s)file, register_tokens.*--model_variant=tiny, or"):
        load_torch(small("tiny_reg"), encoder_arrays(), source="file", with_head=False)
    np.testing.assert_array_equal(model.backbone.cls_token.value, before)


def test_files_of_another_width_name_its_network(monkeypatch):
    wide = Shape(2 * WIDTH, 2, SHAPE.taken)
    monkeypatch.setitem(BACKBONES, "wide", vision_transformer("wide", wide))
    with pytest.raises(UserError, match="(?s)weights of tiny.*--model_variant=tiny, or a file"):
        load_torch(build("wide", **CHANNELS), encoder_arrays(), source="file", with_head=False)


def test_weights_of_a_vision_transformer_are_none_of_a_resnet():
    model = build_model(
        ModelConfig(model_variant="efficientnet_lite0"),
        num_classes=3,
        num_image_classes=2,
        crop_size=(33, 33),
    )
    with pytest.raises(UserError, match="--model_variant=tiny, or a file of efficientnet_lite0"):
        load_torch(model, encoder_arrays(), source="file", with_head=False)


def test_thirds_that_do_not_fit_are_not_joined():
    spelt = hugging_face(encoder_arrays())
    key = "encoder.layer.2.attention.attention.key.weight"
    for wrong in (
        np.broadcast_to(np.float32(1.0), (1 << 40, WIDTH)),
        np.zeros([WIDTH, WIDTH + 1], np.float32),
        np.zeros([], np.float32),
    ):
        with pytest.raises(UserError, match=r"(?s)blocks\.2\.attn\.qkv\.weight.*no such tensor"):
            load_torch(small(), {**spelt, key: wrong}, source="file", with_head=False)


# UniMatch V2's checkpoints ----------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint of UniMatch V2, and the tensors of its two networks."""
    arrays = {f"backbone.{n}": a for n, a in encoder_arrays().items()} | head_arrays()
    networks = {
        "model": {f"module.{name}": array for name, array in arrays.items()},
        "model_ema": {f"module.{name}": array + np.float32(1) for name, array in arrays.items()},
    }
    keys = {
        network: {name: f"{network}{i}" for i, name in enumerate(tensors)}
        for network, tensors in networks.items()
    }
    pickled = op_dict(**{n: op_state_dict(tensors, keys[n]) for n, tensors in networks.items()})
    storages = {keys[n][name]: a for n, tensors in networks.items() for name, a in tensors.items()}
    path = str(tmp_path / "best.pth")
    write_pickle(path, pickled, storages, legacy=False)
    return path, networks


def test_either_network_of_a_checkpoint_can_be_read(checkpoint):
    path, networks = checkpoint
    for entry, expected in ((None, "model"), ("model", "model"), ("model_ema", "model_ema")):
        found = torch_file.read(path, entry)
        assert found.keys() == networks[expected].keys()
        name = "module.backbone.norm.weight"
        np.testing.assert_array_equal(found[name], networks[expected][name])
    with pytest.raises(UserError, match="(?s)no such entry.*accepted: model, model_ema"):
        torch_file.read(path, "ema")


def test_other_files_have_no_entries(tmp_path):
    path = str(tmp_path / "model.safetensors")
    save_file({"a": np.zeros(3, np.float32)}, path)
    with pytest.raises(UserError, match="(?s)no such entry.*one dictionary"):
        torch_file.read(path, "model")
    path = str(tmp_path / "model.pth")
    write_torch(path, {"a": np.zeros(3, np.float32)}, legacy=True)
    with pytest.raises(UserError, match="(?s)no such entry.*one dictionary"):
        torch_file.read(path, "model")


def test_a_checkpoint_gives_its_encoder_and_its_head(tmp_path, checkpoint, monkeypatch):
    path, networks = checkpoint
    # No flags choose the channels of a published size.
    monkeypatch.setitem(dpt._PUBLISHED, WIDTH, tuple(CHANNELS.values()))
    text = convert(path, "tiny", str(tmp_path / "out"), entry="model_ema")
    assert "--head=dpt --initialize_last_layer" in text
    total = len(networks["model"])
    assert text.startswith(f"initial weights: {total} of {total} variables from {path}\n")
    model = build()
    coverage = load_initial_weights(
        model,
        str(tmp_path / "out"),
        initialize_last_layer=True,
        last_layers_contain_logits_only=True,
    )
    assert set(coverage.matched) == set(by_name(model.variables)) and not coverage.unused
    expected = networks["model_ema"]
    prefix = "module.backbone."
    encoder = {n.removeprefix(prefix): a for n, a in expected.items() if n.startswith(prefix)}
    assert_placed(model, encoder)
    ours = {name: v.numpy() for name, v in by_name(model.variables).items()}
    for name, torch, axes in (
        ("logits/semantic/kernel", "scratch.output_conv.2.weight", (2, 3, 1, 0)),
        ("decoder/resize1/kernel", "resize_layers.0.weight", (2, 3, 0, 1)),
        ("decoder/resize4/kernel", "resize_layers.3.weight", (2, 3, 1, 0)),
        ("decoder/fusion2/res1/conv2/bias", "scratch.refinenet2.resConfUnit1.conv2.bias", (0,)),
    ):
        np.testing.assert_array_equal(ours[name], expected[f"module.head.{torch}"].transpose(axes))
    # Another number of classes: the logits alone start afresh.
    other = build(num_classes=CLASSES + 1)
    coverage = load_initial_weights(
        other,
        str(tmp_path / "out"),
        initialize_last_layer=False,
        last_layers_contain_logits_only=True,
    )
    assert set(coverage.excluded) == {"logits/semantic/kernel", "logits/semantic/bias"}


def test_the_program_has_the_entry_as_a_flag(tmp_path, checkpoint):
    path, _ = checkpoint
    words = [f"--weights={path}", "--model_variant=dinov2_vits14", f"--output={tmp_path}/out"]
    result = run("-m", "tfseg.torch_weights", *words, "--entry=ema", check=False)
    assert result.returncode == 2 and "model, model_ema" in result.stderr


def test_every_variant_is_named_where_files_are_refused():
    assert {"dinov2_vits14", "dinov2_vitb14", "dinov2_vitl14_reg"} <= set(torch_initial.VARIANTS)
