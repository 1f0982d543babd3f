"""Golden cases of ZS3Net's parts: MMD, generators, region graphs, losses and learning rates."""

import functools
import re

import numpy as np
import tensorflow as tf

from tests.golden_cases.lpl_model import channels_last, load
from tfseg.models import gmmn
from tfseg.models.layers.settings import Settings
from tfseg.ops import losses as loss_ops
from tfseg.ops.mmd import mmd
from tfseg.ops.region_graph import region_graph
from tfseg.settings.run import TrainConfig
from tfseg.training.optimizers import Scaled, learning_rate

IGNORE = 255
# What a case is computed from, by patterns; every other array is compared.
_INPUTS = {
    "gmmn_loss": r"c\d+_(gen|real)|sigmas",
    # Of the lists of pixels only the lengths are there, and these count pixels several times.
    "graph_construction": r"g\d+_(segmap|embmap|featmap|pixlist_len)",
    "gmmn_generator": r"\w+/(embd|noise|real|param/.*|dropout_keep_mask)",
    "gcn_generator": r"embd|noise|adj|real|param/.*|cls_weight|cls_bias|class_weight|node_label",
    "losses": r"logits|target|class_weight|lr_\w+_epochs_iters",
}
# Ten times the difference between the published code and an independent computation, relative to
# the largest value of the array, by patterns of the names; of all others 1e-6.
_TOLERANCES = {
    "gmmn_loss": {r"grad_(gen|real)$": 1e-5},
    "gmmn_generator": {"features": 1e-5, "semantic": 1e-5, "grad": 1e-5},
    # (The gradients of other arrays than ours differed by 1.4e-5.)
    "gcn_generator": {"features": 1.2e-5, "cls_logits": 4e-5, "grad": 3e-5, "gcn1_out": 1.2e-5},
    "graph_construction": {"avg_feat": 5e-5},
    "losses": {"ce": 2e-6, "focal": 2e-6},
}


def _quantities(family, path):
    return [name for name in load(path) if not re.fullmatch(_INPUTS[family], name)]


def relative(actual, expected: np.ndarray, tolerance: float) -> None:
    """Compares arrays of one shape, relative to the largest value."""
    actual = np.asarray(actual)
    assert actual.shape == expected.shape
    limit = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=limit)


def _check(compute, family, path, name):
    results = compute(path)
    assert name in results, f"{path} holds {name}, which no check knows"
    limits = _TOLERANCES.get(family, {})
    found = [limits[key] for key in limits if re.search(key, name)]
    relative(results[name], load(path)[name], max(found, default=1e-6))


# Maximum mean discrepancy ------------------------------------------------------------------------


def _gmmn_loss(path):
    arrays, results = load(path), {}
    bandwidths = tuple(float(v) for v in arrays["sigmas"])
    for case in {name.split("_")[0] for name in arrays if name.endswith("_gen")}:
        for suffix, dtype in (("", tf.float32), ("_f64", tf.float64)):
            sets = [tf.constant(arrays[f"{case}_{part}"], dtype) for part in ("gen", "real")]
            compare = functools.partial(mmd, *sets, weights="published", epsilon=0.0)
            with tf.GradientTape() as tape:
                tape.watch(sets)
                loss = compare(bandwidths=bandwidths)
            gradients = tape.gradient(loss, sets)
            results[f"{case}_loss{suffix}"] = loss
            for part, gradient in zip(("gen", "real"), gradients):
                results[f"{case}_grad_{part}{suffix}"] = gradient
        for name in arrays:
            if match := re.fullmatch(rf"{case}_loss_sigma([\d.]+)", name):
                results[name] = mmd(
                    tf.constant(arrays[f"{case}_gen"]),
                    tf.constant(arrays[f"{case}_real"]),
                    weights="published",
                    epsilon=0.0,
                    bandwidths=(float(match.group(1)),),
                )
    return results


# Generators --------------------------------------------------------------------------------------


def linear_weights(arrays, prefix: str) -> list[tf.Tensor]:
    """Returns kernel and bias of the fully connected layers below a prefix, in their order."""
    return [tf.constant(arrays[name].T) for name in linear_names(arrays, prefix)]


def linear_names(arrays, prefix: str) -> list[str]:
    """Returns the names of those in the same order; kernels there are [out, in]."""
    kernels = sorted(n for n in arrays if re.fullmatch(re.escape(prefix) + r"model.*\.weight", n))
    return [name for kernel in kernels for name in (kernel, kernel.replace(".weight", ".bias"))]


def graph_weights(arrays, prefix: str) -> list[tf.Tensor]:
    """Returns kernel and bias of the graph layers below a prefix."""
    return [
        tf.constant(arrays[f"{prefix}gcn{i}.{leaf}"]) for i in (1, 2) for leaf in ("weight", "bias")
    ]


def _gmmn_generator(path):
    arrays, results = load(path), {}
    for case in {name.split("/")[0] for name in arrays if name.endswith("/embd")}:
        vectors, noise = arrays[f"{case}/embd"], arrays[f"{case}/noise"]
        weights = linear_weights(arrays, f"{case}/param/")
        features = gmmn.generate(weights, vectors, noise)
        results[f"{case}/features"] = features
        layer = f"{case}/param/semantic_reconstruction_layer"
        if f"{layer}.weight" in arrays:
            kernel, bias = arrays[f"{layer}.weight"].T, arrays[f"{layer}.bias"]
            results[f"{case}/semantic"] = gmmn.dense(features, kernel, bias)
        if f"{case}_train/real" in arrays:
            results.update(_trained(arrays, case, weights))
    return results


def _trained(arrays, case, weights):
    prefix = f"{case}_train"
    vectors, noise = (tf.constant(arrays[f"{case}/{name}"]) for name in ("embd", "noise"))
    keep = tf.constant(arrays[f"{prefix}/dropout_keep_mask"])
    first = gmmn.dense(tf.concat([vectors, noise], -1), *weights[:2])
    with tf.GradientTape() as tape:
        tape.watch(weights)
        features = gmmn.generate(weights, vectors, noise, keep)
        loss = mmd(features, tf.constant(arrays[f"{prefix}/real"]), epsilon=0.0)
    gradients = tape.gradient(loss, weights)
    names = linear_names(arrays, f"{prefix}/grad/")
    return {
        f"{prefix}/dropout_in": gmmn.hidden_units(first, None),
        f"{prefix}/dropout_out": gmmn.hidden_units(first, keep),
        f"{prefix}/features": features,
        f"{prefix}/mmd_loss": loss,
        **{name: tf.transpose(gradient) for name, gradient in zip(names, gradients)},
    }


def _check_generator(path, name):
    if not name.startswith("init"):
        return _check(_GENERATOR, "gmmn_generator", path, name)
    outputs, inputs, *moments = load(path)[name]
    leaf = re.fullmatch(r"init\d+/model.*\.(\w+)/shape_min_max_mean_std", name).group(1)
    shape = (int(outputs), int(inputs))
    # Either layer, as the first of two.
    sizes = {"inputs": shape[1], "hidden": shape[0], "outputs": shape[0]}
    generator = gmmn.Generator(Settings(network="golden"), **sizes, trainable=True)
    values = generator.weights[leaf == "bias"].numpy().T
    assert values.shape == (shape if leaf == "weight" else shape[:1])
    ours = [values.min(), values.max(), values.mean(), values.std()]
    # Both are draws: six deviations of a mean (and the rounding of equal values).
    spread = 6 * moments[3] / values.size**0.5 + 1e-8
    np.testing.assert_allclose(ours, moments, rtol=1e-6, atol=spread)


def _gcn_generator(path):
    arrays = load(path)
    weights = graph_weights(arrays, "param/")
    adjacency, vectors, noise = (tf.constant(arrays[n]) for n in ("adj", "embd", "noise"))
    classifier = [channels_last(arrays["cls_weight"])[:, 0, 0], tf.constant(arrays["cls_bias"])]
    classifier[0] = tf.transpose(classifier[0])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch([*weights, *classifier])
        features = gmmn.generate_on_graph(weights, adjacency, vectors, noise)
        loss = mmd(features, tf.constant(arrays["real"]), epsilon=0.0)
        logits = gmmn.dense(tf.stop_gradient(features), *classifier)[None, :, None]
        weighted = 0.1 * loss_ops.segmentation_loss(
            logits,
            tf.constant(arrays["node_label"].astype(np.int32))[None, :, None],
            ignore_label=IGNORE,
            class_weights=arrays["class_weight"],
            denominator="weights",
        )
    gradients = tape.gradient(loss, weights)
    of_kernel, of_bias = tape.gradient(weighted, classifier)
    names = [f"grad/gcn{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")]
    return {
        "gcn1_out": gmmn.graph_layer(tf.concat([vectors, noise], -1), adjacency, *weights[:2]),
        "features": features,
        "mmd_loss": loss,
        **dict(zip(names, gradients)),
        "cls_logits": np.moveaxis(logits.numpy(), -1, 1),
        "loss_gcn_weighted": weighted,
        "grad_cls_weight": tf.transpose(of_kernel)[..., None, None],
        "grad_cls_bias": of_bias,
    }


# Region graphs -----------------------------------------------------------------------------------


def _graph_construction(path):
    arrays, results = load(path), {}
    for case in {name.split("_")[0] for name in arrays if name.endswith("_segmap")}:
        label = arrays[f"{case}_segmap"]
        graph = region_graph(label)

        def at_first_pixels(maps, graph=graph):
            return maps.reshape(len(maps), -1)[:, graph.first].T

        results |= {
            f"{case}_cluster_map": graph.nodes,
            f"{case}_n_clusters": len(graph.first),
            # One region makes no graph.
            f"{case}_adj_is_none": int(len(graph.first) == 1),
            f"{case}_adj": graph.adjacency,
            f"{case}_node_label": label.reshape(-1)[graph.first],
            f"{case}_node_emb": at_first_pixels(arrays[f"{case}_embmap"]),
            f"{case}_seed_feat": at_first_pixels(arrays[f"{case}_featmap"]),
            # The published mean is over one pixel, taken several times.
            f"{case}_avg_feat": at_first_pixels(arrays[f"{case}_featmap"]),
        }
    return results


def _check_graph(path, name):
    if "avg_feat" in name:
        return _check(_GRAPH, "graph_construction", path, name)
    assert name in _GRAPH(path), f"{path} holds {name}, which no check knows"
    np.testing.assert_array_equal(_GRAPH(path)[name], load(path)[name])


# Losses and rates --------------------------------------------------------------------------------


def _losses(path):
    arrays, results = load(path), _rates(path)
    logits = channels_last(arrays["logits"])
    label = tf.constant(arrays["target"].astype(np.int32))
    images = float(len(arrays["logits"]))
    suffixes = {re.fullmatch(r"(?:ce|focal)_(none|w\d+)", name) for name in arrays} - {None}
    given = tuple(arrays["class_weight"])
    weights = {m.group(1): None if m.group(1) == "none" else given for m in suffixes}
    for kind in ("ce", "focal", "ce_finetune"):
        for name, class_weights in weights.items():
            with tf.GradientTape() as tape:
                tape.watch(logits)
                loss = loss_ops.segmentation_loss(
                    logits,
                    label,
                    ignore_label=IGNORE,
                    class_weights=None if kind == "ce_finetune" else class_weights,
                    denominator="weights",
                )
                if kind == "focal":
                    loss = loss_ops.focal_of_mean(loss)
                loss /= images
            results[f"{kind}_{name}"] = loss
            results[f"{kind}_{name}_grad"] = np.moveaxis(tape.gradient(loss, logits), -1, 1)
    return results


def _rates(path):
    arrays, results = load(path), {}
    for policy, name in (("poly", "poly"), ("cosine", "cos"), ("step", "step")):
        if f"lr_{name}" not in arrays:
            continue
        expected = arrays[f"lr_{name}"]
        epochs, iterations = arrays[f"lr_{name}_epochs_iters"]
        steps = int(epochs * iterations)
        # Not stored: after how many epochs the rate falls.
        changes = np.flatnonzero(np.diff(expected[:, 0]))
        config = TrainConfig(
            learning_policy=policy,
            base_learning_rate=float(expected[0, 0]),
            learning_power=0.9,
            end_learning_rate=0.0,
            training_number_of_steps=steps,
            learning_rate_decay_step=int(changes[0]) + 1 if len(changes) else steps,
            learning_rate_decay_factor=0.1,
        )
        # The second group's column is the first's, ten times as high.
        results[f"lr_{name}"] = np.array(
            [
                [float(Scaled(learning_rate(config), factor)(tf.constant(i))) for factor in (1, 10)]
                for i in range(steps)
            ]
        )
    return results


_GENERATOR, _GRAPH = map(functools.lru_cache, (_gmmn_generator, _graph_construction))


def _checked(compute, family):
    return functools.partial(_check, functools.lru_cache(maxsize=2)(compute), family)


CHECKS = {
    "gmmn_loss": _checked(_gmmn_loss, "gmmn_loss"),
    "gmmn_generator": _check_generator,
    "gcn_generator": _checked(_gcn_generator, "gcn_generator"),
    "graph_construction": _check_graph,
    "losses": _checked(_losses, "losses"),
}
CASES = {
    f"zs3/{family}": (functools.partial(_quantities, family), check)
    for family, check in CHECKS.items()
}
