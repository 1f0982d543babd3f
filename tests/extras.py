"""What tests of an optional library do without it: they still run, and must fail by its message."""

import importlib.util

import pytest

from tfseg.errors import UserError
from tfseg.ops import dense_crf

NO_CRF = None
if not dense_crf.is_installed():
    NO_CRF = "the extra [crf] (pydensecrf2) is not installed: pip install '.[crf]'"

# Without the library such a test is reported as an expected failure with the reason, and only the
# error that tells the user how to install it is accepted.
needs_crf = pytest.mark.xfail(NO_CRF is not None, reason=str(NO_CRF), raises=UserError, strict=True)

NO_GENSIM = None
if importlib.util.find_spec("gensim") is None:
    NO_GENSIM = "the extra [embeddings] (gensim) is not installed: pip install '.[embeddings]'"

needs_gensim = pytest.mark.xfail(
    NO_GENSIM is not None, reason=str(NO_GENSIM), raises=UserError, strict=True
)
