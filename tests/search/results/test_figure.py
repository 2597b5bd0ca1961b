"""The picture of a front."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from ssmprune_search.candidate.measurement import Candidate, Measurement
from ssmprune_search.candidate.objective import TOP1
from ssmprune_search.results.figure import Picture, draw_figure

MakeCandidate = Callable[..., Candidate]
FRONT, FIRST_SCHEDULE = (0x00, 0x72, 0xB2), (0xC0, 0x4F, 0x00)


def picture(
    dense: Measurement, candidates: Sequence[Candidate], members: Sequence[Candidate]
) -> Picture:
    return Picture("a title", candidates, members, dense, dense, TOP1)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def has(image: np.ndarray, color: tuple[int, int, int]) -> bool:
    return bool((image == np.array(color)).all(2).any())


def test_figure_is_a_png_with_the_front_and_without_schedules_that_are_not_there(
    make_candidate: MakeCandidate, dense: Measurement
) -> None:
    members = [make_candidate(i, 80 + 2 * i, 0.5 + 0.05 * i, holdout=79 + 2 * i) for i in range(6)]
    image = pixels(draw_figure(picture(dense, members, members)))
    assert has(image, FRONT)
    assert not has(image, FIRST_SCHEDULE)


def test_figure_shows_known_schedules(make_candidate: MakeCandidate, dense: Measurement) -> None:
    members = [make_candidate(i, 90 + i, 0.5 + 0.1 * i) for i in range(3)]
    schedules = [
        make_candidate(10 + i, 80 + i, 0.6 + 0.1 * i, source=f"schedule:equal@{i}")
        for i in range(3)
    ]
    image = pixels(draw_figure(picture(dense, [*members, *schedules], members)))
    assert has(image, FIRST_SCHEDULE)


def test_figure_has_a_panel_for_each_cost_that_was_measured(
    make_candidate: MakeCandidate, dense: Measurement
) -> None:
    without = [make_candidate(i, 90 + i, 0.5 + 0.1 * i) for i in range(3)]
    with_it = [make_candidate(i, 90 + i, 0.5 + 0.1 * i, 0.6 + 0.1 * i) for i in range(3)]
    with_both = [
        replace(c, search=replace(c.search, peak_memory_bytes=1e6, peak_memory_ratio=0.9))
        for c in with_it
    ]
    one, two, three = (
        pixels(draw_figure(picture(dense, c, c))).shape for c in (without, with_it, with_both)
    )
    assert one[0] == two[0] == three[0]
    assert two[1] > 1.8 * one[1] and three[1] > 1.4 * two[1]


@pytest.mark.parametrize("families", [0, 1, 6])
def test_figure_of_a_single_candidate_and_of_many_families_is_drawn(
    make_candidate: MakeCandidate, dense: Measurement, families: int
) -> None:
    alone = make_candidate(0, 90, 0.5)
    others = [
        make_candidate(1 + i, 60 + 5 * i, 0.6, source=f"schedule:family{i}")
        for i in range(families)
    ]
    assert pixels(draw_figure(picture(dense, [alone, *others], [alone]))).any()


def test_figure_leaves_no_trace_in_matplotlib(
    make_candidate: MakeCandidate, dense: Measurement
) -> None:
    from matplotlib import pyplot

    before = pyplot.get_fignums()
    draw_figure(picture(dense, [make_candidate(0, 90, 0.5)], [make_candidate(0, 90, 0.5)]))
    assert pyplot.get_fignums() == before
