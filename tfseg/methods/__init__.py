"""The methods by name. A literal dict: grep finds everything."""

from tfseg.methods.supervised import Supervised

METHODS = {
    "supervised": Supervised,
}
