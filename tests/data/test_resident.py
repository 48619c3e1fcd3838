import pytest
import torch

from ddpm_lightning.data.resident import EvaluationLoader, LabelledImages, TrainingLoader, mirror, scale


def numbered(count, size=4):
    """Image i is constant, with the value i, and has the label i."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 1, size, size).contiguous()
    return LabelledImages(images, torch.arange(count))


def labels(loader):
    return [batch[1].tolist() for batch in loader]


def test_scaling_reaches_both_ends():
    assert scale(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1.0, 1.0]


def test_images_keep_their_labels():
    for images, batch_labels in TrainingLoader(numbered(50), 8, seed=0, flip=True):
        torch.testing.assert_close((images[:, 0, 0, 0] + 1) * 127.5, batch_labels.float())


def test_flips_mirror_half_of_the_images_each_for_itself():
    rows = torch.arange(4, dtype=torch.uint8)
    data = LabelledImages(rows.expand(2000, 1, 1, 4).contiguous(), torch.arange(2000))
    [(images, _)] = TrainingLoader(data, 2000, seed=0, flip=True)
    mirrored = images[:, 0, 0, 0] > images[:, 0, 0, 3]
    assert abs(mirrored.float().mean() - 0.5) < 0.05
    assert torch.equal(images[mirrored], scale(rows.flip(0)).expand(int(mirrored.sum()), 1, 1, 4))
    assert torch.equal(images[~mirrored], scale(rows).expand(int((~mirrored).sum()), 1, 1, 4))
    [(unflipped, _)] = TrainingLoader(data, 2000, seed=0, flip=False)
    assert torch.equal(unflipped, scale(rows).expand(2000, 1, 1, 4))


def test_mirroring_names_each_image():
    images = torch.arange(6).view(3, 1, 1, 2)
    assert mirror(images, torch.tensor([True, False, True])).flatten().tolist() == [1, 0, 2, 3, 5, 4]


def test_an_epoch_sees_each_image_at_most_once_and_epochs_differ():
    loader = TrainingLoader(numbered(50), 8, seed=0, flip=False)
    first, second = sum(labels(loader), []), sum(labels(loader), [])
    assert len(first) == len(set(first)) == 48
    assert first != second
    assert first == sum(labels(TrainingLoader(numbered(50), 8, seed=0, flip=False)), [])
    assert first != sum(labels(TrainingLoader(numbered(50), 8, seed=1, flip=False)), [])


def test_batches_differ_in_their_flips_from_epoch_to_epoch():
    data = LabelledImages(torch.arange(4, dtype=torch.uint8).expand(16, 1, 1, 4).contiguous(), torch.arange(16))
    loader = TrainingLoader(data, 16, seed=0, flip=True)
    flips = [
        {int(y): bool(x[0, 0, 0] > x[0, 0, 3]) for x, y in zip(*batch, strict=True)}
        for _ in range(2)
        for batch in loader
    ]
    assert flips[0] != flips[1]


@pytest.mark.parametrize("stop", [0, 1, 5, 6, 7, 13])
def test_a_resumed_loader_goes_on_with_the_very_next_batch(stop):
    """6 batches an epoch; stopped before the first batch, inside epochs, and at their ends."""

    def batches(loader):
        while True:
            yield from loader

    whole, stopped = (TrainingLoader(numbered(50), 8, seed=3, flip=True) for _ in range(2))
    expected = [next_batch for next_batch, _ in zip(batches(whole), range(20), strict=False)]
    stream = batches(stopped)
    for _ in range(stop):
        next(stream)
    resumed = TrainingLoader(numbered(50), 8, seed=3, flip=True)
    resumed.load_state_dict(stopped.state_dict())
    for (image, label), (known_image, known_label) in zip(batches(resumed), expected[stop:], strict=False):
        assert torch.equal(label, known_label)
        assert torch.equal(image, known_image)


def test_ranks_share_out_an_epoch():
    loaders = [TrainingLoader(numbered(50), 4, seed=0, flip=False, rank=rank, world_size=3) for rank in range(3)]
    seen = [sum(labels(loader), []) for loader in loaders]
    assert [len(part) for part in seen] == [16, 16, 16]
    assert len(set(sum(seen, []))) == 48


def test_ranks_flip_apart():
    data = LabelledImages(torch.arange(4, dtype=torch.uint8).expand(400, 1, 1, 4).contiguous(), torch.arange(400))
    flips = []
    for rank in range(2):
        [(images, _)] = TrainingLoader(data, 200, seed=0, flip=True, rank=rank, world_size=2)
        flips.append(images[:, 0, 0, 0] > images[:, 0, 0, 3])
    assert 0.3 < (flips[0] == flips[1]).float().mean() < 0.7


def test_batches_are_on_the_device_of_the_data():
    data = LabelledImages(*(part.to("meta") for part in numbered(20)))
    loader = TrainingLoader(data, 4, seed=0, flip=True)
    images, batch_labels = next(iter(loader))
    assert images.device.type == batch_labels.device.type == "meta"


def test_an_epoch_is_a_multiple_of_the_accumulated_batches():
    assert len(TrainingLoader(numbered(50), 8, seed=0, flip=False, accumulate=4)) == 4


def test_a_batch_larger_than_the_set_is_refused():
    with pytest.raises(ValueError, match=r"batch_size must lie in \[1, 50\].*got 51"):
        TrainingLoader(numbered(50), 51, seed=0, flip=False)
    with pytest.raises(ValueError, match=r"batch_size must lie in \[1, 12\].*got 20"):
        TrainingLoader(numbered(50), 20, seed=0, flip=False, world_size=2, accumulate=2)


@pytest.mark.parametrize(("count", "world_size"), [(50, 1), (50, 3), (65, 2), (3, 2)])
def test_evaluation_sees_every_image_once_in_as_many_batches_on_each_rank(count, world_size):
    loaders = [EvaluationLoader(numbered(count), 16, rank, world_size) for rank in range(world_size)]
    seen = sum((sum(labels(loader), []) for loader in loaders), [])
    assert sorted(seen) == list(range(count))
    assert len({len(loader) for loader in loaders}) == 1
    assert all(0 < len(batch) <= 16 for loader in loaders for batch in labels(loader))


def test_flips_differ_from_epoch_to_epoch_at_the_same_place():
    ramps = LabelledImages(torch.arange(4, dtype=torch.uint8).expand(96, 1, 1, 4).contiguous(), torch.arange(96))
    loader = TrainingLoader(ramps, 96, seed=0, flip=True)
    first, second = (images[:, 0, 0, 0] > images[:, 0, 0, 3] for _ in range(2) for images, _ in loader)
    assert 0.3 < (first == second).float().mean() < 0.7


def test_order_and_flips_draw_from_streams_of_their_own():
    """numpy's seeds do not tell (0, 5) from (0, 5, 0)."""
    from ddpm_lightning.data.resident import FLIPS, ORDER

    loader = TrainingLoader(LabelledImages(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.zeros(4)), 4, 0, True)
    streams = [torch.rand(9, generator=loader._generator(*key)) for key in ((ORDER, 5), (FLIPS, 5, 0))]
    assert not torch.equal(*streams)
