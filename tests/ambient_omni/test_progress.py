import io

from ambient_omni.progress import progress


def test_without_a_terminal_progress_is_whole_lines():
    out = io.StringIO()
    bar = progress(total=4, label="training", unit="images", stream=out)
    bar.delay = 0
    for _ in range(4):
        bar.update(1)
    bar.refresh()
    bar.close()
    lines = out.getvalue().splitlines()
    assert "\r" not in out.getvalue()
    assert lines[-1].startswith("training: 100% 4/4")
    assert "images/s" in lines[-1]


def test_progress_yields_every_item_and_can_be_silent():
    out = io.StringIO()
    assert list(progress([1, 2, 3], label="x", show=False, stream=out)) == [1, 2, 3]
    assert out.getvalue() == ""
