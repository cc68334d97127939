"""prove: whether a setting stops the growth. Runs the command as it is and under each variant, and compares."""

from collections.abc import Sequence

from memforensics.case.model import VariantResult
from memforensics.jobs.experiment.runs import experiment, parse_variants

__all__ = ["exit_code", "experiment", "parse_variants"]


def exit_code(results: Sequence[VariantResult]) -> int:
    """0: a variant works; 1: the command grows and no variant stops it; 4: nothing could be shown."""
    effects = {result.effect for result in results} - {"baseline"}
    if "works" in effects:
        return 0
    return 4 if effects <= {"not-shown"} else 1
