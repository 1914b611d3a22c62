"""IRNeXt and ConvIR in spandrel: its loader finds them, and they restore as with `irnext.restore`."""

from __future__ import annotations

import importlib
import sys
import warnings
from pathlib import Path
from types import ModuleType
from unittest import mock

import documents
import pytest
import torch
from conftest import randomise
from skimage import data
from spandrel_support import import_spandrel
from torch import Tensor

import irnext
from irnext import hub
from irnext.architecture import RestorationModel
from irnext.checkpoints import CheckpointError
from irnext.pretrained import path_of

# spandrel and torchvision are imported once, in one process of pytest-xdist.
pytestmark = [
    pytest.mark.xdist_group("spandrel"),
    pytest.mark.filterwarnings("ignore:(IRNeXt|ConvIR) with .* is assumed"),
]

MODELS = {
    "irnext-its": {"blocks": 2, "width": 8, "pool_rates": (4, 2)},
    "irnext-gopro": {"blocks": 1, "width": 16, "groups": 4},
    "convir-s": {"blocks": 1, "width": 8},
    "convir-b-rain": {"blocks": 2, "width": 8},
}


@pytest.fixture(scope="module")
def spandrel() -> ModuleType:
    return import_spandrel()


@pytest.fixture(scope="module")
def plugin(spandrel) -> ModuleType:
    return importlib.import_module("irnext.spandrel")


@pytest.fixture
def loader(spandrel, plugin):
    """A loader that knows spandrel's own architectures and ours."""
    registry = spandrel.MAIN_REGISTRY.copy()
    plugin.install(registry)
    return spandrel.ModelLoader(registry=registry)


def make(name: str) -> RestorationModel:
    torch.manual_seed(0)
    return randomise(irnext.create_model(name, **MODELS[name])).eval()


def write(model: RestorationModel, path: Path) -> Path:
    """A published file, or ours by its suffix."""
    if path.suffix == ".safetensors":
        irnext.save(model, path)
    else:
        torch.save({"model": model.official_state_dict()}, path)
    return path


def photograph(height: int, width: int) -> Tensor:
    """(1, 3, height, width) of a cat, in [0, 1]."""
    return torch.tensor(data.chelsea()[:height, :width] / 255.0).permute(2, 0, 1)[None].float()


# ---- what is loaded ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", MODELS)
def test_the_loader_finds_the_model(spandrel, loader, tmp_path, name, suffix):
    model = make(name)
    descriptor = loader.load_from_file(write(model, tmp_path / f"weights{suffix}"))
    assert isinstance(descriptor, spandrel.ImageModelDescriptor)
    assert type(descriptor.model) is type(model) and not descriptor.model.training
    assert descriptor.architecture.name == type(model).__name__
    torch.testing.assert_close(descriptor.model.state_dict(), model.state_dict(), rtol=0, atol=0)
    assumed = {"low_pass": "global"} if name.startswith("irnext") else {"dilations": (7, 9, 11)}
    assert descriptor.model.settings == {**model.settings, **assumed}


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"params": s}, lambda s: {"module." + k: s[k] for k in s}]
)
def test_files_of_training_programs(loader, tmp_path, wrap):
    model = make("convir-s")
    torch.save(wrap(model.official_state_dict()), tmp_path / "weights.ckpt")
    found = loader.load_from_file(tmp_path / "weights.ckpt").model
    torch.testing.assert_close(found.state_dict(), model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "least", "tags"),
    [
        ("irnext-its", 64, ["2nb", "8nf", "global"]),
        ("irnext-gopro", 64, ["1nb", "16nf", "local"]),
        ("convir-s", 256, ["1nb", "8nf", "7-9-11"]),
        ("convir-b-rain", 128, ["2nb", "8nf", "3-7-9"]),
    ],
)
def test_what_programs_are_told(spandrel, plugin, tmp_path, name, least, tags):
    found = plugin.load_from_file(write(make(name), tmp_path / "weights.safetensors"))
    assert (found.purpose, found.scale, found.input_channels, found.output_channels) == (
        "Restoration",
        1,
        3,
        3,
    )
    assert found.supports_half and found.supports_bfloat16
    assert found.size_requirements == spandrel.SizeRequirements(minimum=least, multiple_of=32)
    assert found.tiling is spandrel.ModelTiling.DISCOURAGED  # the plane means would see the tile
    assert found.tags == tags


# ---- what it computes ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 384), (250, 371), (40, 33)])
def test_a_photograph_with_the_weights_that_come_along(loader, size):
    picture = photograph(*size)
    before = picture.clone()
    restored = loader.load_from_file(path_of("haze"))(picture)
    assert torch.equal(restored, irnext.restore(irnext.load_pretrained("haze"), picture))
    assert torch.equal(picture, before) and not torch.equal(restored, picture)


@pytest.mark.parametrize(("name", "size"), [("irnext-gopro", (100, 130)), ("convir-b-rain", (130, 100))])
def test_every_kind_restores_as_irnext_does(plugin, tmp_path, name, size):
    model, picture = make(name), photograph(*size)
    restored = plugin.load_from_file(write(model, tmp_path / "weights.safetensors"))(picture)
    assert torch.equal(restored, irnext.restore(model, picture))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float16, 0.01), (torch.bfloat16, 0.05)])
def test_half_precision(loader, dtype, error):
    """Weights, too, are then of that type, which has 11 or 8 bits."""
    descriptor, picture = loader.load_from_file(path_of("haze")), photograph(96, 128)
    restored = descriptor(picture)
    found = descriptor.to(dtype)(picture.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), restored, rtol=0, atol=error)


# ---- what weights do not tell --------------------------------------------------------------------


def test_files_of_ours_tell_all_and_others_are_given(plugin, tmp_path):
    for name, untold in (("irnext-gopro", "low_pass"), ("convir-b-rain", "dilations")):
        model = make(name)
        found = plugin.load_from_file(write(model, tmp_path / "weights.safetensors"))
        assert found.model.settings == model.settings
        given = {untold: model.settings[untold]}
        found = plugin.load_from_file(
            write(model, tmp_path / "weights.pkl"), **given
        )  # which spandrel refuses
        assert found.model.settings == model.settings


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("irnext-gopro", "IRNeXt with low_pass='global'"),
        ("convir-b-rain", r"ConvIR with dilations=\(7, 9, 11\)"),
    ],
)
def test_an_assumption_is_said_once_at_the_callers_line(loader, tmp_path, name, said):
    path = write(make(name), tmp_path / "weights.safetensors")
    with pytest.warns(UserWarning, match=said) as caught:
        loader.load_from_file(path)
    assert [each.filename for each in caught] == [__file__]


def test_nothing_is_assumed_where_weights_tell(loader, tmp_path):
    model = irnext.IRNeXt(blocks=1, width=8, low_pass="exact")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = loader.load_from_file(write(model, tmp_path / "weights.safetensors"))
    assert found.model.settings == model.settings


# ---- what is told apart --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["irnext-gopro", "irnext-its", "convir-s", "convir-b-rain"])
def test_no_other_architecture_takes_ours(loader, name):
    model = make(name)
    for state in (model.state_dict(), model.official_state_dict()):
        takers = [each.architecture.id for each in loader.registry if each.detect(dict(state))]
        assert takers == [type(model).__name__]


@pytest.mark.parametrize("name", ["DRUNet", "FBCNN", "FFTformer", "MixDehazeNet", "RetinexFormer"])
def test_ours_take_no_other_architecture(loader, name):
    network = getattr(importlib.import_module(f"spandrel.architectures.{name}"), name)
    with torch.device("meta"):
        state = network().state_dict()
    takers = [each.architecture.id for each in loader.registry if each.detect(dict(state))]
    assert name in takers and not {"IRNeXt", "ConvIR"} & set(takers)


def relatives() -> dict[str, dict[str, Tensor]]:
    """Weights of networks with IRNeXt's skeleton and its published names, all or some."""
    with torch.device("meta"):
        ancestor = irnext.create_model("mimo-unet", num_res=1)
        state = irnext.IRNeXt(blocks=1, width=8).official_state_dict()
    other = {name.replace(".dynas.", ".dyna."): entry for name, entry in state.items()}
    more = {**state, "Encoder.0.layers.0.main.2.modulate.fc.weight": torch.zeros(8, 8, 1, 1)}
    return {"mimo-unet": ancestor.state_dict(), "other names": other, "more": more}


@pytest.mark.parametrize("name", ["mimo-unet", "other names", "more"])
def test_relatives_stay_unknown(spandrel, loader, name):
    with pytest.raises(spandrel.UnsupportedModelError):
        loader.load_from_state_dict(relatives()[name])


@pytest.mark.parametrize(
    "content", [{}, {"stem.weight": "no tensor"}, {"epoch": 3}, {"weights": [1]}], ids=str
)
def test_what_is_no_weights_stays_unknown(spandrel, loader, content):
    with pytest.raises(spandrel.UnsupportedModelError):
        loader.load_from_state_dict(content)


def test_damaged_weights_are_refused_with_what_is_wrong(loader):
    state = make("convir-s").official_state_dict()
    del state["feat_extract.0.main.0.bias"]
    state["feat_extract.5.main.0.bias"] = torch.zeros(4)
    with pytest.raises(
        ValueError, match=r"do not fit ConvIR.*1 missing \(feat_ex.*0\.bias\).*should be \(3,\)"
    ):
        loader.load_from_state_dict(state)


def test_weights_without_channels_are_refused(loader):
    """Filters of no taps once ended in a division by zero."""
    state = make("irnext-gopro").official_state_dict()
    empty = {name: torch.zeros(0, 16, 1, 1) if ".conv." in name else entry for name, entry in state.items()}
    assert empty.keys() == state.keys() and any(not entry.numel() for entry in empty.values())
    with pytest.raises(ValueError, match=r"do not fit IRNeXt.* of another shape"):
        loader.load_from_state_dict(empty)


def test_weights_that_are_packed_are_refused(loader):
    """Nothing shows the width where convolutions are flat, as some programs quantise them."""
    state = make("irnext-gopro").official_state_dict()
    packed = {name: entry.flatten() if ".main.0.weight" in name else entry for name, entry in state.items()}
    with pytest.raises(ValueError, match=r"do not fit IRNeXt.* of another shape"):
        loader.load_from_state_dict(packed)


def test_files_that_are_refused(plugin, tmp_path):
    torch.save(irnext.create_model("mimo-unet", num_res=1).state_dict(), tmp_path / "other.pth")
    with pytest.raises(
        ValueError, match=r"other\.pth: the model is a MIMOUNet, and spandrel gets IRNeXt and"
    ):
        plugin.load_from_file(tmp_path / "other.pth")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth: there is no such file"):
        plugin.load_from_file(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="unknown settings depth"):
        plugin.load_from_file(path_of("haze"), depth=3)


# ---- installing ----------------------------------------------------------------------------------


def test_installing_twice_adds_once(spandrel, plugin):
    registry = spandrel.MAIN_REGISTRY.copy()
    known = len(registry)
    assert [each.architecture.id for each in plugin.install(registry)] == ["IRNeXt", "ConvIR"]
    assert plugin.install(registry) == [] and len(registry) == known + 2
    assert "IRNeXt" not in spandrel.MAIN_REGISTRY


def test_a_name_that_is_taken_is_an_error(spandrel, plugin):
    registry = spandrel.ArchRegistry()
    taken = spandrel.MAIN_REGISTRY["NAFNet"].architecture
    registry.add(spandrel.ArchSupport(type("Other", (type(taken),), {"id": "ConvIR"})(), taken.detect))
    with pytest.raises(spandrel.DuplicateArchitectureError, match="ConvIR"):
        plugin.install(registry)
    assert len(registry) == 1


def test_without_spandrel_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    monkeypatch.delitem(sys.modules, "irnext.spandrel", raising=False)
    with pytest.raises(
        ModuleNotFoundError, match=r"^spandrel is not installed: pip install 'irnext\[spandrel\]'$"
    ):
        importlib.import_module("irnext.spandrel")


# ---- the page ------------------------------------------------------------------------------------


def test_the_page_runs(spandrel, plugin, tmp_path, monkeypatch):
    """Every block of docs/programs.md, in order; the hub is a stand-in that has what was saved before."""
    for name, value in vars(spandrel.MAIN_REGISTRY).items():
        monkeypatch.setattr(spandrel.MAIN_REGISTRY, name, value)  # put back afterwards
    push = mock.create_autospec(hub.push_to_hub)
    monkeypatch.setattr(hub, "push_to_hub", push)
    monkeypatch.setattr(hub, "_download", lambda name, **options: Path(name.rpartition("/")[2]))
    monkeypatch.chdir(tmp_path)
    write(make("irnext-its"), Path("dehazing.pth"))
    write(make("irnext-gopro"), Path("deblurring.safetensors"))
    write(make("irnext-gopro"), Path("GoPro.pkl"))

    values = {"picture": photograph(70, 90)}
    blocks = documents.blocks((documents.ROOT / "docs" / "programs.md").read_text("utf-8"))
    for block in blocks:
        assert block.language == "python" and not block.reason
        exec(compile("\n" * (block.line - 1) + block.code, "programs.md", "exec"), values)
    model = irnext.load("dehazing.pth")
    assert torch.equal(values["restored"], irnext.restore(model, values["picture"]))
    assert values["descriptor"].model.settings == make("irnext-gopro").settings
    torch.testing.assert_close(values["model"].state_dict(), model.state_dict(), rtol=0, atol=0)
    push.assert_called_once_with(mock.ANY, "owner/dehazing", private=True)
