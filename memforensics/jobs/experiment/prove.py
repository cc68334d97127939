"""prove: does a setting stop the growth? The command plain and under each variant, side by side."""

from collections.abc import Sequence

from memforensics.case.model import VariantResult
from memforensics.jobs.experiment.runs import experiment, parse_variants

__all__ = ["exit_code", "experiment", "parse_variants"]


def exit_code(results: Sequence[VariantResult]) -> int:
    """0 when a variant works; 1 when the command grows and none stops it; 4 when nothing could be shown."""
    effects = {result.effect for result in results} - {"baseline"}
    if "works" in effects:
        return 0
    return 4 if effects <= {"not-shown"} else 1
