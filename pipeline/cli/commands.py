"""What the verbs of ``python -m pipeline`` do."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from export.errors import ProjectError
from export.tensorrt.driver import driver_status
from export.words import count
from pipeline.artifacts.files import recipe_lock
from pipeline.artifacts.manifest import read_manifest
from pipeline.artifacts.output import check_output
from pipeline.artifacts.parity_report import FAIL, INCONCLUSIVE, PASS
from pipeline.artifacts.paths import CARD, PARITY, REPORT, Artifacts
from pipeline.artifacts.results import Verified
from pipeline.cli import options as cli
from pipeline.cli.infer_options import refuse_without_images
from pipeline.cli.status import (
    refuse_in_advance,
    refuse_stale_artifacts,
    warn_of_a_new_training,
    warn_of_damage,
    warn_of_stale_inputs,
)
from pipeline.cli.verbs import build_parser
from pipeline.cli.verify_options import check_verify_options, read_baseline
from pipeline.recipe.load import dump_yaml, to_dict
from pipeline.serving.candidates import why_nothing_runs
from pipeline.serving.select_model import select_model
from pipeline.stages import BY_NAME, STAGES, build, layers, verify
from pipeline.terminal.command_line import Invocation
from pipeline.terminal.processes import raise_interruption, run_child
from pipeline.workflow.context import Context
from pipeline.workflow.stage import Outcome, Stage, execute, reasons_to_run

log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: the words after the program's name. Defaults to None: those of this process.

    Returns:
        int: the exit status.
    """
    return cli.run_command(build_parser(), argv, _dispatch)


def _dispatch(args: argparse.Namespace) -> dict[str, object]:
    if args.command == "doctor":
        from pipeline.cli.doctor import doctor

        return doctor()
    if args.command == "inspect":
        from pipeline.cli.inspect_model import inspect_model

        return inspect_model(args.model, args.recipe)
    if args.command == "engine":
        from pipeline.cli.inspect_engine import check_engine_file, inspect_engine_file

        return inspect_engine_file(args.plan) if args.action == "inspect" else check_engine_file(args.plan)
    if args.command == "unpack":
        from pipeline.cli.bundle import unpack

        return unpack(args.archive, args.artifacts, force=args.force)
    if args.command == "verify" and args.reduce:
        args.layers, args.overrides = True, [*args.overrides, "verify.reduce=true"]
    context = cli.make_context(args)
    _warn_of_overrides_given_twice(args.overrides)
    names_images = args.command == "infer" and (args.inputs or args.lists)
    if names_images and (args.explain or args.force):
        raise ProjectError(
            "Expected --explain and --force without images: they concern the stage. Received: both. Leave one out."
        )
    if args.command == "config":
        print(dump_yaml(context.recipe), end="")
        return {"recipe": context.recipe.name, "config": to_dict(context.recipe)}
    log.info("recipe %s (%s)", context.recipe.name, context.recipe_path)
    if args.command == "benchmark":
        if not args.explain:
            warn_of_damage(context)
        return _benchmark(args)
    if args.command == "bundle":
        from pipeline.cli.bundle import bundle

        name = f"{context.recipe.name}.bundle.tar"
        output = args.output or Path(name)
        check_output(output, "-o", name, (".tar",))
        if (context.root / CARD).is_file():
            context.card()  # a recipe that contradicts the model is the cause of stale results, so it is named first
        refuse_stale_artifacts(context)
        return bundle(context, output)
    if args.command == "triton-repo":
        from pipeline.cli.triton import make_repository

        return make_repository(args, context)
    if names_images:
        from pipeline.cli.infer import infer_images

        return infer_images(args, context)
    if args.command == "serve":
        from pipeline.cli.serve import serve_recipe

        return serve_recipe(args, context)
    if args.command == "infer":
        refuse_without_images(args)
    if args.command == "verify":
        check_verify_options(args)
        if args.onnx:
            from pipeline.cli.verify import verify_onnx_files

            return verify_onnx_files(args, context)
    if args.explain:
        return _explain(args, context)
    with recipe_lock(context.root, wait=not args.no_wait):
        return _run_all(args, context) if args.command == "run" else _run_one(args, context)


def _run_all(args: argparse.Namespace, context: Context) -> dict[str, object]:
    outcomes: list[Outcome] = []
    serves = True
    for stage in STAGES:
        if stage.name == "infer":
            benchmark = _benchmark(args)
            if benchmark["exit"] != cli.DONE:
                raise ProjectError(f"Expected the benchmark to succeed. Received: {benchmark['error']}")
            try:
                with context.invocation.completing_errors():
                    select_model(Artifacts(context.root), context.settings)
            except ProjectError as error:  # the report is written all the same
                log.error("nothing is classified: %s", error)
                serves = False
                continue
        outcomes.append(execute(stage, context, args.force))
        _log_missing_engines(context, outcomes[-1])
        if stage is verify.STAGE:
            verified = verify.STAGE.recorded(context, outcomes[-1].manifest)
            _log_verdict(context, verified)
    log.info("verdict   %s", verified.verdict)
    log.info("report    %s", context.root / REPORT)
    result = _result(context, outcomes)
    if not serves and result["exit"] == cli.DONE:
        result["exit"] = cli.SOME_FAILED
    result["stages"]["benchmark"] = {
        key: value for key, value in benchmark.items() if key not in ("command", "recipe", "exit")
    }
    return result


def _named_stages(args: argparse.Namespace) -> tuple[Stage[Any], ...]:
    """Return the stage of a verb, and that of the layers behind it where they are asked for."""
    stage = BY_NAME[args.command]
    return (stage, layers.STAGE) if stage is verify.STAGE and args.layers else (stage,)


def _run_one(args: argparse.Namespace, context: Context) -> dict[str, object]:
    stage, *others = _named_stages(args)
    # It may be the very file that this verdict replaces.
    baseline = read_baseline(args.baseline) if stage is verify.STAGE and args.baseline is not None else None
    if stage.name != "train" and (context.root / CARD).is_file():
        context.card()  # refuses a recipe that contradicts the model, even where the stage is up to date
    if stage.name == "train":
        warn_of_a_new_training(context)
    warn_of_stale_inputs(stage, context)
    outcome = execute(stage, context, args.force)
    if stage.name == "verify":
        verified = verify.STAGE.recorded(context, outcome.manifest)
        _log_verdict(context, verified)
        if not outcome.ran and verified.verdict == PASS:
            log.info("verdict   pass, on %s", count(verified.images, "test image"))
        # An unpacked verdict is up to date like one that was given here.
        if not outcome.ran and (reason := why_nothing_runs(Artifacts(context.root), driver_status())):
            log.warning("the verdict comes from another machine; none of its files can be run here: %s", reason)
    _log_missing_engines(context, outcome)
    outcomes = [outcome, *(execute(other, _context_of(other, context), args.force) for other in others)]
    if others and context.recipe.verify.reduce:
        _log_reduced(context, outcomes[-1], verify.STAGE.recorded(context, outcome.manifest))
    result = _result(context, outcomes)
    if stage.name != "verify":
        return result
    from pipeline.cli.verify import finish_verdict

    return finish_verdict(args, context, baseline, result)


def _context_of(stage: Stage[Any], context: Context) -> Context:
    """Return the context for a stage: for the layers that of a recipe with ``verify.reduce``, if its result is there.

    Such a result has all that the layers have without it, and more.
    """
    if stage is not layers.STAGE or context.recipe.verify.reduce:
        return context
    verify_too = replace(context.recipe.verify, reduce=True)
    reduced = replace(context, recipe=replace(context.recipe, verify=verify_too))
    return context if reasons_to_run(stage, reduced) else reduced


def _log_reduced(context: Context, outcome: Outcome, verified: Verified) -> None:
    """Say where the smallest parts that fail lie, or that there are none; the stage says nothing when up to date."""
    result = layers.STAGE.recorded(context, outcome.manifest)
    for run, folder in result.reduced.items():
        log.info("the smallest part of %s that fails: %s", run, context.folder("layers") / folder)
    if not result.reduced:
        fails = verified.verdict == FAIL or result.first_below
        log.info("nothing %s, so nothing is cut out", "of what fails could be made smaller" if fails else "fails")


def _log_missing_engines(context: Context, outcome: Outcome) -> None:
    """Warn again that there are no engines, or none for this machine, where the build stage did not run."""
    if outcome.stage != "build" or outcome.ran:
        return
    result = build.STAGE.recorded(context, outcome.manifest)
    if result.why_not:
        log.warning("no engine is built here. %s", result.why_not)
    if result.not_here:
        log.warning("%s", result.not_here)


def _log_verdict(context: Context, result: Verified) -> None:
    """Log what a verdict other than pass asks of the user; the stage logs nothing where it is up to date."""
    for warning in result.warnings:
        log.warning("%s", warning)
    if result.verdict == FAIL:
        for hint in result.hints:
            log.error("%s", hint)
        log.error("verdict: fail. See %s", context.root / PARITY)
    elif result.verdict == INCONCLUSIVE:
        log.warning(
            "verdict: inconclusive: %s test images are too few to tell, about %s would. %s. See %s",
            f"{result.images:,}",
            f"{result.images_to_decide or 0:,}",
            _more_images(result, context.recipe.verify.max_images),
            context.root / PARITY,
        )


def _more_images(result: Verified, most: int) -> str:
    """Say how to get enough test images for a verdict; images that the limit leaves out come first."""
    needed, unused = result.images_to_decide or 0, result.images_left or 0
    if result.images + unused >= needed:
        return f"There are enough: raise verify.max_images (now {most:,}) to {needed:,}"
    besides = f", besides {unused:,} that verify.max_images leaves out" if unused else ""
    in_all = f" (about {count(result.images_in_all, 'image')} in all give as many)" if result.images_in_all else ""
    limit = f", and raise verify.max_images (now {most:,}) to as many" if needed > most else ""
    return f"Add more test images{besides}{in_all}{limit}"


def _benchmark(args: argparse.Namespace) -> dict[str, Any]:
    """Run the benchmark in a process of its own, whose memory and threads nothing else uses; return its JSON line."""
    status, output = run_child(
        [
            *(sys.executable, "-m", "benchmarks", "-c", str(args.config)),
            *Invocation(args.config, args.artifacts, args.overrides).options,
            "--json",
            *(
                f"--{name.replace('_', '-')}"
                for name in ("force", "explain", "no_wait", "quiet", "verbose")
                if getattr(args, name)
            ),
        ]
    )
    raise_interruption(status)
    if status == cli.OUTPUT_CLOSED:
        raise BrokenPipeError
    text, _, line = output.rstrip("\n").rpartition("\n")
    if text:
        print(text, flush=True)
    try:
        return {**json.loads(line), "command": "benchmark"}
    except ValueError:  # the process crashed or was killed
        raise ProjectError(f"Expected the benchmark to succeed. Received: exit status {status}, see above.") from None


def _result(context: Context, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    results = {o.stage: {**o.manifest.result, "status": "done" if o.ran else "up to date"} for o in outcomes}
    if hints := results.get("verify", {}).get("hints"):
        results["verify"]["hints"] = [context.invocation.complete(hint) for hint in hints]
    verdict = results.get("verify", {}).get("verdict")
    failed = results.get("infer", {}).get("failed", 0)
    status = cli.VERDICT_FAIL if verdict == FAIL else cli.SOME_FAILED if failed else cli.DONE
    return {
        **{"recipe": context.recipe.name, "stages": results, "exit": status},
        **({"verdict": verdict} if verdict else {}),
    }


def _explain(args: argparse.Namespace, context: Context) -> dict[str, object]:
    stages = STAGES if args.command == "run" else _named_stages(args)
    if args.command not in ("run", "train") and (context.root / CARD).is_file():
        context.card()
    explained: dict[str, list[str]] = {}
    depends = ""  # the reason of every stage behind the first that would run
    for stage in stages:
        if stage.name == "infer" and args.command == "run":
            if depends:
                explained["benchmark"] = [depends]
                print(f"benchmark would run: {depends}", flush=True)
            else:
                explained |= _benchmark(args).get("explain", {})
        if depends:
            reasons = ["it has not run" if read_manifest(context.folder(stage.name)) is None else depends]
        else:
            reasons = ["--force"] if args.force else reasons_to_run(stage, _context_of(stage, context))
            if reasons:
                depends = f"depends on what {stage.name} will write"
                try:
                    refuse_in_advance(stage, context)
                except ProjectError as error:
                    raise ProjectError(f"{stage.name} would be refused: {error}") from error
        explained[stage.name] = reasons
        print(f"{stage.name:<9} {'would run: ' + '; '.join(reasons) if reasons else 'up to date'}", flush=True)
    return {"recipe": context.recipe.name, "explain": explained}


def _warn_of_overrides_given_twice(overrides: Sequence[str]) -> None:
    last: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.partition("=")
        if key in last and last[key] != value:
            log.warning("--set %s is given twice, %s and %s: the last one counts", key, last[key], value)
        last[key] = value
