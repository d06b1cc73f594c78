import jax
import numpy as np
import pytest
import torch
from tutorial_net import Net, make_net, params_of, random_batch, to_torch

from lenet_jax.interchange import from_state_dict, to_state_dict
from lenet_jax.model import LeNet
from lenet_jax.optimizers import make_optimizer
from lenet_jax.step import create_train_state


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
