"""Files of pruned models: small, exact, and refused when they are damaged."""

import itertools
import json
import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load, save
from torch import nn

from models import build_model
from utils.outputs import pruned_file
from utils.outputs.formats import write_safetensors
from utils.outputs.model_file import pruned_metadata, read_contents
from utils.outputs.onnx_file import InputImages
from utils.outputs.pruned_file import pack, unpack
from utils.process.errors import RunError, UserError
from utils.prune import load_pruned
from utils.prune.ranking import MagnitudeRanking
from utils.settings.config import Config

RESNET = Config(arch="ResNet18")
IMAGES = InputImages(3, 32, mean=(0.5,) * 3, std=(0.25,) * 3)


def write_pruned(path, model, pruning):
    write_safetensors(path, model, IMAGES, pruned_metadata(RESNET, pruning))


def pruned_resnet(ratio):
    torch.manual_seed(0)
    model = build_model("ResNet18", 10, 3, 32).eval()
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.1 * torch.rand_like(buffer))
    MagnitudeRanking(model).prune(ratio)
    return model


def same_bits(a, b):
    as_bytes = [x.contiguous().reshape(-1).view(torch.uint8) for x in (a, b)]
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(*as_bytes)


@given(
    seed=st.integers(0, 9999),
    shape=st.lists(st.integers(0, 40), max_size=3),
    density=st.sampled_from([0, 0.001, 0.01, 0.1, 0.3, 0.9, 1]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64]),
)
def test_tensors_come_back_bit_for_bit(seed, shape, density, dtype):
    generator = torch.Generator().manual_seed(seed)
    values = 9 * torch.randn(shape, generator=generator)
    values = (values * (torch.rand(shape, generator=generator) < density)).to(dtype)
    state = {"a.weight": values, "count": torch.tensor(3)}
    back = unpack(pack({"state_dict": state, "config": {"lr": 0.1}}))
    assert back["config"] == {"lr": 0.1}
    assert list(back["state_dict"]) == list(state)
    assert all(same_bits(back["state_dict"][name], state[name]) for name in state)


def test_odd_values_and_memory_formats_come_back():
    odd = torch.zeros(2, 3, 20, 20).to(memory_format=torch.channels_last)
    odd[0, 1, 2, :4] = torch.tensor([-0.0, math.inf, math.nan, 1e-45])
    (back,) = unpack(pack({"state_dict": {"w": odd}}))["state_dict"].values()
    assert same_bits(back, odd)


def assert_comes_back(state):
    back = unpack(pack({"state_dict": state}))["state_dict"]
    assert list(back) == list(state)
    assert all(same_bits(back[name], values) for name, values in state.items())


@pytest.mark.parametrize("density", [0.1, 1])
def test_tensors_that_share_memory_come_back(density):
    values = torch.rand(40, 40)
    values = values.where(torch.rand(40, 40) < density, 0)
    assert_comes_back({"one": values, "same": values, "rows": values[3:5], "turned": values.T})


def test_tensors_named_as_parts_of_another_come_back():
    """In all combinations of tensors stored as gaps, as a mask, as they are, and absent."""
    generator = torch.Generator().manual_seed(0)
    values, chance = torch.rand(2, 900, generator=generator)
    stored = [values.where(chance < density, 0) for density in (0.02, 0.5, 1)]
    names = ("w", "w:values", "w:gaps", "w:mask", "w:values:values")
    for tensors in itertools.product([*stored, None], repeat=len(names)):
        pairs = zip(names, tensors, strict=True)
        assert_comes_back({name: tensor for name, tensor in pairs if tensor is not None})


def test_a_name_that_safetensors_keeps_for_itself_is_refused():
    with pytest.raises(RunError, match="__metadata__"):
        pack({"state_dict": {"__metadata__": torch.ones(3)}})


@pytest.mark.parametrize("distance", [1, 254, 255, 256, 509, 510, 511, 1021])
def test_gaps_of_every_length_come_back(distance):
    values = torch.zeros(20_000)
    values[::distance] = 1 + torch.arange(len(values[::distance]))
    for count in range(20_000 - 3, 20_001):
        (back,) = unpack(pack({"state_dict": {"w": values[:count]}}))["state_dict"].values()
        assert torch.equal(back, values[:count])


def test_the_smaller_of_mask_and_gaps_is_stored():
    torch.manual_seed(0)
    state = {
        f"w{share}": torch.randn(10_000).where(torch.rand(10_000) < share, 0)
        for share in (0.02, 0.5, 1)
    }
    names = set(load(pack({"state_dict": state})))
    assert names == {"w0.02:gaps", "w0.02:values", "w0.5:mask", "w0.5:values", "w1"}


@pytest.mark.parametrize(("ratio", "share"), [(0.9, 0.14), (0.95, 0.08), (0.99, 0.025)])
def test_the_file_of_a_pruned_resnet_is_small_and_its_outputs_are_the_same(ratio, share, tmp_path):
    model = pruned_resnet(ratio)
    dense, path = tmp_path / "dense.pt", tmp_path / "pruned.safetensors"
    torch.save(model.state_dict(), dense)
    write_pruned(path, model, {"sparsity": ratio})
    assert path.stat().st_size <= share * dense.stat().st_size
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load_pruned(path)(images), model(images))


def test_the_dense_state_dict_is_one_call_away(tmp_path):
    model = pruned_resnet(0.9)
    write_pruned(tmp_path / "a.safetensors", model, {})
    state = load_pruned(str(tmp_path / "a.safetensors")).state_dict()
    assert list(state) == list(model.state_dict())
    assert all(same_bits(values, state[name]) for name, values in model.state_dict().items())


def test_other_programs_read_the_header(tmp_path):
    path = tmp_path / "a.safetensors"
    write_pruned(path, pruned_resnet(0.9), {"sparsity": 0.9, "accuracy": 12.5})
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert json.loads(header["pruning"]) == {"sparsity": 0.9, "accuracy": 12.5}
    assert json.loads(header["config"])["arch"] == "ResNet18"
    assert "output_dir" not in header["config"]  # no paths of the machine it was made on


@given(place=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255), cut=st.booleans())
def test_a_changed_byte_is_noticed_or_changes_nothing(place, value, cut):
    """White space around the header, say, may be other white space."""
    contents = {"state_dict": {"w": torch.eye(30)}, "config": {"lr": 0.1}}
    packed = bytearray(pack(contents))
    at = int(place * len(packed))
    packed[at] ^= value
    try:
        back = unpack(bytes(packed[:at] if cut else packed))
    except ValueError as error:
        assert re.match(r"is damaged|is a safetensors file, but not one", str(error))
    else:
        assert back["config"] == contents["config"] and not cut
        assert torch.equal(back["state_dict"]["w"], torch.eye(30))


def test_a_header_as_long_as_to_look_like_a_zip_archive_is_read(tmp_path):
    """Its length comes first, and begins with the bytes PK."""
    path = tmp_path / "a.safetensors"
    for padding in range(10_000, 25_000, 8):
        packed = pack({"state_dict": {"w": torch.ones(2)}, "pruning": {"padding": "x" * padding}})
        if packed.startswith(b"PK"):
            break
    assert packed.startswith(b"PK")
    path.write_bytes(packed)
    assert read_contents(path, "")[0]["pruning"]["padding"] == "x" * padding


@pytest.mark.parametrize(
    "metadata", [b"null", b'{"format": "pruned model, version 1"}', b"[]", b"3"]
)
def test_a_header_that_is_none_of_ours_is_refused(metadata):
    header = (
        b'{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]},"__metadata__":' + metadata + b"}"
    )
    content = len(header).to_bytes(8, "little") + header + b"\0"
    with pytest.raises(ValueError, match=r"is damaged|is a safetensors file, but not one"):
        unpack(content)


def forged(change):
    """A file whose checksum is right and whose parts are not."""
    tensors = load(pack({"state_dict": {"w": torch.eye(60)}}))
    state = {"shapes": {"w": [60, 60]}}
    change(tensors, state["shapes"])
    metadata = {"shapes": json.dumps(state["shapes"]), "format": pruned_file.FORMAT}
    return save(tensors, metadata | {"sha256": pruned_file._digest(metadata, tensors)})


@pytest.mark.parametrize(
    "change",
    [
        lambda t, shapes: shapes.update(w=[10**6, 10**6]),
        lambda t, shapes: shapes.update(w=[59, 60]),
        lambda t, shapes: t.update({"w:values": torch.ones(59)}),
        lambda t, shapes: t.update({"w:gaps": t["w:gaps"][:-1]}),
        lambda t, shapes: t.pop("w:gaps"),
        lambda t, shapes: t.pop("w:values"),
        lambda t, shapes: t.update({"w:mask": torch.zeros(450, dtype=torch.uint8)}),
        lambda t, shapes: t.update({"w:gaps": torch.ones(60)}),
        lambda t, shapes: shapes.update(v=[2]),
        lambda t, shapes: shapes.update(w="wide"),
        lambda t, shapes: shapes.update(w=[-60, -60]),
    ],
)
def test_parts_that_do_not_fit_are_refused(change):
    assert unpack(forged(lambda t, shapes: None))
    with pytest.raises(ValueError, match="is damaged: its parts do not fit together"):
        unpack(forged(change))


def test_a_foreign_or_missing_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(save({"w": torch.ones(2)}))
    with pytest.raises(UserError, match=r"foreign.safetensors: is a safetensors file, but not one"):
        load_pruned(path)
    with pytest.raises(UserError, match=r"none.safetensors: cannot be read"):
        load_pruned(tmp_path / "none.safetensors")


def test_a_file_that_does_not_tell_how_it_was_pruned_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_pruned(path, pruned_resnet(0.9), ["0.9"])
    with pytest.raises(UserError, match=r"a.safetensors: does not state how it was pruned"):
        load_pruned(path)


def test_a_pruned_model_of_another_network_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    write_pruned(path, nn.Linear(2, 2), {})
    with pytest.raises(UserError, match="holds other tensors than ResNet18"):
        load_pruned(path)
