"""The methods by name. A literal dict: grep finds everything."""

from tfseg.methods.learning_pseudo_labels import LearningPseudoLabels
from tfseg.methods.pseudoseg import PseudoSeg
from tfseg.methods.slrnet import SLRNet
from tfseg.methods.supervised import Supervised
from tfseg.methods.zs3net import ZS3Net

METHODS = {
    "supervised": Supervised,
    "pseudoseg": PseudoSeg,
    "learning_pseudo_labels": LearningPseudoLabels,
    "slrnet": SLRNet,
    "zs3net": ZS3Net,
}
