"""Golden case `zs3/train_step`: a step of ZS3Net on given features, with recorded draws.

The network stands in for what makes features: they are the image. Draws come in the order in which
the published code makes them and are put where ours are looked up.
"""

import functools
import re

import numpy as np
import tensorflow as tf

from tests.golden_cases.lpl_model import channels_last, load
from tests.golden_cases.zs3_ops import graph_weights, linear_names, linear_weights, relative
from tfseg.data.class_embeddings import ClassVectors
from tfseg.data.class_splits import ClassSplit
from tfseg.data.specs import DatasetSpec
from tfseg.methods.zs3net import ZS3Net
from tfseg.methods.zs3net_parts.draws import GeneratorDraws
from tfseg.models.heads.parts import Logits, head_settings
from tfseg.models.layers.settings import Settings
from tfseg.ops.region_graph import region_graph
from tfseg.ops.resize import resize_bilinear, resize_nearest
from tfseg.settings.methods.zs3net import ZS3NetConfig
from tfseg.settings.network import ModelConfig
from tfseg.settings.run import TrainConfig
from tfseg.training.trainer import Trainer

IGNORE = 255
WEIGHT_DECAY = 5e-4
_INPUTS = (
    r"real_features|target|embedding_(table|map)|seen|unseen|class_weight|lr_\w+"
    r"|batch_size_generator|\w+_before/.*|draw/.*"
)
# Ten times the observed difference (mixed 5e-7, logits 2e-6, losses 3e-7, weights 2e-7), relative
# to the largest value, where that is above 1e-6.
_TOLERANCES = {"mixed": 5e-6, "logits": 2e-5, "_loss": 3e-6, "_after": 2e-6, "_grad_": 5e-6}
_EXACT = r"mmd/\d+_gen_shape|graph/\d+_(adj|label)"


def _numbered(arrays, prefix: str, suffix: str = "") -> list[str]:
    """Returns the names `<prefix><number><suffix>` in the order of their numbers."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)" + re.escape(suffix))
    return sorted(
        (name for name in arrays if pattern.fullmatch(name)),
        key=lambda name: int(pattern.fullmatch(name).group(1)),
    )


class _Network(tf.keras.Model):
    """A classifier on an image that is its own feature map."""

    def __init__(self, kernel: np.ndarray, bias: np.ndarray):
        super().__init__(name="model", autocast=False)
        classes, channels = kernel.shape[:2]
        settings = head_settings(Settings())
        self.logits_layer = Logits(settings, ModelConfig(), channels, classes)
        (convolution,) = self.logits_layer.convolutions
        convolution.kernel.assign(kernel.transpose(2, 3, 1, 0))
        convolution.bias.assign(bias)

    def encode(self, image, training=False):
        return {"features": image}

    def decode(self, end_points, training=False):
        return end_points


class _Recorded(ZS3Net):
    """ZS3Net whose draws are given."""

    given: GeneratorDraws

    def draws(self, scenes, seed):
        return self.given


class _Case:
    """The method on a file's inputs."""

    def __init__(self, path: str):
        self.arrays = arrays = load(path)
        self.has_graph = any(name.startswith("gcn_before/") for name in arrays)
        self.features = channels_last(arrays["real_features"])
        self.target = tf.constant(arrays["target"].astype(np.int32))
        self.label = resize_nearest(self.target, self.features.shape[1:3]).numpy()
        self.seen, self.unseen = (tuple(arrays[n].tolist()) for n in ("seen", "unseen"))
        (self.unseen_weight,) = set(arrays["class_weight"][list(self.unseen)].tolist())
        assert set(arrays["class_weight"][list(self.seen)].tolist()) == {1.0}
        self.method = self._method()
        self.batch = {"train": {"image": self.features, "label": self.target}}
        # Words per pixel are those of its label; void has the first.
        words = arrays["embedding_table"][np.where(self.target == IGNORE, 0, self.target)]
        np.testing.assert_array_equal(arrays["embedding_map"], np.moveaxis(words, -1, 1))

    def _method(self) -> _Recorded:
        arrays = self.arrays
        table = arrays["embedding_table"]
        spec = DatasetSpec(
            "golden",
            tuple(f"class{i}" for i in range(len(table))),
            seen_unseen=ClassSplit("golden", seen=self.seen, unseen=self.unseen, background=0),
            vectors=ClassVectors(table, source="golden", sha256="", norm="none"),
        )
        kernel, bias = (arrays[f"cls_before/pred_conv.{leaf}"] for leaf in ("weight", "bias"))
        noise = arrays["draw/noise_00"].shape[1]
        method = _Recorded(
            build_model=lambda: _Network(kernel, bias),
            spec=spec,
            config=TrainConfig(
                method="zs3net",
                train_batch_size=len(self.features),
                # The classifier's rate is ten times the base.
                base_learning_rate=float(arrays["lr_sgd_10x"]) / 10.0,
                weight_decay=WEIGHT_DECAY,
            ),
            settings=ZS3NetConfig(
                oracle_layout=True,
                generator_updates="per_class",
                generator_hidden=arrays["gen_before/model.0.weight"].shape[0],
                noise_dim=noise,
                generator_samples=int(arrays["batch_size_generator"]),
                generator_learning_rate=float(arrays["lr_adam"]),
                unseen_weight=self.unseen_weight,
                graph_context=self.has_graph,
            ),
        )
        start = linear_weights(arrays, "gen_before/")
        for variable, value in zip(method.generator.weights, start):
            variable.assign(value)
        if self.has_graph:
            start = graph_weights(arrays, "gcn_before/")
            for variable, value in zip(method.graph_generator.weights, start):
                variable.assign(value)
        method.given = self._draws(method)
        return method

    def _draws(self, method) -> GeneratorDraws:
        """Puts the recorded draws into maps: pixels of a class, or first pixels of regions."""
        arrays = self.arrays
        shape = self.label.shape
        maps = {
            name: np.zeros([*shape, width], np.float32)
            for name, width in (
                ("noise", method.settings.noise_dim),
                ("keep", method.settings.generator_hidden),
                ("node_noise", method.settings.noise_dim),
                ("node_keep", method.settings.generator_hidden),
            )
        }
        pixel = np.zeros([shape[0], len(self.seen), method.settings.generator_samples], np.float32)
        noises, indices = (_numbered(arrays, f"draw/{kind}_") for kind in ("noise", "index"))
        noises, indices = iter(noises), iter(indices)
        for i, label in enumerate(self.label):
            flat = label.reshape(-1)
            places = [np.flatnonzero(flat == c) for c in np.unique(flat) if c != IGNORE]
            prefixes = [""] * len(places)
            first = region_graph(label).first
            if self.has_graph and len(first) > 1:
                places.append(first)
                prefixes.append("node_")
            for prefix, place in zip(prefixes, places):
                name = next(noises)
                kind = "gcn" if prefix else "mlp"
                maps[f"{prefix}noise"][i].reshape(flat.size, -1)[place] = arrays[name]
                keep = arrays[f"{name.replace('noise', 'dropkeep')}_{kind}"]
                maps[f"{prefix}keep"][i].reshape(flat.size, -1)[place] = keep
            if np.isin(flat, self.unseen).any():
                continue
            for k, c in enumerate(sorted(self.seen)):
                if count := (flat == c).sum():
                    pixel[i, k] = (arrays[next(indices)] + 0.5) / count
        assert next(noises, None) is None and next(indices, None) is None
        return GeneratorDraws(
            noise=tf.constant(maps["noise"]),
            keep=tf.constant(maps["keep"] > 0),
            pixel=tf.constant(pixel),
            node_noise=tf.constant(maps["node_noise"]),
            node_keep=tf.constant(maps["node_keep"] > 0),
        )

    def results(self) -> dict:
        """Returns all quantities by name: of one step, part by part, and after the trainer's."""
        seed = tf.constant([0, 0])
        method = self.method
        scenes = method.scenes(self.batch, seed)
        draws = method.draws(scenes, seed)
        losses, active, mixed = method.pixels.matched(scenes, draws)
        nodes = method.nodes(scenes, draws) if self.has_graph else None
        results = {"mixed_features": np.moveaxis(mixed.numpy(), -1, 1)}
        results |= self._discrepancies(losses.numpy(), active.numpy(), nodes)
        logits = resize_bilinear(method.classify(mixed), self.target.shape[1:])
        results["logits_full"] = np.moveaxis(logits.numpy(), -1, 1)
        if self.has_graph:
            results |= self._graphs()
        results |= self._classifier(mixed, nodes)
        return results | self._after_step()

    def _discrepancies(self, losses, active, nodes) -> dict:
        """Returns the losses in the order of the published calls, and what is logged of them."""
        results, number, logged = {}, 0, 0.0
        samples, width = self.method.settings.generator_samples, self.features.shape[-1]
        for i, label in enumerate(self.label):
            called = [(loss, samples) for loss in losses[i][active[i]]]
            logged += losses[i].sum() / len(np.unique(label))
            if nodes is not None and nodes.trained[i]:
                called.append((nodes.losses[i].numpy(), len(region_graph(label).first)))
            for loss, count in called:
                results[f"mmd/{number:02d}_loss"] = loss
                results[f"mmd/{number:02d}_gen_shape"] = np.array([count, width])
                number += 1
        results["log/train_generator_loss"] = logged
        if nodes is not None:
            results["log/train_generator_GCN_loss"] = nodes.losses.numpy().sum()
            # Switched off there too.
            results["log/train_semantic_reconstruction_loss"] = 0.0
        return results

    def _graphs(self) -> dict:
        results = {}
        names = iter(_numbered(self.arrays, "graph/", "_adj"))
        for label, features in zip(self.label, self.features.numpy()):
            graph = region_graph(label)
            if len(graph.first) == 1:
                continue
            name = next(names).removesuffix("_adj")
            values = label.reshape(-1)[graph.first]
            words = self.arrays["embedding_table"][np.where(values == IGNORE, 0, values)]
            results |= {
                f"{name}_adj": graph.adjacency,
                f"{name}_label": values,
                f"{name}_emb": words,
                f"{name}_feat": features.reshape(-1, features.shape[-1])[graph.first],
            }
        return results

    def _classifier(self, mixed, nodes) -> dict:
        method = self.method
        (convolution,) = method.model.logits_layer.convolutions
        with tf.GradientTape() as tape:
            loss = method.classifier_loss(mixed, self.target) / len(self.features)
            total = loss
            if nodes is not None:
                total += method.settings.graph_weight * method.node_loss(nodes)
        kernel, bias = tape.gradient(total, [convolution.kernel, convolution.bias])
        logged = ("log/train_total_loss_iter", "log/train_total_loss_epoch")
        return {
            "cls_grad_weight": kernel.numpy().transpose(3, 2, 0, 1),
            "cls_grad_bias": bias,
            **dict.fromkeys(logged, loss),
        }

    def _after_step(self) -> dict:
        """Returns the weights after a step of the trainer."""
        method = self._method()
        iterator = iter(tf.data.Dataset.from_tensors(self.batch).repeat())
        trainer = Trainer(
            method=method,
            strategy=tf.distribute.get_strategy(),
            config=method.config,
            iterator=iterator,
        )
        trainer.train(1)
        (convolution,) = method.model.logits_layer.convolutions
        results = {
            "cls_after/pred_conv.weight": convolution.kernel.numpy().transpose(3, 2, 0, 1),
            "cls_after/pred_conv.bias": convolution.bias.numpy(),
        }
        names = linear_names(self.arrays, "gen_after/")
        results |= {n: v.numpy().T for n, v in zip(names, method.generator.weights)}
        if self.has_graph:
            names = [f"gcn_after/gcn{i}.{leaf}" for i in (1, 2) for leaf in ("weight", "bias")]
            results |= {n: v.numpy() for n, v in zip(names, method.graph_generator.weights)}
        return results


@functools.lru_cache(maxsize=4)
def _results(path: str) -> dict:
    return _Case(path).results()


def _check(path, name):
    results, expected = _results(path), load(path)[name]
    assert name in results, f"{path} holds {name}, which no check knows"
    if re.fullmatch(_EXACT, name):
        np.testing.assert_array_equal(results[name], expected)
    else:
        found = [limit for key, limit in _TOLERANCES.items() if key in name]
        relative(results[name], expected, max(found, default=1e-6))


def _quantities(path):
    return [name for name in load(path) if not re.fullmatch(_INPUTS, name)]


CASES = {"zs3/train_step": (_quantities, _check)}
