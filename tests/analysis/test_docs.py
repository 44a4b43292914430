import doctest

import pytest

from analysis import embedding, render, spread, statistics, tsne


@pytest.mark.parametrize("module", [embedding, render, spread, statistics, tsne], ids=lambda module: module.__name__)
def test_the_examples_of_docstrings_hold(module):
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0
