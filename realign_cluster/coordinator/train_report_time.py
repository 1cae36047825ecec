"""The parts of a training run's report that lie on the clock: generations, takeovers, states kept, what happened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from statistics import median

from realign_cluster.coordinator import charts
from realign_cluster.coordinator.charts import Marker, Span
from realign_cluster.coordinator.markup import legend, note, section, table, unbroken
from realign_cluster.coordinator.train_generations import PHASES, GenerationRecord, takeover
from realign_cluster.coordinator.train_history import TrainHistory
from realign_cluster.domain.rank_report import Kept

INCIDENTS_SHOWN = 200
TAKEOVERS_SHOWN = 40
TROUBLE = ' class="trouble-row"'
PHASE_STYLE = {name: f"p{at}" for at, name in enumerate(PHASES)}
PHASE_TEXT = {
    "noticed": "until it was noticed",
    "stopped": "until all ranks were gone",
    "planned": "waiting for nodes, planning",
    "fetched": "fetching states",
    "loaded": "loading",
    "joined": "joining",
    "stepped": "first step",
}


def generation_sections(history: TrainHistory, colours: Mapping[str, str]) -> str:
    return _generations(history, colours) + _takeovers(history)


def record_sections(history: TrainHistory) -> str:
    return _states(history) + _incidents(history)


def _generations(history: TrainHistory, colours: Mapping[str, str]) -> str:
    if not history.generations:
        return ""
    spans: dict[str, list[Span]] = {node: [] for node in colours}
    markers = []
    for record in history.generations:
        end = _end_of(record, history)
        ready = record.joined or end
        title = f"generation {record.number}, from step {record.start_step}"
        loading = (history.elapsed(record.started), history.elapsed(ready), f"{title}: loading and joining")
        training = (history.elapsed(ready), history.elapsed(end), f"{title}: {record.why or 'training'}")
        for node in record.nodes:
            spans[node].append(Span(begin=loading[0], end=loading[1], style="load", title=loading[2]))
            if record.joined is not None:
                spans[node].append(Span(begin=training[0], end=training[1], style=colours[node], title=training[2]))
        if record.noticed is not None:
            at = history.elapsed(record.noticed)
            markers.append(Marker(at=at, label=f"{title}: {record.why}", trouble=record.failed))
    total = max((span.end for lane in spans.values() for span in lane), default=0.0)
    drawn = charts.lanes([(node, spans[node]) for node in colours], total, markers=markers)
    rows = [
        [
            str(record.number),
            unbroken(f"{record.parallel} on {', '.join(record.nodes)}"),
            unbroken(" : ".join(f"{share:.1%}" for share in record.shares)),
            f"{record.start_step:,}",
            f"{record.last_step:,}" if record.last_step else "-",
            escape(record.why),
        ]
        for record in history.generations
    ]
    headings = [">#", "ranks", "shares at first", ">from step", ">to step", "ended by"]
    words = "Grey: loading and joining. Coloured: training. Time in which no coordinator ran is left out."
    return section("Generations of ranks", drawn + note(words) + table(headings, rows))


def _takeovers(history: TrainHistory) -> str:
    """From a rank's last word to the next generation's first step; the first start is there to compare with."""
    if len(history.generations) < 2:
        return ""
    lanes, rows = [], []
    before: GenerationRecord | None = None
    for record in history.generations[:TAKEOVERS_SHOWN]:
        phases = takeover(before, record)
        begin = phases[0].begin if phases else record.started
        spans = [
            Span(
                begin=phase.begin - begin,
                end=phase.end - begin,
                style=PHASE_STYLE[phase.name],
                title=f"{PHASE_TEXT[phase.name]}: {phase.end - phase.begin:.2f} s",
            )
            for phase in phases
        ]
        lanes.append((f"to generation {record.number}", spans))
        taken = {name: [phase.end - phase.begin for phase in phases if phase.name == name] for name in PHASES}
        rows.append(
            [
                f"to generation {record.number}" + ("" if before else " (cold start)"),
                *(f"{sum(found):.2f} s" if (found := taken[name]) else "-" for name in PHASES),
                f"<b>{phases[-1].end - begin:.2f} s</b>" if record.first_step is not None and phases else "-",
                str(_lost_before(history, record)) if before else "-",
            ]
        )
        before = record
    total = max((span.end for _, lane in lanes for span in lane), default=0.0)
    drawn = legend((PHASE_STYLE[name], PHASE_TEXT[name]) for name in PHASES) + charts.lanes(lanes, total)
    headings = ["", *(f">{name}" for name in PHASES), ">all", ">steps lost"]
    words = "Before “noticed”: since the last word of the rank that failed, so at most that long."
    return section("What taking over cost", drawn + table(headings, rows) + note(words))


def _lost_before(history: TrainHistory, record: GenerationRecord) -> int:
    """Steps that the generation before it did for nothing."""
    return sum(step.generation == record.number - 1 for step in history.lost)


def _states(history: TrainHistory) -> str:
    kinds: dict[tuple[str, str], list[Kept]] = {}
    for node, kept in history.kept:
        kinds.setdefault((kept.part.kind, node), []).append(kept)
    if not kinds:
        return ""
    rows = [
        [
            escape(kind),
            escape(node),
            f"{len(found)}",
            _spacing([kept.part.step for kept in found]),
            size_text(median(kept.part.bytes for kept in found)),
            _milliseconds([kept.seconds for kept in found]),
            _milliseconds([kept.blocked_seconds for kept in found]),
        ]
        for (kind, node), found in sorted(kinds.items())
    ]
    headings = ["state", "node", ">kept", ">steps apart", ">size", ">written in, beside the steps", ">steps held up"]
    steps = sorted(set(history.stored))
    words = f"Checkpoints in the run folder: {', '.join(f'{step:,}' for step in steps[-12:])}." if steps else ""
    return section("States kept", table(headings, rows) + note(words + " Times: the median, and the longest."))


def _spacing(steps: Sequence[int]) -> str:
    apart = [after - before for before, after in pairwise(steps) if after > before]
    return f"{median(apart):.0f}" if apart else "-"


def _milliseconds(seconds: Sequence[float]) -> str:
    return f"{median(seconds) * 1e3:.1f} ms, {max(seconds) * 1e3:.1f} ms"


def size_text(size: float) -> str:
    """`840 kB`, `42.1 MB`, `3.2 GB`."""
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _incidents(history: TrainHistory) -> str:
    shown = history.incidents[-INCIDENTS_SHOWN:]
    rows = "".join(
        f"<tr{TROUBLE if incident.trouble else ''}>"
        f'<td class="r narrow">{charts.clock(round(history.elapsed(incident.wall), 1))}</td>'
        f"<td>{escape(incident.text)}</td></tr>"
        for incident in shown
    )
    if not rows:
        return ""
    left_out = len(history.incidents) - len(shown)
    words = f"{left_out:,} older lines are left out: they are in events.jsonl." if left_out else ""
    head = '<tr><th class="r narrow">after</th><th>what</th></tr>'
    return section("What happened", f'<div class="scroll"><table>{head}{rows}</table></div>{note(words)}')


def _end_of(record: GenerationRecord, history: TrainHistory) -> float:
    """When it trained no more, or was last heard of."""
    last = max((step.wall for step in (*history.steps, *history.lost) if step.generation == record.number), default=0.0)
    return max(record.over or last, record.joined or record.started)
