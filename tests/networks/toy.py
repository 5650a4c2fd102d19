"""A small stand-in for the DiT: linears in blocks of the class that networks attach to, and around them."""

import torch
from torch import nn

WIDTH = 16


class WanAttentionBlock(nn.Module):
    """Named as the real one, since targets are chosen by class name."""

    def __init__(self):
        super().__init__()
        self.self_attn = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in "qkvo"})
        self.cross_attn = nn.ModuleDict({name: nn.Linear(WIDTH, WIDTH) for name in ("q", "k_img")})
        self.norm3 = nn.LayerNorm(WIDTH)
        self.ffn = nn.Sequential(nn.Linear(WIDTH, 24), nn.GELU(), nn.Linear(24, WIDTH))
        self.modulation = nn.Parameter(torch.zeros(1, 6, WIDTH))

    def forward(self, x):
        """Every linear has a say."""
        y = self.self_attn["q"](x) + self.self_attn["k"](x) + self.self_attn["v"](x)
        y = self.cross_attn["q"](self.self_attn["o"](y)) + self.cross_attn["k_img"](x)
        return x + self.ffn(self.norm3(y))


class Toy(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self):
        super().__init__()
        self.text_embedding = nn.Sequential(nn.Linear(WIDTH, WIDTH))
        self.blocks = nn.ModuleList(WanAttentionBlock() for _ in range(2))
        self.head = nn.ModuleDict({"head": nn.Linear(WIDTH, WIDTH)})

    def forward(self, x):
        """`B L I` to the same."""
        x = self.text_embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.head["head"](x)


def toy(seed=0):
    """A frozen toy whose weights depend on the seed."""
    torch.manual_seed(seed)
    return Toy().requires_grad_(False).eval()
