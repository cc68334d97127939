"""prove -- CMD: the command plain and with each remedy, slopes side by side."""

from typing import Annotated

import typer

from memforensics.cli.common import BECAUSE, LEAST_S, JsonOption, RecordOption, duration_option, print_json

EXAMPLES = (
    "memforensics prove --env UCX_RCACHE_MAX_UNRELEASED=1024 -- python serve.py",
    "memforensics prove --variant 'MALLOC_ARENA_MAX=1 OMP_NUM_THREADS=1' --rounds 3 -- ./run.sh",
)


def prove(
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="The command to run.")],
    env: Annotated[
        list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="A variant that sets this; repeatable.")
    ] = None,
    variant: Annotated[
        list[str] | None,
        typer.Option("--variant", metavar="'A=1 B=2'", help="A variant of several; repeatable."),
    ] = None,
    duration: Annotated[float, duration_option("How long each run lasts.", least=LEAST_S, because=BECAUSE)] = "20s",  # type: ignore[assignment]
    rounds: Annotated[int, typer.Option(min=1, help="How often each variant runs.")] = 2,
    record: RecordOption = None,
    seed: Annotated[int | None, typer.Option(hidden=True)] = None,
    json: JsonOption = False,
) -> int:
    """Run COMMAND plain and under each variant, in turn; say which one stops the growth.

    A line `units N` that the command prints (its work so far) gives the throughput. Exit code 0: a variant works;
    1: it grows and none stops it; 4: nothing could be shown, the plain command does not grow."""
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
