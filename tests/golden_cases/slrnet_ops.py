"""Golden cases of SLRNet's operations: views, PAMR, pseudo masks, scores and their losses, CRF."""

import functools

import numpy as np
import tensorflow as tf

from tests.extras import NO_CRF
from tests.golden_cases.lpl_eval import assert_same_labels
from tests.golden_cases.lpl_model import channels_last, load
from tfseg.ops import class_aware, dense_crf, pamr, pseudo_masks
from tfseg.ops.balanced_cross_entropy import balanced_cross_entropy
from tfseg.ops.class_scores import class_loss, class_scores, focal_mask_penalty
from tfseg.ops.resize import resize_bilinear
from tfseg.ops.two_views import second_view, to_first_view

IGNORE = 255
# What a case is computed from; every other array is compared.
INPUTS = {
    "affine": ("x", "scale", "flip", "flipped"),
    "pamr": ("image_raw", "mask", "num_iter", "dilations"),
    "pseudo": ("mask", "labels"),
    # Logits with their background are the network's.
    "ngwp": ("fg_logits", "logits_decoder", "logits_aux", "labels", "class_weights")
    + ("pos_weight_scale",),
    "balanced_ce": ("logits", "pseudo_gt", "labels"),
    "crf": ("probs", "image_rgb_uint8", "iters"),
}
# Settings of the pseudo masks by the name of the array that they made.
VOC_RULES = {
    "gt_voc": (0.6, 0.2, 0.7),
    "gt_voc_05_03": (0.5, 0.3, 0.7),
    "gt_semi_wo_cls": (0.8, 0.6, 0.9),
    "gt_semi_wo_cls_low": (0.8, 0.2, 0.9),
}
COCO_RULES = {"gt_coco_05_01": (0.5, 0.1), "gt_coco_06_01": (0.6, 0.1)}


def _quantities(family, path):
    return [name for name in load(path) if name not in INPUTS[family]]


def _channels_first(x):
    return np.moveaxis(np.asarray(x), -1, 1)


def _affine(path):
    arrays = load(path)
    x, flip = channels_last(arrays["x"]), tf.constant(arrays["flipped"])
    view2 = second_view(x, scale=float(arrays["scale"]), flip=flip)
    inverse = to_first_view(view2, x.shape[1:3], flip=flip)
    return {"view2": _channels_first(view2), "inverse": _channels_first(inverse)}


def _pamr(path):
    arrays = load(path)
    image, masks = channels_last(arrays["image_raw"]), channels_last(arrays["mask"])
    dilations = tuple(arrays["dilations"].tolist())
    resized = resize_bilinear(image, masks.shape[1:3])
    weights, deviation = pamr.affinity(resized, dilations=dilations)
    refined = {
        n: pamr.refine(image, masks, dilations=dilations, iterations=n)
        for n in (1, int(arrays["num_iter"]))
    }
    return {
        "image_resized": _channels_first(resized),
        "local_std": _channels_first(deviation)[:, :, None],
        "affinity": _channels_first(weights)[:, None],
        "mask_after_1": _channels_first(refined[1]),
        "mask_refined": _channels_first(refined[int(arrays["num_iter"])]),
    }


def _pseudo(path):
    arrays = load(path)
    masks = channels_last(arrays["mask"])
    present = class_aware.present_classes(tf.constant(arrays["labels"]), has_background=True)
    labelled = masks * present[:, None, None, :]
    labels = {}
    for name, (top, low, background) in VOC_RULES.items():
        labels[name] = pseudo_masks.confident_classes(
            # Without image-level labels the masks are taken as they are.
            masks if "wo_cls" in name else labelled,
            cutoff_top=top,
            cutoff_low=low,
            background_factor=background,
            ignore_label=IGNORE,
        )
    for name, (top, low) in COCO_RULES.items():
        labels[name] = pseudo_masks.confident_foreground(
            labelled, cutoff_top=top, cutoff_low=low, ignore_label=IGNORE
        )
    one_hot = {
        name: _channels_first(tf.one_hot(label, masks.shape[-1])) for name, label in labels.items()
    }
    return {"mask_labelled": _channels_first(labelled), **one_hot}


def _ngwp(path):
    arrays = load(path)
    logits = {name: channels_last(arrays[f"logits_{name}"]) for name in ("decoder", "aux")}
    image_label = tf.constant(arrays["labels"])
    with tf.GradientTape() as tape:
        tape.watch(logits["decoder"])
        masks = {name: tf.nn.softmax(x) for name, x in logits.items()}
        scores = {name: class_scores(logits[name], masks[name]) for name in logits}
        loss = class_loss(scores["decoder"], image_label)
        mean = tf.reduce_mean(loss)
    weighted = class_loss(
        scores["decoder"],
        image_label,
        positive_weights=arrays["class_weights"] * float(arrays["pos_weight_scale"]),
    )
    return {
        "masks_decoder": _channels_first(masks["decoder"]),
        "masks_aux": _channels_first(masks["aux"]),
        "cls_decoder": scores["decoder"],
        "cls_aux": scores["aux"],
        "cls_lid_p5_c01": class_scores(logits["decoder"], masks["decoder"], power=5.0, offset=0.1),
        "focal_term": focal_mask_penalty(masks["decoder"]),
        "softmargin_mean": mean,
        "softmargin_per_sample": loss,
        "grad_softmargin_wrt_logits_decoder": _channels_first(
            tape.gradient(mean, logits["decoder"])
        ),
        "bce_posweight": tf.reduce_mean(weighted),
        # Without weights the two losses are one.
        "bce_plain": mean,
    }


def _balanced_ce(path):
    arrays = load(path)
    logits, masks = channels_last(arrays["logits"]), arrays["pseudo_gt"]
    label = np.where(masks.sum(1) < 1, IGNORE, masks.argmax(1)).astype(np.int32)
    result = {}
    for name, image_label in (("checked", arrays["labels"]), ("unchecked", None)):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            loss = balanced_cross_entropy(
                logits, label, ignore_label=IGNORE, image_label=image_label
            )
            mean = tf.reduce_mean(loss)
        result[f"loss_{name}"] = loss
        result[f"grad_mean_loss_{name}"] = _channels_first(tape.gradient(mean, logits))
    return result


# Ten times the difference between the published code and an independent computation, relative to
# the largest value of the array; 0: exact. Quantities that are not named here: the largest such of
# the scores, 5.8e-7 of 2.3.
TOLERANCE = 2.5e-6
TOLERANCES = {
    "view2": 2e-5,
    "inverse": 2e-5,
    "image_resized": 1.1e-5,
    "local_std": 6e-6,
    "affinity": 1e-4,
    "mask_after_1": 6.4e-5,
    "mask_refined": 4.7e-5,
    "mask_labelled": 0.0,
    **dict.fromkeys([*VOC_RULES, *COCO_RULES], 0.0),
}


def _check(compute, path, name):
    assert name in compute(path), f"{path} holds {name}, which no check knows"
    actual, expected = np.asarray(compute(path)[name]), load(path)[name]
    assert actual.shape == expected.shape
    limit = TOLERANCES.get(name, TOLERANCE) * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def _check_crf(path, name):
    arrays = load(path)
    quantity, _, iterations = name.partition("_")
    assert quantity in ("q", "argmax"), f"{path} holds {name}, which no check knows"
    refined = dense_crf.dense_crf(
        arrays["probs"].transpose(1, 2, 0),
        arrays["image_rgb_uint8"],
        **{
            **dense_crf.SLRNET,
            "iterations": int(iterations.removesuffix("iter") or arrays["iters"]),
        },
    )
    if quantity == "q":
        np.testing.assert_allclose(refined, arrays[name].transpose(1, 2, 0), atol=1e-3)
    else:
        assert_same_labels(refined, refined.argmax(-1), arrays[name])


CHECKS = {
    family: functools.partial(_check, functools.lru_cache(maxsize=2)(compute))
    for family, compute in (
        ("affine", _affine),
        ("pamr", _pamr),
        ("pseudo", _pseudo),
        ("ngwp", _ngwp),
        ("balanced_ce", _balanced_ce),
    )
}
CASES = {
    f"slrnet/{family}": (functools.partial(_quantities, family), check)
    for family, check in {**CHECKS, "crf": _check_crf}.items()
}
UNAVAILABLE = {"slrnet/crf": lambda quantity: NO_CRF}
