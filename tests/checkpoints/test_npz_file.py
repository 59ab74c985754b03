"""Files of pruned models: small, exact, and refused when they are damaged."""

import io
import json
import math
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from models import build_model
from utils.checkpoints.model_file import parsed, pruned_metadata, read_contents
from utils.checkpoints.npz_file import pack
from utils.process.errors import UserError
from utils.prune import load_pruned
from utils.prune.weights.ranking import MagnitudeRanking
from utils.settings.config import Config

MLP = Config(data="mnist", arch="Mlp")


def write(path, model, pruning):
    path.write_bytes(pack(model.state_dict(), pruned_metadata(MLP.as_dict(), pruning)))


def pruned_mlp(ratio):
    torch.manual_seed(0)
    model = build_model("Mlp", 10, 1, 28)
    MagnitudeRanking(model).prune(ratio)
    return model


def same_bits(a, b):
    a, b = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x for x in (a, b))
    return (a.shape, a.dtype, a.numpy().tobytes()) == (b.shape, b.dtype, b.numpy().tobytes())


@given(
    seed=st.integers(0, 9999),
    shape=st.lists(st.integers(0, 40), max_size=3),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64, torch.int64, torch.bool]),
)
def test_tensors_come_back_bit_for_bit(seed, shape, dtype):
    generator = torch.Generator().manual_seed(seed)
    values = 9 * torch.randn(shape, generator=generator)
    state = {"a.weight": values.clamp(min=0).to(dtype), "count": torch.tensor(3)}
    back = parsed(pack(state, {"config": {"lr": 0.1}}))
    assert back["config"] == {"lr": 0.1}
    assert list(back["state_dict"]) == list(state)
    assert all(same_bits(back["state_dict"][name], state[name]) for name in state)


def test_odd_values_and_memory_formats_come_back():
    odd = torch.zeros(2, 3, 20, 20).to(memory_format=torch.channels_last)
    odd[0, 1, 2, :3] = torch.tensor([math.inf, math.nan, 1e-45])
    (back,) = parsed(pack({"w": odd}, {}))["state_dict"].values()
    assert same_bits(back, odd)


def test_bfloat16_is_stored_as_float32_which_holds_its_values():
    values = torch.randn(500).to(torch.bfloat16)
    (back,) = parsed(pack({"w": values}, {}))["state_dict"].values()
    assert back.dtype == torch.float32 and same_bits(back.to(torch.bfloat16), values)


def test_a_zero_that_a_mask_left_negative_is_a_zero():
    weight = torch.randn(200, 200)
    mask = weight.abs() > 1.7
    masked, pruned = weight * mask, torch.where(mask, weight, 0)
    assert not same_bits(masked, pruned)
    assert pack({"w": masked}, {}) == pack({"w": pruned}, {})


def test_any_numpy_opens_it_and_json_reads_its_metadata(tmp_path):
    model = pruned_mlp(0.9)
    write(tmp_path / "a.npz", model, {"sparsity": 0.9, "accuracy": 12.5})
    with np.load(tmp_path / "a.npz") as arrays:
        stated = json.loads(arrays["__metadata__"].item())
        state = {name: arrays[name] for name in arrays if name != "__metadata__"}
    assert stated["pruning"] == {"sparsity": 0.9, "accuracy": 12.5}
    assert stated["config"]["arch"] == "Mlp"
    assert "output_dir" not in stated["config"]  # no paths of the machine it was made on
    assert list(state) == list(model.state_dict())
    assert all(np.array_equal(values, state[n]) for n, values in model.state_dict().items())


@pytest.mark.parametrize(("ratio", "share"), [(0.9, 0.13), (0.99, 0.025)])
def test_the_file_of_a_pruned_network_is_small_and_its_outputs_are_the_same(ratio, share, tmp_path):
    model = pruned_mlp(ratio)
    write(tmp_path / "a.npz", model, {"sparsity": ratio})
    dense = sum(values.nbytes for values in model.state_dict().values())
    assert (tmp_path / "a.npz").stat().st_size <= share * dense
    images = torch.randn(2, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(load_pruned(str(tmp_path / "a.npz"))(images), model(images))


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), cut=st.booleans())
def test_a_changed_byte_is_noticed_or_changes_nothing(place, value, cut, tmp_path_factory):
    """What is no part of an entry may change, as a date."""
    content = bytearray(pack({"w": torch.eye(30)}, {"config": {"lr": 0.1}}))
    at = int(place * len(content))
    content[at] ^= value
    path = tmp_path_factory.mktemp("changed") / "a.npz"
    path.write_bytes(content[:at] if cut else content)
    try:
        back = read_contents(path, "train it again")
    except UserError as error:
        assert re.fullmatch(r"\S+: (is|holds) [^\n]*; train it again", str(error))
    else:
        assert back["config"] == {"lr": 0.1} and not cut
        assert torch.equal(back["state_dict"]["w"], torch.eye(30))


def forged(**entries):
    """A file whose checksums are right and whose entries are not."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, array in ({"__metadata__": np.array("{}")} | entries).items():
            entry = array if isinstance(array, bytes) else bytes_of(array)
            archive.writestr(f"{name}.npy", entry)
    return content.getvalue()


def bytes_of(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def larger_than_it_is():
    """The header of ten million columns, with the entries of none."""
    content = bytes_of(np.ones((2, 0)))
    return content.replace(b"(2, 0), }       ", b"(10000000, 10), }", 1)


@pytest.mark.parametrize(
    "entries",
    [
        {"__metadata__": np.array("{")},
        {"__metadata__": np.array("[]")},
        {"__metadata__": np.ones(2)},
        {"w": np.array(["a word"])},
        {"w": b"no array"},
        {"w": larger_than_it_is()},
        {"w": bytes_of(np.ones(9))[:-1]},
    ],
)
def test_entries_that_make_no_sense_are_refused(entries):
    assert parsed(forged(w=np.ones(2)))["state_dict"]["w"].shape == (2,)
    with pytest.raises(ValueError, match=r"is an .npz file, but not one"):
        parsed(forged(**entries))


def test_an_entry_that_claims_to_be_shorter_than_it_is_is_refused():
    content = forged(w=np.ones(6000))
    assert content.count(b"(6000,)") == 1
    with pytest.raises(ValueError, match="is damaged"):
        parsed(content.replace(b"(6000,)", b"(1000,)"))


class MakesAFile:
    """An object that, when it is unpickled, makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return self.path.touch, ()


def test_a_pickle_is_refused_unread(tmp_path):
    objects = np.array([MakesAFile(tmp_path / "made")], dtype=object)
    with pytest.raises(ValueError, match=r"is an .npz file, but not one"):
        parsed(forged(w=objects))
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_or_missing_file_is_refused_in_one_line(tmp_path):
    np.savez(tmp_path / "foreign.npz", w=np.ones(2))
    with pytest.raises(UserError, match=r"foreign.npz: is an .npz file, but not one that --save"):
        load_pruned(tmp_path / "foreign.npz")
    with pytest.raises(UserError, match=r"none.npz: cannot be read"):
        load_pruned(tmp_path / "none.npz")


def test_a_pruned_model_of_another_network_is_refused(tmp_path):
    write(tmp_path / "a.npz", nn.Linear(2, 2), {})
    with pytest.raises(UserError, match="holds other tensors than Mlp"):
        load_pruned(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["file", "allow_pickle"])
def test_a_tensor_whose_name_numpy_does_not_store_is_refused(name):
    with pytest.raises(ValueError, match=f"multiple values for .*'{name}'"):
        pack({name: torch.ones(2)}, {})
