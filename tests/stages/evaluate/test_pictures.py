"""The sheet's size and what its panels show, looked at as pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.evaluate.pictures import COARSE, REFINED, TRUTH, choose_cases, draw_panels, draw_sheet


def near(picture: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """bool [height, width]: pixels whose hue is that of a colour (direction from grey), clearly saturated."""
    pixels = np.asarray(picture, np.float64)
    chroma = pixels - pixels.mean(-1, keepdims=True)
    wanted = np.array(colour, np.float64) - np.mean(colour)
    cosine = chroma @ wanted / (np.linalg.norm(chroma, axis=-1) * np.linalg.norm(wanted) + 1e-9)
    return (cosine > 0.95) & (np.linalg.norm(chroma, axis=-1) > 30)


def test_masks_are_tinted_where_they_are(make_case) -> None:
    coarse = np.zeros((36, 48), bool)
    coarse[:12, 30:] = True
    case = make_case(coarse=coarse, coarse_iou=0.0, attention=np.eye(6))
    panels = {panel.title: panel for panel in draw_panels(case, 192)}  # 4 pixels for each of the image's
    assert list(panels) == ["Image", "Ground truth", "Mean attention", "Coarse mask", "Refined mask"]
    assert [panel.note for panel in panels.values()] == ["", "", "", "IoU 0", "IoU 78"]
    for title, mask, colour in (
        ("Ground truth", case.truth, TRUTH),
        ("Coarse mask", coarse, COARSE),
        ("Refined mask", case.refined, REFINED),
    ):
        assert panels[title].picture.size == (192, 144)
        shown = near(panels[title].picture, colour)
        expected = np.kron(mask, np.ones((4, 4), bool))
        assert (shown & expected).sum() / (shown | expected).sum() > 0.9, title


def test_attention_is_bright_where_it_is_high(make_case) -> None:
    attention = np.zeros((6, 8))
    attention[1, 6] = 5.0  # rows 6..11, columns 36..41 of the image
    case = make_case(image=np.full((36, 48, 3), 128, np.uint8), attention=attention)
    picture = np.asarray(draw_panels(case, 48)[2].picture.convert("L"))
    row, column = np.unravel_index(picture.argmax(), picture.shape)
    assert 6 <= row < 12 and 36 <= column < 42
    assert picture[30, 5] < 0.5 * picture.max()


def test_the_only_mask_of_a_head_is_not_called_refined(make_case) -> None:
    assert [panel.title for panel in draw_panels(make_case(), 48)] == ["Image", "Ground truth", "Predicted mask"]


@pytest.mark.parametrize("empty", [np.zeros((36, 48), bool), np.ones((36, 48), bool)])
def test_empty_and_full_masks_and_no_attention_at_all(make_case, empty: np.ndarray) -> None:
    panels = draw_panels(make_case(refined=empty, attention=np.zeros((4, 4)), iou=0.0), 96)
    assert near(panels[-1].picture, REFINED).mean() == pytest.approx(float(empty.mean()), abs=0.1)


def test_sheet_size(make_case, tmp_path: Path) -> None:
    wide, high = make_case(), make_case(48, 36, caption="a very long expression " * 30)
    path = draw_sheet([wide, high], tmp_path / "sheet.png", side=200)
    with Image.open(path) as sheet:
        # 3 pictures of 200 with 2 gaps of 18 in margins of 36; rows of 150 and 200 under captions of 52, header 44
        assert sheet.size == (36 + 3 * 200 + 2 * 18 + 36, 36 + 44 + (52 + 150) + 18 + (52 + 200) + 36)
        pixels = np.asarray(sheet)
    assert (pixels[:30] == 255).all() and (pixels[-30:] == 255).all()
    assert (pixels[:, -30:] == 255).all()  # the long caption was cut


def test_sheets_are_deterministic(make_case, tmp_path: Path) -> None:
    first, second = (draw_sheet([make_case()], tmp_path / name, side=64).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_what_can_not_be_drawn_is_refused(make_case, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="one case or more"):
        draw_sheet([], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="the same pictures"):
        draw_sheet([make_case(), make_case(attention=np.eye(3))], tmp_path / "sheet.png")
    with pytest.raises(ValueError, match=r"refined must be bool \(36, 48\)"):
        make_case(refined=np.zeros((48, 36), bool))


def test_choice_of_cases(make_object, make_missed) -> None:
    ious = [30, 90, 10, 50, 70, 95, 20, 60, 40]
    results = [make_object(v, 100, 100, image_id=f"i{k}") for k, v in enumerate(ious)]
    results += [make_missed(10, image_id="failed"), make_object(99, 100, 100, image_id="i5")]
    chosen = choose_cases(results, each=2, seed=0)
    kinds: dict[str, list[int]] = {}
    for kind, index in chosen:
        kinds.setdefault(kind, []).append(index)
    assert kinds["best"] == [10, 1]  # 99, then 90: 95 is of the same image as 99
    assert kinds["worst"] == [2, 6]
    assert set(kinds["median"]) == {3, 7}  # the median of the ten is 55, as far from 50 as from 60
    indices = [index for _, index in chosen]
    assert len(indices) == len(set(indices)) == 8 and 9 not in indices
    assert chosen == choose_cases(results, each=2, seed=0)
    assert choose_cases([make_missed(3)]) == []
    assert choose_cases(results[:1]) == [("best", 0)]
