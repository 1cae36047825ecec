"""One rank of one generation, from its orders to its end: loads, joins, trains, and says how it went.

Owns the order of things; what each is done by lies elsewhere. An end that another try may mend is not fatal: the
coordinator starts a new generation. Must not know frames or processes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import mlx.core as mx

from realign_cluster.domain.errors import RealignError
from realign_cluster.domain.rank_report import Failed, Joined, Loaded, RankReport
from realign_cluster.rpc.versions import local_versions
from realign_cluster.scoring import device
from realign_cluster.sharding.group import WorldMismatch, free_port
from realign_cluster.store.resharding import Misfit
from realign_cluster.store.state_part import Corrupt, data_path, verify_part
from realign_cluster.training.context import Division, RankContext
from realign_cluster.training.examples import TrainingSet, load_training_set
from realign_cluster.training.finite import NotFinite
from realign_cluster.training.join import Membership, join
from realign_cluster.training.orders import Mailbox, Orders
from realign_cluster.training.parallel.choose import make_strategy
from realign_cluster.training.setup import LoadedModel, load, read_weights
from realign_cluster.training.steps import Training
from realign_cluster.training.watchdog import Watchdog
from realign_cluster.training.world_check import check_world, statement_of, world_identity

Say = Callable[[RankReport], None]


class Broken(Exception):
    """This generation cannot go on, for a reason that the next one may not meet. `code` as recovery knows it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def run_rank(orders: Orders, mailbox: Mailbox, say: Say) -> bool:
    """Whether it ended as it was asked to. Every other end is reported."""
    watch = Watchdog(say, orders.spec.limits)
    step = orders.spec.start_step
    try:
        return _run(orders, mailbox, say, watch)
    except NotFinite as error:
        say(Failed(code="not-finite", message=str(error), step=error.step, details={"rows": error.rows}))
    except (Corrupt, Misfit) as error:
        say(Failed(code="state", message=str(error), step=step, fatal=False))
    except Broken as error:
        say(Failed(code=error.code, message=str(error), step=watch.step, fatal=False))
    except WorldMismatch as error:
        say(Failed(code="world", message=str(error), step=step))
    except RealignError as error:
        say(Failed(code="job", message=str(error), step=step))
    except RuntimeError as error:  # MLX's word for a lost peer, and for a device that gave out
        together = watch.section in ("step", "reduce", "wait", "evaluate", "reference", "join", "generate")
        code = "peer" if together and orders.spec.world.size > 1 else "device"
        say(Failed(code=code, message=f"{watch.section}: {error}", step=watch.step, fatal=False))
    finally:
        watch.stop()
    return False


def _run(orders: Orders, mailbox: Mailbox, say: Say, watch: Watchdog) -> bool:
    job, spec = orders.job, orders.spec
    started = time.perf_counter()
    device.set_blas_threads(job.blas_threads or orders.cores)
    device.apply_memory_limits(device.find_memory_limit(job.memory_limit_bytes))

    def loads() -> None:
        watch.enter("load", spec.start_step)

    loads()
    loaded = load(orders.model_dir, job, loads)
    data = load_training_set(
        orders.data_dir,
        job,
        loaded.tokenizer,
        vocabulary=loaded.vocabulary,
        cache=orders.cache_dir,
        progress=loads,
    )
    if spec.world.parallel in ("single", "data"):
        read_weights(loaded.model, loads)
    for part in spec.start:
        found = verify_part(data_path(orders.state_dir, part), loads)
        if isinstance(found, Corrupt):
            raise found
        if found != part:
            raise Corrupt(data_path(orders.state_dir, part), f"it has digest {found.digest}, not {part.digest}")
    versions = _versions()
    config = world_identity(job, spec, versions)
    say(_loaded(orders, loaded, data, config, versions, time.perf_counter() - started))
    watch.enter("wait", spec.start_step)
    go = mailbox.wait_for_go()
    if go is None:
        return True
    member: Membership | None = None
    watch.enter("join", spec.start_step)
    began = time.perf_counter()
    if spec.world.size > 1:
        try:
            with watch.unattended():
                member = join(spec, go, orders.state_dir, lambda why: _lost(why, watch, say))
            check_world(member.group, spec.world.backend, statement_of(config, spec, versions))
        except RuntimeError as error:
            raise Broken("group", f"the group of generation {spec.generation} could not be made: {error}") from error
    group = member.group if member is not None else None
    loads()
    strategy = make_strategy(spec.world, loaded.model, job, group, lambda section: watch.enter(section, watch.step))
    trainable = sum(math.prod(piece.whole) for piece in strategy.pieces().values())
    say(Joined(seconds=time.perf_counter() - began, trainable=trainable))
    context = RankContext(
        orders=orders,
        model=loaded,
        data=data,
        strategy=strategy,
        group=group,
        division=Division(spec.world, spec.rank),
        mailbox=mailbox,
        say=say,
        watch=watch,
        config=config,
    )
    Training(context).run()
    if member is not None:
        member.leave()
    return True


def _lost(why: str, watch: Watchdog, say: Say) -> None:
    say(Failed(code="peer", message=f"{watch.section}: {why}", step=watch.step, fatal=False))


def _loaded(
    orders: Orders, loaded: LoadedModel, data: TrainingSet, config: str, versions: dict[str, str], seconds: float
) -> Loaded:
    return Loaded(
        port=free_port(),
        config=config,
        versions=versions,
        start_digest=orders.spec.start[0].digest if orders.spec.start else "",
        rows=data.train.rows,
        valid_rows=data.valid.rows if data.valid is not None else 0,
        truncated_rows=data.train.truncated_rows,
        empty_rows=data.train.empty_rows,
        parameters=loaded.parameters,
        seconds=seconds,
        peak_bytes=int(mx.get_peak_memory()),
    )


def _versions() -> dict[str, str]:
    found = local_versions()
    return {"project": found.project, "mlx": found.mlx, "mlx_lm": found.mlx_lm, "python": found.python}
