"""The command line. Heavy imports stay inside the commands, so that ``--help`` answers at once."""

from __future__ import annotations

import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autocompress.errors import AutocompressError, Interrupted, RunError, UserError

if TYPE_CHECKING:
    from autocompress.config import StudyConfig
    from autocompress.engine.run_folder import RunFolder

app = typer.Typer(
    name="autocompress",
    help="Search jointly over architecture, sparsity, bit-widths and distillation; every candidate is a measured file.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

StudyArgument = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.")]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a search, such as runs/digits.")]
DataOption = Annotated[
    str | None,
    typer.Option("--data", metavar="DIR", help="Data folder; replaces [data] folder and AUTOCOMPRESS_DATA."),
]


def main() -> None:
    """Entry point: one line and status 2 for what the user has to mend, status 1 for anything else."""
    if not sys.warnoptions:
        # libraries warn their developers; what a user must know is an error or a line of the command's own
        warnings.simplefilter("ignore")
    try:
        status = app(standalone_mode=False)
    except typer.TyperException as error:
        _fail(f"{error.format_message().rstrip('.')}; see autocompress --help", 2)
    except UserError as error:
        _fail(str(error), 2)
    except AutocompressError as error:
        _fail(str(error), 1)
    except BrokenPipeError:
        sys.stderr.close()  # the reader has what it wanted; Python would complain at exit
        sys.exit(1)
    except OSError as error:
        _fail(
            f"files must be readable and writable; {error}; correct the path or its rights, or make room on the disk", 2
        )
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> None:
    print("autocompress: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(status)


@app.command()
def search(
    study: StudyArgument,
    trials: Annotated[int | None, typer.Option(min=1, help="Total number of trials of the run.")] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="30m", help="Total time of the run, such as 90s, 30m or 1h.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run folder; by default runs/<study name>.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Replaces the study's seed.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="Optuna storage; by default a journal in RUN.")
    ] = None,
    polish: Annotated[
        bool, typer.Option("--polish", help="Give the last part of the time to a few knee points of the front.")
    ] = False,
    data: DataOption = None,
) -> None:
    """Run a study, or resume it where it stopped."""
    from autocompress.config import load_study

    overrides = {"trials": trials, "timeout": timeout, "seed": seed}
    config = load_study(study, data, overrides)
    root = out or Path("runs") / config.study.name
    resume = shlex.join(["autocompress", *sys.argv[1:]])
    run = _search(config, root, storage, resume, polish)
    _show_results(run)


def _search(config: StudyConfig, root: Path, storage: str | None, resume: str, polish: bool) -> RunFolder:
    from rich.console import Console

    from autocompress.engine.run_folder import RunFolder, read_candidates
    from autocompress.engine.study import search as run_search
    from autocompress.progress import watcher_for

    try:
        with watcher_for(Console(), config) as watcher:
            return run_search(config, root, watcher, storage, polish=polish)
    except KeyboardInterrupt:
        run = RunFolder(root)
        if run.study_file.is_file() and read_candidates(run):
            _show_results(run)
        raise Interrupted(f"the search was interrupted; nothing finished is lost; to go on: {resume}") from None


def _show_results(run: RunFolder) -> None:
    """Print the front, write the report, and say what to do next."""
    from rich.console import Console

    from autocompress.report.table import front_table_text
    from autocompress.results import Results

    results = Results(run)
    Console(width=None if sys.stdout.isatty() else 160).print(front_table_text(results.candidates))
    print(f"report: {results.report()}")
    print(f"export a member: autocompress export {run.root} --trial N -o DIR")


@app.command()
def front(
    run: RunArgument,
    format: Annotated[Literal["table", "json", "csv"], typer.Option(help="How to print it.")] = "table",
) -> None:
    """Print the Pareto front of a run."""
    import json

    from rich.console import Console

    from autocompress.engine.run_folder import open_run
    from autocompress.report.frame import front_records
    from autocompress.report.table import front_table_text
    from autocompress.results import Results

    results = Results(open_run(run))
    if format == "json":
        print(json.dumps(front_records(results.candidates), indent=1))
    elif format == "csv":
        print(results.front.to_csv(index=False), end="")
    else:
        Console(width=None if sys.stdout.isatty() else 160).print(front_table_text(results.candidates))


@app.command()
def report(
    run: RunArgument,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="report.html", help="By default RUN/report.html.")
    ] = None,
) -> None:
    """Write the report page of a run: one file, works offline."""
    from autocompress.engine.run_folder import open_run
    from autocompress.results import Results

    print(Results(open_run(run)).report(output))


@app.command()
def export(
    run: RunArgument,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="New folder for the file and its card.")
    ],
    trial: Annotated[int | None, typer.Option(min=0, metavar="N", help="Number of the trial.")] = None,
    best: Annotated[
        str | None,
        typer.Option(metavar="EXPR", help="Such as 'max latency_speedup where val_drop_points <= 1'."),
    ] = None,
    to: Annotated[Literal["onnx"], typer.Option(help="Format.")] = "onnx",
) -> None:
    """Copy one candidate out of a run, verified, with its card."""
    from autocompress.engine.run_folder import open_run
    from autocompress.results import Results

    if (trial is None) == (best is None):
        raise RunError("export takes one of --trial N and --best EXPR; got both or neither; give one")
    results = Results(open_run(run))
    number = trial if trial is not None else results.choose(best or "")
    print(f"trial {number}: {results.export(output, trial=number)}")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `export` wrote.")],
    study: Annotated[
        Path | None,
        typer.Option(metavar="STUDY.toml", help="Also check the accuracy on this study's validation data."),
    ] = None,
    data: DataOption = None,
) -> None:
    """Check that an exported file still does what its card says; latency is printed, never failed."""
    from autocompress.config import load_study
    from autocompress.deploy.card import verify_folder
    from autocompress.engine.delivery import latency_line, verify_accuracy
    from autocompress.errors import VerificationFailed

    checks = verify_folder(folder)
    if study is not None and all(check.passed for check in checks):
        checks.append(verify_accuracy(folder, load_study(study, data)))
    for check in checks:
        print(f"{'ok    ' if check.passed else 'FAILED'} {check.name}: {check.detail}")
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise VerificationFailed(f"the file must do what its card says; failed: {', '.join(failed)}; export it again")
    print(latency_line(folder))


@app.command()
def check(study: StudyArgument, data: DataOption = None) -> None:
    """Load everything, measure the baseline, try one candidate, and say how long the study takes."""
    from autocompress.config import load_study
    from autocompress.engine.preview import preview

    for line in preview(load_study(study, data)):
        print(line, flush=True)
