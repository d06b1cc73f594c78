import dataclasses
import hashlib
import json
import signal
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lenet_jax import cli, data, train
from lenet_jax.core.model import LeNet
from lenet_jax.core.optimizers import make_optimizer
from lenet_jax.core.step import create_train_state
from lenet_jax.interop.pytorch import (
    as_normalization,
    from_state_dict,
    read_metadata,
    read_params,
    to_safetensors,
    to_state_dict,
)
from lenet_jax.run import folder, loop
from lenet_jax.run.settings import Settings

torch = pytest.importorskip("torch", reason="PyTorch, the judge, is not installed")
from safetensors.torch import save_file
from tutorial_net import Net, make_net, params_of, random_batch, to_torch


def test_pytorch_loads_our_parameters_strictly_and_gives_our_logits():
    params = create_train_state(jax.random.key(0), make_optimizer("sgd")).params
    net = Net()
    state = {key: torch.from_numpy(value) for key, value in to_state_dict(params).items()}
    net.load_state_dict(state, strict=True)
    images, _ = random_batch(1, 5)
    wanted = net(to_torch(images)).detach().numpy()
    logits = jax.jit(LeNet().apply)({"params": params}, images)
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=20 * 2**-24 * np.abs(wanted).max())


def test_there_and_back_is_the_same_bits():
    params = params_of(make_net(2))
    again = from_state_dict(to_state_dict(params))
    jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_another_networks_state_dict_is_refused_by_name(change):
    state = to_state_dict(params_of(make_net(0)))
    if change == "missing":
        del state["fc2.bias"]
    else:
        state["fc4.bias"] = np.zeros(1)
    with pytest.raises(ValueError, match=r"fc[24]\.bias"):
        from_state_dict(state)


def test_an_array_of_another_shape_is_refused_by_name():
    state = to_state_dict(params_of(make_net(0)))
    state["fc1.weight"] = np.zeros((120, 256), np.float32)
    with pytest.raises(ValueError, match=r"fc1\.weight.*\(120, 256\).*\(120, 400\)"):
        from_state_dict(state)


# --- files ---


def save_pt(state, path):
    torch.save(state, path)


def save_old_pt(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


SAVERS = [
    ("a.safetensors", save_file),
    ("a.pt", save_pt),
    ("a.pth", save_pt),
    ("b.pt", save_old_pt),
]


@pytest.mark.parametrize(("name", "save"), SAVERS)
def test_a_file_that_pytorch_saved_is_read_to_the_bit(name, save, tmp_path):
    net = make_net(3)
    save(net.state_dict(), tmp_path / name)
    params, digest = read_params(tmp_path / name)
    jax.tree.map(np.testing.assert_array_equal, params, params_of(net))
    assert digest == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()


def test_a_file_that_we_wrote_is_read_to_the_bit(tmp_path):
    params = params_of(make_net(4))
    (tmp_path / "a.safetensors").write_bytes(to_safetensors(params, 0.1307, 0.3081, DIGITS.classes))
    jax.tree.map(np.testing.assert_array_equal, read_params(tmp_path / "a.safetensors")[0], params)


@pytest.mark.parametrize(
    ("name", "save", "dtype"),
    [
        (*SAVERS[0], torch.float64),
        (*SAVERS[0], torch.float16),
        (*SAVERS[0], torch.bfloat16),
        (*SAVERS[1], torch.float64),
        (*SAVERS[1], torch.bfloat16),
    ],
)
def test_other_floats_become_float32(name, save, dtype, tmp_path):
    net = make_net(5, dtype)
    save(net.state_dict(), tmp_path / name)
    params, _ = read_params(tmp_path / name)
    jax.tree.map(np.testing.assert_array_equal, params, params_of(net.float()))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}


class Attack:
    """What a pickle can do: when it is loaded, it calls what it says."""

    def __reduce__(self):
        return (pytest.fail, ("code of the file was run",))


def spoiled(change: str) -> dict:
    state = make_net(0).state_dict()
    match change:
        case "float8":
            state["fc1.bias"] = state["fc1.bias"].to(torch.float8_e4m3fn)
        case "counter":
            state["bn.num_batches_tracked"] = torch.tensor(3)
        case "infinite":
            state["fc1.bias"][7] = torch.inf
        case "integers":
            state["fc1.bias"] = torch.zeros(120, dtype=torch.int32)
        case "missing":
            del state["fc2.bias"]
        case "meta":
            state["fc1.bias"] = state["fc1.bias"].to("meta")
        case "one class":
            state["fc3.weight"], state["fc3.bias"] = torch.zeros(1, 84), torch.zeros(1)
        case "sparse":
            state["fc1.weight"] = state["fc1.weight"].to_sparse()
        case "transposed":
            state["fc3.weight"] = state["fc3.weight"].T.contiguous()
    return state


FAULTS = {
    "a.pt": (lambda path: torch.save(make_net(0), path), r"save net.state_dict\(\), not the net"),
    "b.pt": (lambda path: torch.save({"a": Attack()}, path), "weights_only"),
    "c.pt": (lambda path: torch.save({"net": {}}, path), "something other than a state dict"),
    "d.pt": (lambda path: torch.save([1, 2], path), "something other than a state dict"),
    "e.pt": (lambda path: path.write_bytes(b"no"), "does not read it"),
    "f.pt": (lambda path: None, r"cannot be read \(No such file or directory\)"),
    "g.pt": (lambda path: path.mkdir(), r"cannot be read \(Is a directory\)"),
    "h.safetensors": (lambda path: path.write_bytes(b"no"), "not an intact safetensors file"),
    "i.safetensors": (lambda path: path.write_bytes(bytes(2**24 + 1)), "16,777,217 bytes are too"),
    "j.npz": (lambda path: path.touch(), "must end in one of .safetensors, .pt, .pth"),
    "k.pt": (lambda path: torch.save(spoiled("infinite"), path), "fc1.bias .* not finite"),
    "l.pt": (lambda path: torch.save(spoiled("integers"), path), "fc1.bias is int32"),
    "p.pt": (lambda path: torch.save(spoiled("sparse"), path), "fc1.weight is not a plain tensor"),
    "q.pt": (lambda path: torch.save(spoiled("meta"), path), "fc1.bias is not a plain tensor"),
    "m.safetensors": (lambda path: save_file(spoiled("missing"), path), "missing .*fc2.bias"),
    "o.safetensors": (lambda path: save_file(spoiled("float8"), path), "fc1.bias is of type F8_E4"),
    "r.safetensors": (lambda path: save_file(spoiled("counter"), path), "unknown .*bn.num_batches"),
    "s.pt": (lambda path: torch.save(spoiled("counter"), path), "unknown .*bn.num_batches"),
    "t.pt": (lambda path: torch.save({"model": {}}, path), "something other than a state dict"),
    "u.pt": (lambda path: torch.save({"epoch": 3}, path), "something other than a state dict"),
    "n.safetensors": (lambda path: save_file(spoiled("transposed"), path), "fc3.weight has shape"),
    "v.safetensors": (
        lambda path: save_file(spoiled("one class"), path),
        ": its network has 1 class; at least 2 are needed$",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_file_that_is_no_such_state_dict_is_a_sentence_with_the_flag(name, tmp_path):
    make, reason = FAULTS[name]
    make(tmp_path / name)
    with pytest.raises(ValueError, match=reason) as error:
        read_params(tmp_path / name)
    assert str(error.value).startswith(f"--init_from={tmp_path / name}: ")
    assert "\n" not in str(error.value)


def test_the_home_of_nobody_is_no_file():
    with pytest.raises(ValueError, match=r"^--init_from=~nobody-at-all/a\.pt: there is no such"):
        read_params("~nobody-at-all/a.pt")


@pytest.mark.parametrize(("name", "package"), [("a.pt", "torch"), ("a.safetensors", "safetensors")])
def test_a_missing_package_is_named_with_how_to_install_it(name, package, tmp_path, monkeypatch):
    (tmp_path / name).touch()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"^--init_from=.*pip install {package}"):
        read_params(tmp_path / name)


PREFIXED = {
    prefix: (lambda state, prefix=prefix: {prefix + key: value for key, value in state.items()})
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "net.")
}
WRAPPED = {
    name: (lambda state, name=name: {"epoch": 3, name: state, "optimizer": {"state": {}}})
    for name in ("model_state_dict", "state_dict", "model", "net")
}
BOTH = {"both": lambda state: WRAPPED["state_dict"](PREFIXED["module."](state))}


@pytest.mark.parametrize(
    "wrap", (PREFIXED | WRAPPED | BOTH).values(), ids=PREFIXED | WRAPPED | BOTH
)
def test_what_people_save_a_state_dict_in_is_taken_off_with_a_line(wrap, tmp_path):
    net, lines = make_net(3), []
    torch.save(wrap(net.state_dict()), tmp_path / "a.pt")
    params, _ = read_params(tmp_path / "a.pt", lines.append)
    jax.tree.map(np.testing.assert_array_equal, params, params_of(net))
    assert len(lines) == 1
    assert lines[0].startswith(f"--init_from={tmp_path / 'a.pt'}: unwrapped the ")


def test_a_prefix_that_not_all_names_have_is_not_taken_off(tmp_path):
    state = PREFIXED["net."](make_net(3).state_dict())
    save_file(state | {"b.weight": torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match=r"missing .*unknown .*'b\.weight', 'net\.conv1"):
        read_params(tmp_path / "a.safetensors")


def test_parameters_in_bfloat16_go_to_pytorch_as_float32():
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), params_of(make_net(1)))
    state = {key: torch.from_numpy(value) for key, value in to_state_dict(params).items()}
    for key, value in make_net(1).state_dict().items():
        torch.testing.assert_close(state[key], value.bfloat16().float(), rtol=0, atol=0)


def test_only_a_file_of_ours_says_how_its_pixels_were_normalised_and_names_its_classes(tmp_path):
    params, classes = params_of(make_net(4)), ("é", "<b>")
    (tmp_path / "a.safetensors").write_bytes(to_safetensors(params, 0.25, 0.5, classes))
    colours = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0), "classes": classes}
    (tmp_path / "e.safetensors").write_bytes(to_safetensors(params, **colours))
    (tmp_path / "f.safetensors").write_bytes(to_safetensors(params, (0.1, 0.2), (0.1,), classes))
    save_file(make_net(4).state_dict(), tmp_path / "b.safetensors")
    torch.save(make_net(4).state_dict(), tmp_path / "c.pt")
    (tmp_path / "d.safetensors").write_bytes(to_safetensors(params, float("nan"), 0.5, classes))
    ours = read_metadata(tmp_path / "a.safetensors")
    assert ours == {"mean": 0.25, "std": 0.5, "classes": classes}
    assert read_metadata(tmp_path / "e.safetensors") == colours
    for name in ("d.safetensors", "f.safetensors"):
        assert read_metadata(tmp_path / name) == {"classes": classes}
    for name in ("b.safetensors", "c.pt"):
        assert read_metadata(tmp_path / name) == {}


@pytest.mark.parametrize(
    ("mean", "std", "found"),
    [
        (0.5, 1, {"mean": 0.5, "std": 1.0}),
        ([0.5], [1], {"mean": 0.5, "std": 1.0}),
        ([0.1, 0.2], [1, 2], {"mean": (0.1, 0.2), "std": (1.0, 2.0)}),
        ("0.5", "1", {"mean": 0.5, "std": 1.0}),
        *(
            (wrong, wrong, None)
            for wrong in (None, "x", [], [[]], [[1.0]], {}, {"a": 1}, "", [None])
        ),
        *(
            (0.5, wrong, None)
            for wrong in (0, -1, float("inf"), float("nan"), [1], [1, 2], 10**400)
        ),
    ],
)
def test_what_is_no_normalization_is_none(mean, std, found):
    assert as_normalization(mean, std) == found


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[[]]", "{}", '"x"', "1e999", "1" + "0" * 400, "[" * 100_000]
)
def test_metadata_that_is_not_ours_is_ignored(text, tmp_path):
    metadata = dict.fromkeys(("mean", "std", "classes"), text)
    save_file(make_net(4).state_dict(), tmp_path / "a.safetensors", metadata)
    assert not {"mean", "std"} & read_metadata(tmp_path / "a.safetensors").keys()


def test_a_machine_without_memory_is_named(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise MemoryError

    torch.save(make_net(3).state_dict(), tmp_path / "a.pt")
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(ValueError, match=r"a\.pt: cannot be read \(its content does not fit into"):
        read_params(tmp_path / "a.pt")


# --- a run that begins from a file: --init_from ---

DIGITS = data.load("digits")


@pytest.fixture
def begun_from(tmp_path) -> Settings:
    """Settings of a run of 2 epochs, 5 steps each, that begins from a PyTorch net of seed 6."""
    save_file(make_net(6).state_dict(), tmp_path / "net.safetensors")
    return Settings(
        dataset="digits",
        epochs=2,
        batch_size=256,
        learning_rate=3e-3,
        init_from=str(tmp_path / "net.safetensors"),
    )


def fit(settings, path, **kwargs):
    path.mkdir(exist_ok=True)
    return loop.fit(settings, DIGITS, path, lambda line: None, **kwargs)


def test_a_run_starts_at_the_files_parameters_and_says_which_they_were(begun_from, tmp_path):
    run = loop.restore_or_init(begun_from, DIGITS, tmp_path, lambda line: None)
    jax.tree.map(np.testing.assert_array_equal, run.state.params, params_of(make_net(6)))
    config = json.loads((tmp_path / folder.CONFIG).read_text())
    digest = hashlib.sha256((tmp_path / "net.safetensors").read_bytes()).hexdigest()
    assert config["init_sha256"] == digest
    assert config["settings"]["init_from"] == begun_from.init_from
    header = train.header(begun_from, DIGITS, run.state)
    assert (
        f"10 classes and 1 channel, 61,706 parameters, initialised from {begun_from.init_from}"
        in header
    )


def test_it_goes_on_without_the_file_to_the_same_bits(begun_from, tmp_path):
    straight = fit(begun_from, tmp_path / "straight")
    with pytest.raises(cli.Interrupted):
        fit(begun_from, tmp_path / "stopped", signals=[signal.SIGTERM])
    (tmp_path / "net.safetensors").unlink()
    resumed = fit(begun_from, tmp_path / "stopped")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, straight.params)


def test_it_cannot_go_on_as_one_that_began_elsewhere(begun_from, tmp_path):
    with pytest.raises(cli.Interrupted):
        fit(begun_from, tmp_path / "run", signals=[signal.SIGTERM])
    with pytest.raises(ValueError, match=r"^--init_from is not set here but .*net\.safetensors"):
        fit(dataclasses.replace(begun_from, init_from=None), tmp_path / "run")


def test_a_bad_file_ends_the_command_with_one_line_and_code_2(tmp_path, capsys):
    flags = ["--dataset=digits", f"--workdir={tmp_path / 'run'}", "--init_from=nowhere.pt"]
    with pytest.raises(SystemExit) as ended:
        train.main(["train", "--nocompilation_cache", *flags])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: --init_from=nowhere.pt: cannot be read (No such file or directory)\n"
    )
