"""`memforensics prove -- COMMAND`."""

from typing import Annotated

import typer

from memforensics.cli.common import JsonOption, RecordOption, print_json, verdict_duration_option

EXAMPLES = (
    "memforensics prove --env UCX_RCACHE_MAX_UNRELEASED=1024 -- python serve.py",
    "memforensics prove --variant 'MALLOC_ARENA_MAX=1 OMP_NUM_THREADS=1' --rounds 3 -- ./run.sh",
)


def prove(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The command to run.")],
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="A variant that sets this variable. Repeatable."),
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option("--variant", metavar="'A=1 B=2'", help="A variant that sets several variables. Repeatable."),
    ] = None,
    duration: Annotated[float, verdict_duration_option("How long each run lasts.")] = "20s",  # type: ignore[assignment]
    rounds: Annotated[int, typer.Option(min=1, help="How many times each variant runs.")] = 2,
    record: RecordOption = None,
    seed: Annotated[int | None, typer.Option(hidden=True)] = None,
    json: JsonOption = False,
) -> int:
    """Run COMMAND as it is and with each variant, in turn, and say which variant stops the growth.

    If COMMAND prints lines `units N` (its work so far), the throughput is compared too. Exit code 0: a variant works;
    1: COMMAND grows and no variant stops it; 4: nothing can be shown, because COMMAND alone does not grow."""
    from memforensics.cli.screen import live
    from memforensics.jobs.experiment.prove import exit_code, experiment, parse_variants
    from memforensics.report.terminal.experiment import experiment_table

    variants = parse_variants(env or [], variant or [])
    with live.progress("proving", quiet=json) as on_progress:
        _, results = experiment(
            command, variants, seconds=duration, rounds=rounds, record=record, seed=seed, on_progress=on_progress
        )
    if json:
        from memforensics.report.json.experiment import prove as shape

        print_json(shape(results))
    else:
        from memforensics.report.terminal.console import Console

        Console(width=None if live.is_terminal() else 120).print(experiment_table(results))
    return exit_code(results)
