import pickle

import pytest
import torch
from torch import nn

from ambient_omni import rng
from ambient_omni.training import checkpoints
from schemas.errors import CheckpointRefused


def write(folder, step=1, space="a"):
    tensors = {"weight": torch.arange(6.0).reshape(2, 3)}
    return checkpoints.save(folder, step, {"model": tensors}, {"noise_space": space}, {"x": 1})


def test_what_is_saved_is_loaded(tmp_path):
    found = checkpoints.load(write(tmp_path), {"noise_space": "a"})
    assert (found.step, found.state, found.parents) == (1, {"x": 1}, {"noise_space": "a"})
    assert torch.equal(found.tensors("model")["weight"], torch.arange(6.0).reshape(2, 3))


def test_tensors_of_any_memory_format_and_of_no_dimension_survive(tmp_path):
    tensors = {
        "image": rng.torch_normal((2, 3, 4, 4), 0, "t").to(memory_format=torch.channels_last),
        "step": torch.tensor(7.0),
    }
    loaded = checkpoints.load(checkpoints.save(tmp_path, 1, {"g": tensors}, {}, {})).tensors("g")
    assert all(torch.equal(tensors[name], loaded[name]) for name in tensors)


def test_another_noise_space_is_refused(tmp_path):
    with pytest.raises(CheckpointRefused, match="noise_space 'a', not 'b'"):
        checkpoints.load(write(tmp_path), {"noise_space": "b"})


def test_a_truncated_file_is_refused(tmp_path):
    file = write(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointRefused, match="truncated"):
        checkpoints.load(file.parent)


def test_a_missing_file_is_refused(tmp_path):
    path = write(tmp_path)
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointRefused, match="is missing"):
        checkpoints.load(path)


def test_an_altered_file_of_the_same_size_is_refused(tmp_path):
    file = write(tmp_path) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointRefused, match="altered"):
        checkpoints.load(file.parent)


def test_a_damaged_state_file_is_refused(tmp_path):
    path = write(tmp_path)
    (path / "state.json").write_text('{"step": 1')
    with pytest.raises(CheckpointRefused, match="damaged"):
        checkpoints.load(path)


@pytest.mark.parametrize(("old", "new"), [('"x": 1', '"x": 3'), ('"step": 1', '"step": 9')])
def test_a_state_file_of_which_a_digit_changed_is_refused(tmp_path, old, new):
    file = write(tmp_path) / "state.json"
    content = file.read_text()
    assert old in content
    file.write_text(content.replace(old, new))
    with pytest.raises(CheckpointRefused, match=r"state\.json was altered"):
        checkpoints.load(file.parent)


def test_states_of_all_json_values_are_verified(tmp_path):
    state = {"nan": float("nan"), "inf": float("inf"), "third": 1 / 3, "tuple": (1, 2), "n": None}
    found = checkpoints.load(checkpoints.save(tmp_path, 1, {}, {"b": 1, "a": {"2": 0}}, state))
    assert found.state["third"] == 1 / 3


def test_a_copy_beside_the_checkpoints_is_neither_read_nor_removed(tmp_path):
    write(tmp_path, 1)
    copy = tmp_path / "step-00000001.kept"
    copy.mkdir()
    assert [path.name for path in checkpoints.steps(tmp_path)] == ["step-00000001"]
    checkpoints.prune(tmp_path, [])
    assert [path.name for path in tmp_path.iterdir()] == [copy.name]


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("the pickle was opened",))

    file = tmp_path / "model.pt"
    file.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointRefused, match="pickled"):
        checkpoints.load(file)
    with pytest.raises(CheckpointRefused, match="no checkpoint folder"):
        checkpoints.load(tmp_path)


def test_a_save_that_died_halfway_is_not_seen_and_is_cleaned_up(tmp_path, monkeypatch):
    write(tmp_path, 1)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "_flush", lambda path: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write(tmp_path, 2)
    assert [path.name for path in checkpoints.steps(tmp_path)] == ["step-00000001"]
    checkpoints.prune(tmp_path, ["step-00000001"])
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_pruning_keeps_what_is_named(tmp_path):
    for step in range(5):
        write(tmp_path, step)
    checkpoints.prune(tmp_path, ["step-00000004", "step-00000001"])
    assert [path.name for path in checkpoints.steps(tmp_path)] == ["step-00000004", "step-00000001"]


def test_weights_of_another_network_are_refused(tmp_path):
    with pytest.raises(CheckpointRefused, match="does not fit the network"):
        checkpoints.load_into(nn.Linear(2, 2), {"weight": torch.zeros(3, 3)}, tmp_path)


def test_a_group_that_was_not_saved_is_refused_by_name(tmp_path):
    with pytest.raises(CheckpointRefused, match=r"saved without 'ema' \(it has model\)"):
        checkpoints.load(write(tmp_path)).tensors("ema")


def test_saving_a_step_again_replaces_it(tmp_path):
    write(tmp_path, space="a")
    path = write(tmp_path, space="b")
    assert checkpoints.load(path).parents == {"noise_space": "b"}
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
