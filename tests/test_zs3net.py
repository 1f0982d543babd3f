"""ZS3Net's second step: what stays frozen, what is generated, who learns from what."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tests.test_methods import (
    SPEC,
    make_method,
    make_trainer,
    one_replica,
    random_stream,
    toy_backbone,  # noqa: F401  (a fixture that is used everywhere)
)
from tfseg.data.stream import Stream
from tfseg.errors import UserError
from tfseg.methods.zs3net import ZS3Net
from tfseg.monitors import Monitors
from tfseg.settings.data import DataConfig
from tfseg.settings.methods.zs3net import ZS3NetConfig
from tfseg.settings.run import TrainConfig

SEED = tf.constant([4, 7])
STEP = tf.constant(0, tf.int64)
IGNORE = SPEC.ignore_label
SETTINGS = {"generator_samples": 16, "generator_hidden": 8}
COW = 3


def _method(spec=SPEC, model=None, train=None, **settings):
    method, _ = make_method(
        "zs3net", settings={**SETTINGS, **settings}, spec=spec, model=model, **(train or {})
    )
    return method


def _batch(labels="seen", spec=SPEC, size=4):
    stream = Stream(split="train", batch_size=4, labels=labels)
    return {"train": {k: v[:size] for k, v in random_stream(stream, 4, spec).items()}}


def _losses(method, batch, monitors=None):
    losses = method.losses(batch, STEP, SEED, monitors or Monitors())
    return {name: float(value) for name, value in losses.items()}


def _small(label, features):
    """Returns a label map at the size of the features: pixel floor(i in / out)."""
    height, width = features.shape[1:3]
    rows, columns = (np.arange(n) * label.shape[1] // n for n in (height, width))
    return np.asarray(label)[:, rows][:, :, columns]


# The network -------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", ["per_class", "mean"])
def test_only_classifier_and_generator_learn(updates):
    settings = {**SETTINGS, "generator_updates": updates}
    trainer = make_trainer(one_replica(), _batch(), "zs3net", settings=settings)
    method = trainer.method
    before = [v.numpy() for v in method.variables]
    trainer.train(2)
    moved = [v for v, old in zip(method.variables, before) if np.any(v.numpy() != old)]
    classifier = method.model.logits_layer.trainable_variables
    assert {id(v) for v in classifier} == {id(v) for v in method.model.trainable_variables}
    learning = {id(v) for v in [*classifier, *method.generator.weights]}
    moved_weights = {id(v) for v in moved if "moment" not in v.name and "updates" not in v.name}
    assert moved_weights == learning


def test_all_but_the_classifier_must_be_trained_already():
    method = _method()
    names = {v.name.split(":")[0] for v in method.model.variables}
    classifier = {v.name.split(":")[0] for v in method.model.logits_layer.variables}
    method.check_initial_weights(classifier)
    with pytest.raises(UserError, match="(?s)1 variables.*--last_layers_contain_logits_only"):
        method.check_initial_weights({*classifier, min(names - classifier)})
    with pytest.raises(UserError, match="--initialize_last_layer"):
        method.check_initial_weights(set())


@pytest.mark.parametrize("replicas, expected", [(1, "per_class"), (2, "mean")])
def test_how_generators_are_updated_is_settled_once(replicas, expected):
    settings = ZS3Net.complete_settings(ZS3NetConfig(), replicas)
    assert settings.generator_updates == expected
    assert ZS3Net.complete_settings(settings, 3 - replicas) == settings


def test_settings_of_training_mode_are_said_to_be_without_effect(capsys):
    _method()
    assert "without effect" not in capsys.readouterr().out
    _method(model={"aspp_dropout_rate": 0.5, "fine_tune_batch_norm": False})
    output = capsys.readouterr().out
    assert "--fine_tune_batch_norm, --aspp_dropout_rate: without effect" in output


def test_features_are_those_of_inference():
    """Batch norm and dropout would otherwise change them from step to step."""
    method = _method(model={"aspp_dropout_rate": 0.5})
    image = _batch()["train"]["image"]
    ends = method.model.decode(method.model.encode(image, training=False), training=False)
    scenes = [method.scenes(_batch(), tf.constant([i, 0])) for i in range(2)]
    for each in scenes:
        np.testing.assert_array_equal(each.features, ends["features"])


def test_the_published_classifier_starts_above_zero():
    kernel, bias = _method(classifier_init="uniform").model.logits_layer.trainable_variables
    for values in (kernel.numpy(), bias.numpy()):
        assert values.min() >= 0 and values.max() < 1 and values.std() > 0.1
    assert _method().model.logits_layer.convolutions[0].kernel.numpy().min() < 0


# Layouts -----------------------------------------------------------------------------------------


def test_without_the_oracle_labels_of_unseen_classes_are_never_read():
    """The batch has none, and hidden labels are read by monitors alone (the methods' contract)."""
    streams = ZS3Net.streams(DataConfig(dataset_dir=""), TrainConfig(), ZS3NetConfig())
    assert streams["train"].labels == "seen"
    oracle = ZS3NetConfig(oracle_layout=True)
    streams = ZS3Net.streams(DataConfig(dataset_dir=""), TrainConfig(), oracle)
    assert streams["train"].labels == "required"


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_share_of_made_layouts(share):
    batch = _batch()
    scenes = _method(synthetic_share=share).scenes(batch, SEED)
    label, layout = batch["train"]["label"].numpy(), scenes.target.numpy()
    # The third image has no seen class but background, and nothing to lend a layout.
    synthetic = np.array([True, True, False, True]) & (share == 1.0)
    np.testing.assert_array_equal(scenes.synthetic, synthetic)
    np.testing.assert_array_equal(scenes.layout, _small(layout, scenes.features))
    for i in range(4):
        expected = np.where(np.isin(label[i], (1, 2)), COW, label[i]) if synthetic[i] else label[i]
        np.testing.assert_array_equal(layout[i], expected)


def test_a_layout_that_is_gone_at_the_size_of_features_is_taken_back():
    batch = _batch()
    label = np.zeros_like(batch["train"]["label"])
    # Odd rows are between those that features stand for.
    label[:, 1, 1] = 1
    batch["train"]["label"] = tf.constant(label)
    scenes = _method(synthetic_share=1.0).scenes(batch, SEED)
    assert not _small(label, scenes.features).any(), "the test needs a pixel that is left out"
    np.testing.assert_array_equal(scenes.target, label)
    assert not np.any(scenes.synthetic)


def test_the_oracle_reads_the_ground_truth_and_says_so(capsys):
    method = _method(oracle_layout=True)
    assert "--oracle_layout" in capsys.readouterr().out
    batch = _batch("required")
    scenes = method.scenes(batch, SEED)
    np.testing.assert_array_equal(scenes.target, batch["train"]["label"])
    np.testing.assert_array_equal(scenes.synthetic, [False, False, True, False])


def test_held_out_classes_are_hidden_from_the_oracle_too():
    spec = dataclasses.replace(
        SPEC,
        seen_unseen=dataclasses.replace(SPEC.seen_unseen, unseen=(2,), seen=(0, 1), held_out=(3,)),
    )
    batch = _batch("required")
    target = _method(spec, oracle_layout=True).scenes(batch, SEED).target.numpy()
    label = batch["train"]["label"].numpy()
    np.testing.assert_array_equal(target, np.where(label == COW, 0, label))


# Generated features ------------------------------------------------------------------------------


@pytest.mark.parametrize("pixels", ["all", "unseen"])
def test_which_features_are_generated(pixels):
    method = _method(synthetic_share=1.0, generated_pixels=pixels)
    scenes = method.scenes(_batch(), SEED)
    _, _, mixed = method.pixels.matched(scenes, method.draws(scenes, SEED))
    real, layout = scenes.features.numpy(), scenes.layout.numpy()
    for i, synthetic in enumerate(scenes.synthetic.numpy()):
        own = np.all(mixed[i] == real[i], -1)
        if not synthetic:
            assert own.all()
        elif pixels == "unseen":
            np.testing.assert_array_equal(own, layout[i] != COW)
        else:
            void = layout[i] == IGNORE
            assert void.any() == (i > 0) and not np.any(mixed[i].numpy()[void])
            assert not own[~void].any()


def test_dropout_where_features_are_made_can_be_left_out():
    def made(**settings):
        method = _method(synthetic_share=1.0, **settings)
        scenes = method.scenes(_batch(), SEED)
        draws = method.draws(scenes, SEED)
        kept = dataclasses.replace(draws, keep=tf.ones_like(draws.keep))
        features = [
            method.pixels.made(method.generator.weights, scenes, d, 0) for d in (draws, kept)
        ]
        return np.array_equal(*features)

    assert made(sampling_dropout=False) and not made(sampling_dropout=True)


def test_compared_pixels_are_of_the_class():
    method = _method()
    scenes = method.scenes(_batch(), SEED)
    places, active = method.pixels.places(scenes, method.draws(scenes, SEED))
    for i, label in enumerate(scenes.label.numpy().reshape(4, -1)):
        for k, c in enumerate(SPEC.seen_unseen.seen):
            assert active[i, k].numpy() == (label == c).any()
            if active[i, k]:
                assert set(label[places[i, k].numpy()]) == {c}
                assert len(set(places[i, k].numpy())) > 1


def test_updates_one_after_the_other_and_together_agree_for_one_class():
    """One class in one image is one update of Adam either way."""
    batch = _batch(size=1)
    batch["train"]["label"] = tf.fill(batch["train"]["label"].shape, 2)
    after = []
    for updates in ("per_class", "mean"):
        settings = {**SETTINGS, "generator_updates": updates, "synthetic_share": 0.0}
        trainer = make_trainer(one_replica(), batch, "zs3net", settings=settings)
        trainer.train(1)
        after.append([w.numpy() for w in trainer.method.generator.weights])
    for one, other in zip(*after):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("updates", ["per_class", "mean"])
def test_the_generator_learns_to_match(updates):
    method = _method(generator_updates=updates, generator_learning_rate=0.02)
    settings = dataclasses.asdict(method.settings)
    trainer = make_trainer(one_replica(), _batch(), "zs3net", settings=settings)
    first = trainer.train(1).losses["generator"]
    trainer.train(20)
    assert trainer.train(1).losses["generator"] < 0.6 * first


def test_images_with_unseen_ground_truth_train_no_generator():
    batch = _batch("required")
    batch["train"]["label"] = tf.fill(batch["train"]["label"].shape, COW)
    method = _method(oracle_layout=True)
    before = [w.numpy() for w in method.generator.weights]
    assert _losses(method, batch)["generator"] == 0.0
    for weight, old in zip(method.generator.weights, before):
        np.testing.assert_array_equal(weight, old)


def test_linear_generators_and_gaussian_noise():
    losses = _losses(_method(generator_hidden=0, noise="gaussian", noise_dim=2), _batch())
    assert all(np.isfinite(value) for value in losses.values())
    method = _method(noise="gaussian")
    scenes = method.scenes(_batch(), SEED)
    assert method.draws(scenes, SEED).noise.numpy().min() < -1


def test_compiled_updates_are_those_of_the_graph():
    def after(compiled):
        method = _method()
        scenes = method.scenes(_batch(size=1), SEED)
        # Compiled code draws other numbers, so both get the same.
        draws = method.draws(scenes, SEED)

        @tf.function(jit_compile=compiled, autograph=False)
        def update():
            losses, _, features = method.pixels.matched(scenes, draws)
            return losses, features

        return [*update(), *method.generator.weights]

    for one, other in zip(after(True), after(False)):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


# Regions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("updates", ["per_class", "mean"])
def test_nodes_are_real_or_generated(updates):
    method = _method(graph_context=True, generator_updates=updates, synthetic_share=1.0)
    scenes = method.scenes(_batch(), SEED)
    before = [w.numpy() for w in method.graph_generator.weights]
    nodes = method.nodes(scenes, method.draws(scenes, SEED))
    real = {tuple(f) for f in scenes.features.numpy().reshape(-1, scenes.features.shape[-1])}
    own = np.array([tuple(f) in real for f in nodes.features.numpy()])
    # Only the third image keeps its features, and trains; the others hold cows.
    np.testing.assert_array_equal(nodes.trained, [False, False, True, False])
    np.testing.assert_array_equal(nodes.losses > 0, nodes.trained)
    assert own.any() and not own.all() and not own[nodes.label.numpy() == COW].any()
    moved = any(np.any(w.numpy() != old) for w, old in zip(method.graph_generator.weights, before))
    assert moved == (updates == "per_class")


def test_images_of_one_region_have_no_graph():
    batch = _batch(size=1)
    batch["train"]["label"] = tf.zeros_like(batch["train"]["label"])
    method = _method(graph_context=True)
    losses = tf.function(lambda: method.losses(batch, STEP, SEED, Monitors()), autograph=False)()
    assert losses["graph_generator"] == 0.0 and losses["graph_segmentation"] == 0.0


# The classifier ----------------------------------------------------------------------------------


def test_unseen_pixels_weigh_more():
    method = _method(unseen_weight=3.0)
    features = tf.zeros([1, 1, 2, method.generator.weights[-1].shape[0]])
    convolution = method.model.logits_layer.convolutions[0]
    convolution.bias.assign([1.0, 0.0, 0.0, 0.0])
    loss = method.classifier_loss(features, tf.constant([[[0, COW]]]))
    of_class = np.log(np.e + 3) - np.array([1.0, 0.0, 0.0, 0.0])
    assert float(loss) == pytest.approx((of_class[0] + 3 * of_class[COW]) / 4, rel=1e-5)
    weighted = _method(unseen_weight=3.0, train={"label_weights": (2.0, 1.0, 1.0, 9.0)})
    weighted.model.logits_layer.convolutions[0].bias.assign([1.0, 0.0, 0.0, 0.0])
    value = weighted.classifier_loss(features, tf.constant([[[0, COW]]]))
    assert float(value) == pytest.approx((2 * of_class[0] + 3 * of_class[COW]) / 5, rel=1e-5)
    focal = _method(unseen_weight=3.0, loss_type="focal")
    focal.model.logits_layer.convolutions[0].bias.assign([1.0, 0.0, 0.0, 0.0])
    value = focal.classifier_loss(features, tf.constant([[[0, COW]]]))
    assert float(value) == pytest.approx(
        0.5 * (1 - np.exp(-float(loss))) ** 2 * float(loss), rel=1e-4
    )


@pytest.mark.parametrize("upsampled", [True, False])
def test_where_background_takes_no_part_it_is_never_answered(upsampled):
    split = dataclasses.replace(SPEC.seen_unseen, seen=(1, 2), background=None)
    spec = dataclasses.replace(SPEC, seen_unseen=split)
    method = _method(spec, synthetic_share=1.0, train={"upsample_logits": upsampled})
    batch = _batch(spec=spec)
    assert not np.isin(batch["train"]["label"], (0, COW)).any()
    losses = _losses(method, batch)
    # The wrong class would cost 1e30.
    assert 0 < losses["segmentation"] < 10 and losses["generator"] > 0
    scenes = method.scenes(batch, SEED)
    assert np.all(np.argmax(method.classify(scenes.features), -1) > 0)


def test_the_loss_is_divided_by_the_batch_once_more():
    def loss(size):
        method = _method(synthetic_share=0.0)
        method.config = dataclasses.replace(method.config, train_batch_size=size)
        return _losses(method, _batch())["segmentation"]

    assert loss(4) == pytest.approx(2 * loss(8), rel=1e-5)


def test_panels_show_layout_and_truth():
    panels = _method(synthetic_share=1.0).panels(_batch())
    assert list(panels) == ["image", "prediction", "layout", "truth"]
    assert (panels["layout"].numpy() == COW).any() and (panels["truth"].numpy() == COW).any()


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, message",
    [
        ({"spec": dataclasses.replace(SPEC, seen_unseen=None)}, "--class_split"),
        ({"spec": dataclasses.replace(SPEC, vectors=None)}, "--class_embeddings"),
        ({"model": {"decoder_output_is_logits": True}}, "--decoder_output_is_logits"),
        ({"train": {"top_k_percent_pixels": 0.5}}, "--top_k_percent_pixels"),
        ({"graph_context": True, "train": {"jit_compile": True}}, "--jit_compile"),
        ({"graph_context": True, "generator_hidden": 0}, "--generator_hidden"),
        (
            {
                "graph_context": True,
                "model": {
                    "aspp_with_batch_norm": False,
                    "atrous_rates": (1, 2),
                    "logits_kernel_size": 3,
                    "decoder_output_stride": None,
                },
            },
            "--logits_kernel_size",
        ),
        ({"oracle_layout": True, "layout": "balanced"}, "--layout"),
        ({"oracle_layout": True, "synthetic_share": 0.1}, "--synthetic_share"),
        ({"graph_weight": 1.0}, "--graph_weight"),
        ({"mmd_bandwidths": (2.0, 0.0)}, "--mmd_bandwidths"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(UserError, match=message):
        _method(**options)


def test_updates_one_after_the_other_need_one_replica(two_replicas):
    with two_replicas.scope(), pytest.raises(UserError, match="--generator_updates"):
        _method(generator_updates="per_class")
