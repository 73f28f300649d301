"""docs/operations.md is what the library and its tests say."""

import pytest

pytest.importorskip("torch")

from tests.library.page import PAGE, page


def test_the_page_of_operations_is_up_to_date():
    assert PAGE.read_text("utf-8") == page(), "run `python -m tests.library.page`, and read what changed"
