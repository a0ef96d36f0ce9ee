"""Edits that share their chance, and LoRAs optimised on them, many at a time."""

import pytest
import torch

from hywu_core.backbones.embedded import EmbeddedBackbone
from hywu_core.data.instructions import phrases
from hywu_core.errors import HywuError
from hywu_core.lora import LoraSpec
from hywu_core.studies.draws import Draws, EditMaker, Edits, row_losses
from hywu_core.studies.optimised import fresh_adapter, optimise
from hywu_core.train.objective import flow_matching_loss, sample_times


@pytest.fixture(scope="module")
def maker():
    return EditMaker()


@pytest.fixture(scope="module")
def backbone():
    return EmbeddedBackbone.load()


@pytest.fixture(scope="module")
def spec(backbone):
    return LoraSpec.from_module(backbone.transformer, rank=1, alpha=1)


@pytest.fixture(scope="module")
def draws():
    return Draws.make(3, 32, "train", seed=0)


def test_operations_share_crops_times_and_noises(maker, draws):
    warm, deblur = maker.edits("warm", draws), maker.edits("deblur", draws)
    assert torch.equal(warm.source, deblur.target)  # an inverse operation leads back to the crop
    assert not torch.equal(warm.target, deblur.source)
    assert torch.equal(warm.time, deblur.time)
    assert torch.equal(warm.noise, deblur.noise)
    assert torch.equal(warm.source, maker.autoencoder.encode(draws.crops))
    again = Draws.make(3, 32, "train", seed=0)
    assert torch.equal(again.crops, draws.crops)
    assert not torch.equal(Draws.make(3, 32, "train", seed=1).noise, draws.noise)


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_words_are_of_the_operation_and_the_split(maker, split):
    said = maker.words("warm", Draws.make(40, 16, split, seed=0))
    assert set(said) <= {phrase.text for phrase in phrases(split, ["warm"])}
    assert len(set(said)) > 3


def test_the_loss_of_rows_is_the_loss_of_training(maker, backbone, spec, draws):
    edits = maker.edits("warm", draws)
    rows = row_losses(backbone, fresh_adapter(spec, 1, seed=0), edits)
    generator = torch.Generator().manual_seed(5)
    time = sample_times(3, generator)
    noise = torch.randn(edits.noise.shape, generator=generator)
    trained = flow_matching_loss(
        lambda x, t: backbone(x, t, edits.source, edits.text),
        edits.target,
        torch.Generator().manual_seed(5),
    )
    ours = row_losses(backbone, fresh_adapter(spec, 1, seed=0), edits.at(time, noise))
    assert ours.mean() == pytest.approx(float(trained), rel=1e-5)
    assert rows.shape == (3,)
    assert not torch.allclose(rows, ours)


def test_adapters_optimised_together_are_those_optimised_alone(maker, backbone, spec, draws):
    edits = Edits.cat([maker.edits("warm", draws.first(1)), maker.edits("negative", draws.first(1))])
    together, losses = optimise(backbone, fresh_adapter(spec, 2, 0), lambda _: edits, 4, 5e-3, "together")
    alone, _ = optimise(backbone, fresh_adapter(spec, 1, 0), lambda _: edits.rows([1]), 4, 5e-3, "alone")
    assert losses[-1] < losses[0]
    name = spec.targets[0].name
    torch.testing.assert_close(together[name][1][1:], alone[name][1], atol=1e-4, rtol=1e-2)
    assert not torch.allclose(together[name][1][0], together[name][1][1])


def test_a_fresh_adapter_changes_nothing_and_is_the_same_for_all(spec):
    adapter = fresh_adapter(spec, 2, seed=3)
    for A, B in adapter.values():
        assert torch.equal(A[0], A[1])
        assert not B.any()


@pytest.mark.parametrize(("n", "pixels"), [(0, 32), (1, 40), (1, 0)])
def test_crops_that_do_not_fit_are_a_sentence(n, pixels):
    with pytest.raises(HywuError, match=f"{n} crops of {pixels} pixels"):
        Draws.make(n, pixels, "train", seed=0)
