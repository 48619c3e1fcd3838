from types import SimpleNamespace

import torch

from ddpm_lightning.callbacks.loss_by_time import LossByTime


def logged(batches, accumulate=1, log_every=1):
    """What is logged after each batch, given as (times, losses), for a schedule of 100 steps."""
    callback, found = LossByTime(), []
    module = SimpleNamespace(
        denoiser=SimpleNamespace(schedule=SimpleNamespace(num_steps=100)),
        log=lambda name, value: found[-1].update({name: value}),
    )
    for i, (t, losses, *weights) in enumerate(batches):
        found.append({})
        trainer = SimpleNamespace(
            accumulate_grad_batches=accumulate, log_every_n_steps=log_every, global_step=(i + 1) // accumulate
        )
        weight = torch.tensor(weights[0] if weights else [1.0] * len(t))
        outputs = {"losses": torch.tensor(losses), "t": torch.tensor(t), "weight": weight}
        callback.on_train_batch_end(trainer, module, outputs, None, i)
    return found


def test_a_quarter_ends_where_the_next_begins():
    [found] = logged([([1, 25, 26, 50, 51, 75, 76, 100], [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0])])
    assert found == {"train/loss_q1": 2, "train/loss_q2": 6, "train/loss_q3": 10, "train/loss_q4": 14}


def test_a_figure_is_the_mean_of_all_batches_since_the_last():
    found = logged([([1], [float(loss)]) for loss in range(8)], accumulate=2, log_every=2)
    assert found == [{}, {}, {}, {"train/loss_q1": 1.5}, {}, {}, {}, {"train/loss_q1": 5.5}]


def test_a_quarters_figure_is_that_of_uniform_times_however_they_were_drawn():
    """The mean over 25 times; drawn by the importance of their loss, and weighted against it."""
    truth = 1 / (1 + 0.2 * torch.arange(1.0, 101)) + 0.01
    p = truth / truth.sum()
    t = torch.multinomial(p, 200_000, replacement=True)
    [found] = logged([((t + 1).tolist(), truth[t].tolist(), (1 / (100 * p[t])).tolist())])
    for q in range(4):
        expected = truth[25 * q : 25 * (q + 1)].mean().item()
        assert abs(found[f"train/loss_q{q + 1}"] / expected - 1) < 0.01
