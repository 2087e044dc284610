"""Where tasks work: git repositories, without touching them; what is kept on the disk."""

from .cleaning import Cleaning
from .quota import over_quota, used
from .work import Commit, Delivered, GitWork, Proof

__all__ = ["Cleaning", "Commit", "Delivered", "GitWork", "Proof", "over_quota", "used"]
