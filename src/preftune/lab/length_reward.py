"""The reward model of lengths: Bradley-Terry on three features, fitted for all seeds at once by Newton's
method.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

NEWTON_STEPS = 30


def fitted_reward(
    pairs: Int[Tensor, "S P 2"], reward: Float[Tensor, " V"], middle: int, ridge: float
) -> Float[Tensor, "S V"]:
    """A value for each outcome and seed, with mean 0 and deviation 1 over the completions of the pairs.

    min over w of  mean_p -log sigma( w . (x(chosen) - x(rejected)) ) + ridge / 2 |w|^2,   x = (k/L, (k/L)^2,
    |k - m|/L)

    The features are standardized over the completions. Labels follow the reward; equal rewards are left out.
    Without the ridge there would be no minimum where one feature separates all pairs.
    """
    num, longest = len(reward), len(reward) - 1
    length = torch.arange(1, num + 1, dtype=torch.float64).clamp(max=longest)
    features = torch.stack(
        [length / longest, (length / longest).square(), (length - middle).abs() / longest], dim=-1
    )
    drawn = features[pairs]  # [S, P, 2, 3]
    mean, deviation = drawn.flatten(1, 2).mean(1), drawn.flatten(1, 2).std(1)
    gap = (drawn[:, :, 0] - drawn[:, :, 1]) / deviation[:, None]
    sign = torch.sign(reward[pairs[..., 0]] - reward[pairs[..., 1]])
    gap, counted = gap * sign[..., None], sign.abs()
    weight = torch.zeros((len(pairs), 3), dtype=torch.float64)
    total = counted.sum(1, keepdim=True)
    for _ in range(NEWTON_STEPS):
        wrong = torch.sigmoid(-(gap @ weight[..., None])[..., 0]) * counted
        gradient = -(wrong[..., None] * gap).sum(1) / total + ridge * weight
        curvature = (wrong * (1 - wrong))[..., None, None] * gap[..., :, None] * gap[..., None, :]
        hessian = curvature.sum(1) / total[..., None] + ridge * torch.eye(3, dtype=torch.float64)
        weight = weight - torch.linalg.solve(hessian, gradient)
    value = ((features - mean[:, None]) / deviation[:, None] @ weight[..., None])[..., 0]
    over = value.gather(1, pairs.flatten(1))
    return (value - over.mean(1, keepdim=True)) / over.std(1, keepdim=True)
