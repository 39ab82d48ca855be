"""The reference that gives target images the source's colours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdbench.families.detection.domain_adaptation import networks as models
from kdbench.families.detection.domain_adaptation.data import Images, Scale
from kdbench.families.detection.domain_adaptation.methods.reinhard import Recoloured, colours


def pictures(seed: int, low: int, high: int) -> Images:
    rng = np.random.default_rng(seed)
    sizes = ((6, 8), (8, 8), (4, 8))
    sources: list[NDArray[np.uint8]] = [rng.integers(low, high, (*size, 3), dtype=np.uint8) for size in sizes]
    return Images(tuple("abc"), sources, Scale(100, 8))


def test_colours_are_over_all_pixels_of_all_images() -> None:
    images = pictures(0, 10, 200)
    pixels = np.concatenate([np.asarray(one).reshape(-1, 3) for one in images.sources]).astype(float)
    mean, std = colours(images)
    np.testing.assert_allclose(mean, (pixels.mean(axis=0) - models.MEAN) / models.STD, atol=1e-5)
    np.testing.assert_allclose(std, pixels.std(axis=0) / models.STD, atol=1e-5)


def test_recoloured_target_images_have_the_sources_colours(session: Callable[..., Any]) -> None:
    begun = session("method=reinhard")
    network = begun.method.student(begun.task)
    assert isinstance(network, Recoloured)
    wanted_mean, wanted_std = colours(begun.task.domains.source_train.images)
    mean, std = colours(begun.task.domains.target_train)
    assert not torch.allclose(mean, wanted_mean, atol=0.05)
    torch.testing.assert_close(
        mean * network.scale.flatten() + network.offset.flatten(), wanted_mean, atol=1e-4, rtol=0
    )
    torch.testing.assert_close(std * network.scale.flatten(), wanted_std, atol=1e-4, rtol=0)


def test_the_detector_behind_it_is_the_source_detector(session: Callable[..., Any]) -> None:
    begun = session("method=reinhard")
    network, batch = begun.method.student(begun.task).eval(), begun.task.example()
    with torch.no_grad():
        inputs = models.normalised(batch.images, batch.sizes)
        mine = network.extract_feat(inputs)
        wanted = begun.task.student().eval().extract_feat(inputs * network.scale + network.offset)
    for one, other in zip(mine, wanted, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
def test_a_run_deploys_it_untrained(do: Callable[..., Any]) -> None:
    record = do("method=reinhard").record
    assert record.status == "done" and record.teacher is None and record.selection.epoch == 0
