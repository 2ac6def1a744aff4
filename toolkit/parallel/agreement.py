"""All ranks end with the same error: what is wrong on any rank is raised on every rank.

Knows that ranks end together. Refuses to know what went wrong.
"""

from toolkit.base.errors import BadInput, RunFailed
from toolkit.parallel import comm

BAD, FAILED = "bad: ", "failed: "  # put before the message of a rank, to carry the error's type


def agree(problem: BadInput | RunFailed | None) -> None:
    """Raise on every rank the problem that any rank passes (None: no problem here); rank 0 prints
    it. Collective."""
    mark = BAD if isinstance(problem, BadInput) else FAILED
    texts = [text for text in comm.gather_texts(f"{mark}{problem}" if problem else "") if text]
    if not texts:
        return
    # If any rank has bad input, report only that: fixing the other failures would not help.
    chosen = [text for text in texts if text.startswith(BAD)] or texts
    words = [text.removeprefix(BAD).removeprefix(FAILED) for text in chosen]
    raise alike(
        (BadInput if chosen[0].startswith(BAD) else RunFailed)("; ".join(dict.fromkeys(words)))
    )


def alike(error: BadInput | RunFailed) -> BadInput | RunFailed:
    """Mark an error as one that every rank raises, so that only rank 0 prints it."""
    error.agreed, error.quiet = comm.world_size() > 1, comm.rank() > 0
    return error
