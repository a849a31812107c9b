"""What every algorithm, merge and family must hold to, to be called from a user's own tests.

from carft_core.contracts import check_algorithm

def test_l2_sp_keeps_the_contract() -> None:
    check_algorithm(L2Sp)
"""

from carft_core.contracts.algorithms import ALGORITHM_LAWS, check_algorithm
from carft_core.contracts.base import BrokenContract
from carft_core.contracts.families import FAMILY_LAWS, check_family
from carft_core.contracts.merges import MERGE_LAWS, check_merge

__all__ = [
    "ALGORITHM_LAWS",
    "FAMILY_LAWS",
    "MERGE_LAWS",
    "BrokenContract",
    "check_algorithm",
    "check_family",
    "check_merge",
]
