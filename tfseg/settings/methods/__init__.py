"""The methods by name, with their settings: a frozen dataclass for each, one field = one flag.

Settings stand in this folder and not in the methods' files so that `--help` needs no TensorFlow.
"""

from tfseg.settings.methods.base import MethodSettings
from tfseg.settings.methods.learning_pseudo_labels import LearningPseudoLabelsConfig
from tfseg.settings.methods.pseudoseg import PseudoSegConfig
from tfseg.settings.methods.slrnet import SLRNetConfig
from tfseg.settings.methods.spnet import SPNetConfig
from tfseg.settings.methods.strict import StrictConfig
from tfseg.settings.methods.weak_to_strong import (
    FixMatchConfig,
    FixMatchV2Config,
    UniMatchConfig,
    UniMatchV2Config,
)
from tfseg.settings.methods.zs3net import ZS3NetConfig
from tfseg.settings.option import Choice

METHODS = {
    "supervised": Choice(MethodSettings, "tfseg.methods.supervised:Supervised"),
    "pseudoseg": Choice(PseudoSegConfig, "tfseg.methods.pseudoseg:PseudoSeg"),
    "learning_pseudo_labels": Choice(
        LearningPseudoLabelsConfig, "tfseg.methods.learning_pseudo_labels:LearningPseudoLabels"
    ),
    "slrnet": Choice(SLRNetConfig, "tfseg.methods.slrnet:SLRNet"),
    "spnet": Choice(SPNetConfig, "tfseg.methods.spnet:SPNet"),
    "strict": Choice(StrictConfig, "tfseg.methods.strict:Strict"),
    "fixmatch": Choice(FixMatchConfig, "tfseg.methods.fixmatch:FixMatch"),
    "unimatch": Choice(UniMatchConfig, "tfseg.methods.unimatch:UniMatch"),
    "fixmatch_v2": Choice(FixMatchV2Config, "tfseg.methods.fixmatch_v2:FixMatchV2"),
    "unimatch_v2": Choice(UniMatchV2Config, "tfseg.methods.unimatch_v2:UniMatchV2"),
    "zs3net": Choice(ZS3NetConfig, "tfseg.methods.zs3net:ZS3Net"),
}
