"""Which tokens MNTP hides, and what replaces them. Knows token ids and random numbers.

LLM2Vec (arXiv 2404.05961, section 2.2 and appendix D): BERT's 80/10/10, or the mask token for all
hidden tokens; the hidden token i is predicted at position i - 1.

A random replacement may be any token of the tokenizer, even a special one. The paper's code
inherits its collator from transformers' DataCollatorForLanguageModeling, which draws from all
len(tokenizer) ids, and we do the same (Mistral has three special tokens among 32,000, so 0.0002 %
of all tokens become one). Only ids for which the model has no vector are never drawn.
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
    """Returns the corrupted ids (T,) and whether each position is hidden (T,). Random replacements
    are below `vocab_size`.

    Only a text's own tokens are hidden, and never the first position, because no position precedes
    it. If any token of a row can be hidden, at least one is.
    """
    can_hide_T = own_T.copy()
    can_hide_T[:1] = False
    hidden_T = can_hide_T & (rng.random(len(ids_T)) < probability)
    # A short row may draw no token at all; it would have no loss, and its tokens would be wasted.
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
