"""Checks of the flags of a zs3net run."""

from tfseg.data.specs import DatasetSpec
from tfseg.errors import UserError
from tfseg.settings.methods.zs3net import ZS3NetConfig
from tfseg.settings.run import TrainConfig


def check_flags(
    settings: ZS3NetConfig,
    config: TrainConfig,
    spec: DatasetSpec,
    *,
    replicas: int,
    kernel_size: int,
) -> None:
    """Refuses flags that do not go together.

    Args:
      settings: of the method, complete.
      config: of the run.
      spec: the data set.
      replicas: number of them.
      kernel_size: side of the classifier's kernel.

    Raises:
      UserError: they do not.
    """
    if spec.vectors is None:
        raise UserError(
            "zs3net needs word vectors of the classes.",
            where="--class_embeddings",
            fix="add --class_embeddings=FILE.npz; tfrecords_tools/build_class_embeddings.py "
            "makes such files",
        )
    if settings.generator_updates == "per_class" and replicas > 1:
        raise UserError(
            "--generator_updates=per_class works on one replica only.",
            where="--generator_updates=per_class",
            received=f"{replicas} replicas",
            accepted="--generator_updates=mean, or one replica",
        )
    if settings.graph_context:
        _check_graph(settings, config, kernel_size)


def _check_graph(settings: ZS3NetConfig, config: TrainConfig, kernel_size: int) -> None:
    if config.jit_compile:
        raise UserError(
            "XLA cannot compile --graph_context.",
            where="--jit_compile",
            received="--graph_context",
            fix="leave out one of the two",
        )
    if not settings.generator_hidden:
        raise UserError(
            "The generator of --graph_context has two layers.",
            where="--generator_hidden",
            received=0,
            accepted="at least 1; published: 256",
        )
    if kernel_size != 1:
        raise UserError(
            "--graph_context needs a 1x1 convolution as the classifier.",
            where="--logits_kernel_size",
            received=kernel_size,
            accepted=1,
        )
