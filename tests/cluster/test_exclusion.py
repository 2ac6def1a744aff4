"""Which nodes may be left out of a job."""

import pytest

from toolkit.cluster.exclusion import exclusion_command, more_to_exclude

NODES = [f"n{number}" for number in range(1, 17)]


@pytest.mark.parametrize(
    ("failed", "excluded", "wants", "chosen", "why"),
    [
        (["n1"], [], 4, ["n1"], ""),
        (["n1", "n1", "n2"], ["n2"], 4, ["n1"], ""),
        ([], [], 4, [], ""),
        (["n5", "n6"], ["n1", "n2", "n3"], 4, ["n5"], "4 of 16 are left out already, at most 4"),
        (["n5"], ["n1", "n2", "n3", "n4"], 4, [], "4 of 16 are left out already, at most 4"),
        (["n1"], [], 16, [], "the job wants 16 and would not find that many"),
        (["n1", "n2"], ["n3"], 14, ["n1"], "the job wants 14 and would not find that many"),
    ],
)
def test_a_quarter_at_most_and_enough_is_left(
    failed: list[str], excluded: list[str], wants: int, chosen: list[str], why: str
) -> None:
    found, said = more_to_exclude(failed, excluded=excluded, up=NODES, total=16, wants=wants)
    assert found == chosen
    assert said.startswith(why) and bool(said) == bool(why)


def test_a_small_partition_leaves_nothing_out_and_a_node_that_is_down_is_no_loss() -> None:
    found = more_to_exclude(["n1"], excluded=[], up=["n1", "n2", "n3"], total=3, wants=1)
    assert found == ([], "0 of 3 are left out already, at most 0 may be")
    assert more_to_exclude(["n1"], excluded=[], up=NODES[1:], total=16, wants=15)[0] == ["n1"]


def test_outside_of_slurm_there_is_no_command() -> None:
    assert exclusion_command({}) == []
