"""From logits to labels: sizes, scales, mirror images, independence of the batch."""

import dataclasses
import doctest

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from tests.small_split import STRIDE, ToyModel, make_images, numpy_prediction
from tfseg.errors import UserError
from tfseg.inference import predictor as predictor_module
from tfseg.inference.decisions import Decision
from tfseg.inference.merge import ONE_VIEW, ClassFilter, Views
from tfseg.inference.one_by_one import batch_predictor, one_by_one
from tfseg.inference.predictor import Prediction, Predictor
from tfseg.models import build_model
from tfseg.ops.resize import resize_bilinear
from tfseg.settings.network import ModelConfig

SIZE = (33, 41)
EVERYTHING = Prediction._fields


def predict(model, image, views=ONE_VIEW, *, present=None, **options):
    return Predictor(model, views, **options)(image, present)


def labels_of(model, image, views=ONE_VIEW, **options):
    return predict(model, image, views, **options).labels


def probs_of(model, image, views=ONE_VIEW, **options):
    return predict(model, image, views, wanted=["probs"], **options).probs


@pytest.fixture
def image():
    images, _ = make_images([SIZE] * 3)
    return np.stack(images).astype(np.float32)


def test_labels_are_the_arg_max_of_upsampled_logits(image):
    model = ToyModel()
    labels = labels_of(model, image)
    assert labels.dtype == tf.int32
    for label, one in zip(labels, image):
        np.testing.assert_array_equal(label, numpy_prediction(model, one))


def test_arg_max_first_repeats_the_coarse_labels(image):
    model = ToyModel()
    labels = labels_of(model, image, prediction_with_upsampled_logits=False).numpy()
    coarse = tf.argmax(model(image)["logits"], -1).numpy()
    # Align-corners: pixel y lies at y / 4 of the coarse grid; ties go up.
    y = np.floor(np.arange(SIZE[0]) / STRIDE + 0.5).astype(int)
    x = np.floor(np.arange(SIZE[1]) / STRIDE + 0.5).astype(int)
    np.testing.assert_array_equal(labels, coarse[:, y][:, :, x])


def test_the_settings_of_the_network_say_which_comes_first(image):
    model = ToyModel()
    coarse = labels_of(model, image, prediction_with_upsampled_logits=False)
    model.config = dataclasses.replace(model.config, prediction_with_upsampled_logits=False)
    np.testing.assert_array_equal(labels_of(model, image), coarse)
    fine = labels_of(model, image, prediction_with_upsampled_logits=True)
    np.testing.assert_array_equal(labels_of(ToyModel(), image), fine)
    assert (fine != coarse).numpy().any()


def test_one_plain_scale_is_the_softmax_of_the_logits(image):
    model = ToyModel()
    expected = tf.nn.softmax(resize_bilinear(model(image)["logits"], SIZE))
    actual = probs_of(model, image)
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_probabilities_are_averaged_over_scales_and_mirror_images(image):
    model = ToyModel()
    total = 0
    for scale, size in ((0.5, (17, 21)), (1.25, (41, 51))):
        scaled = resize_bilinear(tf.constant(image), size)
        logits = model(scaled)["logits"]
        mirrored = model(scaled[:, :, ::-1])["logits"][:, :, ::-1]
        for part in (logits, mirrored):
            if scale < 1:
                part = resize_bilinear(part, (9, 11))  # the grid of the unscaled image
            total += tf.nn.softmax(resize_bilinear(part, SIZE)).numpy()
    views = Views((0.5, 1.25), flip=True)
    actual = probs_of(model, image, views)
    np.testing.assert_allclose(actual, total / 4, atol=1e-6)
    labels = labels_of(model, image, views)
    np.testing.assert_array_equal(labels, total.argmax(-1))


def test_the_model_learns_the_scale_of_its_input(image):
    model = ToyModel()
    predict(model, image[:1], Views((0.5, 1.0, 1.25)))
    assert [tuple(map(tuple, [size])) + (scale,) for size, scale in model.seen_scales] == [
        ((17, 21), 0.5),
        ((33, 41), 1.0),
        ((41, 51), 1.25),
    ]


def test_a_mirrored_image_gives_mirrored_labels(image):
    views = Views((0.75, 1.0), flip=True)
    labels = labels_of(ToyModel(), image, views).numpy()
    mirrored = labels_of(ToyModel(), image[:, :, ::-1], views).numpy()
    np.testing.assert_array_equal(mirrored, labels[:, :, ::-1])


@pytest.mark.parametrize("scales", [(1.0,), (0.75, 1.0), (0.75,)])
def test_image_logits_are_those_of_the_unscaled_image(image, scales):
    model = ToyModel(with_classifier=True)
    views = Views(scales)
    labels, _, image_logits = predict(model, image, views, wanted=["labels", "image_logits"])
    np.testing.assert_allclose(image_logits, model(image)["image_logits"], atol=1e-5)
    np.testing.assert_array_equal(labels, labels_of(model, image, views))


def test_rows_that_fill_the_batch_up_change_nothing(image):
    model, present = ToyModel(with_classifier=True), tf.constant(PRESENT)
    predictor = Predictor(model, wanted=EVERYTHING, decision=(Decision(), Decision((0, 1))))
    expected = predictor(image, present)
    found = one_by_one(predictor, image, present, tf.constant([1.0, 1.0, 0.0]))
    tf.nest.assert_same_structure(found, expected)
    for one, other in zip(tf.nest.flatten(found), tf.nest.flatten(expected)):
        assert one.shape == other.shape and one.dtype == other.dtype
        np.testing.assert_array_equal(one[:2], other[:2])
    # A row of weight 0 amid others is predicted like them.
    labels = one_by_one(Predictor(model), image, None, tf.constant([0.0, 0.0, 1.0])).labels
    np.testing.assert_array_equal(labels[2], labels_of(model, image[2:])[0])


@pytest.fixture(scope="module")
def network():
    """The smallest backbone, with a multi-scale test and the windowed image pooling."""
    config = ModelConfig(model_variant="mobilenet_v2", image_pooling_crop_size=(65, 65))
    return build_model(config, num_classes=5, num_image_classes=4, crop_size=(65, 65))


def _run(network, views, *, reduce_retracing=False):
    return tf.function(
        lambda x: probs_of(network, x, views),
        autograph=False,
        reduce_retracing=reduce_retracing,
    )


def test_results_on_a_cpu_do_not_depend_on_the_batch(network):
    if tf.config.list_logical_devices("GPU"):
        pytest.skip("on a GPU a batch is predicted at once")
    images = np.stack(make_images([(65, 65)] * 3)[0]).astype(np.float32)
    predict_batch = batch_predictor(Predictor(network, Views(flip=True), wanted=["probs"]))
    run = tf.function(lambda x: predict_batch(x, None, tf.ones(x.shape[0])).probs)
    together = run(images).numpy()
    for i in range(3):
        np.testing.assert_array_equal(run(images[i : i + 1])[0], together[i])


def test_a_graph_for_any_size_agrees_with_one_for_the_size(network):
    first, image = [x[None].astype(np.float32) for x in make_images([(65, 65), (97, 129)])[0]]
    any_size = _run(network, Views((0.75,)), reduce_retracing=True)
    any_size(first)  # for 65 x 65; the next one is for all sizes
    expected = _run(network, Views((0.75,)))(image)
    np.testing.assert_array_equal(any_size(image), expected)
    any_size(image[:, :65])
    assert any_size.experimental_get_tracing_count() == 2


PRESENT = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]], np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"prediction_with_upsampled_logits": False},
        {"views": Views((0.75, 1.0), flip=True)},
        {"views": Views((0.75, 1.0), merge_scales="logits", scale_kernel="cubic")},
        {"views": Views((0.75, 1.0), merge_scales="masks", scale_kernel="pillow")},
    ],
    ids=str,
)
def test_labels_are_among_the_classes_that_are_present(image, options):
    model = ToyModel()
    free = labels_of(model, image, **options).numpy()
    labels = labels_of(model, image, present=PRESENT, **options).numpy()
    for one, unrestricted, present in zip(labels, free, PRESENT):
        assert set(np.unique(one)) <= set(np.flatnonzero(present))
        may_stay = present[unrestricted] > 0
        assert may_stay.any() and not may_stay.all()
        if not options or options.get("views", Views()).merge_scales == "logits":
            # (A mean of softmaxes among fewer classes may have another arg max.)
            np.testing.assert_array_equal(one[may_stay], unrestricted[may_stay])
    everything = labels_of(model, image, present=np.ones_like(PRESENT), **options)
    np.testing.assert_array_equal(everything, free)


def test_a_restricted_label_is_the_best_of_the_present_ones(image):
    model = ToyModel()
    labels = labels_of(model, image, present=PRESENT)
    for label, one, present in zip(labels, image, PRESENT):
        expected = numpy_prediction(model, one, set(np.flatnonzero(present)))
        np.testing.assert_array_equal(label, expected)


@pytest.mark.parametrize("merge_scales", ["probs", "logits"])
def test_restricted_probabilities_are_a_softmax_among_the_present_classes(image, merge_scales):
    model = ToyModel()
    logits = resize_bilinear(model(image)["logits"], SIZE).numpy()
    exp = np.exp(logits) * PRESENT[:, None, None]
    views = Views(merge_scales=merge_scales)
    probs = probs_of(model, image, views, present=PRESENT).numpy()
    np.testing.assert_allclose(probs, exp / exp.sum(-1, keepdims=True), atol=1e-6)
    assert (probs[np.broadcast_to(PRESENT[:, None, None] == 0, probs.shape)] == 0).all()


def test_merged_logits_are_the_mean_over_views_of_cubic_scaled_images(image):
    model = ToyModel()
    total = 0
    for scale in (0.5, 1.25):
        scaled = np.stack(
            [cv2.resize(x, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC) for x in image]
        )
        assert scaled.shape[1:3] == tuple(round(n * scale) for n in SIZE)
        for mirror in (1, -1):
            logits = model(scaled[:, :, ::mirror])["logits"][:, :, ::mirror]
            logits = resize_bilinear(logits, scaled.shape[1:3])
            total += resize_bilinear(logits, SIZE).numpy()
    views = Views((0.5, 1.25), flip=True, merge_scales="logits", scale_kernel="cubic")
    probs = probs_of(model, image, views)
    np.testing.assert_allclose(probs, tf.nn.softmax(total / 4), atol=1e-5)
    labels = labels_of(model, image, views)
    np.testing.assert_array_equal(labels, total.argmax(-1))


def test_image_logits_come_with_probabilities_too(image):
    model = ToyModel(with_classifier=True)
    for scales in ((1.0,), (0.75,)):
        options = {"views": Views(scales), "present": PRESENT}
        labels, probs, logits = predict(model, image, wanted=EVERYTHING, **options)
        np.testing.assert_array_equal(labels, labels_of(model, image, **options))
        np.testing.assert_array_equal(probs, probs_of(model, image, **options))
        np.testing.assert_allclose(logits, model(image)["image_logits"], atol=1e-5)


@pytest.mark.parametrize("setting", ["merge_scales", "scale_kernel"])
def test_unknown_ways_to_see_are_refused(setting):
    with pytest.raises(UserError, match=setting):
        Views(**{setting: "other"})


def masks_by_hand(model, image, scales):
    """Mean masks and image-level logits over scales and mirror images of one image."""
    total, image_logits = 0, 0
    for scale in scales:
        height, width = (round(n * scale) for n in SIZE)
        pillow = Image.fromarray(image.astype(np.uint8))
        scaled = np.asarray(pillow.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        for mirror in (1, -1):
            outputs = model(scaled[None, :, ::mirror])
            masks = tf.nn.softmax(outputs["logits"][:, :, ::mirror])
            total += resize_bilinear(masks, SIZE).numpy()[0] / (2 * len(scales))
            image_logits += outputs["image_logits"].numpy()[0] / (2 * len(scales))
    return total, image_logits


def test_merged_masks_and_their_image_logits_are_means_over_pillow_scaled_views(image):
    model, scales = ToyModel(with_classifier=True), (1.0, 0.5, 1.5)
    views = Views(scales, flip=True, merge_scales="masks", scale_kernel="pillow")
    labels, probs, logits = predict(model, image, views, wanted=EVERYTHING)
    for i, one in enumerate(image):
        masks, image_logits = masks_by_hand(model, one, scales)
        # Pillow's rounding is matched to one grey level.
        np.testing.assert_allclose(probs[i], masks, atol=5e-3)
        np.testing.assert_allclose(logits[i], image_logits, atol=1e-3)
    np.testing.assert_array_equal(labels, np.argmax(probs, -1))


def test_classes_are_filtered_by_the_scores_of_all_views(image):
    model = ToyModel(with_classifier=True)
    views = Views((1.0, 0.5), flip=True, merge_scales="masks")
    _, masks, logits = predict(model, image, views, wanted=["probs", "image_logits"])
    scores = np.sort(tf.sigmoid(logits).numpy().ravel())
    cut = float(scores[len(scores) // 2] + scores[len(scores) // 2 - 1]) / 2
    kept = tf.sigmoid(logits).numpy() > cut
    assert kept.any() and not kept.all()
    expected = masks.numpy()
    expected[..., 1:] *= kept[:, None, None]
    expected[..., 0] **= 3
    expected[..., 2] **= 6
    class_filter = ClassFilter(score_cut=cut, background_power=3.0, suppressed_class=2)
    filtered = Views((1.0, 0.5), True, "masks", class_filter=class_filter)
    probs = probs_of(model, image, filtered)
    np.testing.assert_allclose(probs, expected, rtol=1e-5, atol=1e-7)
    labels, _, unfiltered = predict(model, image, filtered, wanted=["labels", "image_logits"])
    np.testing.assert_array_equal(labels, expected.argmax(-1))
    np.testing.assert_array_equal(unfiltered, logits)
    # Classes that are known to be present take the place of the scores.
    probs = probs_of(model, image, filtered, present=PRESENT)
    assert ((probs.numpy() > 0).any((1, 2)) == PRESENT.astype(bool)).all()


def test_one_view_is_filtered_too(image):
    class_filter = ClassFilter(top_classes=1, background_power=50.0)
    views = Views(merge_scales="masks", class_filter=class_filter)
    model = ToyModel(with_classifier=True)
    labels, _, logits = predict(model, image, views, wanted=["labels", "image_logits"])
    for label, best in zip(labels.numpy(), np.argmax(logits, -1)):
        assert set(np.unique(label)) <= {0, 1 + best}


def test_filtering_by_scores_needs_a_network_that_gives_them(image):
    views = Views(merge_scales="masks", class_filter=ClassFilter(score_cut=0.3))
    with pytest.raises(UserError, match="image-level scores"):
        predict(ToyModel(), image, views)
    with pytest.raises(UserError, match="image-level scores"):
        predict(ToyModel(), image, wanted=["image_logits"])


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(UserError, match="must include 1"):
        Views((0.5, 1.5), merge_scales="masks")
    for class_filter in (ClassFilter(score_cut=0.3), ClassFilter(background_power=3.0)):
        with pytest.raises(UserError, match="--merge_scales=masks"):
            Views(class_filter=class_filter)


def test_a_graph_of_masks_for_any_size_agrees_with_one_for_the_size():
    model = ToyModel(with_classifier=True)
    class_filter = ClassFilter(score_cut=0.5, top_classes=2)
    views = Views((1.0, 0.75), True, "masks", "pillow", class_filter)
    first, image = [x[None].astype(np.float32) for x in make_images([(21, 30), (33, 41)])[0]]
    any_size = _run(model, views, reduce_retracing=True)
    any_size(first)
    np.testing.assert_allclose(any_size(image), _run(model, views)(image), atol=1e-6)
    any_size(image[:, :21])
    assert any_size.experimental_get_tracing_count() == 2


# What leaves the library ------------------------------------------------------------------------


def op_types(concrete):
    """Types of all operations of a graph and of the functions that it calls."""
    graph = concrete.graph.as_graph_def()
    nodes = [*graph.node, *(node for f in graph.library.function for node in f.node_def)]
    return {node.op for node in nodes}


def exported(predictor, model, folder):
    """Saves a predictor for any batch and size; returns what is loaded, and its operations."""
    module = tf.Module()
    module.held = model.variables
    signature = [tf.TensorSpec([None, None, None, 3])]
    module.predict = tf.function(predictor, input_signature=signature, autograph=False)
    tf.saved_model.save(module, str(folder))
    return tf.saved_model.load(str(folder)), op_types(module.predict.get_concrete_function())


LOOPS = {"While", "StatelessWhile"}
MASKS = Views((1.0, 0.75), True, "masks", "pillow", ClassFilter(score_cut=0.5, top_classes=2))
EXPORTED = {
    "one": {},
    "coarse": {"prediction_with_upsampled_logits": False},
    "probs": {"views": Views((0.75, 1.0), flip=True), "wanted": ["labels", "probs"]},
    "logits": {"views": Views((0.75, 1.0), merge_scales="logits", scale_kernel="cubic")},
    "masks": {"views": MASKS, "wanted": ["labels", "image_logits"]},
    "decisions": {"decision": (Decision(), Decision((0, 1)))},
}


def assert_same_predictions(found, expected):
    assert found._fields == expected._fields
    for name in EVERYTHING:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if name == "labels":
            tf.nest.map_structure(np.testing.assert_array_equal, one, other)
        elif one is not None:
            np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize("options", EXPORTED.values(), ids=EXPORTED)
def test_a_saved_predictor_answers_alike_for_any_batch_and_size(options, tmp_path):
    model = ToyModel(with_classifier=True)
    predictor = Predictor(model, **options)
    loaded, operations = exported(predictor, model, tmp_path)
    assert "ArgMax" in operations and not operations & LOOPS
    for size in (SIZE, (20, 31)):
        images = np.stack(make_images([size] * 3)[0]).astype(np.float32)
        for batch in (images[:1], images):
            assert_same_predictions(loaded.predict(batch), predictor(batch))


@pytest.mark.nightly
def test_a_saved_network_answers_alike_for_any_batch_and_size(network, tmp_path):
    predictor = Predictor(network, Views((1.0, 0.75), flip=True))
    loaded, operations = exported(predictor, network, tmp_path)
    assert "Conv2D" in operations and not operations & LOOPS
    run = tf.function(predictor, autograph=False)
    for size in ((65, 65), (49, 81)):
        images = np.stack(make_images([size] * 3)[0]).astype(np.float32)
        for batch in (images[:1], images):
            assert_same_predictions(loaded.predict(batch), run(batch))


def test_the_loop_over_images_is_outside_the_predictor(image):
    predictor = Predictor(ToyModel())
    run = tf.function(lambda x: one_by_one(predictor, x, None, tf.ones(3)), autograph=False)
    assert op_types(run.get_concrete_function(image)) & LOOPS


@pytest.mark.parametrize("wanted", [(), ("labels", "scores")])
def test_what_no_network_says_is_refused(wanted):
    with pytest.raises(UserError, match="labels, probs, image_logits"):
        Predictor(ToyModel(), wanted=wanted)


def test_the_example_of_the_docstring_runs():
    result = doctest.testmod(predictor_module)
    assert result.attempted > 3 and not result.failed
