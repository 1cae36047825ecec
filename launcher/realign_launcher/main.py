"""`realign-launch`: a hostfile's daemons up, then a `realign` command on them, then down what was started."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from realign_cluster.coordinator.home import ClusterHome
from realign_cluster.coordinator.hostfile_reader import naming_hostfile, read_hostfile
from realign_cluster.domain.errors import RealignError, UsageError
from realign_cluster.domain.hostfile import Hostfile
from realign_cluster.domain.suggest import did_you_mean
from realign_launcher.child import ON_A_CLUSTER, command_line, run_child
from realign_launcher.fleet import Fleet, Outcome, dry_run
from realign_launcher.progress import Progress

VERBS = ("up", "down", "status")
INTERRUPTED = 130

EPILOG = """\
COMMAND is a command of `realign` that works on a cluster (curate, train, workflow, calibrate, plan, nodes,
doctor) with its arguments; it is given this hostfile. Or one of:
  up       start the daemons that do not run, and leave them running
  down     stop the daemons of the hostfile, whoever started them
  status   say of each host whether its daemon runs and answers

examples:
  realign-launch --hostfile hostfiles/local.json up
  realign-launch --hostfile two-macs.json --install curate data/*.jsonl --model MODEL --score ifd --out runs/ifd
  realign-launch --hostfile two-macs.json --dry-run up
  realign-launch --hostfile two-macs.json --min-nodes 1 curate ...
  realign-launch --hostfile hostfiles/local.json status --json

exit codes: the command's own; 2 usage or bad hostfile; 3 nodes missing; 130 interrupted.
"""


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """The exit code of one command line."""
    try:
        options = parse(arguments)
        if _asks_for_help(options):
            return asyncio.run(run_child(command_line(options.command, str(options.hostfile or "FILE"), None)))
        hostfile = read_hostfile(options.hostfile)
        if options.dry_run:
            print("\n".join(_dry_lines(hostfile, options)))
            return 0
        return asyncio.run(_launch(hostfile, options))
    except RealignError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Options come before COMMAND, whose own arguments are not looked at; up, down and status take them after, too."""
    common = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    common.add_argument("--hostfile", type=Path, metavar="FILE", help="the cluster's hosts; see hostfiles/README.md")
    common.add_argument("--dry-run", action="store_true", help="print every command for every host; touch nothing")
    common.add_argument("--keep", action="store_true", help="leave the daemons running that were started")
    common.add_argument("--min-nodes", type=_count, metavar="N", help="go on when at least N nodes are there")
    common.add_argument(
        "--install", action="store_true", help="install this version into ~/.realign/venv of each host first"
    )
    parser = argparse.ArgumentParser(
        prog="realign-launch",
        parents=[common],
        usage="realign-launch --hostfile FILE [--dry-run] [--keep] [--min-nodes N] [--install] COMMAND ...",
        description="Bring up the daemons of a hostfile, run a command on that cluster, stop what was started.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", nargs=argparse.REMAINDER, metavar="COMMAND ...", help="what to run")
    defaults = argparse.Namespace(dry_run=False, keep=False, min_nodes=None, install=False, json=False, hostfile=None)
    options = parser.parse_args(arguments, defaults)
    if options.command[:1] == ["--"]:
        options.command = options.command[1:]
    if not options.command:
        parser.error("no COMMAND; try up, or curate --help")
    if options.command[0] in VERBS:
        verb = argparse.ArgumentParser(
            prog=f"realign-launch --hostfile FILE {options.command[0]}",
            parents=[common],
            epilog=f"example: realign-launch --hostfile hostfiles/local.json {options.command[0]} --json",
        )
        verb.add_argument("--json", action="store_true", help="standard output is JSON lines only")
        verb.parse_args(options.command[1:], options)
    elif options.command[0] not in ON_A_CLUSTER:
        known = (*ON_A_CLUSTER, *VERBS)
        near = did_you_mean(options.command[0], known)
        parser.error(f"{options.command[0]!r} is no command for a cluster, those are {', '.join(known)}{near}")
    if options.hostfile is None and not _asks_for_help(options):
        parser.error("--hostfile FILE is missing, such as --hostfile hostfiles/local.json")
    return options


def _asks_for_help(options: argparse.Namespace) -> bool:
    return options.command[0] not in VERBS and "--help" in options.command


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("it should be 1 or more")
    return number


def _dry_lines(hostfile: Hostfile, options: argparse.Namespace) -> Iterator[str]:
    verb = options.command[0]
    yield from dry_run(hostfile, verb, install=options.install, keep=options.keep)
    if verb not in VERBS:
        yield "# then, here"
        yield " ".join(command_line(options.command, str(options.hostfile), options.min_nodes))


async def _launch(hostfile: Hostfile, options: argparse.Namespace) -> int:
    if options.min_nodes is not None and options.min_nodes > len(hostfile.hosts):
        raise UsageError(
            f"--min-nodes {options.min_nodes}: {hostfile.name} has {len(hostfile.hosts)} hosts", "ask for fewer"
        )
    fleet = Fleet(hostfile, ClusterHome(), Progress())
    match options.command[0]:
        case "status":
            return _report(await fleet.status(), options, wanted="serving")
        case "down":
            return _report(await fleet.down(), options, wanted="down")
        case _:
            return await _up_and_run(fleet, options)


async def _up_and_run(fleet: Fleet, options: argparse.Namespace) -> int:
    done = False
    try:
        with _interruptible():
            outcomes = await fleet.up(install=options.install)
        missing = [outcome for outcome in outcomes if outcome.error is not None]
        needed = options.min_nodes or len(outcomes)
        enough = len(outcomes) - len(missing) >= needed
        if options.command[0] == "up":
            done = enough  # they stay, and a failed `up` leaves nothing half done
            return _report(outcomes, options, wanted="serving")
        if not enough:
            _explain(missing, len(outcomes), needed)
            return 3
        if missing:
            print(f"going on without {', '.join(outcome.host.name for outcome in missing)}", file=sys.stderr)
        return await run_child(command_line(options.command, str(options.hostfile), options.min_nodes))
    except asyncio.CancelledError:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    finally:
        if not (done or options.keep):
            await fleet.stop_started()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT and SIGTERM cancel what this task awaits, so that what was started can be stopped."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        yield
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _explain(missing: list[Outcome], total: int, needed: int) -> None:
    names = ", ".join(outcome.host.name for outcome in missing)
    print(
        f"error: {total - len(missing)} of {total} nodes are there, {needed} are needed; missing: {names}\n"
        "  fix: as said above for each; or go on with fewer: --min-nodes N",
        file=sys.stderr,
    )


def _report(outcomes: list[Outcome], options: argparse.Namespace, *, wanted: str) -> int:
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    serving = sum(outcome.described is not None for outcome in outcomes)
    needed = options.min_nodes or len(outcomes)
    enough = (serving if wanted == "serving" else len(outcomes) - len(failed)) >= needed
    if options.json:
        for outcome in outcomes:
            print(json.dumps(outcome.as_event()))
        summary = {"event": "summary", "hosts": len(outcomes), "serving": serving, "ok": enough}
        print(json.dumps({**summary, "missing": [outcome.host.name for outcome in failed]}), flush=True)
    elif options.command[0] == "status":
        for outcome in outcomes:
            print(naming_hostfile(_status_line(outcome), options.hostfile))
    if not enough and options.command[0] != "status":
        _explain(failed, len(outcomes), needed)
    return 0 if enough else 3


def _status_line(outcome: Outcome) -> str:
    host = outcome.host
    place = f"{host.name:16} {host.target:21}"
    if outcome.described is None:
        error = str(outcome.error).removeprefix(f"{host.name}: ").replace("\n", f"\n{'':39} ")
        state = "unreachable" if outcome.status is None else "silent" if outcome.status.running else "down"
        return f"{place} {state}: {error}"
    info = outcome.described.info
    holder = f"held by {info.holder.coordinator}" if info.HasField("holder") else "free"
    serves = f"serves, pid {info.pid}, {info.device.chip}, {holder}, up {info.uptime_seconds:.0f} s"
    return f"{place} {serves}"


if __name__ == "__main__":
    main()
