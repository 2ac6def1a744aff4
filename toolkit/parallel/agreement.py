"""One end for all ranks: what any of them has found, each raises.

Knows that ranks end alike. Refuses to know what was found.
"""

from toolkit.base.errors import BadInput, RunFailed
from toolkit.parallel import comm

BAD, FAILED = "bad: ", "failed: "  # before the words of a rank


def agree(problem: BadInput | RunFailed | None) -> None:
    """Raise on every rank what any rank brings, if one does; rank 0 is to say it. Collective."""
    mark = BAD if isinstance(problem, BadInput) else FAILED
    texts = [text for text in comm.gather_texts(f"{mark}{problem}" if problem else "") if text]
    if not texts:
        return
    # What the input is to blame for comes first: mending the rest would not help.
    chosen = [text for text in texts if text.startswith(BAD)] or texts
    words = [text.removeprefix(BAD).removeprefix(FAILED) for text in chosen]
    raise alike(
        (BadInput if chosen[0].startswith(BAD) else RunFailed)("; ".join(dict.fromkeys(words)))
    )


def alike(error: BadInput | RunFailed) -> BadInput | RunFailed:
    """The same error as one that every rank raises; where there are several, rank 0 says it."""
    error.agreed, error.quiet = comm.world_size() > 1, comm.rank() > 0
    return error
