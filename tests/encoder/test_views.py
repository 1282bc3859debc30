"""Views: each is what its name says, the same everywhere, and a changed preprocessing changes the fingerprint."""

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.images import to_pixel_values
from encoder.views import Views, centre_crop, random_part


def picture(width=90, height=60):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def adm_centre_crop(image, size):
    """guided-diffusion's image_datasets.center_crop_arr, told in other words."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(side // 2 for side in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    array = np.array(image.resize(tuple(round(side * scale) for side in image.size), resample=Image.BICUBIC))
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


def test_the_first_view_is_the_whole_picture_and_the_mirrored_one_its_mirror():
    views = Views(2, flip=True).pixels(picture(), "a", 32)
    assert views.shape == (2, 3, 32, 32) and views.dtype == torch.uint8
    plain = to_pixel_values([picture()], 32)[0]
    torch.testing.assert_close(views[0].float() / 127.5 - 1, plain)
    mirrored = to_pixel_values([picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT)], 32)[0]
    torch.testing.assert_close(views[1].float() / 127.5 - 1, mirrored)


@pytest.mark.parametrize("width, height", [(90, 60), (60, 200), (33, 32), (20, 20), (131, 130)])
def test_the_centre_crop_is_adms(width, height):
    image = picture(width, height)
    assert np.array_equal(np.asarray(centre_crop(image, 32)), adm_centre_crop(image, 32))


@pytest.mark.parametrize("width, height", [(1, 1), (1, 5000), (20_000, 2)])
def test_any_shape_has_a_centre(width, height):
    assert centre_crop(Image.new("RGB", (width, height)), 32).size == (32, 32)


def test_random_parts_have_the_area_and_ratio_of_the_reference():
    rng, image = np.random.default_rng(0), picture(160, 120)
    sizes = np.array([random_part(image, rng).size for _ in range(500)])
    areas, ratios = sizes.prod(axis=1) / (160 * 120), sizes[:, 0] / sizes[:, 1]
    assert 0.39 < areas.min() < 0.45 and 0.9 < areas.max() <= 1.0
    assert 0.74 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.35


def test_random_parts_depend_on_seed_key_and_number_alone():
    first = Views(4, "random").pixels(picture(), "a", 32)
    assert torch.equal(first, Views(4, "random").pixels(picture(), "a", 32))
    assert torch.equal(first[:3], Views(3, "random").pixels(picture(), "a", 32))
    assert len({view.numpy().tobytes() for view in first}) == 4
    for other in (Views(4, "random", seed=1).pixels(picture(), "a", 32), Views(4, "random").pixels(picture(), "b", 32)):
        same = [torch.equal(*pair) for pair in zip(other, first, strict=True)]
        assert same == [True, False, False, False]


def test_jitter_changes_colours_of_later_views_within_its_strength():
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    views = Views(20, jitter=0.3).pixels(grey, "a", 32)
    assert views[0].eq(100).all() and torch.equal(views, Views(20, jitter=0.3).pixels(grey, "a", 32))
    levels = views[:, 0, 0, 0].float()  # of an even grey only the brightness changes
    assert views.flatten(1).float().std(dim=1).max() == 0
    assert levels.min() >= 69 and levels.max() <= 131 and levels.std() > 8
    coloured = Views(3, jitter=0.3).pixels(picture(), "a", 32)
    assert len({view.numpy().tobytes() for view in coloured}) == 3


@pytest.mark.parametrize("arguments, says", [((0,), "0 views"), ((2,), "some would be equal"), ((1, "left"), "'left'"),
                                             ((3, "centre", True), "some would be equal"),
                                             ((2, "none", False, 0, 1.0), "jitter is 1.0")])  # fmt: skip
def test_views_that_make_no_sense(arguments, says):
    with pytest.raises(ValueError, match=says):
        Views(*arguments)


def test_the_fingerprint_follows_what_becomes_of_a_picture(monkeypatch):
    plain = Views()
    prints = {plain.fingerprint(32), plain.fingerprint(64), Views(crop="centre").fingerprint(32),
              Views(2, "random").fingerprint(32), Views(2, "random", seed=1).fingerprint(32)}  # fmt: skip
    assert len(prints) == 5 and plain.fingerprint(32) in prints

    def bilinear(images, size):
        resized = [image.resize((size, size), Image.Resampling.BILINEAR) for image in images]
        return to_pixel_values(resized, size)

    monkeypatch.setattr("encoder.views.to_pixel_values", bilinear)
    assert plain.fingerprint(32) not in prints
