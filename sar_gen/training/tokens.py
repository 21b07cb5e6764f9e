"""The learned token: rows of a text encoder's table that are trained while all the others stay (arXiv 2208.01618)."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from sar_gen.errors import InputError
from sar_gen.pipelines import add_token


class TokenEmbedding(torch.nn.Embedding):
    """An embedding table of which only ``rows``, the last ones, are trained; the others cannot move.

    Attributes:
        rows: ``(count, width)`` float32, trained.
        first: id of the first of them.
        known: rows of the table before the token came.
        spread: standard deviation of the frozen table, which ``keep_spread`` brings each row back to.
    """

    def __init__(self, table: torch.Tensor, first: int, known: int, rows: torch.Tensor, spread: float) -> None:
        super().__init__(*table.shape, _weight=table)
        self.weight.requires_grad_(False)
        self.first = first
        self.known = known
        self.spread = spread
        self.rows = torch.nn.Parameter(rows.float())

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return ``(…, width)`` in the table's dtype."""
        found = functional.embedding(ids, self.weight)
        own = functional.embedding((ids - self.first).clamp(0, len(self.rows) - 1), self.rows).to(found.dtype)
        mine = (ids >= self.first) & (ids < self.first + len(self.rows))
        return torch.where(mine.unsqueeze(-1), own, found)

    @torch.no_grad()
    def keep_spread(self) -> None:
        """Scale each row to the table's standard deviation: a row that grows would drown the rest of the prompt."""
        self.rows.mul_(self.spread / self.rows.std(dim=1, keepdim=True).clamp_min(1e-8))


def learn_token(
    encoder: Any, tokenizer: Any, token: str, count: int, init: str | None, generator: torch.Generator
) -> tuple[TokenEmbedding, Any]:
    """Give a text encoder a ``TokenEmbedding`` and return it with a tokenizer that knows ``token``.

    Args:
        encoder: transformers CLIP text model.
        tokenizer: its tokenizer.
        token: for example ``<SAR>``.
        count: rows.
        init: word whose mean row the new ones start from, with a tenth of noise; random rows when ``None``.
        generator: of the random numbers, on the CPU.

    Raises:
        InputError: the tokenizer knows the token already, or ``init`` is empty.
    """
    old = encoder.get_input_embeddings()
    table, width = old.weight.detach(), old.embedding_dim
    spread = float(table.float().std())
    rows = torch.randn((count, width), generator=generator)
    if init is not None:
        ids = tokenizer(init, add_special_tokens=False).input_ids
        if not ids:
            raise InputError("token_init is empty; give a word, or leave it out.")
        centre = table[ids].float().mean(dim=0).cpu()
        rows = centre / centre.std().clamp_min(1e-8) + 0.1 * rows
    larger = add_token(encoder, tokenizer, token, rows.to(table))
    first = int(larger.convert_tokens_to_ids(token))
    larger_table = encoder.get_input_embeddings().weight.detach().clone()
    larger_table[: len(table)] = table  # a table with rows to spare may have lent one to the token
    learned = TokenEmbedding(larger_table, first, len(table), rows, spread)
    learned.keep_spread()
    encoder.set_input_embeddings(learned)
    return learned, larger
