"""Settings of a training run."""

import dataclasses
from typing import Any, ClassVar

from tfseg.settings.methods import METHODS
from tfseg.settings.network import NAS
from tfseg.settings.option import FREELY, NEVER, Section, option, owned
from tfseg.settings.presets import PRESETS

# In the place of --label_weights' numbers.
BALANCED = "balanced"


@dataclasses.dataclass(frozen=True)
class TrainConfig(Section):
    """The loop, the optimiser, the devices. Defaults are those of `train_wss.py`."""

    GROUP: ClassVar[str] = "training"

    method: str = option(
        "pseudoseg",
        "Training method. Default in train_sup.py: supervised, in train_wss.py: pseudoseg, in "
        "train_zls.py: strict.",
        may_differ=NEVER,
    )
    preset: str | None = option(
        None,
        "Defaults that go together: light, for minutes on a CPU.",
        choices=tuple(PRESETS),
        may_differ=FREELY,
    )
    train_logdir: str | None = option(
        None, "Directory for checkpoints, logs and config.json.", required=True, may_differ=FREELY
    )
    training_number_of_steps: int = option(30000, "Optimiser steps in all.", limits=(1, None))
    train_batch_size: int = option(
        64, "Images per stream and step, over all replicas.", limits=(1, None)
    )
    gradient_accumulation_steps: int = option(
        1, "Split each replica's batch into this many parts, to save memory.", limits=(1, None)
    )
    allow_changed_data: bool = option(
        False,
        "Go on with a run on other splits, images or counts of pixels than it had so far.",
        may_differ=FREELY,
        group="saving and logging",
    )
    seed: int = option(
        0, "Seed of initial weights, data order, augmentation and dropout.", limits=(0, 2**31 - 1)
    )
    deterministic: bool = option(
        False,
        "Deterministic kernels (tf.config op determinism), so that a run repeats exactly.",
        group="precision and devices",
    )

    strategy: str = option(
        "auto",
        "Distribution: auto takes every GPU, else one CPU device.",
        choices=("auto", "one_device", "mirrored", "multi_worker", "tpu"),
        group="precision and devices",
    )
    num_clones: int = option(
        16,
        "Replicas. With fewer devices, those are used, and the global batch stays the same.",
        group="precision and devices",
        limits=(1, None),
    )
    clone_on_cpu: bool = option(
        False, "Use CPU devices even where GPUs exist.", group="precision and devices"
    )
    tpu: str = option(
        "",
        "TPU name or address for --strategy=tpu; empty: the local one.",
        group="precision and devices",
    )
    jit_compile: bool = option(
        False, "Compile the forward and backward pass with XLA.", group="precision and devices"
    )

    optimizer: str = option(
        "momentum",
        "Optimiser: momentum, adam, adamw, lamb, lars, or (with the extra [addons]) sgdw, "
        "novograd, rectified_adam, lookahead, swa.",
    )
    learning_policy: str = option(
        "poly", "Learning-rate schedule.", choices=("poly", "step", "cosine"), group="optimiser"
    )
    base_learning_rate: float = option(
        0.007, "Learning rate at the start of the schedule.", limits=(0, None)
    )
    decay_steps: float = option(
        0.0,
        "Length of the poly or cosine decay in steps; 0: all steps after the slow start and "
        "--constant_steps.",
        group="optimiser",
        limits=(0, None),
    )
    learning_rate_update_steps: int = option(
        1,
        "The learning rate changes every so many steps; published for STRICT: 10.",
        limits=(1, None),
        group="optimiser",
    )
    learning_rate_lag_steps: int = option(
        0,
        "The learning rate follows its schedule this many steps late; until then it stays at its "
        "first value. 1 is published for UniMatch, FixMatch and their second versions, and is "
        "their default.",
        limits=(0, None),
        group="optimiser",
    )
    constant_steps: int = option(
        0,
        "Steps at --base_learning_rate before the cosine decay begins.",
        limits=(0, None),
        group="optimiser",
    )
    end_learning_rate: float = option(
        0.0, "Learning rate at the end of the poly decay.", group="optimiser", limits=(0, None)
    )
    learning_rate_decay_factor: float = option(
        0.1, "Factor of the step policy.", group="optimiser", limits=(0, None)
    )
    learning_rate_decay_step: int = option(
        2000, "Period of the step policy, in steps.", group="optimiser", limits=(1, None)
    )
    learning_power: float = option(
        0.9, "Power of the poly decay.", group="optimiser", limits=(0, None)
    )
    slow_start_step: int = option(
        0, "First steps, at --slow_start_learning_rate.", group="optimiser", limits=(0, None)
    )
    slow_start_learning_rate: float = option(
        1e-4, "Rate of the slow start.", group="optimiser", limits=(0, None)
    )
    momentum: float = option(
        0.9, "Momentum (v := momentum v + g; w := w - rate v).", group="optimiser", limits=(0, 1)
    )
    adam_learning_rate: float = option(
        0.001, "Constant rate of --optimizer=adam.", group="optimiser", limits=(0, None)
    )
    adam_epsilon: float = option(
        1e-8, "Epsilon of --optimizer=adam and adamw.", group="optimiser", limits=(0, None)
    )
    weight_decay: float = option(
        4e-5,
        "L2 factor on convolution kernels; 1e-4 for ResNets. With --optimizer=adamw it is no part "
        "of the gradient: w := (1 - rate decay) w; published: 0.01.",
        limits=(0, None),
    )
    parameter_groups: str = option(
        "deeplab",
        "deeplab: kernels of plain and pointwise convolutions decay, biases learn twice as fast. "
        "plain: every variable decays and learns alike, as in most PyTorch code. encoder: every "
        "variable decays, and the layers on top of the backbone learn --head_rate_multiplier times "
        "as fast.",
        choices=("deeplab", "plain", "encoder"),
        group="optimiser",
    )
    head_rate_multiplier: float = option(
        1.0,
        "Factor on the learning rate of the layers on top of the backbone; published with DINOv2: "
        "40.",
        limits=(0, None),
        needs="parameter_groups=encoder",
        group="optimiser",
    )
    last_layer_gradient_multiplier: float = option(
        1.0, "Gradient multiplier of the last layers.", group="optimiser", limits=(0, None)
    )
    ema_decay: float = option(
        0.0,
        "Keep an exponential moving average of the weights (network 'ema'); 0: off.",
        limits=(0, 1),
    )

    tf_initial_checkpoint: str | None = option(
        None,
        "Checkpoint to initialise from: TF1 model zoo, Model Garden's for the backbones taken from "
        "there, or ours; a prefix or a directory.",
        group="initial weights",
    )
    pretrained_weights: str | None = option(
        None,
        "Weights of the backbone alone: the path of a PyTorch file (.pth, .safetensors), for "
        "resnet50s, resnet101s, resnet101, resnet101_msra, wide_resnet38, efficientnet_lite0 and "
        "dinov2_* (DINOv2's, Hugging Face's, timm's or UniMatch V2's names); or 'imagenet' for "
        "efficientnet_lite0, from an installed package (extra [pretrained]), or the path of its "
        ".npz file.",
        group="initial weights",
    )
    initialize_last_layer: bool = option(
        False,
        "Take the last layers from the checkpoint too; false: they start from random values.",
        group="initial weights",
    )
    last_layers_contain_logits_only: bool = option(
        True,
        "The last layers are the logits only; false: ASPP and decoder too.",
        group="initial weights",
    )

    upsample_logits: bool = option(
        True,
        "Enlarge the logits to the size of the labels for the loss; false: shrink the labels.",
    )
    label_weights: tuple[float, ...] | str | None = option(
        None,
        "Weight of each class in the cross entropy of images with masks; None: 1. balanced: N / (K "
        "n) for a class with n of the N labelled pixels of --train_split, which has K classes; "
        "tfrecords_tools/check.py prints the numbers.",
        multi=True,
        words=(BALANCED,),
        limits=(0, None),
    )
    hard_example_mining_step: int = option(
        0,
        "Steps over which the share of mined pixels falls from 1 to --top_k_percent_pixels.",
        limits=(0, None),
    )
    top_k_percent_pixels: float = option(
        1.0, "Share of the pixels, the hardest ones, that the loss counts; 1: all.", limits=(0, 1)
    )
    weakly: bool = option(
        False, "The second split has image-level labels; use them.", may_differ=NEVER
    )

    log_steps: int = option(
        10,
        "Steps between log lines and scalar summaries.",
        may_differ=FREELY,
        group="saving and logging",
        limits=(1, None),
    )
    save_interval_secs: int = option(
        1200,
        "Seconds between checkpoints.",
        may_differ=FREELY,
        group="saving and logging",
        limits=(0, None),
    )
    save_interval_steps: int = option(
        0,
        "Steps between checkpoints, besides --save_interval_secs; 0: none.",
        may_differ=FREELY,
        group="saving and logging",
        limits=(0, None),
    )
    max_to_keep: int = option(5, "Checkpoints kept.", group="saving and logging", limits=(1, None))
    reestimate_batch_norm: int = option(
        0,
        "Measure the statistics of batch norm again on this many training images: after the last "
        "step, or at once if the run is complete. The network runs as in evaluation. The result is "
        "written to <train_logdir>/reestimated/, a --checkpoint_dir for eval.py and vis.py; the "
        "run's own files stay as they are. 0: no.",
        limits=(0, None),
        may_differ=FREELY,
        group="saving and logging",
    )
    save_summaries_secs: int = option(
        180,
        "Seconds between image summaries.",
        may_differ=FREELY,
        group="saving and logging",
        limits=(0, None),
    )
    save_summaries_images: bool = option(
        True, "Write image panels to TensorBoard.", may_differ=FREELY, group="saving and logging"
    )
    profile_logdir: str | None = option(
        None,
        "Write a TensorFlow profile of ten steps there, after the first ten; None: off.",
        group="precision and devices",
    )

    drop_path_keep_prob: float = option(1.0, "Drop path of NAS networks.", unsupported=NAS)
    num_replicas: int = option(1, "Parameter-server machinery.", dead=True)
    task: int = option(0, "Parameter-server machinery.", dead=True)
    num_ps_tasks: int = option(0, "Parameter-server machinery.", dead=True)
    master: str = option("", "Parameter-server machinery.", dead=True)
    startup_delay_steps: int = option(15, "Parameter-server machinery.", dead=True)
    quantize_delay_step: int = option(-1, "Dead in the published programs.", dead=True)
    method_settings: Any = owned("method", METHODS)
