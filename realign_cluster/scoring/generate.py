"""Texts from prompts: prompts prefilled together, each once for all its samples; then a token at a time for all that
are not done, over mlx-lm's batched caches.

What is drawn follows from the prompt, the sample's own numbers (`draw`) and the model; `one_by_one` computes every
prompt with its samples alone, so that not even rounding depends on what is near. Knows mlx-lm's caches; must not know
rows, kinds or jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import KVCache, RotatingKVCache

from realign_cluster.domain.batching import UNIT_SEQUENCES
from realign_cluster.domain.job import Sampling
from realign_cluster.scoring.draw import Drawn, Floats, draw, draw_on_cpu, uniforms
from realign_cluster.scoring.forward import LOG_PROBABILITIES, Shape, Work
from realign_cluster.scoring.head import SplitModel
from realign_cluster.scoring.sample import Draft, Finish, Sample
from realign_cluster.scoring.text import TextDecoder

TAKE_PADDING = (KVCache, RotatingKVCache)  # others (recurrent states) would remember it: prompts go in one by one
SEQUENCES = 2 * UNIT_SEQUENCES  # at once at most, where memory takes them: whole units go in one batch


@dataclass(slots=True, kw_only=True)
class _Sequence:
    """One sample under way."""

    prompt: tuple[int, ...]
    numbers: Floats
    ids: list[int] = field(default_factory=list)
    logprob_sum: float = 0.0
    finish: Finish = "length"
    text: str | None = None  # cut at a stop text


class Generator:
    """Draws from one model. `tokens`: that a batch's caches may hold. `shape`: as for scoring, of the prefill."""

    def __init__(
        self,
        split: SplitModel,
        decoder: TextDecoder,
        sampling: Sampling,
        *,
        ends: Iterable[int],
        tokens: int,
        shape: Shape,
        on_cpu: bool,
        one_by_one: bool,
    ) -> None:
        self.sampling = sampling
        self._split = split
        self._decoder = decoder
        self._ends = frozenset(ends)
        self._tokens = tokens
        self._shape = shape
        self._on_cpu = on_cpu
        self._one_by_one = one_by_one

    def sampling_as(self, sampling: Sampling) -> Generator:
        """The same model and device, sampled otherwise."""
        other = copy(self)
        other.sampling = sampling
        other._decoder = self._decoder.stopping_at(sampling.stop)
        return other

    def run(self, drafts: Sequence[Draft], work: Work, progress: Callable[[], None]) -> list[list[Sample]]:
        """The samples of each draft, in order. `progress` is called after each token of a batch."""
        found: list[list[Sample]] = [[] for _ in drafts]
        for batch in self._batches(drafts):
            waiting = [
                (at, _Sequence(prompt=drafts[at].prompt, numbers=self._numbers(drafts[at], sample)))
                for at, sample in batch
            ]
            self._run_batch([sequence for _, sequence in waiting], work, progress)
            for at, sequence in waiting:
                found[at].append(self._sample(sequence))
        return found

    def replay(self, answers: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Floats]:
        """Log-probabilities (nats) of the tokens of given answers to prompts, all in one batch, a token at a time as
        when they are drawn. What another way of computing gives for them is what it can be checked by.
        """
        longest = max(len(answer) for _, answer in answers)
        found = np.zeros((longest, len(answers)), dtype=np.float32)
        rows = np.arange(len(answers), dtype=np.int32)
        cache = self._prefill([tuple(prompt) for prompt, _ in answers], Work(), lambda: None)
        tokens = mx.array([prompt[-1] for prompt, _ in answers], dtype=mx.int32)
        for at in range(longest):
            logits = self._split.logits(self._split.hidden(tokens[:, None], cache)[:, -1])
            given = np.array([answer[at] if at < len(answer) else 0 for _, answer in answers], dtype=np.int32)
            valuation = LOG_PROBABILITIES.on_cpu if self._on_cpu else LOG_PROBABILITIES.on_device
            found[at] = np.array(valuation(logits, rows, given))
            tokens = mx.array(given)
        return [found[: len(answer), row] for row, (_, answer) in enumerate(answers)]

    def _numbers(self, draft: Draft, sample: int) -> Floats:
        return uniforms(draft.seed, sample, self.sampling.max_new_tokens)

    def _batches(self, drafts: Sequence[Draft]) -> Iterable[list[tuple[int, int]]]:
        """(draft, number of the sample), longest prompts first, as many as fit; a prompt's samples together."""
        order = sorted(range(len(drafts)), key=lambda at: (-len(drafts[at].prompt), drafts[at].prompt))
        batch: list[tuple[int, int]] = []
        room = 0
        for at in order:
            for sample in range(self.sampling.samples):
                alone = self._one_by_one and sample == 0
                if batch and (alone or len(batch) >= room):
                    yield batch
                    batch = []
                if not batch:
                    longest = len(drafts[at].prompt) + self.sampling.max_new_tokens
                    room = max(1, min(SEQUENCES, self._tokens // longest))
                batch.append((at, sample))
        if batch:
            yield batch

    def _run_batch(self, active: list[_Sequence], work: Work, progress: Callable[[], None]) -> None:
        prompts = list(dict.fromkeys(sequence.prompt for sequence in active))
        cache = self._prefill(prompts, work, progress, alone=len(active) == 1)
        place = {prompt: at for at, prompt in enumerate(prompts)}
        if len(active) > len(prompts):
            _keep(cache, [place[sequence.prompt] for sequence in active])
        last = mx.array([sequence.prompt[-1] for sequence in active], dtype=mx.int32)
        drawn = self._step(last, cache, active, 0)
        at = 0
        while active:
            at += 1
            more = at < self.sampling.max_new_tokens
            following = None
            if more and not self._on_cpu:  # the device goes on while tokens are looked at
                following = self._step(drawn.tokens, cache, active, at)
            going = self._take(active, drawn)
            work.tokens += len(active)
            work.padded += len(active)
            progress()
            if not more:
                return
            if len(going) < len(active):
                active = [active[row] for row in going]
                if not active:
                    return
                _keep(cache, going)
                drawn = _rows(drawn, going)
                following = None if following is None else _rows(following, going)
            drawn = following or self._step(drawn.tokens, cache, active, at)

    def _prefill(
        self, prompts: Sequence[tuple[int, ...]], work: Work, progress: Callable[[], None], *, alone: bool = False
    ) -> list[Any]:
        """Caches of all tokens of the prompts but the last, one row each. `alone`: of one prompt for one sequence, a
        plain cache, which needs no mask.
        """
        layers = [self._split.make_cache() for _ in prompts]
        if alone:
            self._fill(layers[0], [prompts[0][:-1]], work, progress)
            return layers[0]
        if not all(type(layer) in TAKE_PADDING for layer in layers[0]):
            for prompt, own in zip(prompts, layers, strict=True):
                self._fill(own, [prompt[:-1]], work, progress)
            return [layer[0].merge(list(layer)) for layer in zip(*layers, strict=True)]
        cache = [layer[0].merge(list(layer)) for layer in zip(*layers, strict=True)]
        lengths = [len(prompt) - 1 for prompt in prompts]
        uneven = min(lengths) < max(lengths)
        if uneven:
            for layer in cache:
                layer.prepare(lengths=lengths, right_padding=[max(lengths) - length for length in lengths])
        self._fill(cache, [prompt[:-1] for prompt in prompts], work, progress)
        if uneven:
            for layer in cache:
                layer.finalize()
        return cache

    def _fill(
        self, cache: list[Any], prompts: Sequence[tuple[int, ...]], work: Work, progress: Callable[[], None]
    ) -> None:
        """Runs the prompts through the model, zeros at the end of the shorter ones."""
        longest = max(map(len, prompts))
        work.shapes[len(prompts), longest + 1] += 1
        work.tokens += sum(map(len, prompts))
        work.padded += len(prompts) * longest
        tokens = np.zeros((len(prompts), longest), dtype=np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)] = prompt
        chunk = self._shape.chunk
        if len(prompts) > 1:
            chunk = max(1, min(chunk, self._shape.batch_tokens // len(prompts)))
        for start in range(0, longest, chunk):
            with self._split.kernels() if self._on_cpu else nullcontext():
                self._split.hidden(mx.array(tokens[:, start : start + chunk]), cache)
                mx.eval([layer.state for layer in cache])
            progress()

    def _step(self, tokens: Any, cache: list[Any], active: Sequence[_Sequence], at: int) -> Drawn:
        alone = len(active) == 1  # then our kernels cost more than they save
        with self._split.kernels() if self._on_cpu and not alone else nullcontext():
            hidden = self._split.hidden(mx.array(tokens)[:, None], cache)
        logits = self._split.logits(hidden[:, -1])
        numbers = np.array([sequence.numbers[at] for sequence in active], dtype=np.float32)
        if self._on_cpu:
            return draw_on_cpu(logits, numbers, self.sampling)
        drawn = draw(logits, numbers, self.sampling)
        mx.async_eval(drawn.tokens, drawn.logprobs)  # type: ignore[no-untyped-call]
        return drawn

    def _take(self, active: Sequence[_Sequence], drawn: Drawn) -> list[int]:
        """Adds a token to each; which of them go on."""
        tokens, logprobs = np.array(drawn.tokens).tolist(), np.array(drawn.logprobs).tolist()
        going = []
        for row, (sequence, token, logprob) in enumerate(zip(active, tokens, logprobs, strict=True)):
            if token in self._ends:
                sequence.finish = "stop"
                continue
            sequence.ids.append(token)
            sequence.logprob_sum += logprob
            sequence.text = self._decoder.text_before_stop(sequence.prompt, sequence.ids)
            if sequence.text is not None:
                sequence.finish = "stop"
            else:
                going.append(row)
        return going

    def _sample(self, sequence: _Sequence) -> Sample:
        text = sequence.text
        return Sample(
            text=self._decoder.text(sequence.prompt, sequence.ids) if text is None else text,
            tokens=len(sequence.ids),
            finish=sequence.finish,
            logprob_sum=sequence.logprob_sum,
        )


def _keep(cache: Iterable[Any], rows: list[int]) -> None:
    for layer in cache:
        layer.filter(rows)


def _rows(drawn: Drawn, rows: list[int]) -> Drawn:
    at = mx.array(rows) if isinstance(drawn.tokens, mx.array) else rows
    return Drawn(drawn.tokens[at], drawn.logprobs[at])
