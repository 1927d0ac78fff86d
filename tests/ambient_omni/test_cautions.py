import numpy as np
import pytest

from ambient_omni.classifier.cautions import FEW_REFERENCES, cautions

SIGMAS = np.geomspace(0.02, 10, 8)
FALLING = np.array([0.9, 0.9, 0.8, 0.5, 0.2, 0.05, 0.0, 0.0])


def said(tv=FALLING, planted=FALLING, num_trusted=1_000, width=0.05) -> str:
    return " / ".join(
        cautions(
            num_trusted=num_trusted,
            sigmas_L=SIGMAS,
            tv_low_L=tv - width,
            tv_high_L=tv + width,
            worst_planted_tv_L=planted,
        )
    )


def test_damage_that_hides_in_noise_as_planted_damage_does_needs_no_caution():
    assert said() == ""


def test_a_pool_that_cannot_be_told_apart_is_usable_everywhere():
    assert "everything is usable" in said(tv=np.zeros(8), width=0.02)


def test_one_level_by_chance_does_not_make_a_pool_bad():
    tv = np.array([0.0, 0.0, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert "everything is usable" in said(tv=tv, width=0.02)


def test_a_pool_that_may_be_told_apart_is_not_called_as_good():
    assert said(tv=np.full(8, 0.08), width=0.02) == ""


def test_a_difference_where_no_damage_shows_is_one_of_contents_and_its_evidence_is_told():
    text = said(tv=np.full(8, 0.9))
    assert "contents, not quality" in text
    assert "sigma 10 (total variation at least 0.85)" in text
    assert "(0.00)" in text


@pytest.mark.parametrize(
    ("count", "is_said"), [(FEW_REFERENCES - 1, True), (FEW_REFERENCES, False)]
)
def test_few_references_are_counted(count, is_said):
    assert ("only" in said(num_trusted=count)) == is_said
