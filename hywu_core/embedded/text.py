"""The embedded text encoder: a sentence embedding and contextual word features, in English and Chinese.

The architecture is that of the multilingual Universal Sentence Encoder, CNN variant (Yang et al., arXiv
1907.04307): embeddings of subword pieces, three residual n-gram convolutions, a sum over the pieces and a
small residual head. The weights are its, pruned to two languages and adapted to requests for photographic
edits; see text/README.md. Last comes a memory: the directions of requests it knows, to the nearest of which
a sentence is drawn.

Shapes: B batch, N pieces with the two sentence marks, E = 512 channels, C = 256 channels of a branch,
M remembered directions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import HywuError
from ..storage import open_safetensors, write_safetensors
from . import ROOT
from .quantize import dequantize, quantize

logger = logging.getLogger("hywu")

TEXT_ENCODER = ROOT / "text" / "hywu_embedded_text.safetensors"
KIND = "hywu_embedded_text"
N_TOKENS = 32
# (n-gram order, pieces of it to the left of the centre), as the original was trained.
NGRAMS = ((2, 0), (3, 1), (5, 2))


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes of the encoder; `max_pieces` counts the words' pieces, without the two sentence marks.

    memory: how many sentence directions it remembers; 0 for none. recall_above: the cosine to the nearest of
    them from which on a sentence is taken for it.
    """

    vocabulary: int
    width: int = 512
    branch_width: int = 256
    head_width: int = 320
    max_pieces: int = 128
    memory: int = 0
    recall_above: float = 0.4

    def __post_init__(self) -> None:
        sizes = (self.vocabulary, self.width, self.branch_width, self.head_width, self.max_pieces)
        if min(sizes) < 1 or self.memory < 0:
            raise HywuError(
                f"Every size of the text encoder must be at least 1 (its memory 0), got {asdict(self)}."
            )
        if not 0 <= self.recall_above <= 1:
            raise HywuError(f"recall_above is a cosine from 0 to 1, not {self.recall_above}.")


class TextFeatures(NamedTuple):
    """What the prompts say: tokens (B, 32, 512), mask (B, 32) with True = real, pooled (B, 512); float32.

    The first token is the pooled sentence embedding, scaled to unit mean square; then comes one
    layer-normalised feature per piece. Tokens that are not real are zero.
    """

    tokens: Tensor
    mask: Tensor
    pooled: Tensor

    def without(self, rows: Tensor) -> TextFeatures:
        """The same, with nothing said in the rows (B,) that are True: for prompt dropout."""
        said = ~rows
        return TextFeatures(
            self.tokens * said[:, None, None], self.mask & said[:, None], self.pooled * said[:, None]
        )

    def rows(self, which: list[int] | slice) -> TextFeatures:
        """Those of some rows."""
        return TextFeatures(self.tokens[which], self.mask[which], self.pooled[which])


class _NgramBranch(nn.Module):
    """Two residual convolutions over windows of `order` pieces."""

    def __init__(self, width: int, order: int, left: int) -> None:
        super().__init__()
        self.pad = (left, order - 1 - left)
        self.conv1 = nn.Conv1d(width, width, order)
        self.conv2 = nn.Conv1d(width, width, order)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Features (B, C, N), mask (B, 1, N): what lies outside a sentence counts as zero in both layers."""
        for conv in (self.conv1, self.conv2):
            x = x * mask
            x = x + F.relu(conv(F.pad(x, self.pad)))
        return x


class _ResidualBlock(nn.Module):
    """x W_skip + relu(x W_in) W_out, without biases."""

    def __init__(self, d_in: int, d_hidden: int, d_out: int) -> None:
        super().__init__()
        self.into = nn.Linear(d_in, d_hidden, bias=False)
        self.out = nn.Linear(d_hidden, d_out, bias=False)
        self.skip = nn.Linear(d_in, d_out, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.skip(x) + self.out(F.relu(self.into(x)))


class EmbeddedTextEncoder(nn.Module):
    """Prompts to `TextFeatures`; about 10M parameters, milliseconds a prompt on a CPU."""

    def __init__(self, config: TextEncoderConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        if tokenizer.get_vocab_size() != config.vocabulary:
            raise HywuError(
                f"The tokenizer has {tokenizer.get_vocab_size()} pieces and the text encoder "
                f"{config.vocabulary}; they belong to different files."
            )
        self.config, self.tokenizer = config, tokenizer
        width, branch = config.width, config.branch_width
        self.embedding = nn.Embedding(config.vocabulary, width)
        self.project = nn.Linear(width, branch * len(NGRAMS))
        self.project_norm = nn.LayerNorm(branch * len(NGRAMS))
        self.branches = nn.ModuleList(_NgramBranch(branch, order, left) for order, left in NGRAMS)
        self.feature_norm = nn.LayerNorm(width + branch * len(NGRAMS))
        self.combine = nn.Linear(width + branch * len(NGRAMS), width)
        self.salience = nn.Linear(width, 1)
        self.head1 = _ResidualBlock(width, config.head_width, config.head_width)
        self.head2 = _ResidualBlock(config.head_width, width, width)
        if config.memory:
            self.register_buffer("memory", torch.zeros(config.memory, width))

    def remembering(self, directions: Tensor) -> EmbeddedTextEncoder:
        """A frozen copy that remembers these sentence directions (M, E) instead of what it remembered."""
        config = replace(self.config, memory=len(directions))
        copy = EmbeddedTextEncoder(config, self.tokenizer).to(self.device)
        copy.load_state_dict({**self.state_dict(), "memory": directions})
        return copy.eval().requires_grad_(False)

    def recall(self, sentences: Tensor) -> Tensor:
        """Normalised sentences (B, E) to the remembered directions (B, E), each to the nearest.

        Requests for one edit scatter by their wording, and what was trained on the sentence follows the
        scatter. This is a modern Hopfield network (Ramsauer et al., arXiv 2008.02217, eq. 3) at the limit of
        a large beta, where one update is the nearest pattern. A sentence less like all of them than
        `recall_above` is about something else, and stays as it is.
        """
        if not self.config.memory or not len(sentences):
            return sentences
        directions = F.normalize(self.memory.to(sentences), dim=-1)
        likeness, nearest = (sentences @ directions.T).max(dim=1)
        return torch.where(likeness[:, None] >= self.config.recall_above, directions[nearest], sentences)

    @property
    def device(self) -> torch.device:
        """Where the weights are, and the features will be."""
        return self.embedding.weight.device

    def tokenize(self, prompt: str) -> list[int]:
        """At most `max_pieces` piece ids between the two sentence marks; HywuError without any text."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids[: self.config.max_pieces]
        if not ids:
            raise HywuError("The instruction is empty; say in words what should change in the picture.")
        return [self.tokenizer.token_to_id("<s>"), *ids, self.tokenizer.token_to_id("</s>")]

    def _warn_if_cut(self, prompt: str) -> None:
        n_pieces = len(self.tokenizer.encode(prompt, add_special_tokens=False).ids)
        if n_pieces > (most := self.config.max_pieces):
            logger.warning(
                "The embedded text encoder reads %d pieces; an instruction of %d is cut.", most, n_pieces
            )

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Ids and mask (B, N), True = real, to features (B, N, E) and L2-normalised sentences (B, E)."""
        embedded = self.embedding(ids)
        real = mask.unsqueeze(1).to(embedded)
        branches = self.project_norm(self.project(embedded)).transpose(1, 2).chunk(len(NGRAMS), dim=1)
        ngrams = [branch(x, real).transpose(1, 2) for branch, x in zip(self.branches, branches, strict=True)]
        features = self.combine(self.feature_norm(torch.cat([embedded, *ngrams], dim=-1)))
        features = features * real.transpose(1, 2)
        # The original sums all pieces alike; here what is asked for outweighs how it is asked.
        weights = 2 * torch.sigmoid(self.salience(features)) * real.transpose(1, 2)
        total = (features * weights).sum(dim=1) / weights.sum(dim=1).sqrt()
        sentence = torch.tanh(self.head2(F.relu(self.head1(total))))
        return features, F.normalize(sentence, dim=-1)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], batched: bool = False, silent: bool = False) -> TextFeatures:
        """Encode prompts one by one: a prompt's features are the same bits in whatever company it comes.

        The sentence is what the memory recalls of it; the words stay as typed.

        `batched` encodes prompts of equal length together: much faster for thousands, and equal only to
        rounding. Tokens hold the first 31 pieces of a longer prompt, the pooled embedding up to 128; of more
        than these the log says that they are cut.
        HywuError for an empty one, unless `silent`: then it has no tokens at all, as prompt dropout wants it.
        """
        if isinstance(prompts, str) or not prompts:
            raise HywuError(f"The text encoder takes a list of at least one prompt, got {prompts!r}.")
        width = self.config.width
        tokens = torch.zeros(len(prompts), N_TOKENS, width, device=self.device)
        mask = torch.zeros(len(prompts), N_TOKENS, dtype=torch.bool, device=self.device)
        said = {row: prompt for row, prompt in enumerate(prompts) if not silent or prompt.strip()}
        ids = {row: self.tokenize(prompt) for row, prompt in said.items()}
        for row, prompt in said.items():
            if len(ids[row]) == self.config.max_pieces + 2:
                self._warn_if_cut(prompt)
        groups: dict[int, list[int]] = {}
        for row, pieces in ids.items():
            groups.setdefault(len(pieces) if batched else -row, []).append(row)
        for rows in groups.values():
            together = torch.tensor([ids[row] for row in rows], device=self.device)
            features, sentences = self(together, torch.ones_like(together, dtype=torch.bool))
            words = F.layer_norm(features[:, 1:-1][:, : N_TOKENS - 1].float(), (width,))
            tokens[rows, 0] = self.recall(sentences.float()) * width**0.5
            tokens[rows, 1 : 1 + words.shape[1]] = words
            mask[rows, : 1 + words.shape[1]] = True
        return TextFeatures(tokens=tokens, mask=mask, pooled=tokens[:, 0].clone())

    def save(self, path: str | Path, bits: dict[str, int], provenance: dict[str, str]) -> None:
        """Write matrices quantised to the `bits` given by module name (otherwise 8), the rest as float16.

        The tokenizer and the config travel in the header, so that the file is all one needs. Raises HywuError
        when it cannot be written.
        """
        tensors: dict[str, Tensor] = {}
        for name, tensor in self.state_dict().items():
            tensor = tensor.detach().cpu()
            if tensor.dim() == 1:
                tensors[name] = tensor.half()
            else:
                codes, scale = quantize(tensor.float(), bits.get(name, 8))
                tensors |= {f"{name}.codes": codes, f"{name}.scale": scale}
        header = {
            "kind": KIND,
            "config": json.dumps(asdict(self.config)),
            "tokenizer": self.tokenizer.to_str(),
        }
        write_safetensors(path, tensors, {**provenance, **header})

    @classmethod
    def load(cls, path: str | Path | None = None) -> EmbeddedTextEncoder:
        """Read a file written by `save` (default: the shipped one) as a frozen float32 model on the CPU.

        Raises HywuError when the file is missing, damaged or of another kind.
        """
        path = Path(path or TEXT_ENCODER)
        with open_safetensors(path) as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if header.get("kind") != KIND:
            raise HywuError(
                f"{path} is not an embedded text encoder (its header says kind '{header.get('kind')}')."
            )
        try:
            model = cls(
                TextEncoderConfig(**json.loads(header["config"])), Tokenizer.from_str(header["tokenizer"])
            )
            state = {}
            for name, like in model.state_dict().items():
                if like.dim() == 1:
                    state[name] = tensors[name].float()
                else:
                    codes, scale = tensors[f"{name}.codes"], tensors[f"{name}.scale"]
                    state[name] = dequantize(codes, scale, like.shape)
            model.load_state_dict(state)
        except HywuError:
            raise
        except Exception as error:  # the tokenizers library raises bare Exception
            raise HywuError(
                f"The text encoder {path} is damaged: {error!r}. Fetch the file again."
            ) from error
        return model.eval().requires_grad_(False)
