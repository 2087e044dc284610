"""Where tasks work: git repositories, without touching them; the proof of what was done; what is kept on the disk."""

from .cleaning import Cleaning
from .quota import over_quota, used
from .verify import Verified, verify
from .work import Commit, Delivered, GitWork, Proof

__all__ = ["Cleaning", "Commit", "Delivered", "GitWork", "Proof", "Verified", "over_quota", "used", "verify"]
