import pytest
import torch

from hywu_core.conditions import BackboneHiddenEncoder, ConditionEncoder, hidden_condition
from hywu_core.errors import HywuError


def test_padding_on_either_side_is_taken_out():
    hidden = torch.randn(3, 4, 5)
    attention = torch.tensor([[0, 0, 1, 1], [1, 1, 0, 0], [0, 1, 0, 1]])
    condition = hidden_condition(hidden, attention)
    assert condition.tokens.equal(torch.stack([hidden[0, 2:], hidden[1, :2], hidden[2, 1::2]]))
    assert condition.mask is None


def test_shorter_rows_keep_a_mask():
    hidden = torch.randn(2, 4, 5)
    condition = hidden_condition(hidden, torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]]))
    assert condition.mask.tolist() == [[True, True, True], [True, False, False]]
    assert condition.tokens[1, 0].equal(hidden[1, 3])


def test_the_releases_extra_axis_and_gradients_are_dropped():
    hidden = torch.randn(2, 1, 4, 5, requires_grad=True)
    condition = hidden_condition(hidden)
    assert condition.tokens.equal(hidden[:, 0])
    assert not condition.tokens.requires_grad


@pytest.mark.parametrize("shape", [(4, 5), (2, 2, 4, 5)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(HywuError, match="shape"):
        hidden_condition(torch.randn(shape))


def test_a_backbone_as_an_encoder():
    hidden = torch.randn(1, 3, 8)
    encoder = BackboneHiddenEncoder("hunyuan-image-3", 8, lambda images, prompts: (hidden, None))
    assert isinstance(encoder, ConditionEncoder)
    assert encoder.info() == {"kind": "backbone_hidden", "id": "hunyuan-image-3", "dim": 8}
    assert encoder.encode([torch.zeros(3, 8, 8)], ["a"]).tokens.equal(hidden)


def test_another_width_is_named():
    encoder = BackboneHiddenEncoder("b", 9, lambda images, prompts: (torch.randn(1, 3, 8), None))
    with pytest.raises(HywuError, match="b gave 8 channels instead of 9"):
        encoder.encode([torch.zeros(3, 8, 8)], ["a"])
