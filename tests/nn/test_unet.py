from types import SimpleNamespace

import pytest
import torch
from conftest import group_options
from hydra.utils import instantiate
from torch.utils.flop_counter import FlopCounterMode

from ddpm_lightning.nn.blocks import Attention, Pointwise, ResBlock, attend
from ddpm_lightning.nn.embedding import TimeEmbedding
from ddpm_lightning.nn.unet import ResAttention, UNet

LARGE = ("unet_32", "unet_32_deep", "unet_64", "unet_tiny_imagenet")


def millions(net):
    return sum(parameter.numel() for parameter in net.parameters()) / 1e6


def tiny(**kwargs):
    settings = {"image_size": 8, "channels": 1, "base_channels": 8, "channel_mults": (1, 2), "num_res_blocks": 1}
    return UNet(**{**settings, "attention_resolutions": (4,), "dropout": 0.0, **kwargs})


def awake(net):
    """Zero-initialised layers hide what feeds them."""
    for parameter in net.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return net


@pytest.mark.parametrize(
    ("preset", "overrides", "count", "gflop"),
    [
        ("unet_32", ("data=cifar10", "model.num_classes=null"), 35.7, 12.444),
        ("unet_64", ("data=image_folder", "data.root=x", "data.image_size=64"), 77.5, None),
        ("unet_tiny_imagenet", ("data=image_folder", "data.root=x", "data.image_size=64"), 92.0, None),
        ("unet_8", ("model.num_classes=null",), 0.3, None),
    ],
)
def test_presets_have_the_published_sizes(configure, preset, overrides, count, gflop):
    cfg = configure(*overrides, f"model={preset}")
    with torch.device("meta"):
        net = instantiate(cfg.model, _convert_="all")
        assert round(millions(net), 1) == count
        if gflop:
            with FlopCounterMode(display=False) as counter:
                net(torch.empty(1, 3, 32, 32), torch.empty(1))
            assert counter.get_total_flops() / 1e9 == pytest.approx(gflop, rel=1e-4)


@pytest.mark.parametrize("preset", [name for name in group_options("model") if name not in LARGE])
def test_small_presets_map_images_to_images(configure, preset):
    size = 32 if preset == "unet_mnist" else 8
    overrides = ("data=mnist",) if size == 32 else ()
    net = instantiate(configure(*overrides, f"model={preset}").model, _convert_="all")
    assert net(torch.randn(2, 1, size, size), torch.tensor([0, 999]), torch.tensor([0, 9])).shape == (2, 1, size, size)


def test_the_half_width_network_of_the_yardsticks():
    with torch.device("meta"):
        assert millions(UNet(32, base_channels=64)) == pytest.approx(8.95, abs=0.005)


def test_a_fresh_network_predicts_zero():
    assert tiny()(torch.randn(2, 1, 8, 8), torch.tensor([0, 5])).abs().max() == 0


@pytest.mark.parametrize("conditioning", ["film", "additive"])
def test_time_and_label_reach_the_output(conditioning):
    net = awake(tiny(num_classes=3, time_conditioning=conditioning)).eval()
    x = torch.randn(1, 1, 8, 8)

    def out(time, label):
        return net(x, torch.tensor([time]), None if label is None else torch.tensor([label]))

    assert (out(0, 1) - out(1, 1)).abs().max() > 1e-4
    assert (out(0, 1) - out(0, 2)).abs().max() > 1e-4
    assert torch.equal(out(0, None), out(0, 3))  # no label is the null class, whose index is num_classes


def test_images_of_a_batch_do_not_mix():
    net = awake(tiny(num_heads=2)).eval()
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([1, 50, 900])
    alone = torch.cat([net(x[i : i + 1], t[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(net(x, t), alone, rtol=1e-4, atol=1e-5)


def test_attention_is_softmax_attention():
    """Second implementation, head by head, with explicit matrices."""
    attention = awake(Attention(8, num_heads=2))
    x = torch.randn(1, 8, 3, 3)
    q, k, v = attention.qkv(attention.norm(x)).view(3, 2, 4, 9)
    heads = []
    for head in range(2):
        weights = torch.softmax(q[head].T @ k[head] / 2, dim=-1)  # sqrt(4) = 2
        heads.append(v[head] @ weights.T)
    expected = x + attention.out(torch.cat(heads).view(1, 8, 3, 3))
    torch.testing.assert_close(attention(x), expected)


@pytest.mark.parametrize("film", [True, False])
def test_residual_blocks_are_the_published_formula(film):
    """Second implementation, from the functional forms."""
    block = awake(ResBlock(8, 16, 12, dropout=0.0, film=film))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, embedding = torch.randn(2, 8, 5, 5), torch.randn(2, 12)
    silu = torch.nn.functional.silu
    group = torch.nn.functional.group_norm
    h = block.conv1(silu(group(x, 2, block.norm1.weight, block.norm1.bias, 1e-6)))
    condition = block.embedding(silu(embedding)).view(2, -1, 1, 1)
    if film:  # Dhariwal & Nichol (2021), eq. 9: y_s GroupNorm(h) + y_b, with y_s about 1
        h = (1 + condition[:, :16]) * group(h, 4, block.norm2.weight, block.norm2.bias, 1e-6) + condition[:, 16:]
    else:
        h = group(h + condition, 4, block.norm2.weight, block.norm2.bias, 1e-6)
    torch.testing.assert_close(block(x, embedding), block.skip(x) + block.conv2(silu(h)))


def test_each_level_gets_the_features_of_its_own_way_down():
    """The first block up sees the middle's output, then the last features of the way down, and so on backwards."""
    net, inputs, outputs = awake(tiny(num_res_blocks=2)), [], []
    net.stem.register_forward_hook(lambda module, args, out: outputs.append(out))
    for module in net.down:
        module.register_forward_hook(lambda module, args, out: outputs.append(out))
    blocks = [module.block for module in net.up if isinstance(module, ResAttention)]
    for block in blocks:
        block.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    middle = []
    net.middle[-1].register_forward_hook(lambda module, args, out: middle.append(out))
    net(torch.randn(1, 1, 8, 8), torch.tensor([5]))
    assert len(inputs) == len(outputs) == 6
    for seen, made in zip(inputs, reversed(outputs), strict=True):
        assert torch.equal(seen[:, -made.shape[1] :], made)
    assert torch.equal(inputs[0][:, : middle[0].shape[1]], middle[0])


def test_every_branch_starts_at_zero():
    net = tiny(num_heads=2)
    blocks = [module for module in net.modules() if isinstance(module, ResBlock)]
    attentions = [module for module in net.modules() if isinstance(module, Attention)]
    assert len(blocks) == 8
    assert len(attentions) == 4
    for layer in [*(block.conv2 for block in blocks), *(attention.out for attention in attentions), net.head[-1]]:
        assert layer.weight.abs().max() == layer.bias.abs().max() == 0


def test_heads_are_as_many_or_as_wide_as_asked():
    for settings, count in (({"num_heads": 4}, 4), ({"head_channels": 2}, 8)):
        heads = {module.num_heads for module in tiny(**settings).modules() if isinstance(module, Attention)}
        assert heads == {count}


def test_checkpointing_changes_memory_not_gradients():
    nets = [awake(tiny(checkpointing=on, dropout=0.5)).train() for on in (False, True)]
    nets[1].load_state_dict(nets[0].state_dict())
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    saved = []
    for net in nets:
        count = 0

        def pack(tensor):
            nonlocal count
            count += tensor.numel()
            return tensor

        torch.manual_seed(1)  # what is recomputed drops the same again
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = net(x, t).square().mean()
        loss.backward()
        saved.append(count)
    for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    assert saved[1] < 0.7 * saved[0]


def test_dropout_acts_in_training_only():
    net = awake(tiny(dropout=0.5))
    x, t = torch.randn(1, 1, 8, 8), torch.tensor([3])
    assert not torch.equal(net(x, t), net(x, t))
    net.eval()
    assert torch.equal(net(x, t), net(x, t))


def test_rectangular_images():
    net = tiny(image_size=(8, 16), attention_resolutions=(8,))
    assert net(torch.randn(1, 1, 8, 16), torch.tensor([0])).shape == (1, 1, 8, 16)


def test_the_network_compiles_as_one_graph():
    net = awake(tiny(num_classes=3)).eval()
    x, t, label = torch.randn(2, 1, 8, 8), torch.tensor([1, 2]), torch.tensor([0, 3])
    compiled = torch.compile(net, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, t, label), net(x, t, label))


def test_the_forward_pass_reads_nothing_back():
    """On the meta device there is nothing to read: an .item() or a branch on data would raise."""
    with torch.device("meta"):
        net = tiny(num_classes=3)
        assert net(torch.empty(2, 1, 8, 8), torch.empty(2), torch.empty(2, dtype=torch.long)).shape == (2, 1, 8, 8)


def test_time_embedding_is_the_sinusoid_of_its_paper():
    embedding = TimeEmbedding(6, 24)
    embedding.mlp = torch.nn.Identity()
    found = embedding(torch.tensor([0, 5]))
    angles = torch.tensor([5.0, 5 / 100, 5 / 10_000])
    torch.testing.assert_close(found[0], torch.tensor([0.0, 0, 0, 1, 1, 1]))
    torch.testing.assert_close(found[1], torch.cat([angles.sin(), angles.cos()]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 9}, "image_size must be divisible by 2.*got 9x9"),
        ({"base_channels": 7}, "base_channels must be even.*got 7"),
        ({"channel_mults": ()}, "channel_mults must be a list"),
        ({"num_res_blocks": 0}, "num_res_blocks must be at least 1, got 0"),
        ({"attention_resolutions": (16,)}, r"attention_resolutions must be among \[8, 4\].*got \[16\]"),
        ({"num_heads": 3}, "num_heads must divide the 16 channels.*got 3"),
        ({"head_channels": 5}, "head_channels must divide the 16 channels.*got 5"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"time_conditioning": "none"}, "time_conditioning must be one of film, additive, got none"),
        ({"num_classes": 0}, "num_classes must be at least 1, or null for none, got 0"),
    ],
)
def test_wrong_combinations_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        tiny(**settings)


def gradients(net, x):
    net.zero_grad()
    net(x, torch.tensor([3, 700])).square().mean().backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


def test_the_order_in_memory_changes_no_gradient():
    """Second implementation: other kernels of torch, for the same network."""
    net, x = awake(tiny(num_heads=2, base_channels=16)), torch.randn(2, 1, 8, 8)
    orders = {}
    net.head[0].register_forward_hook(lambda module, args, out: orders.update({net.channels_last: out.stride(1) == 1}))
    found = {}
    for net.channels_last in (None, True, False):
        found[net.channels_last] = gradients(net, x)
    assert orders == {None: True, True: True, False: False}
    for a, b, c in zip(*found.values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-6)


def test_bf16_on_a_cpu_keeps_channels_apart():
    """Torch's group norm is many times slower there with channels last."""
    net, orders = tiny(), []
    net.head[0].register_forward_hook(lambda module, args, out: orders.append(out.is_contiguous()))
    with torch.autocast("cpu", torch.bfloat16):
        net(torch.randn(2, 1, 8, 8), torch.tensor([3, 700]))
    assert orders == [True]


def test_a_pointwise_convolution_is_a_matrix_product():
    layer, x = Pointwise(6, 4), torch.randn(3, 6, 5, 5)
    expected = torch.einsum("oc,bchw->bohw", layer.weight[:, :, 0, 0], x) + layer.bias[:, None, None]
    torch.testing.assert_close(layer(x), expected)


def test_attention_is_that_of_torch():
    q, k, v = torch.randn(3, 2, 4, 9, 8).unbind(0)
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v), expected)
    low = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    torch.testing.assert_close(attend(*low).float(), expected, rtol=0.02, atol=0.02)
    with torch.no_grad():  # where nothing is trained it is torch's own, which rounds less
        large = [5 * low[0], 5 * low[1], low[2]]
        assert torch.equal(attend(*large), torch.nn.functional.scaled_dot_product_attention(*large))


def test_the_order_in_memory_is_chosen_by_device_and_precision(monkeypatch):
    net, last, first = tiny(), torch.channels_last, torch.contiguous_format
    assert net._order(torch.zeros(1)) == last
    with torch.autocast("cpu", torch.bfloat16):
        assert net._order(torch.zeros(1)) == first  # where torch's group norm is slow
    for device, order in (("cuda", last), ("mps", first)):
        assert net._order(SimpleNamespace(device=torch.device(device))) == order
    assert tiny(channels_last=False)._order(torch.zeros(1)) == first
    with pytest.raises(ValueError, match="channels_last must be true, false or null, got maybe"):
        tiny(channels_last="maybe")
