"""Which tokens MNTP hides, and what stands in their place. Knows token ids and random numbers.

LLM2Vec (arXiv 2404.05961, section 2.2 and appendix D): BERT's 80/10/10, or all hidden tokens
replaced; the hidden token i is predicted at position i - 1.

A random replacement is any token of the tokenizer, special ones included: the paper's code inherits
its collator from transformers' DataCollatorForLanguageModeling, which draws from all len(tokenizer)
ids, and we do as it does (three of 32,000 in Mistral's; 0.0002 % of all tokens). Only what the
model has no vector of is never drawn.
"""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]


def mask_tokens(
    ids_T: Ids,
    *,
    own_T: NDArray[np.bool_],
    probability: float,
    policy: str,
    mask_id: int,
    vocab_size: int,
    rng: np.random.Generator,
) -> tuple[Ids, NDArray[np.bool_]]:
    """The corrupted ids (T,) and which positions (T,) are hidden. Random replacements are below
    `vocab_size`.

    Only a text's own tokens are hidden, and never the first position, which nothing precedes. Of a
    row that could hide a token at least one is hidden.
    """
    can_hide_T = own_T.copy()
    can_hide_T[:1] = False
    hidden_T = can_hide_T & (rng.random(len(ids_T)) < probability)
    if not hidden_T.any() and can_hide_T.any():
        hidden_T[rng.choice(np.flatnonzero(can_hide_T))] = True
    corrupted_T = ids_T.copy()
    lot_T = rng.random(len(ids_T))
    random_T = rng.integers(vocab_size, size=len(ids_T))
    if policy == "all":
        corrupted_T[hidden_T] = mask_id
        return corrupted_T, hidden_T
    masked_T = hidden_T & (lot_T < 0.8)
    replaced_T = hidden_T & (lot_T >= 0.8) & (lot_T < 0.9)
    corrupted_T[masked_T] = mask_id
    corrupted_T[replaced_T] = random_T[replaced_T]
    return corrupted_T, hidden_T
