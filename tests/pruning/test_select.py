import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssmprune.pruning.select import select_tokens

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=10)


@given(scores=SCORES, data=st.data())
def test_select_tokens_keeps_the_best_in_sequence_order_and_ties_by_position(scores, data):
    length = len(scores)
    prefix = data.draw(st.integers(0, length - 1))
    keep_count = data.draw(st.integers(1, length))
    by_rank = sorted(range(length), key=lambda t: (t != prefix, -scores[t], t))
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, prefix] = True
    found = select_tokens(torch.tensor([scores]).float(), keep_count, mask)
    assert found.tolist() == [sorted(by_rank[:keep_count])]


def test_select_tokens_protects_class_token_in_every_image():
    scores = torch.rand(5, 9)
    mask = torch.zeros(5, 9, dtype=torch.bool)
    places = torch.tensor([0, 3, 8, 4, 4])
    mask[torch.arange(5), places] = True
    kept = select_tokens(scores, 3, mask)
    assert all(place in row for place, row in zip(places.tolist(), kept.tolist(), strict=True))


def test_select_tokens_refuses_nan():
    with pytest.raises(RuntimeError, match="NaN"):
        select_tokens(torch.tensor([[0.0, torch.nan]]), 1, torch.zeros(1, 2, dtype=torch.bool))


@pytest.mark.parametrize("keep_count", [0, 3])
def test_select_tokens_refuses_a_count_that_is_not_there(keep_count):
    with pytest.raises(ValueError, match=r"keep_count must be in 1\.\.2"):
        select_tokens(torch.zeros(1, 2), keep_count, torch.zeros(1, 2, dtype=torch.bool))
