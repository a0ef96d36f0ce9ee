"""The generator against the paper's formulas written down plainly: one position at a time, in float64."""

import cmath
import math

import pytest
import torch

from hywu_core.conditions import Condition
from hywu_core.generator import GeneratorConfig, ParameterGenerator
from hywu_core.lora import Band, LoraSpec, ModuleShape
from hywu_core.tokens import TokenLayout, encode

# RoPE angles are float32 by design, everything else here is float64.
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def rms_norm(x, weight, eps):
    return [v / math.sqrt(sum(u * u for u in x) / len(x) + eps) * w for v, w in zip(x, weight, strict=True)]


def linear(x, weight, bias):
    return [sum(w * v for w, v in zip(row, x, strict=True)) + b for row, b in zip(weight, bias, strict=True)]


def turn(head, position, theta):
    """RoPE as a product of complex numbers; every index of the position owns an equal share of the head."""
    share = len(head) // len(position)
    out = []
    for axis, index in enumerate(position):
        part = head[axis * share : (axis + 1) * share]
        for i in range(0, share, 2):
            z = complex(part[i], part[i + 1]) * cmath.exp(1j * index * theta ** (-i / share))
            out += [z.real, z.imag]
    return out


def attend(queries, keys, values, query_positions, key_positions, n_heads, theta):
    """Lists of vectors in, a list of vectors out."""
    width = len(queries[0]) // n_heads
    outputs = []
    for q, q_at in zip(queries, query_positions, strict=True):
        output = []
        for h in range(n_heads):
            cut = slice(h * width, (h + 1) * width)
            q_h = turn(q[cut], q_at, theta)
            scores = []
            for k, k_at in zip(keys, key_positions, strict=True):
                k_h = turn(k[cut], k_at, theta)
                scores.append(sum(a * b for a, b in zip(q_h, k_h, strict=True)) / math.sqrt(width))
            exps = [math.exp(s - max(scores)) for s in scores]
            output += [
                sum(e * v[cut][c] for e, v in zip(exps, values, strict=True)) / sum(exps)
                for c in range(width)
            ]
        outputs.append(output)
    return outputs


class Reference:
    """One band of a generator, for one condition."""

    def __init__(self, generator: ParameterGenerator) -> None:
        self.weights = {name: t.tolist() for name, t in generator.state_dict().items()}
        self.config = generator.config
        self.band = generator.bands[0]

    def norm(self, name, x):
        return rms_norm(x, self.weights[f"{name}.weight"], self.config.norm_eps)

    def linear(self, name, x, part=0, parts=1):
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        n = len(weight) // parts
        return linear(x, weight[part * n : (part + 1) * n], bias[part * n : (part + 1) * n])

    def self_attention(self, name, xs, positions):
        q, k, v = ([self.linear(f"{name}.qkv", x, part, 3) for x in xs] for part in range(3))
        out = attend(q, k, v, positions, positions, self.config.n_heads, self.config.rope_theta)
        return [self.linear(f"{name}.out", x) for x in out]

    def tokens(self, condition):
        """condition (S, D) to tokens (L, T, r, C) as nested lists."""
        config, L, T = self.config, self.band.n_layers, sum(self.band.n_tokens)
        a, groups = config.accumulation, self.band.n_ranks
        context = [self.norm("condition_norm", self.linear("condition_in", c)) for c in condition]
        x = {}
        for layer in range(L):
            for p in range(T * groups):
                rows = [self.weights["bands.0.token_rank"][p * a + i] for i in range(a)]
                layer_row = self.weights["bands.0.layer"][layer]
                joined = [u + v for row in rows for u, v in zip(row, layer_row, strict=True)]
                x[layer, p] = self.norm("prior_norm", joined)
        for n in range(config.n_layers):
            x = self.block(f"blocks.{n}", x, context, L, T, groups)

        out = []
        for layer in range(L):
            out.append([])
            for token in range(T):
                out[-1].append([])
                for g in range(groups):
                    position = self.norm("final_norm", x[layer, token * groups + g])
                    for i in range(a):
                        row = position[i * config.d_row : (i + 1) * config.d_row]
                        head = "proj_out_A" if token < self.band.n_tokens[0] else "proj_out_B"
                        gain = self.weights["bands.0.gain"][token]
                        out[-1][-1].append([v * gain for v in self.linear(head, row)])
        return out

    def block(self, name, x, context, L, T, groups):
        P = T * groups
        x = dict(x)
        for p in range(P):  # between layers
            column = [self.norm(f"{name}.layer_norm", x[layer, p]) for layer in range(L)]
            out = self.self_attention(f"{name}.layer_attention", column, [(layer,) for layer in range(L)])
            for layer in range(L):
                x[layer, p] = add(x[layer, p], out[layer])
        for layer in range(L):  # within a layer
            row = [self.norm(f"{name}.token_norm", x[layer, p]) for p in range(P)]
            places = [(p // groups, p % groups) for p in range(P)]
            out = self.self_attention(f"{name}.token_attention", row, places)
            for p in range(P):
                x[layer, p] = add(x[layer, p], out[p])
        cross = f"{name}.condition_attention"
        keys = [self.linear(f"{cross}.kv", c, 0, 2) for c in context]
        values = [self.linear(f"{cross}.kv", c, 1, 2) for c in context]
        diagonal = [(max(T, groups) + i,) * 2 for i in range(len(context))]
        for at, old in x.items():
            query = self.linear(f"{cross}.q", self.norm(f"{name}.condition_norm", old))
            (out,) = attend(
                [query], keys, values, [at], diagonal, self.config.n_heads, self.config.rope_theta
            )
            x[at] = add(old, self.linear(f"{cross}.out", out))
        for at, old in x.items():
            hidden = self.linear(f"{name}.feed_forward.fc1", self.norm(f"{name}.feed_forward_norm", old))
            hidden = [h / (1 + math.exp(-h)) for h in hidden]
            x[at] = add(old, self.linear(f"{name}.feed_forward.fc2", hidden))
        return x


def add(x, y):
    return [u + v for u, v in zip(x, y, strict=True)]


@pytest.mark.parametrize("kind", ["rank_anchored", "flat"])
def test_the_generator_is_the_formula(kind):
    torch.manual_seed(0)
    config = GeneratorConfig(
        condition_dim=3, d_model=16, n_layers=2, n_heads=2, mlp_ratio=1.5, accumulation=2, rope_theta=50.0
    )
    spec = LoraSpec((Band("layers", 2, (ModuleShape("a", 4, 6), ModuleShape("b", 6, 2))),), rank=4, alpha=1)
    layout = TokenLayout(kind, segment=2)
    generator = ParameterGenerator(config, spec, layout).double()
    for parameter in generator.parameters():  # no zeros and ones that could hide a missing term
        torch.nn.init.normal_(parameter, std=0.4)
    condition = torch.randn(2, 3, 3, dtype=torch.float64)
    mask = torch.tensor([[True, True, True], [True, True, False]])

    got = encode(generator(Condition(condition, mask)), spec, layout)["layers"]
    reference = Reference(generator)
    for row, n_real in enumerate((3, 2)):
        wanted = torch.tensor(reference.tokens(condition[row, :n_real].tolist()), dtype=torch.float64)
        torch.testing.assert_close(got[row], wanted, **TOLERANCE)
