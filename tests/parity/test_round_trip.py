"""Weights that come from transformers' blocks and go back are the same bits: the mapping loses and invents nothing."""

import pytest
import torch
from safetensors.torch import load, save

from tests.parity.test_transformers_blocks import PEERS


def converted(name, state):
    peer = PEERS[name]
    return {key: tensor.contiguous() for key, tensor in peer.weights(peer.config, state).items()}


def numbered(state):
    """Each element's own number in place of its value: where a number ends up is where the element went."""
    sizes = [tensor.numel() for tensor in state.values()]
    parts = torch.arange(sum(sizes), dtype=torch.float64).split(sizes)
    return {key: part.view(tensor.shape) for (key, tensor), part in zip(state.items(), parts, strict=True)}


def back(ours, places, state):
    """The inverse: each of our elements to the place of theirs that it came from."""
    flat = torch.cat([tensor.flatten() for tensor in state.values()]).clone().fill_(float("nan"))
    for key, tensor in ours.items():
        flat[places[key].long().flatten()] = tensor.flatten()
    parts = flat.split([tensor.numel() for tensor in state.values()])
    return {key: part.view(tensor.shape) for (key, tensor), part in zip(state.items(), parts, strict=True)}


@pytest.mark.parametrize("name", PEERS)
def test_convert_save_load_and_convert_back_keeps_every_bit(name):
    state = {key: tensor.clone() for key, tensor in PEERS[name].build(0, torch.float32).state_dict().items()}
    state = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    places = converted(name, numbered(state))
    used = torch.cat([tensor.flatten() for tensor in places.values()])
    assert len(used) == len(used.unique()) == sum(tensor.numel() for tensor in state.values())
    again = back(load(save(converted(name, state))), places, state)
    assert all(torch.equal(again[key], tensor) for key, tensor in state.items())
    shuffled = {key: tensor.flip(0) for key, tensor in places.items()}  # the control: another mapping is another block
    assert not all(torch.equal(back(converted(name, state), shuffled, state)[key], state[key]) for key in state)


def test_every_family_is_walked():
    assert len(PEERS) >= 18
