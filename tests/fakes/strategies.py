# SPDX-License-Identifier: Apache-2.0
"""What Hypothesis makes for the tests: JSON of every kind, with the characters that matter."""

from hypothesis import settings
from hypothesis import strategies as st

QUICKLY = settings(deadline=None, max_examples=50, database=None)
TEXT = st.text(st.sampled_from('ab{}[]":,\\/ \0\n\x1f\x7f\x85é\u2028\ufeff\U0001f600'), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda its: st.lists(its, max_size=4) | st.dictionaries(TEXT, its, max_size=4),
    max_leaves=10,
)
OBJECTS = st.dictionaries(TEXT, JSON, max_size=4)
