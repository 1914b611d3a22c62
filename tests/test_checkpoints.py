"""Checkpoints: settings found from weights alone, both layouts bit for bit, and every refusal."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import safetensors
import torch
from safetensors.torch import save_file

from irnext import IRNeXt, LocalAttention, checkpoints
from irnext.checkpoints import CheckpointError, convert, load, save

FIXTURES = Path(__file__).parent / "fixtures"
SMALL = {"blocks": 2, "width": 16}


def randomise(model, seed=0):
    """Draw every entry, the gains that start at zero and the running statistics too."""
    generator = torch.Generator().manual_seed(seed)
    for name, entry in model.state_dict().items():
        if not entry.is_floating_point():
            entry.fill_(3)
        elif name.endswith("running_var"):
            entry.uniform_(0.5, 1.5, generator=generator)
        else:
            entry.normal_(0, 0.05, generator=generator)
    return model.eval()


def small_model(**settings):
    return randomise(IRNeXt(**{**SMALL, **settings}))


def published_weights(blocks):
    """Random weights in the published layout, float32, in its order."""
    generator = torch.Generator().manual_seed(blocks)
    shapes = json.loads((FIXTURES / f"blocks-{blocks}.json").read_text())
    return {
        name: torch.randn(shape, generator=generator) if "num_batches" not in name else torch.tensor(7)
        for name, shape in shapes.items()
    }


def assert_same(found, expected):
    """The same entries in the same order, equal bit for bit."""
    assert list(found) == list(expected)
    for name in expected:
        assert found[name].dtype == expected[name].dtype, name
        assert torch.equal(found[name], expected[name]), name


# ---- settings from the weights alone -------------------------------------------------------------

SHOWN = [
    {},
    {"blocks": 1},
    {"blocks": 5, "width": 8},
    {"groups": 2},
    {"groups": 16},
    {"groups": 4, "kernel_size": 5},
    {"groups": 8, "kernel_size": 1},
    {"width": 24, "groups": 6},
    {"pool_rates": (4, 2)},
    {"pool_rates": (2,)},
    {"pooling": "convolution"},
    {"pooling": "convolution", "pool_rates": (16, 4)},
    {"branch": "conv"},
    {"branch": "lam-no-fm"},
    {"msm_per_block": 2},
    {"msm_per_block": 2, "blocks": 3},
    {"msm_per_block": 0},
    {"low_pass": "exact"},
]


@pytest.mark.parametrize("layout", ["ours", "published"])
@pytest.mark.parametrize("settings", SHOWN, ids=str)
def test_settings_follow_from_the_weights(tmp_path, settings, layout):
    model = small_model(**settings)
    state = model.official_state_dict() if layout == "published" else model.state_dict()
    torch.save(state, tmp_path / "weights.pkl")
    loaded = load(tmp_path / "weights.pkl")
    assert loaded.settings == model.settings
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert_same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize("blocks", [4, 8, 14, 16])
def test_published_checkpoints_come_back_bit_for_bit(tmp_path, blocks):
    weights = published_weights(blocks)
    torch.save({"model": weights}, tmp_path / "published.pkl")
    model = load(tmp_path / "published.pkl")
    assert model.settings == IRNeXt(blocks=blocks).settings
    assert_same(model.official_state_dict(), weights)


def test_low_pass_of_a_published_checkpoint_is_a_choice(tmp_path):
    torch.save({"model": small_model().official_state_dict()}, tmp_path / "published.pkl")
    assert load(tmp_path / "published.pkl").settings["low_pass"] == "global"
    assert load(tmp_path / "published.pkl", low_pass="local").settings["low_pass"] == "local"


def test_groups_and_kernel_that_weights_cannot_tell(tmp_path):
    """36 channels: 9 taps in all are 1 group of 3x3 or 9 groups of 1x1."""
    model = small_model(width=36, groups=9, kernel_size=1)
    torch.save(model.state_dict(), tmp_path / "weights.pkl")
    assumed = load(tmp_path / "weights.pkl").settings
    assert (assumed["groups"], assumed["kernel_size"]) == (1, 3)
    assert load(tmp_path / "weights.pkl", groups=9).settings == model.settings
    assert load(tmp_path / "weights.pkl", kernel_size=1).settings == model.settings
    save(model, tmp_path / "weights.safetensors")
    assert load(tmp_path / "weights.safetensors").settings == model.settings


# ---- what a file may look like -------------------------------------------------------------------

SHAPES = {
    "model": lambda state: {"model": state},
    "state_dict": lambda state: {"state_dict": state},
    "params": lambda state: {"params": state},
    "raw": lambda state: state,
    "module": lambda state: {"module." + name: tensor for name, tensor in state.items()},
    "compiled": lambda state: {"module._orig_mod." + name: tensor for name, tensor in state.items()},
    "nested": lambda state: {"epoch": 3, "optimizer": {"state": {}}, "model": {"state_dict": state}},
    "training": lambda state: {
        "epoch": 3,
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]},
        "state_dict": {"module." + name: tensor for name, tensor in state.items()},
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_published_shape_is_read(tmp_path, shape):
    state = small_model().official_state_dict()
    torch.save(SHAPES[shape](state), tmp_path / "weights.pth")
    assert_same(load(tmp_path / "weights.pth").official_state_dict(), state)


def test_files_of_old_torch_versions_are_read(tmp_path):
    state = small_model().official_state_dict()
    torch.save({"model": state}, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    assert_same(load(tmp_path / "old.pkl").official_state_dict(), state)


def test_foreign_safetensors_are_read(tmp_path):
    """Published names, a wrapper's prefix, no metadata, and a suffix that says nothing."""
    model = small_model(groups=4)
    state = {"module." + name: tensor for name, tensor in model.official_state_dict().items()}
    save_file(state, tmp_path / "weights.bin")
    loaded = load(tmp_path / "weights.bin")
    assert loaded.settings == model.settings
    assert_same(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize(
    ("stored", "expected"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
    ids=str,
)
def test_types(tmp_path, stored, expected):
    model = small_model().to(stored)
    torch.save(model.state_dict(), tmp_path / "weights.pkl")
    loaded = load(tmp_path / "weights.pkl").state_dict()
    for name, tensor in model.state_dict().items():
        wanted = expected if tensor.is_floating_point() else torch.int64
        assert loaded[name].dtype == wanted
        assert torch.equal(loaded[name], tensor.to(wanted))


def test_tied_tensors_are_loaded_apart(tmp_path):
    state = small_model().state_dict()
    one, other = "encoder.0.layers.0.conv1.weight", "encoder.0.layers.0.conv2.weight"
    state[other] = state[one]
    torch.save(state, tmp_path / "tied.pkl")
    layer = load(tmp_path / "tied.pkl").encoder[0].layers[0]
    assert torch.equal(layer.conv1.weight, layer.conv2.weight)
    assert layer.conv1.weight.data_ptr() != layer.conv2.weight.data_ptr()


def test_the_random_state_is_left_alone(tmp_path):
    save(small_model(), tmp_path / "weights.safetensors")
    before = torch.get_rng_state()
    load(tmp_path / "weights.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


# ---- save ----------------------------------------------------------------------------------------

UNTOLD = [
    {"low_pass": "local"},
    {"activation": "softmax"},
    {"pooling": "max"},
    {"pool_rates": (16, 4, 2)},
    {"low_pass": "exact", "activation": "sigmoid", "groups": 4, "kernel_size": 5},
]


@pytest.mark.parametrize("settings", UNTOLD, ids=str)
def test_save_keeps_settings_that_weights_cannot_tell(tmp_path, settings):
    model = small_model(**settings)
    save(model, tmp_path / "weights.safetensors")
    loaded = load(tmp_path / "weights.safetensors")
    assert loaded.settings == model.settings
    assert_same(loaded.state_dict(), model.state_dict())
    x = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for found, expected in zip(loaded(x), model(x), strict=True):
            assert expected.isfinite().all() and torch.equal(found, expected)


def test_arguments_go_before_metadata(tmp_path):
    save(small_model(low_pass="local", activation="sigmoid"), tmp_path / "weights.safetensors")
    loaded = load(tmp_path / "weights.safetensors", low_pass="global", pooling="max")
    assert loaded.settings["low_pass"] == "global"
    assert loaded.settings["pooling"] == "max"
    assert loaded.settings["activation"] == "sigmoid"


def test_save_writes_the_metadata_it_promises(tmp_path):
    model = small_model(low_pass="local")
    save(model, tmp_path / "weights.safetensors")
    with safetensors.safe_open(tmp_path / "weights.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    assert metadata["architecture"] == "IRNeXt"
    assert metadata["irnext_version"]
    assert json.loads(metadata["settings"]) == {**model.settings, "pool_rates": [8, 4, 2]}
    assert names == set(model.state_dict())


def test_save_takes_any_memory_layout_and_wrapper(tmp_path):
    """channels_last weights, weights that share memory, and what compiles or distributes a model."""
    model = small_model()
    model.encoder[0].layers[0].conv2.weight = model.encoder[0].layers[0].conv1.weight
    model.to(memory_format=torch.channels_last)
    assert not model.head.weight.is_contiguous()
    compiled = torch.compile(model, backend="eager")
    for wrapped in (model, compiled, torch.nn.DataParallel(compiled)):
        save(wrapped, tmp_path / "weights.safetensors")
        assert_same(load(tmp_path / "weights.safetensors").state_dict(), model.state_dict())
    assert not model.head.weight.is_contiguous()  # the model that was saved is left as it was


def test_save_refuses_what_it_cannot_write(tmp_path):
    with pytest.raises(TypeError, match="cannot save a Linear"):
        save(torch.nn.Linear(2, 2), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="or use convert"):
        save(small_model(), tmp_path / "weights.pkl")
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        save(small_model(), tmp_path / "nowhere" / "weights.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("stage", ["writing", "replacing"])
def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch, stage):
    path = tmp_path / "weights.safetensors"
    save(small_model(), path)
    before = path.read_bytes()

    def fail(*arguments):
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync" if stage == "writing" else "replace", fail)
    with pytest.raises(OSError, match="no space left"):
        save(small_model(groups=4), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


# ---- convert -------------------------------------------------------------------------------------


def test_convert_there_and_back(tmp_path):
    state = small_model(groups=4).official_state_dict()
    torch.save({"state_dict": {"module." + k: v for k, v in state.items()}}, tmp_path / "from.pth")
    model = convert(
        tmp_path / "from.pth", tmp_path / "ours.safetensors", low_pass="local", activation="sigmoid"
    )
    assert load(tmp_path / "ours.safetensors").settings == model.settings
    assert model.settings["low_pass"] == "local" and model.settings["activation"] == "sigmoid"
    convert(tmp_path / "ours.safetensors", tmp_path / "back.pkl")
    content = torch.load(tmp_path / "back.pkl", weights_only=True)
    assert list(content) == ["model"]
    assert_same(content["model"], state)


def test_convert_writes_published_names_to_safetensors(tmp_path):
    model = small_model(low_pass="local")
    path = tmp_path / "weights.safetensors"
    save(model, path)
    convert(path, path, layout="official")
    with safetensors.safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(model.official_state_dict())
    loaded = load(path)
    assert loaded.settings == model.settings
    assert_same(loaded.state_dict(), model.state_dict())


def test_convert_refuses_what_a_target_cannot_hold(tmp_path):
    source = tmp_path / "exact.safetensors"
    save(small_model(low_pass="exact"), source)
    for target, layout, message in (
        ("to.pkl", None, "no published layout"),
        ("to.safetensors", "official", "no published layout"),
        ("to.pkl", "irnext", "written to .safetensors only"),
        ("to.onnx", None, "end the name in .safetensors, or in .pkl"),
        ("to.safetensors", "theirs", "unknown layout 'theirs': choose one of irnext, official"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(source, tmp_path / target, layout)
    assert list(tmp_path.iterdir()) == [source]


# ---- files that are refused ----------------------------------------------------------------------


def refusal(path, **settings):
    """The message of the error, which is one line and starts with the file."""
    with pytest.raises(CheckpointError) as caught:
        load(path, **settings)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_what_does_not_fit_is_named_in_one_message(tmp_path):
    state = small_model().official_state_dict()
    state["SCM1.extra"] = torch.zeros(2)
    state["feat_extract.0.main.0.weight"] = torch.zeros(64, 3, 3, 3)
    state["Convs.0.main.0.bias"] = state["Convs.0.main.0.bias"].int()
    for name in [name for name in state if name.startswith("Encoder.1.layers.0.")] + [
        "ConvsOut.1.main.0.bias"
    ]:
        del state[name]
    torch.save({"model": state}, tmp_path / "weights.pkl")
    assert refusal(tmp_path / "weights.pkl") == (
        "the weights do not fit IRNeXt with blocks=2, width=16: "
        "5 missing (Encoder.1.layers.0.main.0.main.0.weight, Encoder.1.layers.0.main.0.main.0.bias, "
        "Encoder.1.layers.0.main.2.main.0.weight, Encoder.1.layers.0.main.2.main.0.bias, ...); "
        "1 unexpected (SCM1.extra); "
        "1 of another shape (feat_extract.0.main.0.weight is (64, 3, 3, 3), should be (16, 3, 3, 3)); "
        "1 of a type that is no weight (Convs.0.main.0.bias is torch.int32)"
    )


def test_settings_of_more_blocks_than_weights_make_no_model(tmp_path):
    """A file may come from anybody, and a million blocks would take hours, even without memory."""
    model = small_model()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    message = f"the setting blocks is 1000000: the weights have {len(model.state_dict())} entries in all"
    assert refusal(tmp_path / "weights.pth", blocks=10**6) == message


MISLEADING = [
    "encoder.0.layers.0.conv1.weight",
    "encoder.0.layers.0.msm.convs.2.weight",
    "encoder.0.layers.0.msm.attentions.0.project.weight",
    "encoder.0.layers.0.msm.attentions.0.low_gain",
    "stem.weight",
]


def test_one_damaged_entry_is_named_whichever_it_is(tmp_path):
    """No single entry may mislead the search for the settings, least of all the first of its kind."""
    state = small_model(blocks=1, width=8).state_dict()
    for name in MISLEADING + list(state)[::23]:
        less = {other: tensor for other, tensor in state.items() if other != name}
        torch.save(less, tmp_path / "less.pkl")
        assert refusal(tmp_path / "less.pkl").endswith(f": 1 missing ({name})")
        shape = tuple(state[name].shape)
        wrong = (2 * shape[0], *shape[1:]) if shape else (2,)
        torch.save({**state, name: torch.zeros(wrong)}, tmp_path / "wrong.pkl")
        expected = f": 1 of another shape ({name} is {wrong}, should be {shape})"
        assert expected in refusal(tmp_path / "wrong.pkl")


def test_settings_that_do_not_fit_the_weights(tmp_path):
    path = tmp_path / "weights.pkl"
    torch.save(small_model().state_dict(), path)
    message = refusal(path, blocks=3)
    assert "blocks=3" in message and "missing (" in message and "unexpected (" in message
    assert "groups is 3: it must divide the width 16" in refusal(path, groups=3)
    message = refusal(path, groups=4)  # 72 taps in all: no square has 18
    assert "groups is 4, which does not fit filters of 72 taps in all" in message and "8 would" in message
    assert "unknown settings depth: IRNeXt has blocks, width" in refusal(path, depth=4)
    assert "the setting groups is '8': it must be of type int" in refusal(path, groups="8")
    assert "unknown low_pass 'none': choose one of global, local, exact" in refusal(path, low_pass="none")


def test_a_device_that_cannot_be_used(tmp_path):
    save(small_model(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="device 'cuda:99' cannot be used"):
        load(tmp_path / "weights.safetensors", device="cuda:99")


def test_the_two_kinds_of_filter_modulation_are_kept_apart(tmp_path):
    torch.save({"model": small_model().official_state_dict()}, tmp_path / "published.pkl")
    message = refusal(tmp_path / "published.pkl", low_pass="exact")
    assert "lamb_l, lamb_h and inside_all" in message and "no place in Eq. 4-7" in message
    save(small_model(low_pass="exact"), tmp_path / "exact.safetensors")
    assert "trained with low_pass='exact'" in refusal(tmp_path / "exact.safetensors", low_pass="local")


@pytest.mark.parametrize("suffix", [".pkl", ".safetensors"])
def test_weights_of_another_model(tmp_path, suffix):
    foreign = {f"tokens{i}.0.weight": torch.zeros(4, 3) for i in range(1, 9)}
    path = tmp_path / f"foreign{suffix}"
    if suffix == ".pkl":
        torch.save({"epoch": 3, "state_dict": foreign}, path)
    else:
        save_file(foreign, path)
    message = refusal(path)
    assert "of another model: 8 unexpected (tokens1.0.weight, " in message
    assert "this version reads IRNeXt" in message


def test_weights_of_a_relative(tmp_path):
    """Relatives of IRNeXt have its outline, and other entries inside."""
    state = {
        name.replace(".dynas.0.", ".dynas.0.square_att."): tensor
        for name, tensor in small_model().official_state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "relative.pkl")
    message = refusal(tmp_path / "relative.pkl")
    assert "54 missing (Encoder.0.layers.1.main.1.dynas.0.lamb_l, " in message
    assert "54 unexpected (Encoder.0.layers.1.main.1.dynas.0.square_att.lamb_l, " in message


class Intruder:
    """Unpickling it would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_in_a_pickle_is_never_run(tmp_path):
    torch.save({"model": {}, "extra": Intruder(tmp_path / "trap")}, tmp_path / "zip.pkl")
    message = refusal(tmp_path / "zip.pkl")
    assert "holds code or objects (" in message and "mkdir" in message
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Intruder(tmp_path / "trap")))
    assert "holds code or objects" in refusal(tmp_path / "plain.pkl")
    torch.save(small_model(), tmp_path / "module.pkl")
    assert "holds code or objects (irnext.model.IRNeXt)" in refusal(tmp_path / "module.pkl")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "its state dict is empty"),
        ({"model": {}}, "its state dict is empty"),
        ([torch.zeros(2)], "holds a list, not a state dict"),
        ({"epoch": 3}, "entry 'epoch' is of type int, not a tensor"),
        ({"model": {"stem.weight": "x"}}, "entry 'stem.weight' is of type str, not a tensor"),
        ({5: torch.zeros(2)}, "entry 5 is"),
    ],
    ids=str,
)
def test_pickles_without_weights(tmp_path, content, message):
    torch.save(content, tmp_path / "weights.pkl")
    assert message in refusal(tmp_path / "weights.pkl")


def test_damaged_files(tmp_path):
    model = small_model()
    save(model, tmp_path / "weights.safetensors")
    torch.save(model.state_dict(), tmp_path / "weights.pkl")
    torch.save(model.state_dict(), tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    for name in ("weights.safetensors", "weights.pkl", "old.pkl"):
        whole = (tmp_path / name).read_bytes()
        for size in (len(whole) - 1, len(whole) // 2, 100, 5):
            (tmp_path / name).write_bytes(whole[:size])
            assert "truncated" in refusal(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        assert refusal(tmp_path / name) == "the file is empty"
    (tmp_path / "notes.pth").write_text("these are no weights at all\n" * 9)
    assert "not a checkpoint" in refusal(tmp_path / "notes.pth")
    assert "a folder" in refusal(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        load(tmp_path / "nowhere.pkl")


def test_an_entry_in_both_layouts(tmp_path):
    state = small_model().state_dict()
    state["feat_extract.0.main.0.bias"] = state["stem.bias"]
    torch.save(state, tmp_path / "weights.pkl")
    message = refusal(tmp_path / "weights.pkl")
    assert "one entry stands twice, as stem.bias and as feat_extract.0.main.0.bias" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": "{"}, "settings in the metadata are damaged"),
        ({"settings": "[1]"}, "settings in the metadata are damaged"),
        ({"settings": '{"depth": 3}'}, "unknown settings depth"),
        ({"settings": '{"groups": null}'}, "the setting groups is None: it must be of type int"),
        ({"architecture": "Other"}, "of architecture 'Other'; this version reads IRNeXt"),
    ],
    ids=str,
)
def test_damaged_metadata(tmp_path, change, message):
    model = small_model()
    metadata = {"architecture": "IRNeXt", "irnext_version": "9", "settings": json.dumps(model.settings)}
    save_file(model.state_dict(), tmp_path / "weights.safetensors", {**metadata, **change})
    assert message in refusal(tmp_path / "weights.safetensors")


# ---- load_state_dict of the modules themselves ---------------------------------------------------


def test_the_model_takes_published_names():
    source = small_model()
    weights = source.official_state_dict()
    assert not set(weights) & set(source.state_dict())
    model = IRNeXt(**SMALL)
    model.load_state_dict(weights)
    assert_same(model.official_state_dict(), weights)
    assert_same(model.state_dict(), source.state_dict())
    with pytest.raises(RuntimeError, match="gamma"):
        model.load_state_dict({**weights, "gamma.weight": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict({name: weights[name] for name in list(weights)[1:]})
    with pytest.raises(ValueError, match="have no place in Eq"):
        IRNeXt(**SMALL, low_pass="exact").load_state_dict(weights)


@pytest.mark.parametrize("low_pass", ["global", "local"])
def test_the_attention_takes_published_names(low_pass):
    """Bare names, as in published code that uses the operator alone."""
    state = randomise(LocalAttention(8, groups=4, low_pass=low_pass)).state_dict()
    published = ["lamb_l", "lamb_h", "inside_all", "conv.weight"]
    published += [f"bn.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    published += ["bn.num_batches_tracked"]
    weights = dict(zip(published, state.values(), strict=True))
    attention = LocalAttention(8, groups=4, low_pass=low_pass)
    attention.load_state_dict(weights)
    assert_same(attention.official_state_dict(), weights)
    assert torch.equal(attention.low_gain, weights["lamb_l"])
    assert torch.equal(attention.high_gain, weights["lamb_h"])
    assert torch.equal(attention.inner_gain, weights["inside_all"])
    with pytest.raises(RuntimeError, match="gamma"):
        attention.load_state_dict({**weights, "gamma": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="low_gain"):
        attention.load_state_dict({name: tensor for name, tensor in weights.items() if name != "lamb_l"})


def test_renaming_agrees_with_the_modules():
    """`checkpoints` renames without a model; it must say what the modules' own tables say."""
    architecture = checkpoints.ARCHITECTURES[0]
    for settings in SHOWN:
        with torch.device("meta"):
            model = IRNeXt(**{**SMALL, **settings})
        names = set(model.state_dict())
        assert set(architecture.landmarks) <= names
        for name in names:
            assert architecture.our_name(model.official_name(name)) == name
            assert architecture.our_name(name) == name
