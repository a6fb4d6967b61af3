"""How much prompt a step may carry beside running answers, and how fast the runner is: learnt from finished steps.

A step with prompt tokens beside k running answers takes about quiet(k) + fixed + slope x tokens: the prompt's tokens
are computed in a pass of their own (fixed), and each has its price (slope). Every eighth dose is as small as can be
and so measures the fixed part; the others measure the slope.

Doses are dear: a prompt token costs several times what it does in bulk. So a prompt that is soon done comes in at once,
for answers that ran undisturbed have time to give (a burst); and where more prompts wait than answers run, they get
more of a step.
"""

from __future__ import annotations

from math import exp

STRETCH = 2.4       # a step beside running answers may take this many times what it takes without prompt tokens
BLEND = 0.3         # weight of the newest measurement
PROBE_ROOM = 1      # prompt tokens of a dose that measures the fixed part
LEAST_ROOM = 3      # of any other: a prompt always gets on
UNKNOWN_ROOM = 8    # of one before anything was measured
AMORTISED_ROOM = 16  # at most, where the fixed part alone stretches a step too far: as many tokens as add
AMORTISED = 0.25    # of it
PROBE = 8           # of so many doses one measures the fixed part
REMEASURE = 16      # doses in a row, after which a step goes without: what is quiet changes as answers grow
BURST = 0.5         # seconds that answers may have to give, at most, to prompts that are done by then
SPAN = 1.0          # seconds that a step without answers takes at most: then a cancel is heard, and progress shows
FIRST_ROOM = 16     # prompt tokens of the first such step
LEAST_ALONE = 8     # of any
SPARE = 0.1         # seconds that a step takes at most which only prepares: whoever comes meanwhile waits for it
WINDOW = 5.0        # seconds of work after which a step counts little for `tokens_per_second`


class Pace:
    """Measurements of one runner. All durations are seconds of whole steps (decode, sampling, text)."""

    def __init__(self, budget: int, least: int = 1) -> None:
        """`least`: prompt tokens below which a step without answers would pay much more for each."""
        self.budget = budget                    # tokens that one batch may carry
        self._least = max(LEAST_ALONE, least)
        self._alone = float(FIRST_ROOM)         # prompt tokens that a step without answers computes within SPAN
        self._quiet: dict[int, float] = {}      # running answers in a step -> seconds of a step with nothing else
        self._doses = 0                         # steps with prompt tokens since the last without
        self._fixed: float | None = None        # seconds that any prompt tokens add to a step beside answers
        self._slope: float | None = None        # seconds that each adds
        self._credit = BURST                    # seconds that answers have to give
        self._large = False                     # whether the step is more than a dose
        self._request = 0.0                     # seconds from slot to end
        self._seconds = self._sampled = 0.0     # of recent steps, older ones fading

    def room(self, decoding: int, prompts: int = 1, wanted: int = 1 << 30) -> int:
        """Prompt tokens that the next step may carry beside `decoding` rows of running answers, where so many prompts
        want so many tokens."""
        free, price = self.budget - decoding, SPAN / self._alone
        self._large = False
        if not decoding:
            return min(free, max(self._least, int(self._alone)))
        if wanted * price <= self._credit:
            self._large = True
            return min(free, wanted)
        if self._doses >= REMEASURE:
            return 0
        quiet = self._quiet_for(decoding)
        dose = self._dose(quiet)
        crowd = int(min(BURST, (STRETCH - 1) * quiet * (prompts / decoding) ** 2) / price)
        if prompts > decoding and crowd > dose:
            self._large, dose = True, crowd
        return min(free, dose)

    def spare_room(self) -> int:
        """Prompt tokens of a step that only prepares what may be asked for later."""
        return min(self.budget, max(self._least, int(self._alone * SPARE / SPAN)))

    def _dose(self, quiet: float) -> int:
        if self._doses % PROBE == 0:
            return PROBE_ROOM
        if self._fixed is None or self._slope is None:
            return UNKNOWN_ROOM
        spare = (STRETCH - 1) * quiet - self._fixed
        dose = spare / self._slope if spare > 0 else min(AMORTISED_ROOM, AMORTISED * self._fixed / self._slope)
        return max(LEAST_ROOM, int(dose))

    def step_done(self, seconds: float, decoding: int, prompt_tokens: int, sampled: int) -> None:
        fade = exp(-seconds / WINDOW)
        self._seconds, self._sampled = self._seconds * fade + seconds, self._sampled * fade + sampled
        self._doses = self._doses + 1 if prompt_tokens else 0
        if decoding and not prompt_tokens:
            self._quiet[decoding] = _blend(self._quiet.get(decoding), seconds)
            self._credit = min(BURST, self._credit + (STRETCH - 1) * seconds)
        elif prompt_tokens:
            extra = max(0.0, seconds - self._quiet_for(decoding))
            self._credit = max(0.0, self._credit - extra) if self._large else 0.0
            if not self._large:
                self._learn(extra, prompt_tokens, alone=not decoding)
            if not decoding:
                self._credit = BURST
                self._learn_span(prompt_tokens * SPAN / max(seconds, 1e-9), overrun=seconds > SPAN)

    def _learn(self, extra: float, tokens: int, alone: bool) -> None:
        """What `tokens` prompt tokens added to a step. Alone in it they only give a first idea of the slope."""
        slope = max(extra - (self._fixed or 0.0), extra / 10, 1e-9) / tokens
        if alone:
            self._slope = self._slope or slope
        elif tokens <= PROBE_ROOM:
            self._fixed = _blend(self._fixed, extra)
        else:
            self._slope = _blend(self._slope, slope)

    def _learn_span(self, fits: float, overrun: bool) -> None:
        """A step without answers was such that `fits` prompt tokens fit into SPAN. One of few tokens pays a step's
        fixed price for them, so it says no more than that at least `fits` do; one that took too long knows better."""
        self._alone = fits if overrun else max(self._alone, fits)

    def request_done(self, seconds: float) -> None:
        self._request = _blend(self._request or None, seconds)

    def wait(self, position: int, slots: int) -> float:
        """Seconds until the one at `position` (1: the next) of the queue may have a slot, by the time requests take."""
        return self._request * position / slots

    def retry_after(self, waiting: int, slots: int) -> float:
        """Seconds until a place in a queue of `waiting` may be free, 1 to 60."""
        return min(60.0, max(1.0, self.wait(max(1, waiting), slots)))

    @property
    def tokens_per_second(self) -> float:
        return self._sampled / self._seconds if self._seconds else 0.0

    def _quiet_for(self, decoding: int) -> float:
        """Seconds of a step with `decoding` answers alone; from the nearest smaller number measured, 0 when none."""
        known = [count for count in self._quiet if count <= decoding]
        return self._quiet[max(known)] if known else 0.0


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + BLEND * (new - old)
