"""Batches and augmentation, against one image at a time."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import resized_crop

from utils.datasets import augment
from utils.datasets.augment import crop_and_flip
from utils.datasets.batches import Batches


def images(count, channels=3, side=32, seed=0):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(1, 256, (count, channels, side, side), dtype=np.uint8))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batches(count=10, size=4, **options):
    labels = torch.arange(count)
    return Batches(images(count, 1, 4), labels, size, (0.5,), (0.25,), **options)


def test_evaluation_batches_keep_the_order_and_are_normalised():
    data = batches()
    inputs, targets = zip(*data, strict=True)
    assert [len(x) for x in inputs] == [4, 4, 2] and len(data) == 3
    assert torch.equal(torch.cat(targets), torch.arange(10))
    torch.testing.assert_close(torch.cat(inputs), (data.images / 255 - 0.5) / 0.25)


def test_training_batches_are_shuffled_anew_and_miss_no_image():
    data = batches(generator=generator())
    first, second = (torch.cat([targets for _, targets in data]) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, torch.arange(10))


def test_one_seed_gives_one_sequence_of_batches():
    a = batches(augment=augment.crop_and_flip, generator=generator(5))
    b = batches(augment=augment.crop_and_flip, generator=generator(5))
    for _ in range(2):
        for (x, y), (u, v) in zip(a, b, strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


def test_batches_do_not_depend_on_the_precision_of_the_network():
    def first_inputs():
        data = Batches(
            images(4, side=64),
            torch.arange(4),
            4,
            (0.5,) * 3,
            (0.25,) * 3,
            augment.resized_crop_and_flip,
            generator(),
        )
        return next(iter(data))[0]

    with torch.autocast("cpu", torch.bfloat16):
        inputs = first_inputs()
    assert torch.equal(inputs, first_inputs())


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_a_round_goes_on_from_a_state_dict_and_the_next_one_is_whole(taken):
    data, other = (batches(generator=generator(s), augment=crop_and_flip) for s in (0, 1))
    rest = iter(data)
    for _ in range(taken):
        next(rest)
    other.load_state_dict(data.state_dict())
    assert (data.taken, other.taken) == (taken, taken)
    for _ in range(2):
        expected, found = list(rest), list(other)
        for tensors, others in zip(expected, found, strict=True):
            assert all(map(torch.equal, tensors, others))
        rest = iter(data)
    assert len(found) == 3


def test_a_round_that_is_left_is_followed_by_a_new_one():
    data = batches(generator=generator())
    next(iter(data))
    assert len(list(data)) == 3 and data.taken == 0


def test_the_state_of_another_number_of_images_is_refused():
    data, other = batches(11, generator=generator()), batches(generator=generator())
    next(iter(data))
    with pytest.raises(ValueError, match="a round has 10 images, not 11"):
        other.load_state_dict(data.state_dict())


def test_crop_and_flip_gives_each_image_a_window_of_its_own():
    originals = images(64, side=8)
    out = augment.crop_and_flip(originals, generator())
    padded = F.pad(originals, (4, 4, 4, 4))
    drawn = set()
    for image, crop in zip(padded, out, strict=True):
        found = [
            (top, left, flip)
            for top in range(9)
            for left in range(9)
            for flip, view in ((False, crop), (True, crop.flip(2)))
            if torch.equal(image[:, top : top + 8, left : left + 8], view)
        ]
        assert found
        drawn.add(found[0])
    assert len(drawn) > 40
    assert {flip for *_, flip in drawn} == {False, True}


@pytest.mark.parametrize(
    ("top", "left", "height", "width"),
    [(0, 0, 64, 64), (5, 9, 20, 24), (3, 0, 50, 41), (60, 60, 4, 4), (10, 20, 32, 33)],
)
@pytest.mark.parametrize("side", [32, 48, 7])
def test_resized_crops_are_torchvisions(side, top, left, height, width):
    originals = images(2, side=64)
    box = (torch.full((2,), float(v)) for v in (top, left, height, width))
    expected = resized_crop(originals.float(), top, left, height, width, [side] * 2, antialias=True)
    found = augment.resize_crops(originals, *box, side)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=0)


def test_drawn_crops_have_the_asked_area_and_aspect_and_fit():
    tops, lefts, heights, widths = augment._draw_crops(images(500, side=64), generator())
    assert (tops >= 0).all() and (tops + heights <= 64).all()
    assert (lefts >= 0).all() and (lefts + widths <= 64).all()
    area, aspect = heights * widths / 64**2, widths / heights
    assert area.min() > 0.07 and area.max() <= 1 and area.std() > 0.2
    assert aspect.min() > 0.65 and aspect.max() < 1.5


def test_resized_crop_and_flip_draws_per_image():
    same = images(1, side=64).expand(16, -1, -1, -1)
    out = augment.resized_crop_and_flip(same, generator())
    assert out.shape == (16, 3, 32, 32)
    assert len({tuple(image.flatten().tolist()) for image in out}) == 16


def test_crops_reach_four_pixels_beyond_the_borders():
    white = torch.full((2000, 1, 8, 8), 255, dtype=torch.uint8)
    black = crop_and_flip(white, torch.Generator().manual_seed(0)) == 0
    for dim in (2, 3):
        assert black.all(dim).sum((1, 2)).max() == 4
