"""Whether the model's weights are there, whole."""

from __future__ import annotations

__all__ = ["check"]

from .common import Context, Facts, Findings, error, listed

_REPAIR = "weights"


def check(context: Context, host: str, node: Facts) -> Findings:
    """Weights that are absent, unfinished, or only pointers to the real files."""
    del context
    weights = node.get("weights")
    if not weights:
        return []
    found = []
    where = f"{weights['directory']} on {host}"
    if not weights["present"] or weights["missing"]:
        missing = listed(weights["missing"]) if weights["present"] else "the directory is absent or empty"
        found.append(
            error(
                "D17",
                host,
                f"the model's weights are not complete in {where}",
                missing,
                "The copy has not finished, or the shared directory is not mounted.",
                "Copy the model again, or mount the shared directory at the same path on every node.",
                _REPAIR,
            )
        )
    if weights.get("pointers"):
        found.append(
            error(
                "D18",
                host,
                f"files in {where} are pointers, not weights",
                listed(weights["pointers"]),
                "The repository was cloned without its large files.",
                "Fetch the large files: git lfs pull, or download with the model hub's own client.",
                _REPAIR,
            )
        )
    if weights.get("truncated"):
        found.append(
            error(
                "D19",
                host,
                f"weight files in {where} are cut off",
                listed(weights["truncated"]),
                "A copy was interrupted; each file's header says that more should follow.",
                "Copy those files again.",
                _REPAIR,
            )
        )
    if weights.get("altered"):
        found.append(
            error(
                "D34",
                host,
                f"weight files in {where} are not those that were verified",
                listed(weights["altered"]),
                "Somebody wrote them again, or restored a backup.",
                "Verify them again, or copy them from a node that has the right ones.",
                _REPAIR,
            )
        )
    return found
